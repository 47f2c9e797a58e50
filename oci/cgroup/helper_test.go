package cgroup

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/moby/sys/mountinfo"
)

// TestMain doubles as the process that tests put into groups: it waits for a line on stdin, does what it was asked
// to and says how that went on stdout.
func TestMain(m *testing.M) {
	if task := os.Getenv("CGROUP_TEST_TASK"); task != "" {
		os.Exit(runTask(task))
	}
	goleak.VerifyTestMain(m)
}

func runTask(task string) int {
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return 0
		}
		arg := strings.TrimSpace(line)
		switch task {
		case "hog":
			n, _ := strconv.Atoi(arg)
			b := make([]byte, n)
			for i := 0; i < n; i += 4096 {
				b[i] = 1
			}
			fmt.Println("survived", b[len(b)-1])
		case "open": // "flag path"
			flag, path, _ := strings.Cut(arg, " ")
			f, err := os.OpenFile(path, map[string]int{"r": os.O_RDONLY, "w": os.O_WRONLY, "rw": os.O_RDWR}[flag]|syscall.O_NONBLOCK, 0)
			if err == nil {
				f.Close()
			}
			fmt.Println(errnoName(err))
		case "mknod": // "minor path": a character device of major 1
			minor, path, _ := strings.Cut(arg, " ")
			n, _ := strconv.Atoi(minor)
			err := syscall.Mknod(path, syscall.S_IFCHR|0o600, 1<<8|n)
			_ = os.Remove(path)
			fmt.Println(errnoName(err))
		case "spin":
			for i := 0; i >= 0; i++ {
				spun = i
			}
		}
	}
}

// spun keeps the compiler from dropping the loop that writes it.
var spun int

func errnoName(err error) string {
	var e syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &e) && e == syscall.EPERM:
		return "EPERM"
	}
	return err.Error()
}

// task is a running helper.
type task struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	err bytes.Buffer
}

// start runs the helper inside g (through AddProc) before it does anything.
func start(t *testing.T, g *Group, name string) *task {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "CGROUP_TEST_TASK="+name)
	return startCmd(t, g, cmd)
}

func startCmd(t *testing.T, g *Group, cmd *exec.Cmd) *task {
	t.Helper()
	k := &task{t: t, cmd: cmd}
	var err error
	if k.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	k.out = bufio.NewReader(out)
	cmd.Stderr = &k.err
	cmd.WaitDelay = time.Second // what it has started may live on and hold the pipe
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = k.in.Close()
		_ = cmd.Wait()
	})
	if cmd.SysProcAttr == nil {
		if err := g.AddProc(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	return k
}

// ask sends a line and returns the answer, "" when the process died.
func (k *task) ask(line string) string {
	k.t.Helper()
	if _, err := io.WriteString(k.in, line+"\n"); err != nil {
		k.t.Fatalf("ask %q: %v", line, err)
	}
	s, _ := k.out.ReadString('\n')
	return strings.TrimSpace(s)
}

// eachHost runs f against the machine's real hierarchies, and on a hybrid machine against its bare v2 hierarchy as well,
// which does all that needs no controller. A host without the controllers is skipped.
func eachHost(t *testing.T, controllers []string, f func(t *testing.T, h *Host)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	run := func(name string, h *Host) {
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		t.Run(name, func(t *testing.T) {
			for _, c := range controllers {
				if h.mode == V2 && (c == "devices" || c == "freezer") {
					continue // no controllers there
				}
				if h.byName[c] == nil {
					t.Skipf("this machine's cgroup %s has no controller %s", h.mode, c)
				}
			}
			f(t, h)
		})
	}
	h := detect(t)
	run(h.mode.String(), h)
	if h.mode == V1 {
		if u := unifiedOnly(t); u != nil {
			run("v2 beside v1", u)
		}
	}
}

func detect(t testing.TB) *Host {
	t.Helper()
	h, err := Detect()
	if err != nil {
		t.Skipf("no cgroups here: %v", err)
	}
	return h
}

func unifiedOnly(t testing.TB) *Host {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(mounts) == 0 {
		return nil
	}
	h, err := hostOf(mounts)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// testPath is a fresh top-level path that is removed with all below it, processes included, when the test ends.
func testPath(t testing.TB, h *Host) string {
	t.Helper()
	path := "/cri-shim-test-" + rand.Text()[:10]
	t.Cleanup(func() {
		g, err := h.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Remove(ctx)); err != nil {
			t.Error(err)
		}
	})
	return path
}

func ptr[T any](v T) *T { return &v }

// content reads a file of the group.
func content(t *testing.T, g *Group, controller, file string) string {
	t.Helper()
	hi := g.host.byName[controller]
	if hi == nil {
		hi = g.host.primary
	}
	b, err := os.ReadFile(hi.file(g.rel, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
