package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

func itoa(n int) string { return strconv.Itoa(n) }

// step is a command and what is to be seen after it: the status of the container, or "" where it is to be gone.
type step struct {
	args   string
	status specs.ContainerState
}

// TestLikeRunc runs the same commands on the same bundle with runc.
func TestLikeRunc(t *testing.T) {
	steps := []step{
		{"create c", specs.StateCreated},
		{"create c", specs.StateCreated},
		{"exec c true", specs.StateCreated},
		{"pause c", "paused"}, {"resume c", specs.StateCreated},
		{"start c", specs.StateRunning},
		{"start c", specs.StateRunning},
		{"delete c", specs.StateRunning},
		{"exec c sh -c 'exit 3'", specs.StateRunning},
		{"exec c /no/such", specs.StateRunning},
		{"exec -d c sleep 100", specs.StateRunning},
		{"resume c", specs.StateRunning},
		{"pause c", "paused"}, {"pause c", "paused"}, {"exec c true", "paused"}, {"resume c", specs.StateRunning},
		{"update --pids-limit 50 c", specs.StateRunning},
		{"update --cpu-share nonsense c", specs.StateRunning},
		{"ps -f json c", specs.StateRunning},
		{"events --stats c", specs.StateRunning},
		{"kill c 0x", specs.StateRunning},
		{"kill c USR1", specs.StateRunning},
		{"kill c KILL", specs.StateStopped},
		{"kill c KILL", specs.StateStopped},
		{"exec c true", specs.StateStopped},
		{"start c", specs.StateStopped},
		{"pause c", specs.StateStopped},
		{"delete c", ""},
		{"delete c", ""}, {"delete -f c", ""}, {"start c", ""}, {"kill c", ""}, {"exec c true", ""}, {"state ../c", ""},
		{"create ../c", ""}, {"create", ""}, {"create --bundle /no/such c", ""}, {"state", ""}, {"state a b", ""},
		{"run -d c", specs.StateRunning}, {"delete -f c", ""},
		{"create c", specs.StateCreated}, {"delete c", ""},
		{"create c", specs.StateCreated}, {"kill c KILL", specs.StateStopped}, {"start c", specs.StateStopped}, {"delete c", ""},
		{"list -q", ""}, {"list -f nonsense", ""}, {"features", ""},
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		runc, err = exec.LookPath("/usr/sbin/runc")
	}
	if err != nil {
		t.Skip("needs runc")
	}
	// The trap leaves runc's USR1 without effect.
	const script = "trap : USR1; while :; do sleep 1; done"
	us, them := ours(t, script), newBench(t, runc, script)
	for i, s := range steps {
		var got [2]result
		for j, b := range []*bench{us, them} {
			cmd := exec.Command("sh", "-c", `exec "$0" --root "$1" `+s.args, b.program, b.root)
			cmd.Dir = b.bundle
			got[j] = b.runCommand(cmd)
			if s.status != "" {
				b.until("c", s.status)
			} else if r := b.run("state", "c"); r.code != 1 {
				t.Errorf("%d: after %s: state = %d, %s; want none", i, s.args, r.code, r.out)
			}
		}
		// runc of Debian 12 pauses and resumes on this kind of cgroup, and then says that it could not: the
		// status above is what counts.
		frozen := strings.HasPrefix(s.args, "pause ") || strings.HasPrefix(s.args, "resume ")
		if got[0].code != got[1].code && !frozen {
			t.Errorf("%d: %s = %d, %q; runc: %d, %q", i, s.args, got[0].code, got[0].errs, got[1].code, got[1].errs)
		}
		if s.status != "" {
			compareStates(t, us, them)
		}
	}
	us.gone("c")
}

// compareStates compares the fields of a container's state with runc's.
func compareStates(t *testing.T, us, them *bench) {
	t.Helper()
	var fields [2]map[string]any
	for i, b := range []*bench{us, them} {
		if err := json.Unmarshal([]byte(b.ok("state", "c")), &fields[i]); err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(b.bundle)
		for k, v := range fields[i] {
			switch k {
			case "ociVersion", "created":
				fields[i][k] = "not compared"
			case "pid":
				fields[i][k] = v.(float64) > 0
			case "bundle", "rootfs":
				fields[i][k] = strings.TrimPrefix(v.(string), dir)
			}
		}
	}
	if diff := cmp.Diff(fields[1], fields[0]); diff != "" {
		t.Errorf("state (-runc +ours):\n%s", diff)
	}
}

