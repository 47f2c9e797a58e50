package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// console is a console socket and what it receives.
func console(t *testing.T, path string) func() *os.File {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	masters := make(chan *os.File, 1)
	go func() {
		defer close(masters)
		conn, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer conn.Close()
		name, oob := make([]byte, 100), make([]byte, 100)
		_, n, _, _, err := conn.ReadMsgUnix(name, oob)
		if err != nil {
			t.Error(err)
			return
		}
		msgs, err := syscall.ParseSocketControlMessage(oob[:n])
		if err != nil || len(msgs) != 1 {
			t.Errorf("%d control messages, %v", len(msgs), err)
			return
		}
		fds, err := syscall.ParseUnixRights(&msgs[0])
		if err != nil || len(fds) != 1 {
			t.Errorf("%d descriptors, %v", len(fds), err)
			return
		}
		masters <- os.NewFile(uintptr(fds[0]), "master")
	}()
	return func() *os.File {
		m := <-masters
		if m == nil {
			t.Fatal("no terminal")
		}
		t.Cleanup(func() { m.Close() })
		return m
	}
}

func TestConsoleSocket(t *testing.T) {
	b := ours(t, "tty; read x; echo got $x; stty size; sleep 100")
	b.spec.Process.Terminal = true
	b.spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 99}
	b.write()
	if err := os.Symlink("busybox", filepath.Join(b.bundle, "rootfs/bin/stty")); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(b.bundle, "socket")
	master := console(t, socket)
	b.fails("console socket", "create", "c")
	b.ok("create", "--console-socket", socket, "c")
	m := master()
	b.ok("start", "c")
	io.WriteString(m, "line\n")
	want := []string{"/dev/pts/0", "got line", "33 99"}
	if out := readUntil(t, m, want[2]); !strings.Contains(out, want[0]) || !strings.Contains(out, want[1]) {
		t.Errorf("terminal: %q; want %q", out, want)
	}

	os.Remove(socket)
	master = console(t, socket)
	b.ok("exec", "-t", "-d", "--console-socket", socket, "c", "sh", "-c", "tty; echo end")
	if out := readUntil(t, master(), "end"); !strings.Contains(out, "/dev/pts/1") {
		t.Errorf("exec's terminal: %q; want /dev/pts/1", out)
	}
	b.fails("console socket", "run", "-d", "d")
	b.spec.Process.Terminal = false
	b.write()
	b.fails("cannot use console socket", "create", "--console-socket", socket, "d")
}

// readUntil reads a terminal until it has shown a text.
func readUntil(t *testing.T, m *os.File, text string) string {
	t.Helper()
	var out []byte
	buf := make([]byte, 1024)
	for !bytes.Contains(out, []byte(text)) {
		n, err := m.Read(buf)
		if err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		out = append(out, buf[:n]...)
	}
	return string(out)
}

// TestForegroundTerminal: without a socket the command itself stands between.
func TestForegroundTerminal(t *testing.T) {
	b := ours(t, "tty; read x; echo got $x; exit 3")
	b.spec.Process.Terminal = true
	b.write()
	cmd := b.command("run", "c")
	cmd.Stdin = strings.NewReader("line\n")
	r := b.runCommand(cmd)
	if r.code != 3 || !strings.Contains(r.out, "/dev/pts/0") || !strings.Contains(r.out, "got line") {
		t.Errorf("run = %d, %q, %q", r.code, r.out, r.errs)
	}
	b.gone("c")
}

// TestForegroundTerminalInputEnds: what reads from a terminal whose user is a file or a pipe learns of its end.
func TestForegroundTerminalInputEnds(t *testing.T) {
	for _, input := range []string{"", "a line\n", "half a line"} {
		b := ours(t, "cat; echo end; exit 4")
		b.spec.Process.Terminal = true
		b.write()
		cmd := b.command("run", "c")
		cmd.Stdin = strings.NewReader(input)
		timer := time.AfterFunc(30*time.Second, func() { b.command("delete", "--force", "c").Run() })
		r := b.runCommand(cmd)
		timer.Stop()
		if r.code != 4 || !strings.Contains(r.out, "end") || !strings.Contains(r.out, strings.TrimSpace(input)) {
			t.Errorf("run with input %q = %d, %q, %q; want the input and the end, and 4", input, r.code, r.out, r.errs)
		}
		b.gone("c")
	}
}
