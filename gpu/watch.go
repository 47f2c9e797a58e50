package gpu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Change is what has come or gone since the last look. A container is never told from it what it may have: that is looked
// up when it asks. It warms the discovery, so that the first container with a GPU need not wait for it, and
// tells the administrator.
type Change struct {
	Added   []string          // names of devices, one of each
	Removed map[string][]Node // names to the nodes that a container may still have
	// Driver is NVIDIA's version where that has changed; "none" is an unloaded one.
	Driver   string
	Problems []Problem // of the driver, where it has changed or devices have come
	Err      error     // of the look; the other fields are empty then
}

// Delays of a look after an event: a driver that is loaded sends many, and the nodes in /dev follow.
const (
	watchQuiet = 200 * time.Millisecond // without another event
	watchMost  = 2 * time.Second        // after the first
)

// watchedDirs are where nodes of devices come and go.
var watchedDirs = []string{
	"/dev", "/dev/dri", "/dev/accel", "/dev/habanalabs", "/dev/infiniband", "/dev/vfio", "/dev/nvidia-caps", "/dev/nvidia-caps-imex-channels",
}

// Watch looks for devices now and whenever the kernel says that some may have come or gone, and reports what has
// changed, until ctx ends. Its errors are that nothing can be watched, and of one of the two sources alone, by warn.
func (r *Registry) Watch(ctx context.Context, report func(Change), warn func(error)) error {
	due := make(chan struct{}, 1)
	notify := func() {
		select {
		case due <- struct{}{}:
		default:
		}
	}
	var sources sync.WaitGroup
	defer sources.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, eventsErr := sys.OpenUevents()
	if eventsErr == nil {
		defer context.AfterFunc(ctx, func() { events.Close() })()
		sources.Go(func() { followUevents(events, notify, warn) })
		defer events.Close()
	}
	dirs, dirsErr := sys.WatchDirs()
	if dirsErr == nil {
		defer context.AfterFunc(ctx, func() { dirs.Close() })()
		dirsErr = dirs.Add(filepath.Join(r.cfg.DeviceRoot, "/dev"))
		sources.Go(func() { followDirs(dirs, notify, warn) })
		defer dirs.Close()
	}
	switch {
	case eventsErr != nil && dirsErr != nil:
		return errors.Join(eventsErr, dirsErr)
	case eventsErr != nil:
		warn(eventsErr)
	case dirsErr != nil:
		warn(dirsErr)
	}
	known := &inventory{devices: map[string][]Node{}}
	for {
		for _, dir := range watchedDirs {
			if dirsErr == nil {
				_ = dirs.Add(filepath.Join(r.cfg.DeviceRoot, dir)) // one that is not there comes as an event of /dev
			}
		}
		now, problems, err := r.inventory()
		if err != nil {
			report(Change{Err: err})
		} else {
			if c, ok := known.change(now, problems); ok {
				report(c)
			}
			known = now
		}
		if !settle(ctx, due) {
			return nil
		}
	}
}

// settle waits for an event and then until there are no more for a while; false where ctx has ended.
func settle(ctx context.Context, due <-chan struct{}) bool {
	select {
	case <-due:
	case <-ctx.Done():
		return false
	}
	most := time.After(watchMost)
	for {
		select {
		case <-due:
		case <-time.After(watchQuiet):
			return true
		case <-most:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

func followUevents(events *sys.Uevents, notify func(), warn func(error)) {
	for {
		b, err := events.Next()
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case errors.Is(err, sys.ErrEventsLost):
			notify()
		case err != nil:
			warn(fmt.Errorf("events of the kernel: %w", err))
			return
		case ueventMatters(b):
			notify()
		}
	}
}

func followDirs(dirs *sys.DirWatch, notify func(), warn func(error)) {
	for {
		err := dirs.Next()
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			warn(fmt.Errorf("watch /dev: %w", err))
			return
		}
		notify()
	}
}

// watchedSubsystems are those whose devices have CDI names here.
var watchedSubsystems = []string{"drm", "accel", "habanalabs", "infiniband", "infiniband_verbs", "infiniband_mad", "vfio", "kfd"}

// ueventMatters says whether devices that are found here may have come or gone by an event of the kernel.
func ueventMatters(b []byte) bool {
	var action, subsystem, devpath string
	for field := range bytes.SplitSeq(b, []byte{0}) {
		k, v, _ := strings.Cut(string(field), "=")
		switch k {
		case "ACTION":
			action = v
		case "SUBSYSTEM":
			subsystem = v
		case "DEVPATH":
			devpath = v
		}
	}
	switch {
	case slices.Contains(watchedSubsystems, subsystem):
		return action != "change" // of a display's connector
	case subsystem == "module":
		return strings.HasPrefix(devpath, "/module/nvidia")
	case subsystem == "pci":
		return action == "bind" || action == "unbind" || action == "remove" // a driver has taken it, or lost it
	}
	return strings.HasPrefix(subsystem, "nvidia")
}

// inventory is what there is at one moment.
type inventory struct {
	driver  string
	devices map[string][]Node // by the first name of each; NVIDIA's by UUID, as indices move
}

func (r *Registry) inventory() (*inventory, []Problem, error) {
	out := &inventory{devices: map[string][]Node{}}
	n, d, err := r.findNVIDIA()
	if err != nil {
		return nil, nil, err
	}
	var problems []Problem
	if n != nil {
		out.driver = n.Version
		problems = driverProblems(n, d)
		for _, g := range n.GPUs {
			id := g.UUID
			if id == "" {
				id = g.PCI
			}
			out.devices[KindNVIDIA+"="+id] = []Node{g.Node}
			for _, m := range g.MIG {
				out.devices[fmt.Sprintf("%s=%d:%d", KindNVIDIA, g.Index, m.Index)] = m.Nodes
			}
		}
		for _, c := range n.Channels {
			out.devices[fmt.Sprintf("%s=%d", KindIMEX, c.Number)] = []Node{c.Node}
		}
	}
	for _, o := range discoverOthers(r.cfg.DeviceRoot) {
		name := o.Names[0]
		if o.PCI != "" && o.Kind != KindVFIO {
			name = o.PCI // numbers move too
		}
		out.devices[o.Kind+"="+name] = o.Nodes
	}
	return out, problems, nil
}

// change is what makes now of the inventory before; false for nothing.
func (was *inventory) change(now *inventory, problems []Problem) (Change, bool) {
	c := Change{Removed: map[string][]Node{}}
	for _, name := range slices.Sorted(maps.Keys(now.devices)) {
		if _, old := was.devices[name]; !old {
			c.Added = append(c.Added, name)
		}
	}
	for name, nodes := range was.devices {
		if _, still := now.devices[name]; !still {
			c.Removed[name] = nodes
		}
	}
	if was.driver != now.driver {
		c.Driver = now.driver
		if c.Driver == "" {
			c.Driver = "none"
		}
	}
	if c.Driver != "" || len(c.Added) > 0 {
		c.Problems = problems
	}
	return c, len(c.Added) > 0 || len(c.Removed) > 0 || c.Driver != ""
}
