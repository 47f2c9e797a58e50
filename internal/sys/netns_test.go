package sys

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces and mounts")
	}
}

// pinDir is a folder whose mounts (its own shared one included) are gone after the test.
func pinDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(mounts), dir) {
			t.Errorf("mounts left below %s", dir)
		}
	})
	return dir
}

func allKinds(dir string) []NamespacePin {
	return []NamespacePin{
		{NamespaceNet, filepath.Join(dir, "net")},
		{NamespaceIPC, filepath.Join(dir, "ipc")},
		{NamespaceUTS, filepath.Join(dir, "uts")},
	}
}

func nsID(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestPinNamespaces(t *testing.T) {
	needRoot(t)
	pins := allKinds(filepath.Join(pinDir(t), "below", "that"))
	t.Cleanup(func() { unix.Unmount(filepath.Dir(pins[0].Path), unix.MNT_DETACH) })
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	err = PinNamespaces(pins, func() error {
		return errors.Join(LoopbackUp(), LoopbackUp(), SetHostname("pod-1"),
			WriteSysctl("net.ipv4.ip_unprivileged_port_start", "7"))
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pins {
		if ok, err := IsNamespace(p.Path); !ok || err != nil {
			t.Errorf("IsNamespace(%s) = %v, %v; want true, nil", p.Path, ok, err)
		}
		if nsID(t, p.Path) == nsID(t, "/proc/self/ns/"+nsFiles[p.Flag]) {
			t.Errorf("%s is the process's own namespace", p.Path)
		}
	}
	if now, _ := os.Hostname(); now != host {
		t.Fatalf("host name became %q; want %q", now, host)
	}
	err = WithNetns(pins[0].Path, func() error {
		if b, err := os.ReadFile("/proc/thread-self/net/dev"); err != nil || strings.Count(string(b), ":") < 1 {
			return fmt.Errorf("net/dev = %q, %v", b, err)
		}
		if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start"); err != nil || string(b) != "7\n" {
			return fmt.Errorf("sysctl = %q, %v; want 7", b, err)
		}
		l, err := net.Listen("tcp4", "127.0.0.1:0") // fails where lo is down? dial shows it
		if err != nil {
			return err
		}
		defer l.Close()
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		return unix.Connect(s, &unix.SockaddrInet4{
			Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1},
		})
	})
	if err != nil {
		t.Errorf("inside the net namespace: %v", err)
	}
	err = WithNamespace(NamespaceUTS, pins[2].Path, func() error {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return err
		}
		if got := unix.ByteSliceToString(u.Nodename[:]); got != "pod-1" {
			return fmt.Errorf("host name = %q; want pod-1", got)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	shared := 0
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); f[4] == filepath.Dir(pins[0].Path) && strings.HasPrefix(f[6], "shared:") {
			shared++
		}
	}
	if shared != 1 {
		t.Errorf("%d shared mounts at the folder of the network namespace; want 1", shared)
	}
	for range 2 {
		for _, p := range pins {
			if err := UnpinNamespace(p.Path); err != nil {
				t.Errorf("UnpinNamespace(%s) = %v; want nil", p.Path, err)
			}
		}
	}
}

func TestPinNamespacesLeavesNothing(t *testing.T) {
	needRoot(t)
	boom := errors.New("boom")
	tests := []struct {
		name   string
		inside func() error
		before func(t *testing.T, pins []NamespacePin)
		want   string
	}{
		{name: "inside fails", inside: func() error { return boom }, want: "boom"},
		{name: "inside ends its goroutine", inside: func() error { runtime.Goexit(); return nil }, want: "ended its goroutine"},
		{name: "last path exists", want: "file exists", before: func(t *testing.T, pins []NamespacePin) {
			if err := os.WriteFile(pins[2].Path, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := UnpinNamespace(pins[2].Path); err == nil || !strings.Contains(err.Error(), "not an empty") {
					t.Errorf("UnpinNamespace of a file with content = %v; want a refusal", err)
				}
			})
		}},
		{name: "parent is a file", want: "not a directory", before: func(t *testing.T, pins []NamespacePin) {
			if err := os.WriteFile(filepath.Dir(pins[1].Path)+"/f", nil, 0o600); err != nil {
				t.Fatal(err)
			}
			pins[1].Path = filepath.Dir(pins[1].Path) + "/f/ipc"
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := pinDir(t)
			pins := allKinds(dir)
			if tt.before != nil {
				tt.before(t, pins)
			}
			err := PinNamespaces(pins, tt.inside)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("PinNamespaces = %v; want %q", err, tt.want)
			}
			for _, p := range pins[:2] {
				if _, err := os.Lstat(p.Path); err == nil {
					t.Errorf("%s is left", p.Path)
				}
			}
		})
	}
}

