package sys_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// inOwnNetwork runs f on a thread with a network namespace of its own, which ends with it.
func inOwnNetwork(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a network namespace")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and is thrown away
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestUevents(t *testing.T) {
	inOwnNetwork(t, func() {
		u, err := sys.OpenUevents()
		if err != nil {
			t.Error(err)
			return
		}
		defer u.Close()
		forged, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_KOBJECT_UEVENT)
		if err != nil {
			t.Error(err)
			return
		}
		defer syscall.Close(forged)
		pad := "\x00" + strings.Repeat("X=1\x00", 20)
		// Not by the kernel, as any process with CAP_NET_ADMIN here can.
		if err := syscall.Sendto(forged, []byte("add@/module/forged"+pad), 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK, Groups: 1}); err != nil {
			t.Error(err)
			return
		}
		for _, event := range []string{
			"add@/devices/virtual/net/veth1" + pad, "remove@/devices/virtual/net/veth1/queues/rx-0" + pad,
			"move@/devices/virtual/net/eth0" + pad, "change@/devices/virtual/net/eth0" + pad,
			"add@/module/nvidia" + pad, "remove@/devices/virtual/vfio/9" + pad,
		} {
			if err := sys.SendUevent(event); err != nil {
				t.Errorf("SendUevent(%q): %v", event, err)
				return
			}
		}
		for _, want := range []string{"add@/module/nvidia\x00", "remove@/devices/virtual/vfio/9\x00"} {
			got, err := u.Next()
			if err != nil || !strings.HasPrefix(string(got), want) {
				t.Errorf("Next = %q, %v; want %q: interfaces and what others send are left out", got, err, want)
			}
		}
		time.AfterFunc(50*time.Millisecond, func() { u.Close() })
		if _, err := u.Next(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("Next after Close = %v; want os.ErrClosed", err)
		}
	})
}

func TestDirWatch(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w, err := sys.WatchDirs()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := errors.Join(w.Add(dir), w.Add(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(file); !errors.Is(err, syscall.ENOTDIR) || !strings.Contains(err.Error(), file) {
		t.Errorf("Add of a file = %v; want ENOTDIR with its name", err)
	}
	seen := make(chan error, 100)
	go func() {
		for {
			err := w.Next()
			seen <- err
			if err != nil {
				return
			}
		}
	}()
	step := func(what string, want bool, f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-seen:
			if !want || err != nil {
				t.Errorf("%s: woken, %v; want %t", what, err, want)
			}
		case <-time.After(map[bool]time.Duration{true: 10 * time.Second, false: 50 * time.Millisecond}[want]):
			if want {
				t.Errorf("%s: not seen", what)
			}
		}
	}
	step("a write to a file", false, func() error { return os.WriteFile(file, []byte("x"), 0o644) })
	step("another mode", false, func() error { return os.Chmod(file, 0o600) })
	step("a new name", true, func() error { return os.Mkdir(filepath.Join(dir, "new"), 0o755) })
	step("a removed name", true, func() error { return os.Remove(file) })
	w.Close()
	if err := <-seen; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Next after Close = %v; want os.ErrClosed", err)
	}
}
