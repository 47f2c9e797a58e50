// Package apparmor makes the AppArmor profile that runtime/default stands for and loads it into the kernel. It is a package
// of its own because it starts a program (apparmor_parser), which nothing on the way of a container may.
package apparmor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"time"

	"github.com/moby/profiles/apparmor"
)

// DefaultName is the profile that this package makes: Moby's, which denies mounts and writes to most of /proc and /sys.
const DefaultName = "cri-shim-default"

// loadTimeout bounds apparmor_parser: it compiles for half a second on a slow machine.
const loadTimeout = 30 * time.Second

// ErrMissing says that the node has no profile of that name and that it could not be made.
var ErrMissing = errors.New("AppArmor profile is not loaded")

// Enabled says whether the kernel confines by AppArmor.
func Enabled() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	return err == nil && len(b) > 0 && b[0] == 'Y'
}

// Ensure returns nil when a profile of that name is loaded. It makes and loads DefaultName; any other must be there. The
// error matches ErrMissing and says what would help.
func Ensure(ctx context.Context, name string) error {
	loaded, err := apparmor.IsLoaded(name)
	if err != nil {
		why := err
		if errors.Is(err, fs.ErrNotExist) {
			why = fmt.Errorf("securityfs is not mounted: %w", err)
		}
		return fmt.Errorf("%w: %q: %w", ErrMissing, name, why)
	}
	switch {
	case loaded:
		return nil
	case name != DefaultName:
		return fmt.Errorf("%w: %q (load it with apparmor_parser -r FILE)", ErrMissing, name)
	}
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		return fmt.Errorf("%w: %q cannot be loaded without apparmor_parser (Debian's package apparmor): %w", ErrMissing, name, err)
	}
	return load(ctx, name)
}

// load gives up waiting after loadTimeout; what the parser does later does no harm.
func load(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, loadTimeout, fmt.Errorf("apparmor_parser takes longer than %v", loadTimeout))
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- apparmor.InstallDefault(name) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: load %q: %w", ErrMissing, name, err)
	}
	return nil
}
