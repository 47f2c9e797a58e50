// Command cri-shim-classes reads the administrator's classes of cache and memory bandwidth, or of block I/O. It is a
// program of its own, which the daemon runs once where such a file is configured: the library with the classes brings
// more than a megabyte that would stay in the daemon's memory on every node.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/intel/goresctrl/pkg/blockio"
	"github.com/intel/goresctrl/pkg/rdt"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func main() {
	out, err := run(os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) (any, error) {
	if len(args) != 2 {
		return nil, fmt.Errorf("usage: cri-shim-classes rdt|blockio FILE")
	}
	switch args[0] {
	case "rdt":
		return makeRDT(args[1])
	case "blockio":
		return readBlockio(args[1])
	}
	return nil, fmt.Errorf("%q is not rdt or blockio", args[0])
}

// makeRDT makes the classes in resctrl and returns their names.
func makeRDT(file string) ([]string, error) {
	if err := rdt.Initialize(""); err != nil {
		return nil, err
	}
	if err := rdt.SetConfigFromFile(file, true); err != nil {
		return nil, err
	}
	names := []string{}
	for _, c := range rdt.GetClasses() {
		names = append(names, c.Name())
	}
	return names, nil
}

// readBlockio returns the limits of each class, for the block devices that are there now.
func readBlockio(file string) (map[string]*specs.LinuxBlockIO, error) {
	if err := blockio.SetConfigFromFile(file, true); err != nil {
		return nil, err
	}
	out := map[string]*specs.LinuxBlockIO{}
	for _, name := range blockio.GetClasses() {
		limits, err := blockio.OciLinuxBlockIO(name)
		if err != nil {
			return nil, fmt.Errorf("class %s: %w", name, err)
		}
		out[name] = limits
	}
	return out, nil
}
