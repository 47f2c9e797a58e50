package oci

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// minimalSpec is the least that compiles.
func minimalSpec() *specs.Spec {
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"},
		Root:    &specs.Root{Path: "/rootfs"},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.MountNamespace}, {Type: specs.PIDNamespace},
			{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace, Path: "/run/netns/a"},
		}},
	}
}

func mustCompile(t testing.TB, s *specs.Spec, o Options) *Launch {
	t.Helper()
	l, err := Compile(s, o)
	if err != nil {
		t.Fatalf("Compile: %v", err)
	}
	t.Cleanup(l.Close)
	return l
}

func noCompiler(*specs.LinuxSeccomp) (*Filter, error) {
	return &Filter{Program: []byte("12345678"), Flags: 4}, nil
}

var v1Mounts = CgroupMounts{Group: "/g", Hierarchies: []Hierarchy{
	{Mountpoint: "/sys/fs/cgroup/cpu,cpuacct", Name: "cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}},
	{Mountpoint: "/sys/fs/cgroup/systemd", Name: "systemd", Named: "systemd"},
}}

func TestCompileNamespaces(t *testing.T) {
	s := minimalSpec()
	s.Linux.Namespaces = append(s.Linux.Namespaces,
		specs.LinuxNamespace{Type: specs.CgroupNamespace},
		specs.LinuxNamespace{Type: specs.TimeNamespace},
		specs.LinuxNamespace{Type: specs.IPCNamespace, Path: "/i"},
	)
	s.Linux.Namespaces[1].Path = "/p"
	s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: -5, Nanosecs: 7}, "boottime": {Secs: 1}}
	s.Hostname, s.Domainname = "h", "d"
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.sem": "1 2 3 4"}
	l := mustCompile(t, s, Options{})
	m := l.Message
	if l.CloneFlags != sys.CloneNewNS|sys.CloneNewUTS|sys.CloneNewTime {
		t.Errorf("CloneFlags = %#x; want mount, uts and time", l.CloneFlags)
	}
	if m.Unshare != sys.CloneNewCgroup {
		t.Errorf("Unshare = %#x; want cgroup", m.Unshare)
	}
	if l.PIDNamespace != "/p" || l.UserNamespace != nil || l.TimeNamespace != nil {
		t.Errorf("PIDNamespace = %q, UserNamespace %v, TimeNamespace %v; want /p and none", l.PIDNamespace, l.UserNamespace, l.TimeNamespace)
	}
	wantJoin := []initmsg.Namespace{
		{Type: sys.CloneNewNet, Path: "/run/netns/a", File: initmsg.NoFile},
		{Type: sys.CloneNewIPC, Path: "/i", File: initmsg.NoFile},
	}
	if diff := cmp.Diff(wantJoin, m.Join); diff != "" {
		t.Errorf("Join (-want +got):\n%s", diff)
	}
	if want := "boottime 1 0\nmonotonic -5 7\n"; l.TimeOffsets != want {
		t.Errorf("TimeOffsets = %q; want %q", l.TimeOffsets, want)
	}
	if m.Hostname != "h" || m.Domainname != "d" {
		t.Errorf("names = %q, %q; want h, d", m.Hostname, m.Domainname)
	}
	if diff := cmp.Diff([]initmsg.Sysctl{{Name: "kernel/sem", Value: "1 2 3 4"}, {Name: "net/ipv4/ip_forward", Value: "1"}}, m.Sysctls); diff != "" {
		t.Errorf("Sysctls (-want +got):\n%s", diff)
	}
}

func TestCompileUserNamespace(t *testing.T) {
	ids := []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
	s := minimalSpec()
	s.Root.Path = "/usr"
	s.Linux.Namespaces[3].Path = "/proc/self/ns/net"
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
	s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/other", Type: "c", Major: 1, Minor: 7}}
	s.Process.User.UID = 5
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}
	s.Process.OOMScoreAdj = ptr(9)
	o := Options{CgroupTasks: []string{"/t"}, Staging: "/stage", checkOnly: os.Getuid() != 0}
	l := mustCompile(t, s, o)
	if l.CloneFlags&sys.CloneNewUser != 0 || !l.Message.UserNamespace || l.UserNamespace == nil != o.checkOnly {
		t.Errorf("CloneFlags %#x, UserNamespace %v, %v; want one to be entered", l.CloneFlags, l.Message.UserNamespace, l.UserNamespace)
	}
	if l.Message.Join[0].File == initmsg.NoFile != o.checkOnly || l.Message.Root.File == initmsg.NoFile != o.checkOnly {
		t.Errorf("Join %v, Root %v; want files, for the paths may be closed", l.Message.Join, l.Message.Root)
	}
	want := sys.HostSetup{
		CgroupTasks: []string{"/t"}, Dir: "/stage", StdioUID: ptr[uint32](100005), OOMScoreAdj: ptr[int32](9),
		Rlimits: []sys.Rlimit{{Resource: sys.Rlimits["RLIMIT_NOFILE"], Hard: 2}},
	}
	if diff := cmp.Diff(want, l.Host); diff != "" {
		t.Errorf("Host (-want +got):\n%s", diff)
	}
	if m := l.Message; len(m.CgroupTasks) != 0 {
		t.Errorf("CgroupTasks %q; want none for the init", m.CgroupTasks)
	}
	for _, d := range l.Message.Devices {
		if d.Bind == "" {
			t.Errorf("device %s would be made with mknod in a user namespace", d.Path)
		}
		if d.Path == "/dev/other" && d.Bind != "/dev/full" {
			t.Errorf("/dev/other binds %s; want the node of 1:7, /dev/full", d.Bind)
		}
	}
}

