package oci

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/passwd"
	"github.com/cri-shim/cri-shim/internal/workload"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fixedProfiles stand in for the node's, so that golden files do not depend on its kernel.
type fixedProfiles struct{}

func (fixedProfiles) Default([]string) (*specs.LinuxSeccomp, error) {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}, nil
}

func (fixedProfiles) Localhost(path string, _ []string) (*specs.LinuxSeccomp, error) {
	if path == "/missing" {
		return nil, fs.ErrNotExist
	}
	return &specs.LinuxSeccomp{DefaultAction: specs.ActLog}, nil
}

func testHost() *Host {
	return &Host{Capabilities: 1<<len(capNames) - 1, OOMScoreFloor: -1000, Swap: true, Seccomp: fixedProfiles{}}
}

// testRoot is an image with a user database.
func testRoot(t testing.TB) *os.File {
	t.Helper()
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\nbig:x:4294967295:0::/:/\n1001:x:0:0::/:/\n")
	write("etc/group", "root:x:0:\napp:x:1000:\nwheel:x:10:app\nvideo:x:44:app,root\n")
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// podParams is a pod as the kubelet sends it, with a container that says nothing.
func podParams(t testing.TB) *Params {
	t.Helper()
	return &Params{
		Pod: &workload.Pod{
			Metadata:     workload.PodMetadata{Name: "web", Namespace: "default", UID: "u-1"},
			Hostname:     "web",
			CgroupParent: "/kubepods/burstable/podu-1",
		},
		PodID: "pod1", ContainerID: "ctr1",
		Container: &workload.Container{
			Metadata: workload.ContainerMetadata{Name: "main"},
			Image:    workload.ImageSpec{Image: "sha256:abc", UserSpecified: "docker.io/library/app:1"},
		},
		Image:      Image{Entrypoint: []string{"/app"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "A=image"}},
		Root:       testRoot(t),
		Namespaces: Namespaces{Net: "/run/netns/p", IPC: "/run/p/ipc", UTS: "/run/p/uts"},
		CgroupPath: "/kubepods/burstable/podu-1/ctr1",
		ResolvConf: "/run/p/resolv.conf", Hosts: "/run/p/hosts", Hostname: "/run/p/hostname", ShmPath: "/run/p/shm",
	}
}

func mustBuild(t testing.TB, h *Host, p *Params) *Built {
	t.Helper()
	b, err := Build(context.Background(), h, p)
	if err != nil {
		t.Fatalf("Build: %v", err)
	}
	return b
}

// wantField checks that err is about a field and says what text says.
func wantField(t *testing.T, err error, field, text string) {
	t.Helper()
	if err == nil {
		t.Fatalf("error = nil; want one about %s", field)
	}
	var fe *FieldError
	var ue *UnsupportedError
	got := ""
	switch {
	case errors.As(err, &fe):
		got = fe.Field
	case errors.As(err, &ue):
		got = ue.Field
	default:
		t.Fatalf("error = %v (%T); want one that names %s", err, err, field)
	}
	if got != field || !strings.Contains(err.Error(), text) {
		t.Errorf("error = %v, about %s; want one about %s with %q", err, got, field, text)
	}
	if strings.Contains(err.Error(), "failed to") {
		t.Errorf("error = %q; want no \"failed to\"", err)
	}
}

func ptr[T any](v T) *T { return &v }

func TestArgs(t *testing.T) {
	for _, tc := range []struct {
		name                           string
		entrypoint, cmd, command, args []string
		want                           []string
	}{
		{"image", []string{"e"}, []string{"c"}, nil, nil, []string{"e", "c"}},
		{"cmd alone", nil, []string{"c", "d"}, nil, nil, []string{"c", "d"}},
		{"args", []string{"e"}, []string{"c"}, nil, []string{"a"}, []string{"e", "a"}},
		{"command", []string{"e"}, []string{"c"}, []string{"x"}, nil, []string{"x"}},
		{"both", []string{"e"}, []string{"c"}, []string{"x"}, []string{"a"}, []string{"x", "a"}},
		{"entrypoint taken back", []string{""}, []string{"c"}, nil, nil, []string{"c"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := podParams(t)
			p.Image.Entrypoint, p.Image.Cmd = tc.entrypoint, tc.cmd
			p.Container.Command, p.Container.Args = tc.command, tc.args
			if got := mustBuild(t, testHost(), p).Spec.Process.Args; !slices.Equal(got, tc.want) {
				t.Errorf("args = %q; want %q", got, tc.want)
			}
		})
	}
}

func TestEnv(t *testing.T) {
	p := podParams(t)
	p.Container.TTY = true
	p.Image.Env = append(p.Image.Env, "noequals", "=novalue")
	p.Container.Env = []workload.EnvVar{{Key: "A", Value: "cri=x"}, {Key: "B"}, {Key: "TERM", Value: "linux"}}
	want := []string{"PATH=/bin", "TERM=linux", "HOSTNAME=web", "A=cri=x", "B=", "HOME=/root"}
	if diff := cmp.Diff(want, mustBuild(t, testHost(), p).Spec.Process.Env); diff != "" {
		t.Errorf("env (-want +got):\n%s", diff)
	}
	p = podParams(t)
	p.Image.Env, p.Image.User = nil, "app"
	want = []string{defaultPath, "HOSTNAME=web", "HOME=/home/app"}
	if diff := cmp.Diff(want, mustBuild(t, testHost(), p).Spec.Process.Env); diff != "" {
		t.Errorf("env (-want +got):\n%s", diff)
	}
}

func TestCwd(t *testing.T) {
	for _, tc := range []struct{ image, cri, want string }{
		{"", "", "/"}, {"/srv", "", "/srv"}, {"/srv", "/data", "/data"}, {"srv", "", "/srv"},
	} {
		p := podParams(t)
		p.Image.WorkingDir, p.Container.WorkingDir = tc.image, tc.cri
		if got := mustBuild(t, testHost(), p).Spec.Process.Cwd; got != tc.want {
			t.Errorf("cwd with image %q and client %q = %q; want %q", tc.image, tc.cri, got, tc.want)
		}
	}
}

func TestUser(t *testing.T) {
	for _, tc := range []struct {
		name  string
		image string
		sec   workload.Security
		want  workload.User
	}{
		{"root by default", "", workload.Security{}, workload.User{Groups: []uint32{0, 44}}},
		{"image name", "app", workload.Security{}, workload.User{UID: 1000, GID: 1000, Groups: []uint32{1000, 10, 44}}},
		{"image name and group", "app:video", workload.Security{}, workload.User{UID: 1000, GID: 44, Groups: []uint32{44, 10}}},
		{"image number", "1000", workload.Security{}, workload.User{UID: 1000, GID: 1000, Groups: []uint32{1000, 10, 44}}},
		{"image numbers", "7:8", workload.Security{}, workload.User{UID: 7, GID: 8, Groups: []uint32{8}}},
		{"unknown number", "77", workload.Security{}, workload.User{UID: 77, Groups: []uint32{0}}},
		{"a user named by a number", "1001", workload.Security{}, workload.User{UID: 1001, Groups: []uint32{0}}},
		{"run_as_user beats image", "app:video", workload.Security{RunAsUser: ptr[int64](7)}, workload.User{UID: 7, Groups: []uint32{0}}},
		{
			"run_as_group", "app", workload.Security{RunAsUser: ptr[int64](1000), RunAsGroup: ptr[int64](9)},
			workload.User{UID: 1000, GID: 9, Groups: []uint32{9, 10, 44}},
		},
		{
			"username beats number", "", workload.Security{RunAsUsername: "app", RunAsUser: ptr[int64](3)},
			workload.User{UID: 1000, GID: 1000, Groups: []uint32{1000, 10, 44}},
		},
		{
			"merge", "app", workload.Security{SupplementalGroups: []int64{44, 500}, GroupsPolicy: workload.GroupsMerge},
			workload.User{UID: 1000, GID: 1000, Groups: []uint32{1000, 10, 44, 500}},
		},
		{
			"strict", "app", workload.Security{SupplementalGroups: []int64{500}, GroupsPolicy: workload.GroupsStrict},
			workload.User{UID: 1000, GID: 1000, Groups: []uint32{1000, 500}},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := podParams(t)
			p.Image.User, p.Container.Security = tc.image, tc.sec
			b := mustBuild(t, testHost(), p)
			if diff := cmp.Diff(tc.want, b.User); diff != "" {
				t.Errorf("user (-want +got):\n%s", diff)
			}
			u := b.Spec.Process.User
			if u.UID != tc.want.UID || u.GID != tc.want.GID || !slices.Equal(u.AdditionalGids, tc.want.Groups) {
				t.Errorf("spec user = %+v; want %+v", u, tc.want)
			}
		})
	}
}

