package seccomp

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestDefaultFamilies goes through every way to ask for the denied families.
func TestDefaultFamilies(t *testing.T) {
	for _, native := range []arch{archX8664, archARM64} {
		p, err := Default(nil)
		if err != nil {
			t.Fatal(err)
		}
		p.Architectures = archNames([]arch{archX8664, archX86, archX32, archARM64, archARM})
		prog := program(t, p, native)
		for a := range numArchs {
			for family := range uint64(64) {
				for _, high := range []uint64{0, 1 << 32, 1 << 63, 0xffffffff << 32} {
					want := uint32(retAllow)
					if family == afAlg || family == afVsock {
						want = errno(syscall.EAFNOSUPPORT)
					}
					if got, _ := run(prog, on(t, a, "socket", high|family)); got != want {
						t.Errorf("%s: socket(%#x) = %#x; want %#x", archInfos[a].name, high|family, got, want)
					}
				}
			}
		}
		if got, _ := run(prog, on(t, archX86, "socketcall", 1)); got != retAllow {
			t.Errorf("socketcall(SYS_SOCKET) = %#x; want %#x", got, uint32(retAllow))
		}
	}
}

func TestDenySocketcall(t *testing.T) {
	p, err := defaultWith(nil, denySocketcall())
	if err != nil {
		t.Fatal(err)
	}
	p.Architectures = archNames([]arch{archX8664, archX86})
	prog := program(t, p, archX8664)
	for call := range uint64(21) {
		if got, _ := run(prog, on(t, archX86, "socketcall", call)); got != retENOSYS {
			t.Errorf("socketcall(%d) = %#x; want %#x", call, got, uint32(retENOSYS))
		}
	}
	if got, _ := run(prog, on(t, archX86, "bind")); got != retAllow {
		t.Errorf("bind = %#x; want %#x", got, uint32(retAllow))
	}
}

func TestDefaultCaps(t *testing.T) {
	for _, tt := range []struct{ caps, call string }{
		{"CAP_SYS_ADMIN", "mount"}, {"CAP_SYS_BOOT", "reboot"}, {"CAP_SYS_CHROOT", "chroot"}, {"CAP_BPF", "bpf"},
	} {
		for _, caps := range [][]string{nil, {tt.caps}} {
			p, err := Default(caps)
			if err != nil {
				t.Fatal(err)
			}
			native, ok := nativeArch()
			if !ok {
				t.Skip("no syscall table for this architecture")
			}
			want := errno(syscall.EPERM)
			if caps != nil {
				want = retAllow
			}
			if got, _ := run(program(t, p, native), on(t, native, tt.call)); got != want {
				t.Errorf("%s with %v = %#x; want %#x", tt.call, caps, got, want)
			}
		}
	}
}

