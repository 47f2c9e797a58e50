package supervisor

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/sandbox/api"
)

// fakeRuntime is a runtime whose container is a shell script, the bundle's file "script". create leaves it waiting for the
// file "go", which start makes. Each call is noted in the bundle's file "calls".
const fakeRuntime = `#!/bin/sh
dir=%DIR%
while [ $# -gt 0 ]; do
  case $1 in
    --log) log=$2; shift;; --log-format) shift;;
    --pid-file) pid=$2; shift;; --bundle) shift;; --process) process=$2; shift;;
    --detach) ;; *) [ -n "$command" ] || command=$1;;
  esac
  shift
done
echo $command >> $dir/calls
[ ! -e $dir/fail-$command ] || { echo '{"level":"warning","msg":"not this"}' >> $log; echo "{\"level\":\"error\",\"msg\":\"$command is broken\"}" >> $log; exit 1; }
[ ! -e $dir/hang-$command ] || exec sleep 1000
case $command in
  create) setsid sh -c 'while [ ! -e '$dir'/go ]; do sleep 0.01; done; exec sh '$dir'/script' & echo $! > $pid;;
  exec) setsid sh "$process" & echo $! > $pid; [ ! -e $dir/slow-exec ] || exec sleep 0.4;; # a shell would reap
  start) touch $dir/go;;
esac
`

// foreignBundle makes a fake runtime whose container is script, and how it is launched.
func foreignBundle(t *testing.T, script string) (how api.Launch, dir string) {
	t.Helper()
	dir = t.TempDir()
	program := filepath.Join(dir, "fake")
	check(t, os.WriteFile(program, []byte(strings.ReplaceAll(fakeRuntime, "%DIR%", dir)), 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "script"), []byte(script), 0o600))
	check(t, os.Mkdir(filepath.Join(dir, "launch"), 0o700))
	return api.Launch{Foreign: &api.Foreign{
		Program: program, ID: "c", Bundle: dir, Dir: filepath.Join(dir, "launch"), Timeout: 10 * time.Second,
	}}, dir
}

// foreign launches a container, or an exec, with a log.
func (d *daemon) foreign(id string, how api.Launch) (*api.Reply, string) {
	d.t.Helper()
	log := filepath.Join(d.dir, id+".log")
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	check(d.t, err)
	defer f.Close()
	how.Logged = true
	return d.call(&api.Request{Op: api.OpLaunch, ID: id, Launch: &how, Roles: []api.Role{api.RoleLog}}, f), log
}

func calls(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "calls"))
	check(t, err)
	return strings.Join(strings.Fields(string(text)), " ")
}

func TestForeign(t *testing.T) {
	d := startSupervisor(t)
	how, dir := foreignBundle(t, "echo out; echo err >&2; exit 7")
	r, log := d.foreign("c", how)
	if r.Err != nil || r.PID <= 1 {
		t.Fatalf("launch = %+v; want a process", r)
	}
	if e := d.exit("c"); e.Code != 7 || e.Failed != "" {
		t.Errorf("exit = %+v; want 7", e)
	}
	if got := strings.Join(content(t, log), " "); !strings.Contains(got, "F:out") || !strings.Contains(got, "F:err") {
		t.Errorf("log = %q; want out and err", got)
	}
	if got := calls(t, dir); got != "create start" {
		t.Errorf("the runtime was called for %q; want create start", got)
	}
	if r := d.call(&api.Request{Op: api.OpForget, ID: "c"}); r.Err != nil {
		t.Error(r.Err)
	}
}

// An exec may have ended, and be a zombie whose number nobody knows, before its runtime says which process it was.
func TestForeignEndsEarly(t *testing.T) {
	d := startSupervisor(t)
	how, dir := foreignBundle(t, "exec sleep 1000")
	if r, _ := d.foreign("c", how); r.Err != nil {
		t.Fatal(r.Err)
	}
	check(t, os.WriteFile(filepath.Join(dir, "slow-exec"), nil, 0o600))
	how.Foreign.Process = filepath.Join(dir, "process")
	check(t, os.WriteFile(how.Foreign.Process, []byte("sleep 0.1; exit 9"), 0o600))
	for i := range 3 {
		id := "x" + strconv.Itoa(i)
		if r, _ := d.foreign(id, how); r.Err != nil {
			t.Fatal(r.Err)
		}
		if e := d.exit(id); e.Code != 9 {
			t.Errorf("exit = %+v; want 9", e)
		}
	}
	d.call(&api.Request{Op: api.OpSignal, ID: "c", Signal: int(syscall.SIGKILL)})
	if e := d.exit("c"); e.Code != 137 {
		t.Errorf("exit = %+v; want 137", e)
	}
	// Nothing that came as an orphan meanwhile stays a zombie.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		zombies := zombieChildren(t, d.pid)
		if len(zombies) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("zombies %v are left", zombies)
		}
	}
}

