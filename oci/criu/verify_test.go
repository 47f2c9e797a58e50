package criu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func task(t *testing.T, uid int, caps, prm uint64, noNewPrivs, seccomp int) string {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("Name:\tx\nUid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\nGid:\t0\t0\t0\t0\nCapInh:\t0\nCapPrm:\t%[3]x\nCapEff:\t%[3]x\nCapBnd:\t%[2]x\nCapAmb:\t0\nNoNewPrivs:\t%[4]d\nSeccomp:\t%[5]d\n",
		uid, caps, prm, noNewPrivs, seccomp)
	if err := os.WriteFile(filepath.Join(dir, "status"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestVerifyProcess(t *testing.T) {
	for name, tc := range map[string]struct {
		task   string
		rights Rights
		says   string
	}{
		"as allowed":      {task(t, 0, 0x3, 0x3, 1, 2), Rights{0x3, true, true, -1}, ""},
		"less":            {task(t, 0, 0x1, 0, 1, 2), Rights{0x3, false, false, -1}, ""},
		"a capability":    {task(t, 0, 0x200003, 0x3, 1, 2), Rights{0x3, true, true, -1}, "0x200000 in CapBnd"},
		"privileges":      {task(t, 0, 0x3, 0x3, 0, 2), Rights{0x3, true, true, -1}, "no_new_privs"},
		"no filter":       {task(t, 0, 0x3, 0x3, 1, 0), Rights{0x3, true, true, -1}, "seccomp"},
		"a user":          {task(t, 1000, 0x3, 0, 1, 2), Rights{0x3, true, true, 1000}, ""},
		"root":            {task(t, 0, 0x3, 0, 1, 2), Rights{0x3, true, true, 1000}, "as user 0"},
		"a user's rights": {task(t, 1000, 0x3, 0x1, 1, 2), Rights{0x3, true, true, 1000}, "capabilities 0x1"},
	} {
		err := VerifyProcess(tc.task, tc.rights)
		var m *MismatchError
		if tc.says == "" && err != nil || tc.says != "" && (!errors.As(err, &m) || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %v; want %q", name, err, tc.says)
		}
	}
	if err := VerifyProcess(t.TempDir(), Rights{}); err == nil {
		t.Error("a process that is not there: no error")
	}
	odd := t.TempDir()
	if err := os.WriteFile(filepath.Join(odd, "status"), []byte("Uid:\tx\tx\tx\tx\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := VerifyProcess(odd, Rights{}); err == nil {
		t.Error("a status that cannot be read: no error")
	}
}

func TestRightsOf(t *testing.T) {
	bounding := []string{"CAP_CHOWN", "CAP_SETUID"}
	spec := func(uid uint32, nnp bool, ambient ...string) *specs.Spec {
		return &specs.Spec{Linux: &specs.Linux{}, Process: &specs.Process{
			User: specs.User{UID: uid}, NoNewPrivileges: nnp, Capabilities: &specs.LinuxCapabilities{Bounding: bounding, Ambient: ambient},
		}}
	}
	for name, tc := range map[string]struct {
		spec *specs.Spec
		uid  int64
	}{
		"root": {spec(0, true), -1}, "a user": {spec(5, true), 5}, "with set-user-ID programs": {spec(5, false), -1},
		"with ambient ones": {spec(5, true, "CAP_SETUID"), -1},
	} {
		r, err := RightsOf(tc.spec)
		if err != nil || r.UID != tc.uid || r.Capabilities != 1<<0|1<<7 {
			t.Errorf("%s: %+v, %v; want user %d", name, r, err, tc.uid)
		}
	}
	if _, err := RightsOf(&specs.Spec{}); err == nil {
		t.Error("without a process: no error")
	}
	bounding[0] = "CAP_NOSUCH"
	if _, err := RightsOf(spec(0, true)); err == nil {
		t.Error("an unknown capability: no error")
	}
}

func TestCompareMounts(t *testing.T) {
	spec := &specs.Spec{
		Root: &specs.Root{Readonly: true},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc"}, {Destination: "/data", Type: "bind", Options: []string{"rbind", "ro"}},
		},
		Linux: &specs.Linux{MaskedPaths: []string{"/proc/version", "/proc/not-in-this-kernel"}, ReadonlyPaths: []string{"/proc/sys"}},
	}
	good := func() []*mountinfo.Info {
		return []*mountinfo.Info{
			{ID: 1, Mountpoint: "/", Options: "ro,relatime"}, {ID: 2, Mountpoint: "/proc", Options: "rw"},
			{ID: 3, Mountpoint: "/data", Options: "ro"}, {ID: 4, Mountpoint: "/data/below", Options: "rw"},
			{ID: 5, Mountpoint: "/proc/version", Options: "rw"}, {ID: 6, Mountpoint: "/proc/sys", Options: "nosuid,ro"},
		}
	}
	check := func(infos []*mountinfo.Info, own bool) error {
		return compareMounts(infos, spec, own, func(name string) (*mountinfo.Info, error) {
			for _, i := range infos {
				if i.Mountpoint == name {
					return i, nil
				}
			}
			return nil, nil
		})
	}
	if err := check(good(), false); err != nil {
		t.Error(err)
	}
	for name, tc := range map[string]struct {
		change func([]*mountinfo.Info) []*mountinfo.Info
		says   string
	}{
		"a writable root":   {func(m []*mountinfo.Info) []*mountinfo.Info { m[0].Options = "rw,rootcontext=ro"; return m }, "root / is writable"},
		"a writable volume": {func(m []*mountinfo.Info) []*mountinfo.Info { m[2].Options = "rw"; return m }, "/data is writable"},
		"no volume":         {func(m []*mountinfo.Info) []*mountinfo.Info { m[2].Mountpoint = "/other"; return m }, "/data: there is no mount"},
		"no mask":           {func(m []*mountinfo.Info) []*mountinfo.Info { m[4].Mountpoint = "/data/x"; return m }, "/proc/version"},
		"a writable path":   {func(m []*mountinfo.Info) []*mountinfo.Info { m[5].Options = "rw"; return m }, "/proc/sys is writable"},
		"one more, of no spec": {func(m []*mountinfo.Info) []*mountinfo.Info {
			return append(m, &mountinfo.Info{ID: 9, Mountpoint: "/mnt", Options: "rw"})
		}, "/mnt"},
	} {
		if err := check(tc.change(good()), false); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v; want %q", name, err, tc.says)
		}
	}
	more := append(good(), &mountinfo.Info{ID: 9, Mountpoint: "/mnt", Options: "rw"})
	if err := check(more, true); err != nil {
		t.Errorf("a mount that the container may have made: %v", err)
	}
}

// This process is in the node's namespaces.
func TestVerifyNamespaces(t *testing.T) {
	spec := func(ns ...specs.LinuxNamespace) *specs.Spec { return &specs.Spec{Linux: &specs.Linux{Namespaces: ns}} }
	self := os.Getpid()
	if err := VerifyNamespaces(self, spec(), Rights{}); err != nil {
		t.Errorf("the node's own: %v", err)
	}
	if err := VerifyNamespaces(self, spec(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"}), Rights{}); err != nil {
		t.Errorf("by its path: %v", err)
	}
	if err := VerifyNamespaces(self, spec(specs.LinuxNamespace{Type: specs.MountNamespace}), Rights{}); err == nil {
		t.Error("in the node's mount namespace instead of an own one: no error")
	}
	if err := VerifyNamespaces(self, spec(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/proc/self/ns/ipc"}), Rights{}); err == nil {
		t.Error("in another namespace than the named one: no error")
	}
}