// An image cannot have its user database read from the host.
func TestUserDatabaseStaysInRoot(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(outside, []byte("evil:x:0:0::/:/\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "etc/passwd")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	p := podParams(t)
	p.Root, p.Image.User = root, "evil"
	_, err = Build(t.Context(), testHost(), p)
	wantField(t, err, "image.user", `user "evil" is not in`)

	// Neither a FIFO nor an endless file stops the daemon.
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", link); err != nil {
		t.Fatal(err)
	}
	if _, err = Build(t.Context(), testHost(), p); err == nil {
		t.Error("Build with a passwd link to /dev/zero = nil error; want not found inside the root")
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(link, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err = Build(t.Context(), testHost(), p); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("Build with a FIFO for passwd = %v; want not a regular file", err)
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(link, make([]byte, passwd.MaxFile+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err = Build(t.Context(), testHost(), p); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("Build with an oversized passwd = %v; want larger than", err)
	}
}

func TestCapabilities(t *testing.T) {
	all := capList(1<<len(capNames) - 1)
	without := func(list []string, name string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == name })
	}
	def := capList(defaultCaps)
	if len(def) != 14 {
		t.Fatalf("default set = %v; want 14", def)
	}
	for _, tc := range []struct {
		name             string
		sec              workload.Security
		bounding, raised []string
	}{
		{"default", workload.Security{}, def, nil},
		{"add with and without prefix", workload.Security{AddCapabilities: []string{"CAP_BPF", "sys_time"}}, capList(defaultCaps | mustCaps("BPF", "SYS_TIME")), nil},
		{"drop", workload.Security{DropCapabilities: []string{"KILL"}}, without(def, "CAP_KILL"), nil},
		{"drop all", workload.Security{DropCapabilities: []string{"ALL"}}, nil, nil},
		{"drop all, add one", workload.Security{AddCapabilities: []string{"CHOWN"}, DropCapabilities: []string{"all"}}, []string{"CAP_CHOWN"}, nil},
		{"add all, drop one", workload.Security{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"BPF"}}, without(all, "CAP_BPF"), nil},
		{"ambient", workload.Security{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_RAW"}}, []string{"CAP_NET_RAW"}, []string{"CAP_NET_RAW"}},
		{"privileged", workload.Security{Privileged: true, DropCapabilities: []string{"ALL"}}, all, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := podParams(t)
			p.Container.Security = tc.sec
			p.Pod.Security.Privileged = tc.sec.Privileged
			got := mustBuild(t, testHost(), p).Spec.Process.Capabilities
			want := &specs.LinuxCapabilities{
				Bounding: tc.bounding, Effective: tc.bounding, Permitted: tc.bounding,
				Ambient: tc.raised, Inheritable: tc.raised,
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("capabilities (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCapabilityThatTheNodeLacks(t *testing.T) {
	h := testHost()
	h.Capabilities &^= 1<<capSysResource | mustCaps("CHOWN")
	p := podParams(t)
	if got := mustBuild(t, h, p).Spec.Process.Capabilities.Bounding; slices.Contains(got, "CAP_CHOWN") {
		t.Errorf("bounding = %v; want without CAP_CHOWN", got)
	}
	p.Container.Security.AddCapabilities = []string{"SYS_TIME", "SYS_RESOURCE"}
	_, err := Build(t.Context(), h, p)
	wantField(t, err, "security.capabilities.add_capabilities[1]", "SYS_RESOURCE is not in the node's own bounding set")
}

func TestResources(t *testing.T) {
	r := &workload.Resources{
		CPUPeriod: 100000, CPUQuota: -1, CPUShares: 512, MemoryLimit: 1 << 20, CPUSetCPUs: "0-1", CPUSetMems: "0",
		HugepageLimits: []workload.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}},
		Unified:        map[string]string{"memory.high": "1"},
	}
	got, err := Resources(testHost(), r)
	if err != nil {
		t.Fatal(err)
	}
	want := &specs.LinuxResources{
		CPU: &specs.LinuxCPU{
			Period: ptr[uint64](100000), Quota: ptr[int64](-1), Shares: ptr[uint64](512), Cpus: "0-1", Mems: "0",
		},
		Memory:  &specs.LinuxMemory{Limit: ptr[int64](1 << 20), Swap: ptr[int64](1 << 20)},
		Unified: map[string]string{"memory.high": "1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Resources (-want +got):\n%s", diff)
	}
	if got, err := Resources(testHost(), &workload.Resources{}); err != nil || !cmp.Equal(got, &specs.LinuxResources{}) {
		t.Errorf("Resources(nothing) = %+v, %v; want nothing", got, err)
	}
	h := testHost()
	h.Swap, h.Hugetlb = false, true
	r.MemorySwapLimit = 2 << 20
	if got, err = Resources(h, r); err != nil {
		t.Fatal(err)
	}
	if got.Memory.Swap != nil || len(got.HugepageLimits) != 2 {
		t.Errorf("Resources without swap and with hugetlb = %+v; want no swap limit and two page sizes", got)
	}
}

func TestOOMScore(t *testing.T) {
	p := podParams(t)
	if got := mustBuild(t, testHost(), p).Spec.Process.OOMScoreAdj; got == nil || *got != 0 {
		t.Errorf("oomScoreAdj without resources = %v; want 0", got)
	}
	p.Container.Resources = &workload.Resources{OOMScoreAdj: -998}
	if got := mustBuild(t, testHost(), p).Spec.Process.OOMScoreAdj; *got != -998 {
		t.Errorf("oomScoreAdj = %d; want -998", *got)
	}
	h := testHost()
	h.OOMScoreFloor = 3
	b := mustBuild(t, h, p)
	if *b.Spec.Process.OOMScoreAdj != 3 || len(b.Warnings) != 1 || !strings.Contains(b.Warnings[0], "CAP_SYS_RESOURCE") {
		t.Errorf("oomScoreAdj = %d, warnings %q; want 3 and a warning", *b.Spec.Process.OOMScoreAdj, b.Warnings)
	}
}

func TestPathsAreTheClients(t *testing.T) {
	p := podParams(t)
	if l := mustBuild(t, testHost(), p).Spec.Linux; len(l.MaskedPaths)+len(l.ReadonlyPaths) != 0 {
		t.Errorf("paths of a client that sent none = %v, %v; want none (procMount: Unmasked)", l.MaskedPaths, l.ReadonlyPaths)
	}
	p.NoSecurityContext = true
	if l := mustBuild(t, testHost(), p).Spec.Linux; !slices.Contains(l.MaskedPaths, "/proc/kcore") || !slices.Contains(l.ReadonlyPaths, "/proc/sys") {
		t.Errorf("paths without a security context = %v, %v; want the defaults", l.MaskedPaths, l.ReadonlyPaths)
	}
	p.NoSecurityContext = false
	p.Container.Security.MaskedPaths = []string{"/proc/x"}
	if l := mustBuild(t, testHost(), p).Spec.Linux; !slices.Equal(l.MaskedPaths, []string{"/proc/x"}) {
		t.Errorf("masked = %v; want the client's", l.MaskedPaths)
	}
	p.Container.Security.Privileged, p.Pod.Security.Privileged = true, true
	if l := mustBuild(t, testHost(), p).Spec.Linux; len(l.MaskedPaths) != 0 {
		t.Errorf("masked of a privileged container = %v; want none", l.MaskedPaths)
	}
}

func TestSeccompAndLSM(t *testing.T) {
	build := func(h *Host, s workload.Security) *specs.Spec {
		p := podParams(t)
		p.Container.Security = s
		p.Pod.Security.Privileged = s.Privileged
		return mustBuild(t, h, p).Spec
	}
	def := &workload.Profile{Kind: workload.ProfileRuntimeDefault}
	if s := build(testHost(), workload.Security{}).Linux.Seccomp; s != nil {
		t.Errorf("seccomp unset = %v; want unconfined", s)
	}
	if s := build(testHost(), workload.Security{Seccomp: &workload.Profile{Kind: workload.ProfileUnconfined}}).Linux.Seccomp; s != nil {
		t.Errorf("seccomp unconfined = %v; want nil", s)
	}
	if s := build(testHost(), workload.Security{Seccomp: def, Privileged: true}).Linux.Seccomp; s != nil {
		t.Errorf("seccomp of a privileged container = %v; want nil", s)
	}
	if s := build(testHost(), workload.Security{Seccomp: def}).Linux.Seccomp; s == nil || s.DefaultAction != specs.ActErrno {
		t.Errorf("seccomp runtime/default = %v; want the default profile", s)
	}
	local := &workload.Profile{Kind: workload.ProfileLocalhost, Localhost: "/p.json"}
	if s := build(testHost(), workload.Security{Seccomp: local}).Linux.Seccomp; s == nil || s.DefaultAction != specs.ActLog {
		t.Errorf("seccomp localhost = %v; want the file's", s)
	}

	h := testHost()
	if got := build(h, workload.Security{AppArmor: def}).Process.ApparmorProfile; got != "" {
		t.Errorf("AppArmor default on a node without = %q; want none", got)
	}
	h.AppArmor, h.AppArmorDefault, h.SELinux = true, "cri-shim-default", true
	s := build(h, workload.Security{SELinux: &workload.SELinux{Level: "s0:c1,c2"}})
	if s.Process.ApparmorProfile != "cri-shim-default" {
		t.Errorf("AppArmor = %q; want the default", s.Process.ApparmorProfile)
	}
	if s.Process.SelinuxLabel != "system_u:system_r:container_t:s0:c1,c2" || s.Linux.MountLabel != "system_u:object_r:container_file_t:s0:c1,c2" {
		t.Errorf("labels = %q, %q", s.Process.SelinuxLabel, s.Linux.MountLabel)
	}
	if s := build(h, workload.Security{Privileged: true}); s.Process.SelinuxLabel != "" || s.Process.ApparmorProfile != "" {
		t.Errorf("privileged labels = %q, %q; want none", s.Process.SelinuxLabel, s.Process.ApparmorProfile)
	}
}

func TestBuildRefuses(t *testing.T) {
	dir := t.TempDir()
	for _, tc := range []struct {
		name, field, text string
		change            func(p *Params)
	}{
		{"nothing to run", "command", "nothing to run", func(p *Params) { p.Image.Entrypoint, p.Image.Cmd = nil, nil }},
		{"empty program", "command", "empty string", func(p *Params) { p.Container.Command = []string{""} }},
		{"nul in args", "command", "NUL", func(p *Params) { p.Container.Args = []string{"a\x00b"} }},
		{"nul in cwd", "working_dir", "NUL", func(p *Params) { p.Container.WorkingDir = "/\x00" }},
		{"env name", "envs[1]", "'='", func(p *Params) { p.Container.Env = []workload.EnvVar{{Key: "A"}, {Key: "B=C"}} }},
		{"env without name", "envs[0]", "no name", func(p *Params) { p.Container.Env = []workload.EnvVar{{}} }},
		{"unknown username", "security.run_as_username", `user "who" is not in`, func(p *Params) { p.Container.Security.RunAsUsername = "who" }},
		{"unknown image user", "image.user", `user "who"`, func(p *Params) { p.Image.User = "who" }},
		{"unknown image group", "image.user", `group "staff"`, func(p *Params) { p.Image.User = "app:staff" }},
		{"negative user", "security.run_as_user", "-1", func(p *Params) { p.Container.Security.RunAsUser = ptr[int64](-1) }},
		{"user out of range", "security.run_as_username", `user "big"`, func(p *Params) { p.Container.Security.RunAsUsername = "big" }},
		{"group without user", "security.run_as_group", "without", func(p *Params) { p.Container.Security.RunAsGroup = ptr[int64](1) }},
		{"group out of range", "security.run_as_group", "4294967296", func(p *Params) {
			p.Container.Security.RunAsUser, p.Container.Security.RunAsGroup = ptr[int64](1), ptr[int64](1<<32)
		}},
		{"supplemental group", "security.supplemental_groups[1]", "-2", func(p *Params) { p.Container.Security.SupplementalGroups = []int64{1, -2} }},
		{"groups policy", "security.supplemental_groups_policy", "odd", func(p *Params) { p.Container.Security.GroupsPolicy = "odd" }},
		{"capability", "security.capabilities.add_capabilities[0]", `"FLY"`, func(p *Params) { p.Container.Security.AddCapabilities = []string{"FLY"} }},
		{"dropped capability", "security.capabilities.drop_capabilities[0]", `"FLY"`, func(p *Params) { p.Container.Security.DropCapabilities = []string{"FLY"} }},
		{"privileged", "security.privileged", "sandbox", func(p *Params) { p.Container.Security.Privileged = true }},
		{"pid without path", "security.namespaces.pid", "path", func(p *Params) { p.Namespaces.PID = PIDJoin }},
		{"container path", "mounts[0].container_path", `"rel"`, mount(workload.Mount{ContainerPath: "rel", HostPath: dir})},
		{"root path", "mounts[0].container_path", "root file system", mount(workload.Mount{ContainerPath: "/a/..", HostPath: dir})},
		{"missing host path", "mounts[0].host_path", `mounts[0].host_path "/no/such": `, mount(workload.Mount{ContainerPath: "/a", HostPath: "/no/such"})},
		{"relative host path", "mounts[0].host_path", "absolute", mount(workload.Mount{ContainerPath: "/a", HostPath: "x"})},
		{"no source", "mounts[0].host_path", "neither", mount(workload.Mount{ContainerPath: "/a"})},
		{"two sources", "mounts[0].host_path", "together", mount(workload.Mount{ContainerPath: "/a", HostPath: dir, Image: &workload.ImageSpec{}})},
		{"image volume", "mounts[0].image", "not available", mount(workload.Mount{ContainerPath: "/a", Image: &workload.ImageSpec{}})},
		{"rro without readonly", "mounts[0].recursive_read_only", "readonly", mount(workload.Mount{ContainerPath: "/a", HostPath: dir, RecursiveReadonly: true})},
		{"rro propagated", "mounts[0].recursive_read_only", "private", mount(workload.Mount{
			ContainerPath: "/a", HostPath: "/proc", Readonly: true, RecursiveReadonly: true, Propagation: workload.PropagationBidirectional,
		})},
		{"propagation", "mounts[0].propagation", "bogus", mount(workload.Mount{ContainerPath: "/a", HostPath: dir, Propagation: "bogus"})},
		{"mount option", "mounts[0].mount_options[1]", `unknown mount option "size=1"`, mount(workload.Mount{ContainerPath: "/a", HostPath: dir, Options: []string{"noexec", "size=1"}})},
		{"contradicting option", "mounts[0].mount_options[0]", "contradicts", mount(workload.Mount{ContainerPath: "/a", HostPath: dir, Readonly: true, Options: []string{"rw"}})},
		{"propagation as option", "mounts[0].mount_options[0]", "rshared", mount(workload.Mount{ContainerPath: "/a", HostPath: dir, Options: []string{"rshared"}})},
		{"half a mapping", "mounts[0].uidMappings", "together", mount(workload.Mount{ContainerPath: "/a", HostPath: dir, UIDMappings: []workload.IDMapping{{Length: 1}}})},
		{"device missing", "devices[0].host_path", "/dev/none", device(workload.Device{HostPath: "/dev/none"})},
		{"device relative", "devices[0].host_path", "absolute", device(workload.Device{HostPath: "null"})},
		{"device target", "devices[0].container_path", "absolute", device(workload.Device{HostPath: "/dev/null", ContainerPath: "null"})},
		{"device permissions", "devices[0].permissions", `"rx"`, device(workload.Device{HostPath: "/dev/null", Permissions: "rx"})},
		{"no device", "devices[0].host_path", "neither a device", device(workload.Device{HostPath: "/etc/passwd"})},
		{"directory without devices", "devices[0].host_path", "no device", device(workload.Device{HostPath: dir})},
		{"masked path", "security.masked_paths[0]", "absolute", func(p *Params) { p.Container.Security.MaskedPaths = []string{"proc"} }},
		{"seccomp kind", "security.seccomp", "odd", func(p *Params) { p.Container.Security.Seccomp = &workload.Profile{Kind: "odd"} }},
		{"seccomp path", "security.seccomp.localhost_ref", "absolute", func(p *Params) {
			p.Container.Security.Seccomp = &workload.Profile{Kind: workload.ProfileLocalhost, Localhost: "x"}
		}},
		{"seccomp file", "security.seccomp", "not exist", func(p *Params) {
			p.Container.Security.Seccomp = &workload.Profile{Kind: workload.ProfileLocalhost, Localhost: "/missing"}
		}},
		{"apparmor", "security.apparmor.localhost_ref", "not enabled on this node", func(p *Params) {
			p.Container.Security.AppArmor = &workload.Profile{Kind: workload.ProfileLocalhost, Localhost: "localhost/x"}
		}},
		{"oom score", "resources.oom_score_adj", "1001", res(workload.Resources{OOMScoreAdj: 1001})},
		{"quota", "resources.cpu_quota", "-2", res(workload.Resources{CPUQuota: -2})},
		{"period", "resources.cpu_period", "-1", res(workload.Resources{CPUPeriod: -1})},
		{"shares", "resources.cpu_shares", "-1", res(workload.Resources{CPUShares: -1})},
		{"memory", "resources.memory_limit_in_bytes", "-5", res(workload.Resources{MemoryLimit: -5})},
		{"swap below memory", "resources.memory_swap_limit_in_bytes", "less", res(workload.Resources{MemoryLimit: 10, MemorySwapLimit: 5})},
		{"hugepages", "resources.hugepage_limits[0]", "no hugetlb", res(workload.Resources{HugepageLimits: []workload.HugepageLimit{{PageSize: "2MB", Limit: 1}}})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := podParams(t)
			tc.change(p)
			_, err := Build(t.Context(), testHost(), p)
			wantField(t, err, tc.field, tc.text)
		})
	}
}

func mount(m workload.Mount) func(*Params) {
	return func(p *Params) { p.Container.Mounts = []workload.Mount{m} }
}

func device(d workload.Device) func(*Params) {
	return func(p *Params) { p.Container.Devices = []workload.Device{d} }
}

func res(r workload.Resources) func(*Params) { return func(p *Params) { p.Container.Resources = &r } }

func TestDevices(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/dev/full", link); err != nil {
		t.Fatal(err)
	}
	p := podParams(t)
	p.Container.Devices = []workload.Device{
		{HostPath: link, ContainerPath: "/dev/x", Permissions: "r"},
		{HostPath: "/dev/zero"},
	}
	s := mustBuild(t, testHost(), p).Spec
	if len(s.Linux.Devices) != 2 {
		t.Fatalf("devices = %+v; want two", s.Linux.Devices)
	}
	x, z := s.Linux.Devices[0], s.Linux.Devices[1]
	if x.Path != "/dev/x" || x.Type != "c" || x.Major != 1 || x.Minor != 7 || z.Path != "/dev/zero" || z.Minor != 5 {
		t.Errorf("devices = %+v; want /dev/x 1:7 and /dev/zero 1:5", s.Linux.Devices)
	}
	rules := s.Linux.Resources.Devices
	if first := rules[0]; first.Allow || first.Access != "rwm" {
		t.Errorf("first rule = %+v; want deny all", first)
	}
	if r := rules[len(rules)-2]; !r.Allow || *r.Minor != 7 || r.Access != "r" {
		t.Errorf("rule of /dev/x = %+v; want allow 1:7 r", r)
	}
}

func TestDeviceDirectory(t *testing.T) {
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("needs /dev/net/tun: %v", err)
	}
	p := podParams(t)
	p.Container.Devices = []workload.Device{{HostPath: "/dev/net", ContainerPath: "/dev/n"}}
	d := mustBuild(t, testHost(), p).Spec.Linux.Devices
	if len(d) != 1 || d[0].Path != "/dev/n/tun" || d[0].Major != 10 || d[0].Minor != 200 {
		t.Errorf("devices of /dev/net = %+v; want /dev/n/tun 10:200", d)
	}
}

func TestPrivileged(t *testing.T) {
	p := podParams(t)
	p.Container.Security.Privileged, p.Pod.Security.Privileged = true, true
	s := mustBuild(t, testHost(), p).Spec
	if !slices.ContainsFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == "/dev/kmsg" || d.Path == "/dev/null" }) {
		t.Errorf("devices = %d of the host's; want /dev/null among them", len(s.Linux.Devices))
	}
	for _, m := range s.Mounts {
		if (m.Destination == "/sys" || m.Destination == "/sys/fs/cgroup") && slices.Contains(m.Options, "ro") {
			t.Errorf("%s is %v; want rw", m.Destination, m.Options)
		}
	}
	if slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace }) {
		t.Error("a privileged container has a cgroup namespace; want the node's")
	}
	if r := s.Linux.Resources.Devices; len(r) != 1 || !r[0].Allow {
		t.Errorf("device rules = %+v; want all allowed", r)
	}
}

