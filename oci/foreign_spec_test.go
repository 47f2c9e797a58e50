package oci

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci/cgroup"
)

// What another runtime is given names everything by paths that it can open.
func TestSpecify(t *testing.T) {
	groups, err := cgroup.Detect()
	if err != nil {
		t.Skipf("needs control groups: %v", err)
	}
	defer groups.Close()
	r := &Runtime{host: testHost(), cgroups: groups}
	p := podParams(t)
	p.RootPath = "/bundle/rootfs"
	p.Namespaces.PID, p.Namespaces.PIDPath = PIDJoin, "/bundle/pid-namespace"
	p.Container.Mounts = []workload.Mount{{ContainerPath: "/image", Image: &workload.ImageSpec{Image: "x"}, Readonly: true}}
	p.ImageVolume = func(*workload.Mount) (string, error) { return "/bundle/volumes/0", nil }
	p.Edit = func(b *Built) error { b.Files = map[string][]byte{"/etc/file": []byte("x")}; return nil }
	s, err := r.Specify(t.Context(), *p)
	if err != nil {
		t.Fatal(err)
	}
	if s.Spec.Root.Path != "/bundle/rootfs" || s.Spec.Version != specVersion || s.Spec.Linux.CgroupsPath != p.CgroupPath {
		t.Errorf("root %q, version %q, group %q", s.Spec.Root.Path, s.Spec.Version, s.Spec.Linux.CgroupsPath)
	}
	if _, there := s.Spec.Annotations[containerType]; there {
		t.Errorf("annotations %v say which container of the pod this is", s.Spec.Annotations)
	}
	pid := specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "/bundle/pid-namespace"}
	if !slices.Contains(s.Spec.Linux.Namespaces, pid) {
		t.Errorf("namespaces %v; want %v among them", s.Spec.Linux.Namespaces, pid)
	}
	for _, m := range s.Spec.Mounts {
		if m.Type == "bind" && !filepath.IsAbs(m.Source) || m.Destination == "/image" && m.Source != "/bundle/volumes/0" {
			t.Errorf("mount %+v", m)
		}
	}
	if s.Files["/etc/file"] == nil || s.Group.Dir == "" || len(s.KillGroup) != 1 || s.KillGroup[0] != s.Group.Dir {
		t.Errorf("files %v, group %+v, killed at the end %v", s.Files, s.Group, s.KillGroup)
	}
	p.Namespaces.PID = PIDOwn
	if s, err := r.Specify(t.Context(), *p); err != nil || len(s.KillGroup) != 0 {
		t.Errorf("with a PID namespace of its own %v is killed at the end, %v; want nothing", s.KillGroup, err)
	}
}

// JSON has no bytes that are no UTF-8; encoding/json would replace them.
func TestForeignTextIsUTF8(t *testing.T) {
	r := &Runtime{host: testHost()}
	for field, edit := range map[string]func(*workload.Container){
		"process.env":  func(c *workload.Container) { c.Env = []workload.EnvVar{{Key: "K", Value: "caf\xe9"}} },
		"process.args": func(c *workload.Container) { c.Command = []string{"\xff"} },
		"process.cwd":  func(c *workload.Container) { c.WorkingDir = "/\xff" },
	} {
		p := podParams(t)
		if err := r.CheckForeign(t.Context(), *p); err != nil {
			t.Fatal(err)
		}
		edit(p.Container)
		if err := r.CheckForeign(t.Context(), *p); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("CheckForeign() = %v; want an error that names %s", err, field)
		}
	}
}

// A runtime of an older specification would ignore them.
func TestForeignNetDevices(t *testing.T) {
	r := &Runtime{host: testHost()}
	p := podParams(t)
	p.Edit = func(b *Built) error {
		b.Spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth7": {}}
		return nil
	}
	if err := r.CheckForeign(t.Context(), *p); err == nil || !strings.Contains(err.Error(), "linux.netDevices") {
		t.Errorf("CheckForeign() = %v; want an error that names linux.netDevices", err)
	}
}