func TestLoad(t *testing.T) {
	const body = `{
		"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
		"archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
			{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
		"syscalls": [
			{"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "always", "includes": {}, "excludes": {}},
			{"name": "write", "action": "SCMP_ACT_ALLOW"},
			{"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
			{"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
			{"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
			{"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "254.0"}},
			{"names": ["s390_pci_mmio_read"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}}
		]}`
	for _, tt := range []struct {
		caps []string
		want []string
	}{
		{nil, []string{"read", "write", "clone", "ptrace"}},
		{[]string{"CAP_SYS_ADMIN"}, []string{"read", "write", "mount", "ptrace"}},
	} {
		path := filepath.Join(t.TempDir(), "profile.json")
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := LoadFile(path, tt.caps)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range p.Syscalls {
			got = append(got, s.Names...)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("syscalls with %v (-want +got):\n%s", tt.caps, diff)
		}
		if native, ok := nativeArch(); ok && (native == archX8664 || native == archARM64) && p.Architectures[0] != archInfos[native].name {
			t.Errorf("architectures = %v; want %s first", p.Architectures, archInfos[native].name)
		}
		if _, err := Compile(p); err != nil {
			t.Errorf("Compile = %v", err)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	for body, want := range map[string]string{
		``:   "decode profile",
		`{}`: "defaultAction: missing",
		`{"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}`:                                 "defaultAction: missing",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [null]}`:                                         "syscalls[0]: null",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": 5}`:                                              "decode profile",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "read", "names": ["write"]}]}`:         "'name' and 'names'",
		`{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["a"], "archMap": [{"architecture": "b"}]}`: "'architectures' and 'archMap'",
	} {
		if _, err := Load([]byte(body), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%s) = %v; want an error with %q", body, err, want)
		}
	}
	dir := t.TempDir()
	if _, err := LoadFile(filepath.Join(dir, "absent"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("LoadFile of an absent file = %v; want %v", err, os.ErrNotExist)
	}
	if _, err := LoadFile(dir, nil); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("LoadFile of a directory = %v; want an error", err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, maxProfile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadFile(big, nil); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("LoadFile of a large file = %v; want an error", err)
	}
}

func TestCache(t *testing.T) {
	c := NewCache()
	var compiled atomic.Int32
	enter, leave := make(chan struct{}, 16), make(chan struct{})
	c.compile = func(p *specs.LinuxSeccomp, hash string) (*Filter, error) {
		compiled.Add(1)
		enter <- struct{}{}
		<-leave
		return compileHashed(p, hash)
	}
	filters := make([]*Filter, 8)
	var wg sync.WaitGroup
	for i := range filters {
		wg.Go(func() {
			f, err := c.Compile(denying(allow("read"))) // equal, not identical
			if err != nil {
				t.Error(err)
			}
			filters[i] = f
		})
	}
	<-enter
	close(leave)
	wg.Wait()
	if n := compiled.Load(); n != 1 {
		t.Errorf("%d compilations; want 1", n)
	}
	want, err := Compile(denying(allow("read")))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range filters {
		if f != filters[0] {
			t.Errorf("filters differ; want one")
		}
	}
	if diff := cmp.Diff(want, filters[0]); diff != "" {
		t.Errorf("cached filter (-want +got):\n%s", diff)
	}
	other, err := c.Compile(denying(allow("write")))
	if err != nil || other.Hash == want.Hash {
		t.Errorf("Compile of another profile = %v, %v; want another hash", other, err)
	}
	if _, err := c.Compile(nil); err == nil {
		t.Error("Compile(nil) = nil; want an error")
	}
	if _, err := c.Compile(&specs.LinuxSeccomp{}); err == nil || len(c.filters) != 2 {
		t.Errorf("Compile of a bad profile = %v with %d filters; want an error and 2", err, len(c.filters))
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := NewCache()
	first := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: ptr(1)}
	f, err := c.Compile(first)
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint(cacheSize + 50) {
		if _, err := c.Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: ptr(i + 2)}); err != nil {
			t.Fatal(err)
		}
		if again, err := c.Compile(first); err != nil || again != f {
			t.Fatalf("a filter in use was evicted after %d others: %v", i, err)
		}
	}
	if len(c.filters) != cacheSize {
		t.Errorf("%d filters; want %d", len(c.filters), cacheSize)
	}
}

func TestFeatures(t *testing.T) {
	f := Features()
	for _, list := range [][]string{f.Actions, f.Operators, f.Archs, f.KnownFlags, f.SupportedFlags} {
		if len(list) == 0 || !slices.IsSorted(list) {
			t.Errorf("list = %v; want a sorted one", list)
		}
	}
	for _, a := range f.Actions {
		if _, err := action(specs.LinuxSeccompAction(a), nil, "", ""); err != nil {
			t.Errorf("action %s = %v", a, err)
		}
	}
	if _, err := architectures([]specs.Arch{specs.Arch(f.Archs[0])}, archX8664); err != nil {
		t.Errorf("architectures(%s) = %v", f.Archs[0], err)
	}
	for _, name := range f.SupportedFlags {
		if !slices.Contains(f.KnownFlags, name) {
			t.Errorf("supported flag %s is not known", name)
		}
	}
}

// FuzzCompile: whatever a profile says, the result is an error or a program that the
// kernel takes and that ends for every call.
func FuzzCompile(f *testing.F) {
	for _, opts := range [][]defaultOption{nil, {denySocketcall()}} {
		p, err := defaultWith([]string{"CAP_SYS_ADMIN"}, opts...)
		if err != nil {
			f.Fatal(err)
		}
		b, err := json.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint32(41), uint64(38))
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		p := randomProfile(r)
		p.Architectures = archNames(archSets[r.IntN(len(archSets))])
		b, err := json.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint32(1), uint64(1))
	}
	f.Add([]byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [null]}`), uint32(0), uint64(0))
	f.Fuzz(func(t *testing.T, body []byte, nr uint32, v uint64) {
		p, err := Load(body, []string{"CAP_SYS_ADMIN"})
		if err != nil {
			return
		}
		for _, native := range []arch{archX8664, archARM64} {
			filter, err := compile(p, native)
			if err != nil {
				continue
			}
			prog := decode(filter.Program)
			if err := checkProgram(prog); err != nil {
				t.Fatalf("bad program: %v", err)
			}
			for _, info := range archInfos {
				run(prog, data{nr: nr, arch: info.audit, args: [maxArgs]uint64{v, v, v, v, v, v}})
			}
		}
	})
}

func BenchmarkCompileDefault(b *testing.B) {
	p, err := Default(nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		f, err := Compile(p)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(f.Instructions()), "instructions")
	}
}

func BenchmarkCacheDefault(b *testing.B) {
	c := NewCache()
	p, err := Default(nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := c.Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDefault(b *testing.B) {
	for b.Loop() {
		if _, err := Default(nil); err != nil {
			b.Fatal(err)
		}
	}
}

// TestAllows: a call that would not reach the kernel as it was made is not allowed.
func TestAllows(t *testing.T) {
	p, err := Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		nr   uintptr
		arg  uint64
		want bool
	}{
		{syscall.SYS_CLONE, syscall.CLONE_PARENT | syscall.CLONE_VFORK, true}, {syscall.SYS_CLONE, syscall.CLONE_NEWUSER, false},
		{syscall.SYS_SETSID, 0, true}, {syscall.SYS_MOUNT, 0, false}, {435 /* clone3 */, 0, false},
	} {
		if got := Allows(f.Program, tt.nr, tt.arg); got != tt.want {
			t.Errorf("Allows(%d, %#x) = %v; want %v", tt.nr, tt.arg, got, tt.want)
		}
	}
	for _, bad := range [][]byte{nil, make([]byte, 3)} {
		if Allows(bad, 0) {
			t.Errorf("Allows of %d bytes = true", len(bad))
		}
	}
}
