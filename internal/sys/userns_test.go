package sys

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var testMap = []IDMap{{Inside: 0, Outside: 100000, Size: 65536}}

// ownerOf is the inode of the user namespace that a namespace file's namespace belongs to.
func ownerOf(t testing.TB, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatalf("NS_GET_USERNS of %s: %v", path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestPinUserNamespaces(t *testing.T) {
	needRoot(t)
	dir := pinDir(t)
	pins := append(allKinds(dir), NamespacePin{NamespaceUser, filepath.Join(dir, "user")})
	err := PinUserNamespaces(pins, testMap, testMap, func() error {
		return errors.Join(LoopbackUp(), SetHostname("inside"), WriteSysctl("net.ipv4.ip_unprivileged_port_start", "0"))
	})
	if err != nil {
		t.Fatal(err)
	}
	user := nsID(t, pins[3].Path)
	for _, p := range pins[:3] {
		if got := ownerOf(t, p.Path); got != user {
			t.Errorf("%s belongs to user namespace %d; want the pinned one, %d", p.Path, got, user)
		}
	}
	var name unix.Utsname
	if err := WithNamespace(NamespaceUTS, pins[2].Path, func() error { return unix.Uname(&name) }); err != nil {
		t.Fatal(err)
	}
	if got := unix.ByteSliceToString(name.Nodename[:]); got != "inside" {
		t.Errorf("host name in the pinned namespace = %q; want inside", got)
	}
	for _, p := range pins {
		if err := UnpinNamespace(p.Path); err != nil {
			t.Error(err)
		}
	}
}

// The IPC sysctls of a user namespace's pod are its root's since Linux 6.3, and the host root's before.
func TestWriteSysctlAs(t *testing.T) {
	needRoot(t)
	dir := pinDir(t)
	pins := []NamespacePin{{NamespaceIPC, filepath.Join(dir, "ipc")}, {NamespaceUser, filepath.Join(dir, "user")}}
	var got []byte
	err := PinUserNamespaces(pins, testMap, testMap, func() error {
		err := WriteSysctl("kernel.shmmni", "4095")
		if errors.Is(err, unix.EACCES) {
			err = WriteSysctlAs(100000, "kernel.shmmni", "4095")
		}
		if err != nil {
			return err
		}
		if euid := unix.Geteuid(); euid != 0 {
			t.Errorf("effective user after WriteSysctlAs = %d; want 0", euid)
		}
		got, err = os.ReadFile("/proc/sys/kernel/shmmni")
		return err
	})
	if err != nil || strings.TrimSpace(string(got)) != "4095" {
		t.Errorf("shmmni inside = %q, %v; want 4095", got, err)
	}
	for _, p := range pins {
		if err := UnpinNamespace(p.Path); err != nil {
			t.Error(err)
		}
	}
}

func TestPinUserNamespacesFailure(t *testing.T) {
	needRoot(t)
	dir := pinDir(t)
	pins := append(allKinds(dir), NamespacePin{NamespaceUser, filepath.Join(dir, "user")})
	broken := errors.New("broken")
	if err := PinUserNamespaces(pins, testMap, testMap, func() error { return broken }); !errors.Is(err, broken) {
		t.Errorf("error = %v; want the function's", err)
	}
	twice := append(testMap[:1:1], testMap[0])
	if err := PinUserNamespaces(pins, twice, testMap, nil); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "uid_map") {
		t.Errorf("error for overlapping mappings = %v; want EINVAL of uid_map", err)
	}
	if err := PinUserNamespaces(pins[:3], testMap, testMap, nil); err == nil {
		t.Error("without a user namespace among the pins: want an error")
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// spawnShell runs a script in the namespaces of a, and returns its output.
func spawnShell(t testing.TB, a SpawnAttr, script string) (string, error) {
	t.Helper()
	exe, err := os.Open("/bin/busybox")
	if err != nil {
		t.Skip("needs /bin/busybox (busybox-static)")
	}
	defer exe.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	a.Exe, a.Args, a.Files = exe, []string{"busybox", "sh", "-c", script}, []*os.File{null, w, w}
	a.Env = []string{"PATH=/bin:/usr/bin"}
	pid, pidfd, err := Spawn(a)
	w.Close()
	if err != nil {
		return "", err
	}
	defer pidfd.Close()
	out, err := io.ReadAll(r)
	WaitChild(pid)
	return strings.TrimSpace(string(out)), err
}

func TestSpawnInUserNamespace(t *testing.T) {
	needRoot(t)
	ns, err := NewUserNamespace(testMap, testMap)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	uid := uint32(100000)
	score := int32(77)
	out, err := spawnShell(t, SpawnAttr{
		UserNamespace: ns, CloneFlags: CloneNewPID | CloneNewNS | CloneNewUTS, Secret: true,
		Host: HostSetup{Dir: "/usr", StdioUID: &uid, OOMScoreAdj: &score},
	}, `echo $$ $(busybox id -u) $(busybox cat /proc/self/oom_score_adj) $(busybox pwd); busybox awk '/CapEff/{print $2}' /proc/self/status
busybox stat -L -c %u /proc/self/fd/1; busybox awk '{print $1,$2,$3}' /proc/self/uid_map; busybox hostname x && busybox hostname`)
	want := "1 0 77 /usr\n" + capsOf(t) + "\n0\n0 100000 65536\nx"
	if err != nil || out != want {
		t.Errorf("inside = %q, %v; want %q", out, err, want)
	}
	if host, err := os.Hostname(); err != nil || host == "x" {
		t.Errorf("the host's name = %q, %v: changed from inside", host, err)
	}
}

// capsOf is every capability of the kernel, as /proc/PID/status has it.
func capsOf(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		t.Fatal(err)
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	s := strconv.FormatUint(1<<(last+1)-1, 16)
	return strings.Repeat("0", 16-len(s)) + s
}

// The program is in the new time namespace with its first instruction, on every kernel that has them, and so is the
// namespace its user namespace's: joining it again takes rights over it.
func TestSpawnInTimeNamespace(t *testing.T) {
	needRoot(t)
	if _, err := os.Stat("/proc/self/ns/time"); err != nil {
		t.Skip("needs time namespaces (Linux 5.6, CONFIG_TIME_NS)")
	}
	ns, err := NewUserNamespace(testMap, testMap)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	host, err := os.Readlink("/proc/self/ns/time")
	if err != nil {
		t.Fatal(err)
	}
	for name, user := range map[string]*os.File{"host": nil, "user namespace": ns} {
		a := SpawnAttr{
			UserNamespace: user, CloneFlags: CloneNewTime | CloneNewPID | CloneNewUTS, Secret: true,
			TimeOffsets: "monotonic 86400 5\nboottime 172800000 0\n",
		}
		const script = `echo $$ $(busybox readlink /proc/self/ns/time) $(busybox cut -d. -f1 /proc/uptime)
/usr/bin/nsenter -T/proc/self/ns/time busybox cut -d. -f1 /proc/uptime`
		out, err := spawnShell(t, a, script)
		f := strings.Fields(out)
		if err != nil || len(f) != 4 || f[0] != "1" || f[1] == host {
			t.Fatalf("%s: output %q, %v; want 1, one time namespace that is not %s, and its uptime twice", name, out, err, host)
		}
		for _, up := range f[2:] {
			if n, err := strconv.Atoi(up); err != nil || n < 172800000 {
				t.Errorf("%s: uptime = %q; want more than the offset", name, up)
			}
		}
		a.TimeOffsets = ""
		if out, err = spawnShell(t, a, "busybox cat /proc/self/timens_offsets"); err != nil || strings.Join(strings.Fields(out), " ") != "monotonic 0 0 boottime 0 0" {
			t.Errorf("%s: offsets = %q, %v; want none", name, out, err)
		}
	}
}

// Every step of the joining process is an error with its name, and nothing is left.
func TestSpawnInUserNamespaceFailures(t *testing.T) {
	needRoot(t)
	ns, err := NewUserNamespace(testMap, testMap)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	noRoot, err := NewUserNamespace([]IDMap{{Inside: 1, Outside: 100000, Size: 10}}, testMap)
	if err != nil {
		t.Fatal(err)
	}
	defer noRoot.Close()
	for name, tt := range map[string]struct {
		a    SpawnAttr
		errn error
	}{
		"enter the cgroup":                  {SpawnAttr{UserNamespace: ns, Host: HostSetup{CgroupTasks: []string{"/nonexistent/tasks"}}}, unix.ENOENT},
		"chdir":                             {SpawnAttr{UserNamespace: ns, Host: HostSetup{Dir: "/nonexistent"}}, unix.ENOENT},
		"join the time namespace":           {SpawnAttr{UserNamespace: ns, TimeNamespace: ns}, unix.EINVAL},
		"join the PID namespace":            {SpawnAttr{UserNamespace: ns, PIDNamespace: ns}, unix.EINVAL},
		"write timens_offsets":              {SpawnAttr{CloneFlags: CloneNewTime, TimeOffsets: "monotonic -9000000000 0\n"}, unix.ERANGE},
		"become root of the user namespace": {SpawnAttr{UserNamespace: noRoot}, unix.EINVAL},
	} {
		if _, err := spawnShell(t, tt.a, "true"); !errors.Is(err, tt.errn) || !strings.Contains(err.Error(), name) {
			t.Errorf("error = %v; want %v of %q", err, tt.errn, name)
		}
	}
	if pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil); err != unix.ECHILD {
		t.Errorf("Wait4 = %d, %v; want no child left", pid, err)
	}
}

// Forks by hand beside a busy runtime: a collection, other threads, a full heap.
func TestSpawnInUserNamespaceUnderLoad(t *testing.T) {
	needRoot(t)
	ns, err := NewUserNamespace(testMap, testMap)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_ = make([]byte, 1<<16)
				runtime.GC()
			}
		}
	}()
	for range 50 {
		if out, err := spawnShell(t, SpawnAttr{UserNamespace: ns, CloneFlags: CloneNewPID}, "echo $$"); err != nil || out != "1" {
			t.Fatalf("output %q, %v; want 1", out, err)
		}
	}
	close(stop)
	<-done
}

func BenchmarkSpawnInUserNamespace(b *testing.B) {
	needRoot(b)
	ns, err := NewUserNamespace(testMap, testMap)
	if err != nil {
		b.Fatal(err)
	}
	defer ns.Close()
	for name, a := range map[string]SpawnAttr{"host": {}, "user": {UserNamespace: ns}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := spawnShell(b, a, ":"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			ns, err := NewUserNamespace(testMap, testMap)
			if err != nil {
				b.Fatal(err)
			}
			ns.Close()
		}
	})
}
