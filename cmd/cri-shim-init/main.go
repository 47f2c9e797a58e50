// Command cri-shim-init is the first process of a container: see package initproc.
package main

import "github.com/cri-shim/cri-shim/oci/initproc"

func main() { initproc.Main() }
