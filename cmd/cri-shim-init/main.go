// The init uses one thread: reading the CPU limit from the cgroup at start, and
// keeping files of it open, is for nothing.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command cri-shim-init is the first process of a container: see package initproc.
package main

import "github.com/cri-shim/cri-shim/oci/initproc"

func main() { initproc.Main() }