func destinations(s *specs.Spec) []string {
	var out []string
	for _, m := range s.Mounts {
		out = append(out, m.Destination)
	}
	return out
}

func find(t *testing.T, s *specs.Spec, dst string) specs.Mount {
	t.Helper()
	i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == dst })
	if i < 0 {
		t.Fatalf("no mount at %s among %v", dst, destinations(s))
	}
	return s.Mounts[i]
}

func TestMountOrderAndOverrides(t *testing.T) {
	dir := t.TempDir()
	p := podParams(t)
	for _, dst := range []string{"/a/b/c", "/a", "/etc/hosts", "/z", "/a/b/", "/dev/shm"} {
		p.Container.Mounts = append(p.Container.Mounts, workload.Mount{ContainerPath: dst, HostPath: dir})
	}
	p.ExtraMounts = []workload.Mount{{ContainerPath: "/z", HostPath: "/"}, {ContainerPath: "/vol", HostPath: dir}}
	s := mustBuild(t, testHost(), p).Spec
	want := []string{
		"/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup",
		"/a", "/z", "/vol", "/etc/hosts", "/a/b", "/dev/shm", "/etc/resolv.conf", "/etc/hostname", "/a/b/c",
	}
	if diff := cmp.Diff(want, destinations(s)); diff != "" {
		t.Errorf("destinations (-want +got):\n%s", diff)
	}
	if got := find(t, s, "/z").Source; got != dir {
		t.Errorf("/z is from %s; want the client's %s", got, dir)
	}
	p.Container.Mounts = []workload.Mount{{ContainerPath: "/dev", HostPath: "/dev"}}
	if got := destinations(mustBuild(t, testHost(), p).Spec); slices.Contains(got, "/dev/pts") || slices.Contains(got, "/dev/shm") {
		t.Errorf("destinations with a /dev of the client's = %v; want nothing below /dev", got)
	}
}

