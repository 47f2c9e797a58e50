// Package sys is where the program meets the kernel: thin wrappers over system calls that the standard
// library lacks. No other package but oci/initproc imports golang.org/x/sys/unix, so what depends on a
// kernel version is found here.
package sys
