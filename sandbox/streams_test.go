package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// running is a started container whose process runs a script.
func (h *host) running(t *testing.T, m *Manager, script string, stdin, once bool) string {
	t.Helper()
	h.script = script
	pod, err := m.RunPod(t.Context(), podConfig("p"))
	if err != nil {
		t.Fatal(err)
	}
	config := containerConfig("c")
	config.Stdin, config.StdinOnce = stdin, once
	id, err := m.CreateContainer(t.Context(), pod, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id
}

// settle fails when goroutines stay that were not there before the test's streams.
func settle(t *testing.T, before goleak.Option) {
	t.Helper()
	var err error
	for range 10 {
		// A spare supervisor may have come meanwhile.
		if err = goleak.Find(before, goleak.IgnoreAnyFunction("github.com/cri-shim/cri-shim/sandbox.(*pool).watch"),
			goleak.IgnoreAnyFunction("github.com/cri-shim/cri-shim/sandbox.(*client).read"),
			goleak.IgnoreAnyFunction("github.com/cri-shim/cri-shim/sandbox.(*pool).adopt.func1")); err == nil {
			return
		}
	}
	t.Error(err)
}

func TestExec(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	id := h.running(t, m, "exec sleep 1000", false, false)
	before := goleak.IgnoreCurrent()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	var stdout, stderr bytes.Buffer
	code, err := m.Exec(t.Context(), id, []string{"cat; echo end >&2; exit 6"}, Streams{Stdin: bytes.NewReader(data), Stdout: &stdout, Stderr: &stderr})
	if err != nil || code != 6 || !bytes.Equal(stdout.Bytes(), data) || stderr.String() != "end\n" {
		t.Errorf("Exec = %d, %v with %d bytes and %q; want 6, the %d bytes of stdin and end", code, err, stdout.Len(), &stderr, len(data))
	}
	// A process that wants none of its input has ended when it has.
	endless, w := io.Pipe()
	code, err = m.Exec(t.Context(), id, []string{"exec true"}, Streams{Stdin: endless})
	if err != nil || code != 0 {
		t.Errorf("Exec with input that has no end = %d, %v; want 0", code, err)
	}
	w.Close()
	// An output that nobody takes any more is no reason for the command to hang.
	code, err = m.Exec(t.Context(), id, []string{"head -c 1000000 /dev/zero"}, Streams{Stdout: brokenWriter{}})
	if !errors.Is(err, errBroken) {
		t.Errorf("Exec with a client that breaks = %d, %v; want its error", code, err)
	}
	settle(t, before)
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

// A client that takes its output slowly gets all of it, also after the command's end.
func TestExecSlowClient(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	id := h.running(t, m, "exec sleep 1000", false, false)
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := m.Exec(t.Context(), id, []string{"sleep 4 & head -c 50000 /dev/zero"}, Streams{Stdout: w})
		w.Close()
		done <- err
	}()
	time.Sleep(3 * drainTime)
	got, err := io.ReadAll(r)
	if err := errors.Join(err, <-done); err != nil || len(got) != 50000 {
		t.Errorf("a slow client gets %d bytes, %v; want 50000", len(got), err)
	}
}

// A client that stalls for good is let go of with the context, and its command is killed with what it started.
func TestExecVanished(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	id := h.running(t, m, "exec sleep 1000", false, false)
	before := goleak.IgnoreCurrent()
	pids := filepath.Join(t.TempDir(), "pids")
	script := "setsid sh -c 'echo $$ >> " + pids + "; exec sleep 1000' & echo $$ >> " + pids + "; sleep 1000; true"
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := m.Exec(ctx, id, []string{script}, Streams{Stdin: r, Stdout: io.Discard})
		done <- err
	}()
	var started []string
	eventually(t, "the command runs", func() bool {
		text, _ := os.ReadFile(pids)
		started = strings.Fields(string(text))
		return len(started) == 2
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Exec = %v; want Canceled", err)
	}
	w.Close()
	for _, pid := range started {
		eventually(t, "process "+pid+" is killed", func() bool {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			return err != nil || bytes.Contains(stat, []byte(") Z "))
		})
	}
	settle(t, before)
}

// What a launch has started that nobody waits for any more is killed with its children: the caller can go away after the
// workload has begun and before the supervisor has said so.
func TestExecAbandoned(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	id := h.running(t, m, "exec sleep 1000", false, false)
	pids := filepath.Join(t.TempDir(), "pids")
	script := "setsid sh -c 'echo $$ >> " + pids + "; exec sleep 1000' & echo $$ >> " + pids + "; sleep 1000; true"
	done := make(chan error, 1)
	go func() {
		_, err := m.Exec(t.Context(), id, []string{script}, Streams{Stdout: io.Discard})
		done <- err
	}()
	var started []string
	eventually(t, "the command runs", func() bool {
		text, _ := os.ReadFile(pids)
		started = strings.Fields(string(text))
		return len(started) == 2
	})
	c, err := m.Container(id)
	must(t, err)
	p, err := m.Pod(c.PodID)
	must(t, err)
	m.mu.Lock()
	for exec := range m.execs {
		m.abandon(p.Supervisor, exec)
	}
	m.mu.Unlock()
	<-done
	for _, pid := range started {
		eventually(t, "process "+pid+" is killed", func() bool {
			stat, err := os.ReadFile("/proc/" + pid + "/stat")
			return err != nil || bytes.Contains(stat, []byte(") Z "))
		})
	}
}

// The same where the caller is gone at once: the supervisor may not know the process yet, or be about to.
func TestExecGivenUp(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	id := h.running(t, m, "exec sleep 1000", false, false)
	for range 40 {
		pids := filepath.Join(t.TempDir(), "pids")
		script := "setsid sh -c 'echo $$ >> " + pids + "; exec sleep 1000' & echo $$ >> " + pids + "; sleep 1000; true"
		ctx, leave := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := m.Exec(ctx, id, []string{script}, Streams{Stdout: io.Discard})
			done <- err
		}()
		var started []string
		for deadline := time.Now().Add(time.Minute); len(started) < 2; {
			if time.Now().After(deadline) {
				t.Fatal("the command does not run")
			}
			text, _ := os.ReadFile(pids)
			started = strings.Fields(string(text))
		}
		leave()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatalf("Exec = %v; want %v", err, context.Canceled)
		}
		for _, pid := range started {
			eventually(t, "process "+pid+" is killed", func() bool {
				stat, err := os.ReadFile("/proc/" + pid + "/stat")
				return err != nil || bytes.Contains(stat, []byte(") Z "))
			})
		}
	}
}