func TestCompileUserNamespaceRefuses(t *testing.T) {
	ids := func(m ...specs.LinuxIDMapping) []specs.LinuxIDMapping { return m }
	whole := ids(specs.LinuxIDMapping{HostID: 100000, Size: 10})
	for _, tt := range []struct {
		want string
		uids []specs.LinuxIDMapping
		edit func(*specs.Spec)
	}{
		{"linux.uidMappings: a new user namespace needs", nil, nil},
		{"linux.uidMappings: 0 is not mapped", ids(specs.LinuxIDMapping{ContainerID: 1, HostID: 5, Size: 9}), nil},
		{"linux.uidMappings[0].size: 0", ids(specs.LinuxIDMapping{}), nil},
		{"linux.uidMappings[0].size: 4294967295 leads beyond", ids(specs.LinuxIDMapping{HostID: 10, Size: 1<<32 - 1}), nil},
		{"linux.uidMappings[1]: overlaps linux.uidMappings[0]", ids(whole[0], specs.LinuxIDMapping{ContainerID: 9, HostID: 5, Size: 2}), nil},
		{"process.user.uid: 10 is not in linux.uidMappings", whole, func(s *specs.Spec) { s.Process.User.UID = 10 }},
		{"process.user.additionalGids[1]: 11 is not in linux.gidMappings", whole, func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{1, 11} }},
	} {
		s := minimalSpec()
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Linux.UIDMappings, s.Linux.GIDMappings = tt.uids, whole
		if tt.edit != nil {
			tt.edit(s)
		}
		_, err := Compile(s, Options{checkOnly: true})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Compile = %v; want %q", err, tt.want)
		}
	}
}

func TestCompileProcess(t *testing.T) {
	s := minimalSpec()
	s.Process = &specs.Process{
		Terminal: true, ConsoleSize: &specs.Box{Height: 24, Width: 80},
		Args: []string{"a", "b"}, Env: []string{"X=1"}, Cwd: "/srv",
		User:            specs.User{UID: 1, GID: 2, Umask: ptr[uint32](0o27), AdditionalGids: []uint32{3}},
		Capabilities:    &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_BPF"}, Effective: []string{"CAP_CHOWN"}, Permitted: []string{"CAP_CHOWN"}, Inheritable: []string{"CAP_KILL"}, Ambient: []string{"CAP_KILL"}},
		Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}},
		NoNewPrivileges: true, ApparmorProfile: "aa", SelinuxLabel: "se", OOMScoreAdj: ptr(-5),
		Scheduler:       &specs.Scheduler{Policy: specs.SchedDeadline, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}, Runtime: 1, Deadline: 2, Period: 3},
		IOPriority:      &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 4},
		ExecCPUAffinity: &specs.CPUAffinity{Final: "0-1"},
	}
	s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0,64", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActNotify, ListenerPath: "/run/l", ListenerMetadata: "meta"}
	l := mustCompile(t, s, Options{Seccomp: noCompiler, ID: "c1"})
	want := initmsg.Process{
		Args: []string{"a", "b"}, Env: []string{"X=1"}, Cwd: "/srv", CreateCwd: true, UID: 1, GID: 2, Groups: []uint32{3},
		Umask: ptr[uint32](0o27), NoNewPrivs: true, AppArmor: "aa", SELinux: "se", OOMScoreAdj: ptr[int32](-5),
		Caps:    &initmsg.Capabilities{Bounding: 1 | 1<<39, Effective: 1, Permitted: 1, Inheritable: 1 << 5, Ambient: 1 << 5},
		Rlimits: []initmsg.Rlimit{{Resource: 7, Soft: 1, Hard: 2}},
		Seccomp: []byte("12345678"), SeccompFlags: 4, SeccompListener: "/run/l",
		Terminal: true, ConsoleFile: 0, ConsoleRows: 24, ConsoleCols: 80,
		Scheduler:  &initmsg.Scheduler{Policy: 6, Flags: 1, Runtime: 1, Deadline: 2, Period: 3},
		IOPriority: ptr[uint32](2<<13 | 4), Personality: ptr[uint32](8),
		NUMAMode: ptr[uint32](2 | 1<<15), NUMAMask: []uint64{1, 1}, FirstExtra: initmsg.NoFile,
	}
	got := l.Message.Process
	var state specs.ContainerProcessState
	if err := json.Unmarshal(got.SeccompState, &state); err != nil || state.Metadata != "meta" || state.State.ID != "c1" {
		t.Errorf("SeccompState = %s, %v; want metadata and ID", got.SeccompState, err)
	}
	got.SeccompState = nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Process (-want +got):\n%s", diff)
	}
	if !l.Terminal {
		t.Error("Launch.Terminal = false; want true")
	}
}