func TestMountOptions(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	p := podParams(t)
	p.ImageVolume = func(m *workload.Mount) (string, error) { return "/img/" + m.Image.Image, nil }
	ids := []workload.IDMapping{{HostID: 1000, Length: 10}}
	p.Container.Mounts = []workload.Mount{
		{ContainerPath: "/rw", HostPath: link, Options: []string{"noexec", "nosuid"}},
		{ContainerPath: "/ro", HostPath: dir, Readonly: true, SELinuxRelabel: true},
		{ContainerPath: "/rro", HostPath: dir, Readonly: true, RecursiveReadonly: true},
		{ContainerPath: "/img", Image: &workload.ImageSpec{Image: "i"}, Readonly: true},
		{ContainerPath: "/map", HostPath: dir, UIDMappings: ids, GIDMappings: ids},
	}
	b := mustBuild(t, testHost(), p)
	for dst, want := range map[string][]string{
		"/rw": {"rbind", "rprivate", "rw", "noexec", "nosuid"}, "/ro": {"rbind", "rprivate", "ro"},
		"/rro": {"rbind", "rprivate", "rro"}, "/map": {"rbind", "rprivate", "rw", "ridmap"},
	} {
		if m := find(t, b.Spec, dst); !slices.Equal(m.Options, want) || m.Source != dir {
			t.Errorf("%s = %v from %s; want %v from %s", dst, m.Options, m.Source, want, dir)
		}
	}
	if m := find(t, b.Spec, "/img"); m.Source != "/img/i" {
		t.Errorf("image volume is from %s; want /img/i", m.Source)
	}
	if !slices.Equal(b.Relabel, []string{dir}) {
		t.Errorf("Relabel = %v; want %s", b.Relabel, dir)
	}
}