func TestRun(t *testing.T) {
	b := ours(t, "cat; id -u; pwd; echo error >&2; exit 7")
	cmd := b.command("run", "c")
	cmd.Stdin = strings.NewReader("input\n")
	if r := b.runCommand(cmd); r.code != 7 || r.out != "input\n0\n/\n" || r.errs != "error\n" {
		t.Errorf("run = %d, %q, %q", r.code, r.out, r.errs)
	}
	b.gone("c")
	b.spec.Process.Args = []string{"sh", "-c", "kill -9 $$; sleep 9"}
	b.spec.Linux.Namespaces = b.spec.Linux.Namespaces[1:] // without a PID namespace, where 1 is immune
	b.write()
	if r := b.run("run", "c"); r.code != 137 {
		t.Errorf("run of what is killed = %d, %s; want 137", r.code, r.errs)
	}
	b.spec.Process.Args = []string{"/no/such"}
	b.write()
	b.fails("no such file or directory", "run", "c")
	b.gone("c")
	b.spec.Process.Args = []string{"true"}
	b.write()
	b.ok("run", "--keep", "c")
	if s := b.state("c"); s.Status != specs.StateStopped || s.PID != 0 {
		t.Errorf("kept: %+v", s)
	}
	b.ok("delete", "c")
}

func TestForwardsSignals(t *testing.T) {
	b := ours(t, "trap 'exit 5' TERM; echo ready > /tmp/ready; while :; do sleep 0.1; done")
	b.spec.Root.Readonly = false
	b.write()
	cmd := b.command("run", "c")
	time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the trap", func() bool {
		_, err := os.Stat(filepath.Join(b.bundle, "rootfs/tmp/ready"))
		return err == nil
	})
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("after SIGTERM to the command: %v; want 5", cmd.ProcessState)
	}
	b.gone("c")
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no end of the wait for %s", what)
		}
	}
}

func TestFiles(t *testing.T) {
	b := ours(t, "cat <&3; echo from the container >&4; ls /proc/self/fd")
	in, out := filepath.Join(b.bundle, "in"), filepath.Join(b.bundle, "out")
	if err := os.WriteFile(in, []byte("by descriptor\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(pass string) result {
		cmd := exec.Command("sh", "-c", `exec "$0" --root "$1" run --pid-file pid --preserve-fds `+pass+` c 3<"$2" 4>"$3"`, b.program, b.root, in, out)
		cmd.Dir = b.bundle
		return b.runCommand(cmd)
	}
	if r := run("2"); r.code != 0 || r.out != "by descriptor\n0\n1\n2\n3\n4\n5\n" {
		t.Errorf("run with two files = %d, %q, %q", r.code, r.out, r.errs)
	}
	if data, _ := os.ReadFile(out); string(data) != "from the container\n" {
		t.Errorf("the second file has %q", data)
	}
	if r := run("3"); r.code != 1 || !strings.Contains(r.errs, "descriptor 5") {
		t.Errorf("run with a file that is not open = %d, %q", r.code, r.errs)
	}
	if data, err := os.ReadFile(filepath.Join(b.bundle, "pid")); err != nil || len(data) == 0 {
		t.Errorf("pid file: %q, %v", data, err)
	} else if _, err := strconv.Atoi(string(data)); err != nil {
		t.Error(err)
	}
}

// TestKilledBetween kills the command, as an OOM killer might, once a container is created, and while it creates one.
func TestKilledBetween(t *testing.T) {
	b := ours(t, "sleep 100")
	b.ok("create", "c") // this command is gone by now
	pid := b.state("c").PID
	b.ok("start", "c")
	b.until("c", specs.StateRunning)
	b.ok("delete", "-f", "c")
	if alive(pid) {
		t.Errorf("process %d lives on", pid)
	}
	b.gone("c")

	b.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "touch " + b.bundle + "/hook; exec sleep 5"}}}}
	b.write()
	cmd := b.command("create", "c")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the hook", func() bool { _, err := os.Stat(filepath.Join(b.bundle, "hook")); return err == nil })
	if s := b.state("c"); s.Status != specs.StateCreating {
		t.Errorf("while it is created it is %s", s.Status)
	}
	cmd.Process.Kill()
	cmd.Wait()
	b.until("c", specs.StateStopped)
	b.ok("delete", "c")
	b.gone("c")
}

