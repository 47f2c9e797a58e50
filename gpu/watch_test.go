package gpu

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/testtools"
)

// event is what the kernel sends.
func event(action, devpath, subsystem string) string {
	return strings.Join([]string{action + "@" + devpath, "ACTION=" + action, "DEVPATH=" + devpath, "SUBSYSTEM=" + subsystem, "SEQNUM=1", ""}, "\x00")
}

func TestUeventMatters(t *testing.T) {
	for e, want := range map[string]bool{
		event("add", "/module/nvidia", "module"):                                   true,
		event("remove", "/module/nvidia_uvm", "module"):                            true,
		event("add", "/module/dummy", "module"):                                    false,
		event("add", "/devices/pci0000:00/0000:00:02.0/drm/card0", "drm"):          true,
		event("change", "/devices/pci0000:00/0000:00:02.0/drm/card0", "drm"):       false,
		event("bind", "/devices/pci0000:00/0000:17:00.0", "pci"):                   true,
		event("unbind", "/devices/pci0000:00/0000:17:00.0", "pci"):                 true,
		event("add", "/devices/pci0000:00/0000:17:00.0", "pci"):                    false,
		event("add", "/devices/virtual/vfio/9", "vfio"):                            true,
		event("add", "/devices/pci0000:00/0000:1/infiniband/mlx5_0", "infiniband"): true,
		event("add", "/devices/pci0000:00/0000:1/net/eth0", "net"):                 false,
		event("add", "/devices/virtual/block/loop0", "block"):                      false,
		"": false, "\x00\x00=": false,
	} {
		if got := ueventMatters([]byte(e)); got != want {
			t.Errorf("ueventMatters(%q) = %t; want %t", e, got, want)
		}
	}
}

func FuzzUevent(f *testing.F) {
	f.Add([]byte(event("add", "/module/nvidia", "module")))
	f.Add([]byte("libudev\x00\xfe\xed\xca\xfe"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if ueventMatters(b) && !strings.Contains(string(b), "SUBSYSTEM=") {
			t.Errorf("%q matters", b)
		}
	})
}

// TestWatch: what comes and goes in /dev is reported, and a driver that the kernel tells of.
func TestWatch(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes device nodes and a network namespace")
	}
	r, root := fakeNode(t)
	proc := filepath.Join(root, "proc/driver")
	if err := os.Rename(proc, proc+".unloaded"); err != nil {
		t.Fatal(err)
	}
	changes, done, thread := make(chan Change, 10), make(chan error, 1), make(chan int, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		runtime.LockOSThread() // a thread with another network namespace is thrown away
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		thread <- syscall.Gettid()
		if err == nil {
			err = r.Watch(ctx, func(c Change) { changes <- c }, func(err error) { t.Errorf("warning: %v", err) })
		}
		done <- err
	}()
	netns := fmt.Sprintf("/proc/self/task/%d/ns/net", <-thread)
	send := func(e string) {
		t.Helper()
		if err := sys.WithNetns(netns, func() error { return sys.SendUevent(e) }); err != nil {
			t.Fatal(err)
		}
	}
	next := func(when string) Change {
		t.Helper()
		select {
		case c := <-changes:
			return c
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: nothing was reported", when)
			return Change{}
		}
	}
	nothing := func(when string) {
		t.Helper()
		select {
		case c := <-changes:
			t.Errorf("%s: reported %+v; want nothing", when, c)
		case <-time.After(watchQuiet + 200*time.Millisecond):
		}
	}
	nothing("a node without devices")

	if err := os.Rename(proc+".unloaded", proc); err != nil { // procfs tells nobody
		t.Fatal(err)
	}
	send(event("add", "/devices/virtual/net/veth0", "net"))
	send(event("add", "/module/dummy", "module"))
	nothing("events of others")
	send(event("add", "/module/nvidia", "module"))
	c := next("the driver was loaded")
	if c.Driver != testtools.FakeNVIDIAVersion || len(c.Added) != 6 || !slices.Contains(c.Added, "nvidia.com/gpu=GPU-00000001-1111-2222-3333-444444444444") ||
		!slices.Contains(c.Added, "nvidia.com/gpu=2:1") || len(c.Removed) > 0 {
		t.Errorf("the driver was loaded: %+v; want its version, three GPUs, two MIG devices and an IMEX channel", c)
	}
	r.mu.Lock()
	if r.nvidia == nil || r.driver == nil {
		t.Error("the discovery is not warm")
	}
	r.mu.Unlock()

	testtools.MakeNode(t, filepath.Join(root, "dev/vfio/vfio"), 10, 196)
	testtools.MakeNode(t, filepath.Join(root, "dev/vfio/9"), 1, 3)
	if c := next("a group for VFIO"); !slices.Equal(c.Added, []string{"cri-shim.io/vfio=9"}) || c.Driver != "" {
		t.Errorf("a group for VFIO: %+v", c)
	}
	testtools.MakeNode(t, filepath.Join(root, "dev/vfio/10"), 1, 5) // in a directory that was not there at first
	if c := next("another"); !slices.Equal(c.Added, []string{"cri-shim.io/vfio=10"}) {
		t.Errorf("another group: %+v", c)
	}
	if err := os.Remove(filepath.Join(root, "dev/vfio/9")); err != nil {
		t.Fatal(err)
	}
	if c := next("the group is gone"); len(c.Removed) != 1 || len(c.Removed["cri-shim.io/vfio=9"]) != 2 || len(c.Added) > 0 {
		t.Errorf("the group is gone: %+v; want its nodes", c)
	}
	if err := os.RemoveAll(filepath.Join(proc, "nvidia/gpus/0000:65:00.0")); err != nil {
		t.Fatal(err)
	}
	send(event("unbind", "/devices/pci0000:60/0000:65:00.0", "pci"))
	if c := next("GPU 1 is gone"); len(c.Removed["nvidia.com/gpu=GPU-00000001-1111-2222-3333-444444444444"]) != 1 {
		t.Errorf("GPU 1 is gone: %+v", c)
	}
	if err := os.WriteFile(filepath.Join(proc, "nvidia/version"), []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	send(event("add", "/module/nvidia", "module"))
	if c := next("a driver without a version"); c.Err == nil {
		t.Errorf("a driver without a version: %+v; want an error", c)
	}
	if err := os.RemoveAll(proc); err != nil {
		t.Fatal(err)
	}
	send(event("remove", "/module/nvidia", "module"))
	if c := next("the driver is gone"); c.Driver != "none" || len(c.Removed) == 0 {
		t.Errorf("the driver is gone: %+v", c)
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Watch does not end with its context")
	}
}