func TestPinNamespacesRefuses(t *testing.T) {
	for _, pins := range [][]NamespacePin{
		{{unix.CLONE_NEWNS, "/run/x"}},
		{{NamespaceNet, "x"}},
		{{NamespaceNet, "/run/x"}, {NamespaceNet, "/run/y"}},
	} {
		if err := PinNamespaces(pins, nil); err == nil {
			t.Errorf("PinNamespaces(%v) = nil; want an error", pins)
		}
	}
}

func TestWithNetnsMissing(t *testing.T) {
	err := WithNetns(filepath.Join(t.TempDir(), "no"), func() error { return nil })
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("WithNetns of a missing path = %v; want fs.ErrNotExist", err)
	}
}

// The process's own namespaces must be what they were, whatever ran on its threads.
func TestThreadsReturn(t *testing.T) {
	needRoot(t)
	dir := pinDir(t)
	before := nsID(t, "/proc/self/ns/net")
	path := filepath.Join(dir, "net")
	if err := PinNamespaces([]NamespacePin{{NamespaceNet, path}}, nil); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	for range 32 {
		go func() { done <- WithNetns(path, func() error { return nil }) }()
	}
	for range 32 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if err := UnpinNamespace(path); err != nil {
		t.Error(err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		var st unix.Stat_t
		if unix.Stat(task, &st) == nil && st.Ino != before {
			t.Errorf("%s is in another network namespace", task)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	tests := []struct{ name, want string }{
		{"net.ipv4.ip_forward", "net/ipv4/ip_forward"},
		{"net/ipv4/ip_forward", "net/ipv4/ip_forward"},
		{"net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"},
		{"net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"},
		{"", ""}, {"..", ""}, {"net/../../../etc/passwd", ""}, {"net.//.x", ""}, {"/net", ""},
		{"net..x", ""}, {"a\x00b", ""}, {"net.ipv4.", ""},
	}
	for _, tt := range tests {
		got, err := SysctlPath(tt.name)
		if got != tt.want || (err == nil) != (tt.want != "") {
			t.Errorf("SysctlPath(%q) = %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}
}

func FuzzSysctlPath(f *testing.F) {
	for _, s := range []string{"net.ipv4.ip_forward", "a/b.c", "..", "a..b", "./../x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if path, err := SysctlPath(name); err == nil && !filepath.IsLocal(path) {
			t.Errorf("SysctlPath(%q) = %q, which is not local", name, path)
		}
	})
}

func TestWriteSysctlErrors(t *testing.T) {
	needRoot(t)
	for name, want := range map[string]error{
		"net.ipv4.no_such_thing":      fs.ErrNotExist,
		"kernel.ostype.x":             unix.ENOTDIR,
		"net.ipv4":                    unix.EISDIR,
		"net.ipv4.tcp_rmem/../../../": nil,
	} {
		err := WriteSysctl(name, "1")
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("WriteSysctl(%s) = %v; want %v", name, err, want)
		}
	}
}

func BenchmarkPinNamespaces(b *testing.B) {
	needRoot(b)
	for _, kinds := range []string{"net", "ipc+uts", "net+ipc+uts"} {
		b.Run(kinds, func(b *testing.B) {
			var all []NamespacePin
			for _, p := range allKinds(pinDir(b)) {
				if strings.Contains(kinds, nsFiles[p.Flag]) {
					all = append(all, p)
				}
			}
			for b.Loop() {
				err := PinNamespaces(all, func() error {
					if all[0].Flag != NamespaceNet {
						return nil
					}
					return LoopbackUp()
				})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				for _, p := range all {
					if err := UnpinNamespace(p.Path); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkInside(b *testing.B) {
	needRoot(b)
	run := func(name string, f func() error) {
		b.Run(name, func(b *testing.B) {
			dir := pinDir(b)
			p := NamespacePin{NamespaceNet, filepath.Join(dir, "net")}
			err := PinNamespaces([]NamespacePin{p}, func() error {
				for b.Loop() {
					if err := f(); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			if err := UnpinNamespace(p.Path); err != nil {
				b.Fatal(err)
			}
		})
	}
	run("sysctl", func() error { return WriteSysctl("net.ipv4.ip_unprivileged_port_start", "0") })
	run("loopback-already-up", LoopbackUp)
}