func TestSELinuxOf(t *testing.T) {
	pod := &workload.Pod{Security: workload.PodSecurity{SELinux: &workload.SELinux{Type: "pod_t", Level: "s0:c1,c2"}}}
	for _, tc := range []struct {
		pod       *workload.Pod
		own, want *workload.SELinux
	}{
		{&workload.Pod{}, nil, nil},
		{pod, nil, pod.Security.SELinux},
		{pod, &workload.SELinux{Type: "own_t"}, &workload.SELinux{Type: "own_t", Level: "s0:c1,c2"}},
		{pod, &workload.SELinux{Level: "s0"}, &workload.SELinux{Level: "s0"}},
		{&workload.Pod{}, &workload.SELinux{Type: "own_t"}, &workload.SELinux{Type: "own_t"}},
	} {
		c := &workload.Container{Security: workload.Security{SELinux: tc.own}}
		if got := SELinuxOf(tc.pod, c); !cmp.Equal(got, tc.want) {
			t.Errorf("SELinuxOf(%v, %v) = %v; want %v", tc.pod.Security.SELinux, tc.own, got, tc.want)
		}
	}
}

func TestHostNamespaces(t *testing.T) {
	p := podParams(t)
	p.Namespaces = Namespaces{PID: PIDHost}
	s := mustBuild(t, testHost(), p).Spec
	var got []string
	for _, n := range s.Linux.Namespaces {
		got = append(got, string(n.Type))
	}
	if diff := cmp.Diff([]string{"mount", "cgroup"}, got); diff != "" {
		t.Errorf("namespaces (-want +got):\n%s", diff)
	}
	if m := find(t, s, "/dev/shm"); m.Source != "/dev/shm" || m.Type != "bind" {
		t.Errorf("/dev/shm = %+v; want the host's", m)
	}
	p.Namespaces = Namespaces{IPC: "/i", User: "/u"}
	p.ShmPath = ""
	p.Pod.Security.Namespaces.User = &workload.UserNamespace{
		UIDs: []workload.IDMapping{{HostID: 65536, Length: 65536}}, GIDs: []workload.IDMapping{{HostID: 65536, Length: 3}},
	}
	s = mustBuild(t, testHost(), p).Spec
	if m := find(t, s, "/dev/shm"); m.Type != "tmpfs" || !slices.Contains(m.Options, "size=65536k") {
		t.Errorf("/dev/shm = %+v; want a tmpfs of 64 MiB", m)
	}
	if m := find(t, s, "/sys"); m.Type != "bind" || !slices.Contains(m.Options, "rro") {
		t.Errorf("/sys with a user namespace and the host's network = %+v; want a read-only bind", m)
	}
	if m := find(t, s, "/dev/pts"); slices.Contains(m.Options, "gid=5") {
		t.Errorf("/dev/pts = %v; want no gid=5, which is not mapped", m.Options)
	}
	if len(s.Linux.UIDMappings) != 1 || s.Linux.UIDMappings[0].Size != 65536 {
		t.Errorf("uid mappings = %v", s.Linux.UIDMappings)
	}
}