func TestBadIDs(t *testing.T) {
	b := ours(t, "true")
	outside := filepath.Join(filepath.Dir(b.root), "outside")
	if err := os.MkdirAll(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"../outside", "..", ".", "a/b", "/", "a b", "a\nb", strings.Repeat("x", 1025), "é"} {
		for _, command := range []string{"create", "start", "state", "kill", "delete", "pause", "ps", "run"} {
			b.fails("invalid container ID format", command, id)
		}
		b.fails("invalid container ID format", "delete", "-f", id)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

func TestCorruptRecord(t *testing.T) {
	b := ours(t, "sleep 100")
	b.ok("run", "-d", "good")
	for id, record := range map[string]string{
		"empty": "", "text": "text", "root": `{"id":"root","cgroup_path":"/"}`, "other": `{"id":"good","cgroup_path":"/x"}`,
	} {
		dir := filepath.Join(b.root, id)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte(record), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := b.run("delete", "-f", id); r.code != 1 {
			t.Errorf("delete of a record %q = %d", record, r.code)
		}
	}
	if out := b.ok("list", "-q"); out != "good\n" {
		t.Errorf("list = %q; want the good one", out)
	}
}

func TestForeignCgroup(t *testing.T) {
	b := ours(t, "sleep 100")
	b.ok("run", "-d", "first")
	b.fails("cgroup is not empty", "run", "-d", "second")
	b.fails("container with given ID already exists", "run", "-d", "first") // though its group is not empty either
	if s := b.state("first"); s.Status != specs.StateRunning {
		t.Errorf("the first container is %s", s.Status)
	}
}

// TestTimeNamespace: the first process is in a new time namespace, and so is what is executed beside it.
func TestTimeNamespace(t *testing.T) {
	if _, err := os.Stat("/proc/self/ns/time"); err != nil {
		t.Skip("needs time namespaces (Linux 5.6, CONFIG_TIME_NS)")
	}
	for _, user := range []bool{false, true} {
		b := ours(t, "cat /proc/uptime; sleep 100")
		l := b.spec.Linux
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		l.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000000000}, "monotonic": {Secs: -1, Nanosecs: 5}}
		if user {
			l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			l.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			l.GIDMappings = l.UIDMappings
		}
		b.write()
		later := func(what, uptime string) {
			t.Helper()
			if up, _, _ := strings.Cut(uptime, "."); len(up) != len("1000000000") || up[0] != '1' {
				t.Errorf("user namespace %v: uptime of %s = %q; want the offset and more", user, what, uptime)
			}
		}
		out := filepath.Join(b.bundle, "out")
		cmd := exec.Command("sh", "-c", `exec "$0" --root "$1" run -d c > "$2"`, b.program, b.root, out)
		cmd.Dir = b.bundle
		if r := b.runCommand(cmd); r.code != 0 {
			t.Fatalf("user namespace %v: run = %d, %s", user, r.code, r.errs)
		}
		waitFor(t, "the first line", func() bool { data, err := os.ReadFile(out); return err == nil && len(data) > 0 })
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		later("the container", string(data))
		later("an exec", b.ok("exec", "c", "cat", "/proc/uptime"))
		b.ok("delete", "-f", "c")

		l.TimeOffsets["monotonic"] = specs.LinuxTimeOffset{Secs: -9000000000}
		b.write()
		b.fails("write timens_offsets", "create", "c")
		b.gone("c")
	}
}

func TestExec(t *testing.T) {
	b := ours(t, "sleep 100")
	b.ok("run", "-d", "c")
	for _, x := range []struct {
		args string
		out  string
		code int
	}{
		{"c id", "uid=0 gid=0\n", 0},
		{"-u 5:6 -g 7 -g 8 --cwd /tmp -e A=B c sh -c 'id; pwd; echo $A'", "uid=5 gid=6 groups=7,8\n/tmp\nB\n", 0},
		{"c sh -c 'exit 9'", "", 9},
		{"c sh -c 'kill -9 $$'", "", 137},
		{"c nosuch", "", 255},
		{"c", "", 255},
		{"-u x c true", "", 255},
		{"-p process.json c", "from a file\n", 0},
		{"--cap CAP_SYS_ADMIN c sh -c 'while read k v; do case $k in CapEff:) echo $v;; esac; done < /proc/self/status'", "0000000020200420\n", 0},
	} {
		process := *b.spec.Process
		process.Args = []string{"echo", "from a file"}
		data, err := json.Marshal(process)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(b.bundle, "process.json"), data, 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", "-c", `exec "$0" --root "$1" exec `+x.args, b.program, b.root)
		cmd.Dir = b.bundle
		if r := b.runCommand(cmd); r.out != x.out || r.code != x.code {
			t.Errorf("exec %s = %d, %q, %q; want %d, %q", x.args, r.code, r.out, r.errs, x.code, x.out)
		}
	}
	b.ok("exec", "-d", "--pid-file", "pid", "c", "sleep", "99")
	data, err := os.ReadFile(filepath.Join(b.bundle, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	if pid, _ := strconv.Atoi(string(data)); !alive(pid) || !strings.Contains(b.ok("ps", "-f", "json", "c"), string(data)) {
		t.Errorf("the detached process %s is not there", data)
	}
}

func TestVersionAndCompletion(t *testing.T) {
	program := testtools.CRIShimOCI(t)
	out, err := exec.Command(program, "--version").Output()
	if err != nil || !strings.HasPrefix(string(out), "cri-shim-oci version ") || !strings.Contains(string(out), "\nspec: 1.") {
		t.Errorf("--version = %q, %v", out, err)
	}
	out, err = exec.Command(program, "completion", "bash").Output()
	if err != nil || !strings.Contains(string(out), "complete") {
		t.Errorf("completion bash = %q, %v", out, err)
	}
}