func sizesOf(sizes ...TerminalSize) iter.Seq[TerminalSize] { return slices.Values(sizes) }

func TestAttach(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	id := h.running(t, m, "while read line; do echo got $line; echo err >&2; done; exit 3", true, true)
	before := goleak.IgnoreCurrent()
	// One that only looks, and leaves.
	ctx, leave := context.WithCancel(t.Context())
	r, w := io.Pipe()
	left := make(chan error, 1)
	go func() { left <- m.Attach(ctx, id, Streams{Stdout: w, Resizes: sizesOf(TerminalSize{1, 1})}) }()
	in, type1 := io.Pipe()
	var stderr bytes.Buffer
	out, shown := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- m.Attach(t.Context(), id, Streams{Stdin: in, Stdout: shown, Stderr: &stderr}) }()
	fmt.Fprintln(type1, "hello")
	buf := make([]byte, 100)
	if n, err := out.Read(buf); string(buf[:n]) != "got hello\n" {
		t.Fatalf("attached client reads %q, %v; want got hello", buf[:n], err)
	}
	if n, err := r.Read(buf); string(buf[:n]) != "got hello\n" && err == nil {
		t.Fatalf("the second client reads %q; want got hello", buf[:n])
	}
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("Attach of one that leaves = %v; want Canceled", err)
	}
	r.Close()
	go io.Copy(io.Discard, out)
	type1.Close() // stdin_once
	if err := <-done; err != nil {
		t.Errorf("Attach = %v; want nil at the container's end", err)
	}
	shown.Close()
	if c, _ := m.Container(id); c.ExitCode != 3 || stderr.String() != "err\n" {
		t.Errorf("exit code %d, stderr %q; want 3 and err", c.ExitCode, &stderr)
	}
	if err := m.Attach(t.Context(), id, Streams{Stdout: io.Discard}); !errors.Is(err, ErrState) {
		t.Errorf("Attach to an exited container = %v; want ErrState", err)
	}
	settle(t, before)
}

// Clients that come and go, and stall, cost the supervisor nothing once they have gone: also where the container neither
// writes nor reads.
func TestAttachLeaksNothing(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	id := h.running(t, m, "exec sleep 1000", true, false)
	supervisor := supervisorPID(t, m, m.ctrs[id].PodID)
	open := func() int { return len(readDir(fmt.Sprintf("/proc/%d/fd", supervisor))) }
	before, goroutines := open(), goleak.IgnoreCurrent()
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err := m.Attach(ctx, id, Streams{Stdin: bytes.NewReader(make([]byte, 300<<10)), Stdout: io.Discard, Stderr: io.Discard})
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Attach = %v; want DeadlineExceeded", err)
		}
	}
	eventually(t, fmt.Sprintf("the supervisor has no more than the %d descriptors before", before), func() bool { return open() <= before })
	settle(t, goroutines)
}

func listenIn(t *testing.T, netns, address string) (l net.Listener) {
	t.Helper()
	err := sys.WithNetns(netns, func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestDialPod(t *testing.T) {
	h := newHost(t)
	m := h.manager()
	pod, err := m.RunPod(t.Context(), podConfig("p"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.DialPod(t.Context(), pod, 81); err == nil || !strings.Contains(err.Error(), "port 81 ") || !strings.Contains(err.Error(), "[::1]:81") {
		t.Errorf("DialPod to nothing = %v; want an error that names the port and what was tried", err)
	}
	p, err := m.Pod(pod)
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"127.0.0.1:82", "[::1]:83"} {
		l := listenIn(t, p.Netns, address)
		defer l.Close()
		_, port, _ := net.SplitHostPort(address)
		number, _ := strconv.Atoi(port)
		conn, err := m.DialPod(t.Context(), pod, uint16(number))
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.RemoteAddr().String(); got != address {
			t.Errorf("DialPod(%d) is connected to %s; want %s", number, got, address)
		}
		conn.Close()
	}
	if err := m.StopPod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if _, err := m.DialPod(t.Context(), pod, 82); !errors.Is(err, ErrState) {
		t.Errorf("DialPod of a stopped pod = %v; want ErrState", err)
	}
}