func zombieChildren(t *testing.T, parent int) (zombies []string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	check(t, err)
	for _, path := range stats {
		text, _ := os.ReadFile(path)
		_, rest, _ := strings.Cut(string(text), ") ")
		if f := strings.Fields(rest); len(f) > 1 && f[0] == "Z" && f[1] == strconv.Itoa(parent) {
			zombies = append(zombies, path)
		}
	}
	return zombies
}

// A launch that fails, at whatever step, says why in the runtime's words, and the runtime is asked to undo it.
func TestForeignFails(t *testing.T) {
	for name, tc := range map[string]struct {
		break_     func(t *testing.T, dir string, how *api.Launch)
		want, made string
	}{
		"create": {func(t *testing.T, dir string, _ *api.Launch) {
			check(t, os.WriteFile(filepath.Join(dir, "fail-create"), nil, 0o600))
		}, "fake create: create is broken", "create delete"},
		"start": {func(t *testing.T, dir string, _ *api.Launch) {
			check(t, os.WriteFile(filepath.Join(dir, "fail-start"), nil, 0o600))
		}, "fake start: start is broken", "create start"},
		"hang": {func(t *testing.T, dir string, how *api.Launch) {
			check(t, os.WriteFile(filepath.Join(dir, "hang-create"), nil, 0o600))
			how.Foreign.Timeout = 300 * time.Millisecond
		}, "has not ended after 300ms", "create delete"},
		"no PID": {func(t *testing.T, dir string, how *api.Launch) {
			check(t, os.WriteFile(how.Foreign.Program, []byte("#!/bin/sh\necho create >> "+dir+"/calls\n"), 0o755))
		}, "pid file: open", "create create"},
		"another's PID": {func(t *testing.T, dir string, how *api.Launch) {
			script := "#!/bin/sh\necho x >> " + dir + "/calls; echo " + strconv.Itoa(os.Getpid()) + " > " + how.Foreign.Dir + "/pid\n"
			check(t, os.WriteFile(how.Foreign.Program, []byte(script), 0o755))
		}, "is not one that", "x x"},
		"only on standard error": {func(t *testing.T, dir string, how *api.Launch) {
			check(t, os.WriteFile(how.Foreign.Program, []byte("#!/bin/sh\necho x >> "+dir+"/calls; echo no such flag >&2; exit 3\n"), 0o755))
		}, "fake create: no such flag", "x x"},
		"without a word": {func(t *testing.T, dir string, how *api.Launch) {
			check(t, os.WriteFile(how.Foreign.Program, []byte("#!/bin/sh\necho x >> "+dir+"/calls; exit 3\n"), 0o755))
		}, "ended with code 3 and without a word", "x x"},
		"missing": {func(t *testing.T, dir string, how *api.Launch) {
			check(t, os.WriteFile(filepath.Join(dir, "calls"), nil, 0o600))
			how.Foreign.Program = filepath.Join(dir, "gone")
		}, "no such file", ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := startSupervisor(t)
			how, dir := foreignBundle(t, "exec sleep 1000")
			tc.break_(t, dir, &how)
			r, _ := d.foreign("c", how)
			if r.Err == nil || !strings.Contains(r.Err.Error(), tc.want) {
				t.Errorf("launch = %v; want %q", r.Err, tc.want)
			}
			if name == "start" {
				if e := d.exit("c"); e.Failed == "" {
					t.Errorf("exit = %+v; want that it failed", e)
				}
			}
			if got := calls(t, dir); got != tc.made {
				t.Errorf("the runtime was called for %q; want %q", got, tc.made)
			}
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // it holds nothing
				r := d.call(&api.Request{Op: api.OpQuit})
				if r.Err == nil {
					return
				}
				if time.Now().After(end) {
					t.Fatalf("quit = %v", r.Err)
				}
			}
		})
	}
}

