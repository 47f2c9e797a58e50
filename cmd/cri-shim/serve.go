package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/version"
)

// node is everything behind the services.
type node struct {
	services cri.Options
	// close lets go of everything; pods go on running.
	close func() error
}

// assembler makes a node.
type assembler func(ctx context.Context, cfg *config.Config, log *slog.Logger) (*node, error)

// serve runs the daemon until ctx ends, and nil if that is what ended it.
func serve(ctx context.Context, cfg *config.Config, log *slog.Logger, assemble assembler) (err error) {
	start := time.Now()
	locks, err := lockFolders(cfg.Root, cfg.State)
	defer closeFiles(locks)
	if err != nil {
		return err
	}
	// Before the node is assembled, so that a socket in use costs nothing.
	l, err := listen(cfg.Listen)
	if err != nil {
		return err
	}
	defer l.Close()
	n, err := assemble(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	n.services.Log = log
	n.services.Ending = ctx.Done()
	log.Info("serving", "version", version.Version(), "listen", cfg.Listen, "root", cfg.Root, "took", time.Since(start).Round(time.Microsecond))
	return serveUntil(ctx, l, cri.NewServer(n.services), cfg.DrainTimeout.Duration, n.services.Runtime, log)
}

// serveUntil serves l until ctx ends, tells systemd, and lets running calls end for drain.
func serveUntil(ctx context.Context, l net.Listener, s *grpc.Server, drain time.Duration, r cri.Runtime, log *slog.Logger) error {
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(l) }()
	stopWatchdog := notifyReady(ctx, r, log)
	defer stopWatchdog()
	select {
	case err := <-failed:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	notifyStopping(log)
	begin := time.Now()
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	cri.Stop(bounded, s)
	if bounded.Err() != nil {
		log.Warn("calls were cut off", "after", drain)
	}
	log.Info("stopped", "took", time.Since(begin).Round(time.Millisecond))
	return nil
}

// lockFolders makes the daemon's folders and keeps every other daemon out of them.
func lockFolders(root, state string) ([]*os.File, error) {
	var locks []*os.File
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{{root, 0o700}, {state, 0o711}} {
		if err := os.MkdirAll(dir.path, dir.mode); err != nil {
			return locks, err
		}
		if err := checkOwner(dir.path); err != nil {
			return locks, err
		}
		f, err := lockFolder(dir.path)
		if err != nil {
			return locks, err
		}
		locks = append(locks, f)
	}
	return locks, nil
}

// checkOwner refuses a folder in which others can rename what is root's: records say what runs as root.
func checkOwner(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := fi.Sys().(*syscall.Stat_t).Uid
	switch {
	case int(owner) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, who could have anything run as root: it has to belong to root", dir, owner)
	case fi.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s can be written to by others (mode %04o), who could have anything run as root: chmod go-w %[1]s", dir, fi.Mode().Perm())
	}
	return nil
}

// lockPatience is how long a lock may outlive the daemon that held it: a child that was forked as the daemon was
// killed has the lock until it executes its program.
const lockPatience = 5 * time.Second

func lockFolder(dir string) (*os.File, error) {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(5 * time.Millisecond) {
		f, err := sys.LockFile(filepath.Join(dir, "lock"))
		locked := (*sys.LockedError)(nil)
		if !errors.As(err, &locked) {
			return f, err
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", locked.PID)); err == nil || time.Now().After(deadline) {
			return nil, fmt.Errorf("another cri-shim (process %d) uses %s: stop it, or give this one a folder of its own", locked.PID, dir)
		}
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
