// Command cri-shim-supervisor holds the processes of some pods for the daemon,
// which starts it with a listening socket as descriptor 3 and the init program as 4.
// Its arguments are the name of the init's build, and cgroup.procs files of the cgroup that it is to live in.
package main

import (
	"errors"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/cri-shim/cri-shim/internal/version"
	"github.com/cri-shim/cri-shim/sandbox/supervisor"
)

// memoryLimit is where the garbage collector stops trading memory for time.
const memoryLimit = 8 << 20

func main() {
	debug.SetMemoryLimit(memoryLimit)
	debug.SetGCPercent(50)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(log); err != nil {
		log.Error("supervisor ends", "err", err)
		os.Exit(1)
	}
}

func run(log *slog.Logger) error {
	// Executed from a descriptor, the process would be called by its number.
	if err := os.WriteFile("/proc/self/comm", []byte("cri-shim-superv"), 0); err != nil {
		return err
	}
	if len(os.Args) < 2 {
		return errors.New("it is started by cri-shim, with arguments")
	}
	for _, procs := range os.Args[2:] {
		if err := os.WriteFile(procs, []byte("0"), 0); err != nil {
			return err
		}
	}
	return supervisor.Run(supervisor.Config{
		Listener: os.NewFile(3, "listener"),
		Init:     os.NewFile(4, "init"),
		InitID:   os.Args[1],
		Release:  version.Version(),
		Log:      log,
	})
}