// SIGKILL calls off a launch whose runtime hangs, and while it hangs nobody else has to wait.
func TestForeignCalledOff(t *testing.T) {
	d := startSupervisor(t)
	how, dir := foreignBundle(t, "")
	how.Foreign.Timeout = time.Minute
	check(t, os.WriteFile(filepath.Join(dir, "hang-create"), nil, 0o600))
	log, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	check(t, err)
	defer log.Close()
	how.Logged = true
	d.send(&api.Request{Op: api.OpLaunch, ID: "hangs", Launch: &how, Roles: []api.Role{api.RoleLog}}, log)
	launch := d.seq
	for {
		if text, _ := os.ReadFile(filepath.Join(dir, "calls")); len(text) > 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if r, _ := d.launch("other", "exit 4", api.Launch{}); r.Err != nil {
		t.Fatal(r.Err)
	}
	if e := d.exit("other"); e.Code != 4 {
		t.Errorf("exit of another container meanwhile = %+v; want 4", e)
	}
	if r := d.call(&api.Request{Op: api.OpQuit}); r.Err == nil {
		t.Error("quit while a container is being made: no error")
	}
	d.send(&api.Request{Op: api.OpSignal, ID: "hangs", Signal: int(syscall.SIGKILL)})
	for {
		r, err := d.recv()
		check(t, err)
		if r.Seq == launch {
			if r.Err == nil || !strings.Contains(r.Err.Error(), "called off") {
				t.Errorf("launch = %v; want that it was called off", r.Err)
			}
			break
		}
	}
	if got := calls(t, dir); got != "create delete" {
		t.Errorf("the runtime was called for %q; want create delete", got)
	}
}

func TestForeignFrames(t *testing.T) {
	d := startSupervisor(t)
	how, _ := foreignBundle(t, "")
	how.Foreign.Bundle = "relative"
	if r, _ := d.foreign("c", how); r.Err == nil || !strings.Contains(r.Err.Error(), "not absolute") {
		t.Errorf("launch with a relative path = %v; want an error", r.Err)
	}
	// What a supervisor does that does not know the field.
	if r, _ := d.foreign("c", api.Launch{}); r.Err == nil || !strings.Contains(r.Err.Error(), "no message") {
		t.Errorf("launch without a message and without a runtime = %v; want an error", r.Err)
	}
}

func TestLastError(t *testing.T) {
	for log, want := range map[string]string{
		"":                                     "",
		"no json":                              "",
		"{}\n[]\n":                             "",
		`{"level":"warning","msg":"w"}` + "\n": "w",
		`{"level":"error","msg":"first"}` + "\n" + `{"level":"error","msg":"second"}`:                   "second",
		`{"level":"error","msg":"e"}` + "\n" + `{"level":"info","msg":"i"}` + "\n":                      "e",
		`cut":"off"}` + "\n" + `{"level":"fatal","msg":"f"}` + "\n" + `{"level":"error","msg":"unfinis`: "f",
	} {
		if got := lastError([]byte(log)); got != want {
			t.Errorf("lastError(%q) = %q; want %q", log, got, want)
		}
	}
}

func FuzzForeignFiles(f *testing.F) {
	f.Add([]byte("12\n"), []byte(`{"level":"error","msg":"e"}`))
	f.Add([]byte("-1"), []byte("{}"))
	f.Add([]byte("99999999999"), []byte(`{"msg":"`+strings.Repeat("é", maxRuntimeText)+`"}`))
	f.Fuzz(func(t *testing.T, pid, log []byte) {
		dir := t.TempDir()
		check(t, os.WriteFile(filepath.Join(dir, foreignPID), pid, 0o600))
		check(t, os.WriteFile(filepath.Join(dir, foreignLog), log, 0o600))
		r := &foreign{Foreign: &api.Foreign{Dir: dir}}
		if n, err := r.pid(); err == nil && n <= 1 {
			t.Errorf("pid of %q = %d", pid, n)
		}
		if text := r.lastWords(nil); len(text) > maxRuntimeText+len("…") {
			t.Errorf("%d bytes of words", len(text))
		}
	})
}