func TestCompileFiles(t *testing.T) {
	open := func() *os.File {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	root, start, x, y, mnt := open(), open(), open(), open(), open()
	s := minimalSpec()
	s.Process.Terminal = true
	s.Mounts = []specs.Mount{{Destination: "/m", Type: "bind", Options: []string{"rbind", "ridmap"}}}
	l := mustCompile(t, s, Options{Root: root, StartFile: start, ExtraFiles: []*os.File{x, y}, MountFiles: map[string]*os.File{"/m": mnt}})
	if want := []*os.File{root, mnt, start, x, y}; !slices.Equal(l.Files, want) {
		t.Errorf("Files = %v; want %v", l.Files, want)
	}
	m := l.Message
	if m.Root.File != 0 || m.Mounts[0].File != 1 || m.StartFile != 2 || m.Process.FirstExtra != 3 || m.Process.ExtraFiles != 2 || m.Process.ConsoleFile != 5 {
		t.Errorf("indices = root %d, mount %d, start %d, extra %d+%d, console %d; want 0, 1, 2, 3+2, 5",
			m.Root.File, m.Mounts[0].File, m.StartFile, m.Process.FirstExtra, m.Process.ExtraFiles, m.Process.ConsoleFile)
	}
}

// Every option of the specification's table does something defined.
func TestMountOptionTable(t *testing.T) {
	const (
		ro, nosuid, nodev, noexec         = 1, 2, 4, 8
		noatime, strictatime, atime       = 0x10, 0x20, 0x70
		nodiratime, nosymfollow           = 0x80, 0x200000
		rec, private, slave, shared, unbd = 16384, 1 << 18, 1 << 19, 1 << 20, 1 << 17
	)
	type attrs struct{ Set, Clear, RecSet, RecClear, Propagation uint64 }
	for option, want := range map[string]attrs{
		"ro": {Set: ro}, "rw": {Clear: ro}, "nosuid": {Set: nosuid}, "suid": {Clear: nosuid}, "nodev": {Set: nodev},
		"dev": {Clear: nodev}, "noexec": {Set: noexec}, "exec": {Clear: noexec}, "noatime": {Set: noatime, Clear: atime},
		"strictatime": {Set: strictatime, Clear: atime}, "relatime": {Clear: atime}, "atime": {Clear: atime},
		"norelatime": {Clear: atime}, "nostrictatime": {Clear: atime}, "nodiratime": {Set: nodiratime},
		"diratime": {Clear: nodiratime}, "nosymfollow": {Set: nosymfollow}, "symfollow": {Clear: nosymfollow},
		"rro": {RecSet: ro}, "rrw": {RecClear: ro}, "rnosuid": {RecSet: nosuid}, "rsuid": {RecClear: nosuid},
		"rnodev": {RecSet: nodev}, "rdev": {RecClear: nodev}, "rnoexec": {RecSet: noexec}, "rexec": {RecClear: noexec},
		"rnoatime": {RecSet: noatime, RecClear: atime}, "rstrictatime": {RecSet: strictatime, RecClear: atime},
		"rrelatime": {RecClear: atime}, "ratime": {RecClear: atime}, "rnorelatime": {RecClear: atime},
		"rnostrictatime": {RecClear: atime}, "rnodiratime": {RecSet: nodiratime}, "rdiratime": {RecClear: nodiratime},
		"rnosymfollow": {RecSet: nosymfollow}, "rsymfollow": {RecClear: nosymfollow},
		"private": {Propagation: private}, "rprivate": {Propagation: private | rec}, "slave": {Propagation: slave},
		"rslave": {Propagation: slave | rec}, "unbindable": {Propagation: unbd}, "runbindable": {Propagation: unbd | rec},
		"shared": {Propagation: shared}, "rshared": {Propagation: shared | rec},
		"async": {}, "defaults": {}, "dirsync": {}, "lazytime": {}, "loud": {}, "mand": {}, "noiversion": {},
		"nolazytime": {}, "nomand": {}, "silent": {}, "sync": {}, "iversion": {},
	} {
		t.Run(option, func(t *testing.T) {
			s := minimalSpec()
			s.Mounts = []specs.Mount{{Destination: "/m", Type: "bind", Source: t.TempDir(), Options: []string{"rbind", option}}}
			l, err := Compile(s, Options{})
			if errors.Is(err, os.ErrPermission) {
				t.Skipf("open_tree needs CAP_SYS_ADMIN: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			m := l.Message.Mounts[0]
			got := attrs{m.AttrSet, m.AttrClear, m.RecAttrSet, m.RecAttrClear, m.Propagation}
			if got != want {
				t.Errorf("option %s = %+v; want %+v", option, got, want)
			}
			if shared := want.Propagation&shared != 0; (m.File >= 0) != shared || (m.Source == "") != shared {
				t.Errorf("option %s: file %d, source %q; want a clone made here just for shared mounts", option, m.File, m.Source)
			}
		})
	}
}

func TestCompileMounts(t *testing.T) {
	s := minimalSpec()
	s.Linux.MountLabel = "u:r:t:l"
	s.Mounts = []specs.Mount{
		{Destination: "tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "rnosuid", "rw", "nodev", "size=1k", "sync", "tmpcopyup"}},
		{Destination: "/disk", Type: "ext4", Source: "/dev/x", Options: []string{"ro", "data=journal"}},
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"ro"}},
		{Destination: "/rel", Type: "bind", Source: "data"},
		{Destination: "/file", Source: "/etc/hosts", Options: []string{"bind", "ro", "noatime"}},
		{Destination: "/tmp/", Options: []string{"remount", "rw", "async", "iversion", "slave", "size=2k"}},
		{Destination: "/disk", Type: "ext4", Options: []string{"remount", "iversion", "rw", "noiversion"}},
		{Destination: "/file", Options: []string{"bind", "remount", "rw"}},
		{Destination: "/off", Type: "tmpfs", Options: []string{"sync", "lazytime", "iversion", "async", "nolazytime", "noiversion"}},
	}
	got := mustCompile(t, s, Options{Bundle: "/bundle"}).Message.Mounts
	want := []initmsg.Mount{
		{FSType: "tmpfs", Source: "tmpfs", File: -1, Target: "/tmp", AttrSet: 2 | 4, Options: []string{"size=1k", "sync", "context=u:r:t:l"}, TmpCopyUp: true},
		{FSType: "ext4", Source: "/dev/x", File: -1, Target: "/disk", AttrSet: 1, Options: []string{"data=journal", "ro"}},
		{FSType: "proc", Source: "proc", File: -1, Target: "/proc", AttrSet: 1},
		{Source: "/bundle/data", File: -1, Target: "/rel"},
		{Source: "/etc/hosts", File: -1, Target: "/file", AttrSet: 1 | 0x10, AttrClear: 0x70},
		{File: -1, Target: "/tmp", Remount: true, AttrClear: 1, Propagation: sys.MountSlave, Options: []string{"async", "size=2k"}, IVersion: true},
		{File: -1, Target: "/disk", Remount: true, AttrClear: 1, Options: []string{"rw"}},
		{File: -1, Target: "/file", Remount: true, AttrClear: 1},
		{FSType: "tmpfs", File: -1, Target: "/off", Options: []string{"context=u:r:t:l"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Mounts (-want +got):\n%s", diff)
	}
}

func TestCompileCgroupMount(t *testing.T) {
	s := minimalSpec()
	s.Mounts = []specs.Mount{{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "ro", "relatime"}}}
	sources := func(cgns bool, c CgroupMounts) (out []string, atEnd []string) {
		s := *s
		linux := *s.Linux
		s.Linux = &linux
		if cgns {
			linux.Namespaces = append(slices.Clone(linux.Namespaces), specs.LinuxNamespace{Type: specs.CgroupNamespace})
		}
		m := mustCompile(t, &s, Options{Cgroups: c}).Message
		for _, x := range m.Mounts {
			out = append(out, x.FSType+" "+x.Source+" "+x.Target+" "+strings.Join(x.Options, ","))
			if x.ReadonlyAtEnd {
				atEnd = append(atEnd, x.Target)
			} else if x.AttrSet&sys.MountAttrReadonly == 0 {
				t.Errorf("%s is writable", x.Target)
			}
		}
		return out, atEnd
	}
	got, ro := sources(true, v1Mounts)
	want := []string{
		"tmpfs tmpfs /sys/fs/cgroup mode=755,size=64k",
		" /sys/fs/cgroup/cpu,cpuacct/g /sys/fs/cgroup/cpu,cpuacct ", " /sys/fs/cgroup/cpu,cpuacct/g /sys/fs/cgroup/cpu ",
		" /sys/fs/cgroup/cpu,cpuacct/g /sys/fs/cgroup/cpuacct ", " /sys/fs/cgroup/systemd/g /sys/fs/cgroup/systemd ",
	}
	if diff := cmp.Diff(want, got); diff != "" || !slices.Equal(ro, []string{"/sys/fs/cgroup"}) {
		t.Errorf("v1, own namespace: read-only %v, (-want +got):\n%s", ro, diff)
	}
	got, _ = sources(false, v1Mounts)
	want = []string{
		"tmpfs tmpfs /sys/fs/cgroup mode=755,size=64k",
		" /sys/fs/cgroup/cpu,cpuacct/g /sys/fs/cgroup/cpu,cpuacct ", " /sys/fs/cgroup/cpu,cpuacct/g /sys/fs/cgroup/cpu ",
		" /sys/fs/cgroup/cpu,cpuacct/g /sys/fs/cgroup/cpuacct ", " /sys/fs/cgroup/systemd/g /sys/fs/cgroup/systemd ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("v1, host namespace (-want +got):\n%s", diff)
	}
	got, ro = sources(true, CgroupMounts{V2: true})
	if diff := cmp.Diff([]string{"cgroup2 cgroup2 /sys/fs/cgroup "}, got); diff != "" || ro != nil {
		t.Errorf("v2, own namespace: read-only %v, (-want +got):\n%s", ro, diff)
	}
	got, _ = sources(false, CgroupMounts{V2: true})
	if diff := cmp.Diff([]string{" /sys/fs/cgroup /sys/fs/cgroup "}, got); diff != "" {
		t.Errorf("v2, host namespace (-want +got):\n%s", diff)
	}
}

func TestCompileDevices(t *testing.T) {
	mode := os.FileMode(0o640)
	s := minimalSpec()
	s.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/a", Type: "b", Major: 8, Minor: 1, FileMode: &mode, UID: ptr[uint32](1), GID: ptr[uint32](2)},
		{Path: "/dev/zero", Type: "c", Major: 1, Minor: 3},
		{Path: "/dev/p", Type: "p"},
		{Path: "/dev/ptmx", Type: "c", Major: 5, Minor: 2},
	}
	m := mustCompile(t, s, Options{}).Message
	got := map[string]initmsg.Device{}
	for _, d := range m.Devices {
		got[d.Path] = d
	}
	for p, want := range map[string]initmsg.Device{
		"/dev/a":    {Path: "/dev/a", Mode: 0o60640, Major: 8, Minor: 1, UID: 1, GID: 2},
		"/dev/zero": {Path: "/dev/zero", Mode: 0o20666, Major: 1, Minor: 3}, // the specification's, not the default
		"/dev/null": {Path: "/dev/null", Mode: 0o20666, Major: 1, Minor: 3},
		"/dev/p":    {Path: "/dev/p", Mode: 0o10666},
	} {
		if diff := cmp.Diff(want, got[p]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", p, diff)
		}
	}
	if _, ok := got["/dev/ptmx"]; ok || len(m.Devices) != 8 {
		t.Errorf("devices = %+v; want eight, and ptmx a link", m.Devices)
	}
	s.Mounts = []specs.Mount{{Destination: "/dev/", Type: "bind", Source: "/dev", Options: []string{"rbind"}}}
	s.Linux.Devices = nil
	if m := mustCompile(t, s, Options{}).Message; len(m.Devices)+len(m.Symlinks) != 0 {
		t.Errorf("with a bound /dev: devices %v, links %v; want none", m.Devices, m.Symlinks)
	}
}

func TestCompileHooks(t *testing.T) {
	h := func(p string) []specs.Hook { return []specs.Hook{{Path: p, Args: []string{p, "x"}, Timeout: ptr(3)}} }
	s := minimalSpec()
	s.Annotations = map[string]string{"k": "v"}
	s.Hooks = &specs.Hooks{
		CreateRuntime: h("/cr"), CreateContainer: h("/cc"), StartContainer: h("/sc"), Poststart: h("/ps"), Poststop: h("/pp"),
	}
	l := mustCompile(t, s, Options{Bundle: "/b", ID: "c1"})
	if len(l.Hooks.CreateRuntime) != 1 || len(l.Hooks.Poststart) != 1 || len(l.Hooks.Poststop) != 1 || len(l.Hooks.CreateContainer) != 0 {
		t.Errorf("Hooks = %+v; want those of the runtime", l.Hooks)
	}
	want := []initmsg.Hook{{Path: "/cc", Args: []string{"/cc", "x"}, Timeout: 3}}
	if diff := cmp.Diff(want, l.Message.CreateContainerHooks); diff != "" {
		t.Errorf("CreateContainerHooks (-want +got):\n%s", diff)
	}
	var state specs.State
	if err := json.Unmarshal(l.Message.State, &state); err != nil || state.ID != "c1" || state.Bundle != "/b" || state.Annotations["k"] != "v" {
		t.Errorf("State = %s, %v", l.Message.State, err)
	}
}

func TestRootPropagation(t *testing.T) {
	for p, want := range map[string][2]uint64{
		"":        {sys.MountSlave | sys.MountRec, 0},
		"rshared": {sys.MountSlave | sys.MountRec, sys.MountShared | sys.MountRec},
		"rslave":  {sys.MountSlave | sys.MountRec, sys.MountSlave | sys.MountRec},
		"private": {sys.MountPrivate | sys.MountRec, sys.MountPrivate},
	} {
		s := minimalSpec()
		s.Linux.RootfsPropagation = p
		r := mustCompile(t, s, Options{Staging: "/st"}).Message.Root
		if got := [2]uint64{r.Propagation, r.FinalPropagation}; got != want || r.Staging != "/st" || r.Path != "/rootfs" {
			t.Errorf("rootfsPropagation %q = %#x, root %+v; want %#x", p, got, r, want)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	ns := func(n specs.LinuxNamespace) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, n) }
	}
	mnt := func(all ...specs.Mount) func(*specs.Spec) { return func(s *specs.Spec) { s.Mounts = all } }
	dev := func(d specs.LinuxDevice) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{d} }
	}
	for _, tc := range []struct {
		name, field string
		unsupported bool
		change      func(*specs.Spec)
	}{
		{"version", "ociVersion", false, func(s *specs.Spec) { s.Version = "2.0.0" }},
		{"no process", "process", false, func(s *specs.Spec) { s.Process = nil }},
		{"no root", "root", false, func(s *specs.Spec) { s.Root = nil }},
		{"no linux", "linux", false, func(s *specs.Spec) { s.Linux = nil }},
		{"windows", "windows", true, func(s *specs.Spec) { s.Windows = &specs.Windows{} }},
		{"solaris", "solaris", true, func(s *specs.Spec) { s.Solaris = &specs.Solaris{} }},
		{"vm", "vm", true, func(s *specs.Spec) { s.VM = &specs.VM{} }},
		{"zos", "zos", true, func(s *specs.Spec) { s.ZOS = &specs.ZOS{} }},
		{"freebsd", "freebsd", true, func(s *specs.Spec) { s.FreeBSD = &specs.FreeBSD{} }},
		{"net devices", "linux.netDevices", false, func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.NetworkNamespace })
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"a": {}}
		}},
		{"net device", "linux.netDevices[a/b]", false, netDevices(map[string]specs.LinuxNetDevice{"a/b": {}})},
		{"net device name", "linux.netDevices[a].name", false, netDevices(map[string]specs.LinuxNetDevice{"a": {Name: "b%s"}})},
		{"net device names", "linux.netDevices[b].name", false, netDevices(map[string]specs.LinuxNetDevice{"a": {Name: "b"}, "b": {}})},
		{"rdt", "linux.intelRdt", false, func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} }},
		{"rdt class", "linux.intelRdt.closID", false, func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "a/../b"} }},
		{"rdt schema", "linux.intelRdt.schemata", false, func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{Schemata: []string{"L3"}} }},
		{"no mount namespace", "linux.namespaces", true, func(s *specs.Spec) { s.Linux.Namespaces = nil }},
		{"joined mount namespace", "linux.namespaces[0].path", true, func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/m" }},
		{"joined time namespace", "linux.namespaces", false, ns(specs.LinuxNamespace{Type: specs.TimeNamespace, Path: "/t"})},
		{"unknown namespace", "linux.namespaces[4].type", false, ns(specs.LinuxNamespace{Type: "odd"})},
		{"twice", "linux.namespaces[4].type", false, ns(specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "/p"})},
		{"relative", "linux.namespaces[4].path", false, ns(specs.LinuxNamespace{Type: specs.IPCNamespace, Path: "p"})},
		{"mappings", "linux.uidMappings", false, ns(specs.LinuxNamespace{Type: specs.UserNamespace})},
		{"stray mappings", "linux.uidMappings", false, func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{}} }},
		{"offsets", "linux.timeOffsets", false, func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {}} }},
		{"hostname", "hostname", false, func(s *specs.Spec) { s.Hostname = "h"; s.Linux.Namespaces = s.Linux.Namespaces[:1] }},
		{"long hostname", "hostname", false, func(s *specs.Spec) { s.Hostname = strings.Repeat("h", 65) }},
		{"sysctl", "linux.sysctl[vm.x]", false, func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"vm.x": "1"} }},
		{"args", "process.args", false, func(s *specs.Spec) { s.Process.Args = nil }},
		{"nul", "process.env[0]", false, func(s *specs.Spec) { s.Process.Env = []string{"a\x00"} }},
		{"cwd", "process.cwd", false, func(s *specs.Spec) { s.Process.Cwd = "srv" }},
		{"command line", "process.commandLine", true, func(s *specs.Spec) { s.Process.CommandLine = "x" }},
		{"username", "process.user.username", true, func(s *specs.Spec) { s.Process.User.Username = "x" }},
		{"capability", "process.capabilities.ambient[0]", false, func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Ambient: []string{"CAP_FLY"}}
		}},
		{"rlimit", "process.rlimits[0].type", false, func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} }},
		{"rlimit twice", "process.rlimits[1].type", false, func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU"}, {Type: "RLIMIT_CPU"}}
		}},
		{"rlimit order", "process.rlimits[0].soft", false, func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU", Soft: 2, Hard: 1}} }},
		{"oom", "process.oomScoreAdj", false, func(s *specs.Spec) { s.Process.OOMScoreAdj = ptr(-1001) }},
		{"policy", "process.scheduler.policy", false, func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedISO} }},
		{"nice", "process.scheduler.nice", false, func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Nice: 20} }},
		{"flag", "process.scheduler.flags[0]", false, func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{"X"}}
		}},
		{"io class", "process.ioPriority.class", false, func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{} }},
		{"io priority", "process.ioPriority.priority", false, func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_RT, Priority: 8}
		}},
		{"affinity", "process.execCPUAffinity.final", false, func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "x"} }},
		{"personality", "linux.personality.domain", false, func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "BSD"} }},
		{"personality flag", "linux.personality.flags", true, func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux, Flags: []specs.LinuxPersonalityFlag{"X"}}
		}},
		{"memory policy", "linux.memoryPolicy.mode", false, func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{} }},
		{"memory nodes", "linux.memoryPolicy.nodes", false, func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "3-1"}
		}},
		{"seccomp", "linux.seccomp", true, func(s *specs.Spec) { s.Linux.Seccomp = &specs.LinuxSeccomp{} }},
		{"root propagation", "linux.rootfsPropagation", false, func(s *specs.Spec) { s.Linux.RootfsPropagation = "x" }},
		{"relative root", "root.path", false, func(s *specs.Spec) { s.Root.Path = "rootfs" }},
		{"masked", "linux.maskedPaths[0]", false, func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"x"} }},
		{"hook path", "hooks.poststop[0].path", false, func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "x"}}} }},
		{"hook timeout", "hooks.createContainer[0].timeout", false, func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/x", Timeout: ptr(0)}}}
		}},
		{"mount type", "mounts[0].type", false, mnt(specs.Mount{Destination: "/a"})},
		{"mount destination", "mounts[0].destination", false, mnt(specs.Mount{Type: "tmpfs"})},
		{"remount of nothing", "mounts[0].destination", false, mnt(specs.Mount{Destination: "/a", Type: "tmpfs", Options: []string{"remount"}})},
		{"remount of the host's file system", "mounts[1].options[1]", false, mnt(specs.Mount{Destination: "/a", Source: "/", Options: []string{"bind"}}, specs.Mount{Destination: "/a", Options: []string{"remount", "size=1"}})},
		{"remount of the root's file system", "mounts[0].options[1]", false, mnt(specs.Mount{Destination: "/", Options: []string{"remount", "sync"}})},
		{"remount idmapped", "mounts[1].options[1]", false, mnt(specs.Mount{Destination: "/a", Type: "tmpfs"}, specs.Mount{Destination: "/a", Options: []string{"remount", "idmap"}})},
		{"relative source", "mounts[0].source", false, mnt(specs.Mount{Destination: "/a", Source: "x", Options: []string{"bind"}})},
		{"shared source", "mounts[0].source", false, mnt(specs.Mount{Destination: "/a", Source: "/no/such", Options: []string{"bind", "rshared"}})},
		{"idmap", "mounts[0].options", false, mnt(specs.Mount{Destination: "/a", Source: "/", Options: []string{"bind", "idmap"}})},
		{"half a mapping", "mounts[0].uidMappings", false, mnt(specs.Mount{
			Destination: "/a", Source: "/", Options: []string{"bind"}, UIDMappings: []specs.LinuxIDMapping{{Size: 1}},
		})},
		{"idmapped file system in a user namespace", "mounts[0].uidMappings", true, func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/proc/self/ns/user"})
			s.Linux.Namespaces[3].Path, s.Root.Path = "/proc/self/ns/net", "/"
			s.Mounts = []specs.Mount{{Destination: "/a", Type: "tmpfs", Options: []string{"idmap"}}}
		}},
		{"copy up", "mounts[0].options", false, mnt(specs.Mount{Destination: "/a", Type: "ext4", Options: []string{"tmpcopyup"}})},
		{"cgroup option", "mounts[0].options[0]", true, mnt(specs.Mount{Destination: "/a", Type: "cgroup", Options: []string{"memory"}})},
		{"device type", "linux.devices[0].type", false, dev(specs.LinuxDevice{Path: "/dev/x", Type: "x"})},
		{"device path", "linux.devices[0].path", false, dev(specs.LinuxDevice{Path: "x", Type: "c"})},
		{"device number", "linux.devices[0]", false, dev(specs.LinuxDevice{Path: "/dev/x", Type: "c", Major: -1})},
		{"device twice", "linux.devices[1].path", false, func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "p"}, {Path: "/dev/./x", Type: "p"}}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := minimalSpec()
			tc.change(s)
			_, err := Compile(s, Options{checkOnly: s.Linux != nil && hasNamespace(s, specs.UserNamespace)})
			wantField(t, err, tc.field, "")
			if got := errors.Is(err, errors.ErrUnsupported); got != tc.unsupported {
				t.Errorf("errors.Is(%v, ErrUnsupported) = %t; want %t", err, got, tc.unsupported)
			}
		})
	}
}

