package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/config"
)

func testSpec(arg string, seccomp *specs.LinuxSeccomp) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{Args: []string{arg}},
		Linux:   &specs.Linux{CgroupsPath: "/a/b", Seccomp: seccomp},
	}
}

// TestSpecStore: a specification is the same after a restart, its profile included, and equal
// profiles are one.
func TestSpecStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "specs")
	s, err := openSpecStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	profile := func() *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}}
	}
	for id, spec := range map[string]*specs.Spec{
		"a": testSpec("a", profile()), "b": testSpec("b", profile()), "c": testSpec("c", nil), "d": {Version: "1.0.0"},
	} {
		if err := s.save(id, spec); err != nil {
			t.Fatal(err)
		}
	}
	again, err := openSpecStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, store := range map[string]*specStore{"same daemon": s, "next daemon": again} {
		for id, want := range map[string]*specs.Spec{"a": testSpec("a", profile()), "c": testSpec("c", nil), "d": {Version: "1.0.0"}} {
			got, err := store.load(id)
			if d := cmp.Diff(want, got); err != nil || d != "" {
				t.Errorf("%s: load(%s) = %v (-want +got):\n%s", name, id, err, d)
			}
		}
		a, _ := store.load("a")
		if b, err := store.load("b"); err != nil || a.Linux.Seccomp != b.Linux.Seccomp {
			t.Errorf("%s: equal profiles are kept twice (%v)", name, err)
		}
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "seccomp-*")); len(files) != 1 {
		t.Errorf("profiles on disk: %v; want one", files)
	}

	// Without its profile nothing may be executed.
	if files, _ := filepath.Glob(filepath.Join(dir, "seccomp-*")); len(files) == 1 {
		os.Remove(files[0])
	}
	if third, _ := openSpecStore(dir); third != nil {
		if got, err := third.load("a"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("load without the profile = %v, %v; want not exist", got, err)
		}
	}
	for range 2 {
		if err := s.remove("a"); err != nil {
			t.Errorf("remove = %v; want nil", err)
		}
	}
	if _, err := s.load("a"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("load after remove = %v; want not exist", err)
	}
}

// TestSpecStoreCollects: profiles go, with the next start, after the last specification that has them.
func TestSpecStoreCollects(t *testing.T) {
	dir := t.TempDir()
	open := func() *specStore {
		t.Helper()
		s, err := openSpecStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	profiles := func() int {
		files, _ := filepath.Glob(filepath.Join(dir, "seccomp-*"))
		return len(files)
	}
	s := open()
	for _, id := range []string{"a", "b"} {
		// A profile of its own.
		if err := s.save(id, testSpec(id, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, ListenerPath: id})); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.remove("a"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "c.json.new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open()
	if got, err := s.load("b"); err != nil || got.Linux.Seccomp.ListenerPath != "b" || profiles() != 1 {
		t.Errorf("after a restart: load(b) = %v, %v, %d profiles; want its profile alone", got, err, profiles())
	}
	if _, err := os.Stat(filepath.Join(dir, "c.json.new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what an interrupted write left: %v; want not exist", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b.json"), []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if open(); profiles() != 1 {
		t.Error("the profile of a damaged specification is gone; it may be repaired")
	}
	if err := s.remove("b"); err != nil {
		t.Fatal(err)
	}
	if open(); profiles() != 0 {
		t.Errorf("%d profiles without a specification; want none", profiles())
	}
}

// TestSpecStoreEnvironment: an exec after a restart has the bytes that the container has.
func TestSpecStoreEnvironment(t *testing.T) {
	dir := t.TempDir()
	s, err := openSpecStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	for id, env := range map[string][]string{"bytes": {"A=caf\xe9\xff", "B=", "C=é"}, "text": {"A=é", "B=<&>"}, "none": nil} {
		spec := testSpec(id, nil)
		spec.Process.Env = env
		if err := s.save(id, spec); err != nil {
			t.Fatal(err)
		}
		next, err := openSpecStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		for name, store := range map[string]*specStore{"same daemon": s, "next daemon": next} {
			got, err := store.load(id)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(env, got.Process.Env); d != "" {
				t.Errorf("%s: environment of %s (-want +got):\n%s", name, id, d)
			}
		}
	}
}

func TestDefaultSysctls(t *testing.T) {
	cfg := config.Default()
	want := map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
	if d := cmp.Diff(want, defaultSysctls(&cfg)); d != "" {
		t.Errorf("defaultSysctls (-want +got):\n%s", d)
	}
	cfg.EnableUnprivilegedPorts, cfg.EnableUnprivilegedICMP = false, false
	if got := defaultSysctls(&cfg); len(got) != 0 {
		t.Errorf("defaultSysctls without any = %v", got)
	}
}

// TestConfigByKey: a verbose Status shows every key under the name that it has in the file.
func TestConfigByKey(t *testing.T) {
	cfg := config.Default()
	got := configByKey(&cfg)
	if got["root"] != cfg.Root || got["pods_per_supervisor"] != cfg.PodsPerSupervisor || len(got["listen"].(string)) == 0 {
		t.Errorf("configByKey = %v", got)
	}
	if _, ok := got[""]; ok {
		t.Error("a field of the configuration has no key")
	}
}