// A path on a dead file system costs the time limit, not the daemon.
func TestStuckPath(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	p := podParams(t)
	p.Container.Mounts = []workload.Mount{{ContainerPath: "/a", Image: &workload.ImageSpec{}}}
	p.ImageVolume = func(*workload.Mount) (string, error) { <-release; return "", nil }
	h := testHost()
	h.PathTimeout = 20 * time.Millisecond
	if _, err := Build(t.Context(), h, p); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Build = %v; want a deadline", err)
	}
}

// kubeletParams is what the kubelet sends for an ordinary pod with a service account.
func kubeletParams(t testing.TB, volume string) *Params {
	p := podParams(t)
	c := p.Container
	c.Command, c.Args = []string{"/bin/app"}, []string{"--port=80"}
	c.Env = []workload.EnvVar{{Key: "KUBERNETES_SERVICE_HOST", Value: "10.0.0.1"}}
	c.Mounts = []workload.Mount{
		{ContainerPath: "/var/run/secrets/kubernetes.io/serviceaccount", HostPath: volume, Readonly: true},
		{ContainerPath: "/etc/hosts", HostPath: volume},
		{ContainerPath: "/dev/termination-log", HostPath: volume},
	}
	c.Resources = &workload.Resources{
		CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 256, MemoryLimit: 128 << 20, OOMScoreAdj: 985,
		HugepageLimits: []workload.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}},
	}
	c.Security = workload.Security{
		RunAsUser: ptr[int64](1000), RunAsGroup: ptr[int64](3000), SupplementalGroups: []int64{2000},
		NoNewPrivs: true, ReadonlyRootfs: true, DropCapabilities: []string{"ALL"}, AddCapabilities: []string{"NET_BIND_SERVICE"},
		MaskedPaths: defaultMasked, ReadonlyPaths: defaultReadonly,
		Seccomp: &workload.Profile{Kind: workload.ProfileRuntimeDefault},
	}
	return p
}

func TestGolden(t *testing.T) {
	const volume = "/proc" // a path that every node has, so that the golden file fits everywhere
	for name, p := range map[string]*Params{
		"minimal": podParams(t),
		"kubelet": kubeletParams(t, volume),
	} {
		t.Run(name, func(t *testing.T) {
			got, err := json.MarshalIndent(mustBuild(t, testHost(), p).Spec, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".json", append(got, '\n'))
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}

func podParamsWithoutRoot() *Params {
	return &Params{Pod: &workload.Pod{}, Container: &workload.Container{}}
}