func TestParseSet(t *testing.T) {
	for in, want := range map[string][]uint64{"": nil, "0": {1}, "0-3,8": {0x10f}, "63,64": {1 << 63, 1}, " 1 , 2": {6}} {
		if got, err := parseSet(in); err != nil || !slices.Equal(got, want) {
			t.Errorf("parseSet(%q) = %#x, %v; want %#x", in, got, err, want)
		}
	}
	for _, in := range []string{"x", "1-", "-1", "2-1", "8192", "0-99999999999", ",", "1,,2"} {
		if got, err := parseSet(in); err == nil {
			t.Errorf("parseSet(%q) = %#x; want an error", in, got)
		}
	}
}

func TestCompileExec(t *testing.T) {
	s := minimalSpec()
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	files, err := OpenNamespaces(s, os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer CloseNamespaces(files)
	p := ExecProcess(s, []string{"sh"}, true)
	p.ExecCPUAffinity = &specs.CPUAffinity{Final: "1"}
	l, err := CompileExec(s, p, ExecState{PID: 42, Namespaces: files, CgroupTasks: []string{"/t"}, Seccomp: noCompiler, ID: "c"})
	if err != nil {
		t.Fatal(err)
	}
	m := l.Message
	var got []uint64
	for i, j := range m.Join {
		got = append(got, j.Type)
		if int(j.File) != i {
			t.Errorf("Join[%d].File = %d; want %d", i, j.File, i)
		}
	}
	if want := []uint64{sys.CloneNewNet, sys.CloneNewUTS, sys.CloneNewCgroup, sys.CloneNewNS}; !slices.Equal(got, want) {
		t.Errorf("Join = %#x; want %#x, the mount namespace last", got, want)
	}
	if m.Mode != initmsg.ModeExec || m.Root != nil || l.CloneFlags != 0 || l.PIDNamespace != "/proc/42/ns/pid" {
		t.Errorf("mode %d, root %v, flags %#x, PID namespace %q", m.Mode, m.Root, l.CloneFlags, l.PIDNamespace)
	}
	if len(m.Process.Seccomp) == 0 || !m.Process.Terminal || int(m.Process.ConsoleFile) != len(l.Files) || m.Process.CreateCwd {
		t.Errorf("process = %+v; want the container's seccomp filter and a terminal", m.Process)
	}
	if !slices.Equal(m.Process.Affinity, []uint64{2}) || !slices.Equal(m.CgroupTasks, []string{"/t"}) {
		t.Errorf("affinity %v, tasks %v", m.Process.Affinity, m.CgroupTasks)
	}
	if len(s.Process.Env) != 0 || s.Process.Terminal {
		t.Errorf("the container's process was changed: %+v", s.Process)
	}
	p.ExecCPUAffinity.Initial = "0"
	if l, err = CompileExec(s, p, ExecState{Namespaces: files, Seccomp: noCompiler}); err != nil || !slices.Equal(l.Affinity, []uint64{1}) {
		t.Errorf("CompileExec with initial CPUs = %v; want them, CPU 0", err)
	}
	delete(files, specs.MountNamespace)
	if _, err = CompileExec(s, ExecProcess(s, []string{"sh"}, false), ExecState{Namespaces: files, Seccomp: noCompiler}); err == nil {
		t.Error("CompileExec without the mount namespace = nil error; want it refused")
	}
}

func TestCompileKubelet(t *testing.T) {
	b := mustBuild(t, testHost(), kubeletParams(t, "/proc"))
	b.Spec.Root.Path = "/rootfs"
	l := mustCompile(t, b.Spec, Options{Cgroups: v1Mounts, Seccomp: noCompiler, CgroupTasks: []string{"/t"}})
	data, err := initmsg.Encode(l.Message)
	if err != nil {
		t.Fatal(err)
	}
	back, err := initmsg.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(back, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "kubelet.message.json", append(got, '\n'))
}

func FuzzCompile(f *testing.F) {
	for _, name := range []string{"minimal.json", "kubelet.json"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"ociVersion":"1.3.0","process":{"args":["a"],"cwd":"/"},"root":{"path":"/r"},"linux":{"namespaces":[{"type":"mount"}]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s specs.Spec
		if json.Unmarshal(data, &s) != nil {
			return
		}
		l, err := Compile(&s, Options{Seccomp: noCompiler, Cgroups: v1Mounts})
		if err != nil {
			return
		}
		defer l.Close()
		// What compiles can be told to the init, and has the fields that the init relies on.
		b, err := initmsg.Encode(l.Message)
		if err != nil {
			t.Fatalf("Encode: %v", err)
		}
		m, err := initmsg.Decode(b)
		if err != nil {
			t.Fatalf("Decode: %v", err)
		}
		if len(m.Process.Args) == 0 || !filepath.IsAbs(m.Process.Cwd) || l.CloneFlags&sys.CloneNewNS == 0 {
			t.Errorf("compiled %q to %+v", data, m)
		}
		for _, x := range m.Mounts {
			if !filepath.IsAbs(x.Target) {
				t.Errorf("mount target %q is not absolute", x.Target)
			}
		}
	})
}

func FuzzUserDatabase(f *testing.F) {
	f.Add("root:x:0:0::/root:/bin/sh\n", "root:x:0:\n", "root:root")
	f.Add("a:x:99999999999:-1::/:/\n", "g:x:4294967295:a\n", "a:g")
	f.Fuzz(func(t *testing.T, passwd, group, name string) {
		acc := &accounts{passwd: []byte(passwd), group: []byte(group), havePasswd: true, haveGroup: true}
		b := &builder{Params: &Params{}, spec: minimalSpec(), built: &Built{}}
		p := podParamsWithoutRoot()
		b.Params, b.sec = p, &p.Container.Security
		p.Image.User = name
		id, err := b.identity(acc)
		if err != nil {
			return
		}
		if err := b.groups(acc, id); err != nil {
			return
		}
		if id.UID == 1<<32-1 || id.GID == 1<<32-1 || slices.Contains(id.Groups, 1<<32-1) {
			t.Errorf("%q in %q, %q = %+v; want no id that means \"unchanged\"", name, passwd, group, id)
		}
	})
}

func BenchmarkBuildCompile(b *testing.B) {
	p := kubeletParams(b, b.TempDir())
	h := testHost()
	prof := newProfiles()
	h.Seccomp = prof
	opt := Options{Root: p.Root, Cgroups: v1Mounts, Seccomp: prof.compile}
	b.ReportAllocs()
	for b.Loop() {
		built, err := Build(b.Context(), h, p)
		if err != nil {
			b.Fatal(err)
		}
		l, err := Compile(built.Spec, opt)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := initmsg.Encode(l.Message); err != nil {
			b.Fatal(err)
		}
		l.Close()
	}
}

func netDevices(d map[string]specs.LinuxNetDevice) func(*specs.Spec) {
	return func(s *specs.Spec) { s.Linux.NetDevices = d }
}
