package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// streamCommand is a crictl that streams, not yet started. It is killed when ctx ends.
func (n *node) streamCommand(ctx context.Context, t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(ctx, testtools.Crictl(t), append([]string{
		"--config", "/dev/null", "--runtime-endpoint", "unix://" + n.socket(), "--timeout", "60s"}, args...)...)
}

var transports = []string{"spdy", "websocket"}

// onTransports runs a test over both transports of crictl.
func onTransports(t *testing.T, test func(t *testing.T, transport string)) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) { test(t, transport) })
	}
}

// pattern is size bytes that do not repeat themselves soon.
func pattern(size int) io.Reader {
	r, w := io.Pipe()
	go func() {
		buf := bufio.NewWriterSize(w, 1<<16)
		for i := 0; i < size; i += 8 {
			if _, err := fmt.Fprintf(buf, "%07d\n", i%9999991); err != nil {
				return
			}
		}
		w.CloseWithError(buf.Flush())
	}()
	return r
}

// TestExecData: 50 MiB through cat, both ways, and the end of the input.
func TestExecData(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	c := n.runPod(t).sleeping(t)
	onTransports(t, func(t *testing.T, transport string) {
		const size = 50 << 20
		want, got := sha256.New(), sha256.New()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // an emulated guest takes minutes
		defer cancel()
		cmd := n.streamCommand(ctx, t, "exec", "-i", "-r", transport, c.id, "/bin/sh", "-c", "cat; echo end >&2")
		var stderr bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = io.TeeReader(pattern(size), want), got, &stderr
		if err := cmd.Run(); err != nil {
			t.Fatalf("crictl exec: %v\n%s", err, stderr.String())
		}
		if !bytes.Equal(got.Sum(nil), want.Sum(nil)) || stderr.String() != "end\n" {
			t.Errorf("what comes back is not what was sent, or standard error %q is not end", stderr.String())
		}
	})
}

func TestExecStatus(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	c := n.runPod(t).sleeping(t)
	onTransports(t, func(t *testing.T, transport string) {
		run := func(want string, script ...string) {
			t.Helper()
			out, err := n.streamCommand(ctx(t), t, append([]string{"exec", "-r", transport, c.id}, script...)...).CombinedOutput()
			if (err != nil) != (want != "out\n") || !strings.Contains(string(out), want) {
				t.Errorf("crictl exec %q = %s, %v; want %q", script, out, err, want)
			}
		}
		run("out\n", sh("echo out")...)
		run("command terminated with exit code 7", sh("exit 7")...)
		run("command terminated with exit code 137", "/bin/sh", "-c", "kill -9 $$")
		run("/no/such/program", "/no/such/program")
	})
}

// TestExecBackground: what a command leaves in the background holds its output; the command has ended.
func TestExecBackground(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	c := n.runPod(t).sleeping(t)
	begin := time.Now()
	resp, err := c.execSync(t, 100, sh("sleep 1000041 & head -c 60000 /dev/zero")...)
	if err != nil || len(resp.Stdout) != 60000 {
		t.Errorf("ExecSync() = %d bytes, %v; want 60000", len(resp.GetStdout()), err)
	}
	out, err := n.streamCommand(ctx(t), t, append([]string{"exec", c.id}, sh("sleep 1000041 & head -c 60000 /dev/zero")...)...).Output()
	if err != nil || len(out) != 60000 {
		t.Errorf("crictl exec = %d bytes, %v; want 60000", len(out), err)
	}
	if took := time.Since(begin); took > time.Minute {
		t.Errorf("it took %s", took)
	}
	if left := processesOf("sleep\x001000041"); len(left) != 2 {
		t.Errorf("in the background there are %v; want two that nobody has killed", left)
	}
}

// TestExecTimeoutKillsAll: also what has left the command's process group and session.
func TestExecTimeoutKillsAll(t *testing.T) {
	t.Parallel()
	c := sharedNode(t).runPod(t).sleeping(t)
	_, err := c.execSync(t, 1, sh("setsid sh -c 'sleep 1000042 & sleep 1000042; true' & (sleep 1000042 &); sleep 1000042; true")...)
	if err == nil || !strings.Contains(err.Error(), "in time") {
		t.Errorf("ExecSync() = %v; want that it did not end in time", err)
	}
	eventually(t, "all that the command started is killed", func() bool { return len(processesOf("sleep\x001000042")) == 0 })
}

// TestExecVanished: a client that is killed takes its command with it, and leaves nothing open.
func TestExecVanished(t *testing.T) {
	n := newNode(t, nil)
	c := n.runPod(t).sleeping(t)
	if out, err := n.streamCommand(ctx(t), t, "exec", c.id, "/bin/true").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	before := n.descriptors(t)
	onTransports(t, func(t *testing.T, transport string) {
		for _, args := range [][]string{{"exec", "-r", transport}, {"exec", "-i", "-r", transport}} {
			ctx, kill := context.WithCancel(t.Context())
			cmd := n.streamCommand(ctx, t, append(append(args, c.id), sh("setsid sleep 1000043 & sleep 1000043")...)...)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			io.WriteString(stdin, "nobody reads it")
			eventually(t, "the command runs", func() bool { return len(processesOf("sleep\x001000043")) == 2 })
			kill()
			cmd.Wait()
			eventually(t, "the command is killed", func() bool { return len(processesOf("sleep\x001000043")) == 0 })
		}
	})
	eventually(t, fmt.Sprintf("no more than the %d descriptors before are open", before), func() bool { return n.descriptors(t) <= before })
}

// descriptors are those of the daemon and of its supervisors.
func (n *node) descriptors(t *testing.T) (open int) {
	t.Helper()
	for _, pid := range n.processes() {
		for _, fd := range entries("/proc/" + pid + "/fd") {
			// What the Go runtime and grpc keep for later comes and goes.
			if target, err := os.Readlink("/proc/" + pid + "/fd/" + fd); err == nil && !strings.Contains(target, "anon_inode:[event") {
				open++
			}
		}
	}
	return open
}

// processes are the daemon and its supervisors.
func (n *node) processes() []string {
	pids := []string{strconv.Itoa(n.daemon.Process.Pid)}
	for _, pid := range processesOf("cri-shim-supervisor") {
		if text, _ := os.ReadFile("/proc/" + pid + "/cgroup"); strings.Contains(string(text), n.cgroup+"/") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestExecRestart: a daemon that ends or dies leaves no exec behind.
func TestExecRestart(t *testing.T) {
	n := newNode(t, nil)
	c := n.runPod(t).sleeping(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		cmd := n.streamCommand(ctx(t), t, append([]string{"exec", c.id}, sh("sleep 1000044 & sleep 1000044")...)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the command runs", func() bool { return len(processesOf("sleep\x001000044")) == 2 })
		n.restart(t, sig)
		if err := cmd.Wait(); err == nil && sig == syscall.SIGTERM { // crictl takes a connection that just ends for success
			t.Errorf("%s: crictl exec ends without an error", sig)
		}
		eventually(t, "the command is killed", func() bool { return len(processesOf("sleep\x001000044")) == 0 })
	}
	if s := c.status(t); s.State != pb.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the container is %v; want running", s.State)
	}
}

// execStream runs a command over SPDY without a process of its own and returns its output.
func (c *container) execStream(command ...string) (string, error) {
	resp, err := c.Exec(context.Background(), &pb.ExecRequest{ContainerId: c.id, Cmd: command, Stdout: true})
	if err != nil {
		return "", err
	}
	rt, err := spdy.NewRoundTripper(nil)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequest(http.MethodPost, resp.Url, nil)
	if err != nil {
		return "", err
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, "v4.channel.k8s.io")
	answer, err := rt.RoundTrip(req)
	if err != nil {
		return "", err
	}
	conn, err := rt.NewConnection(answer)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	word, err1 := conn.CreateStream(http.Header{"Streamtype": {"error"}})
	stdout, err2 := conn.CreateStream(http.Header{"Streamtype": {"stdout"}})
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	out, err1 := io.ReadAll(stdout)
	last, err2 := io.ReadAll(word)
	if !strings.Contains(string(last), "Success") {
		err1 = errors.Join(err1, errors.New(string(last)))
	}
	return string(out), errors.Join(err1, err2)
}

// TestExecStreamMany: 50 streams beside one another.
func TestExecStreamMany(t *testing.T) {
	t.Parallel()
	c := sharedNode(t).runPod(t).sleeping(t)
	errs := make(chan error)
	for i := range 50 {
		go func() {
			out, err := c.execStream("/bin/sh", "-c", fmt.Sprintf("echo begin; sleep 0.2; echo %d", i))
			if want := fmt.Sprintf("begin\n%d\n", i); err == nil && out != want {
				err = fmt.Errorf("output = %q; want %q", out, want)
			}
			errs <- err
		}()
	}
	for range 50 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// terminal is a pseudo-terminal with crictl on it.
type terminal struct {
	t      *testing.T
	master *os.File
	cmd    *exec.Cmd
	seen   []byte
}

func startTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs a pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	raw, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var number int
	raw.Control(func(fd uintptr) {
		number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		err = errors.Join(err, unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0))
	})
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	term := &terminal{t: t, master: master, cmd: cmd}
	term.resize(24, 80)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return term
}

func (term *terminal) resize(rows, cols uint16) {
	raw, err := term.master.SyscallConn()
	if err != nil {
		term.t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	if err != nil {
		term.t.Fatal(err)
	}
}

func (term *terminal) write(text string) {
	if _, err := io.WriteString(term.master, text); err != nil {
		term.t.Fatal(err)
	}
}

// until reads until want was shown, and forgets what was shown up to there.
func (term *terminal) until(want string) {
	term.t.Helper()
	term.master.SetReadDeadline(time.Now().Add(callTimeout))
	buf := make([]byte, 4096)
	for {
		if i := bytes.Index(term.seen, []byte(want)); i >= 0 {
			term.seen = term.seen[i+len(want):]
			return
		}
		n, err := term.master.Read(buf)
		if err != nil {
			term.t.Fatalf("the terminal shows %q, %v; want %q", term.seen, err, want)
		}
		term.seen = append(term.seen, buf[:n]...)
	}
}

// TestExecTerminal: a shell on a terminal, its size, the interrupt key and the exit code.
func TestExecTerminal(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	c := n.runPod(t).sleeping(t)
	onTransports(t, func(t *testing.T, transport string) {
		term := startTerminal(t, n.streamCommand(ctx(t), t, "exec", "-it", "-r", transport, c.id, "/bin/sh"))
		term.write("test -t 0 && test -t 1 && test -t 2 && echo is-a-$((1+1))-tty\n")
		term.until("is-a-2-tty\r\n")
		term.write("until test \"$(stty size)\" = '24 80'; do sleep 0.05; done; echo first-$((1+1))\n")
		term.until("first-2\r\n")
		term.resize(40, 123)
		term.write("until test \"$(stty size)\" = '40 123'; do sleep 0.05; done; echo second-$((1+1))\n")
		term.until("second-2\r\n")
		term.write("sleep 1000045\n")
		eventually(t, "sleep runs", func() bool { return len(processesOf("sleep\x001000045")) == 1 })
		term.write("\x03")
		eventually(t, "the interrupt key ends it", func() bool { return len(processesOf("sleep\x001000045")) == 0 })
		term.write("exit 3\n")
		term.until("exit code 3")
		if err := term.cmd.Wait(); err == nil {
			t.Error("crictl exec ends without an error; want the exit code's")
		}
	})
}

// TestAttach: several clients see the output, one that stalls holds up nobody, and the input stays open for the next.
func TestAttach(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	onTransports(t, func(t *testing.T, transport string) {
		c := p.run(t, sh("while read line; do echo got $line; test $line != much || head -c 8000000 /dev/zero | tr '\\0' x; done"),
			func(c *pb.ContainerConfig) { c.Stdin = true })
		attach := func() (*exec.Cmd, io.WriteCloser, *bufio.Reader) {
			cmd := n.streamCommand(ctx(t), t, "attach", "-i", "-r", transport, c.id)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
			return cmd, in, bufio.NewReader(out)
		}
		_, in1, out1 := attach()
		two, in2, out2 := attach()
		line := func(r *bufio.Reader, want string) {
			t.Helper()
			if got, err := r.ReadString('\n'); err != nil || got != want {
				t.Fatalf("a client reads %q, %v; want %q", got, err, want)
			}
		}
		io.WriteString(in1, "a\n")
		line(out1, "got a\n")
		io.WriteString(in2, "b\n")
		line(out1, "got b\n")
		// The second client has both, or began in between.
		if got, err := out2.ReadString('\n'); err != nil || got != "got b\n" && got != "got a\n" {
			t.Fatalf("the second client reads %q, %v", got, err)
		}
		two.Process.Signal(syscall.SIGSTOP)
		go io.Copy(io.Discard, out1)
		io.WriteString(in1, "much\n")
		eventually(t, "the log has all while a client stalls", func() bool { return fileSize(t, c.logPath) > 8000000 })
		two.Process.Signal(syscall.SIGKILL)
		in1.Close()
		_, in3, out3 := attach()
		io.WriteString(in3, "c\n")
		for { // it may still be in the middle of the much
			got, err := out3.ReadString('\n')
			if err != nil {
				t.Fatalf("a client that came later reads %q, %v; want got c", got, err)
			}
			if strings.HasSuffix(got, "got c\n") {
				break
			}
		}
		c.stopIt(t, 0)
		if _, err := io.ReadAll(out3); err != nil {
			t.Error(err)
		}
	})
}

// TestAttachOnce: the first client's end of input is the container's (CRI stdin_once).
func TestAttachOnce(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	onTransports(t, func(t *testing.T, transport string) {
		c := p.run(t, sh("cat; echo end; exit 4"), func(c *pb.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
		cmd := n.streamCommand(ctx(t), t, "attach", "-i", "-r", transport, c.id)
		cmd.Stdin = strings.NewReader("hello\n")
		out, err := cmd.Output()
		if err != nil || string(out) != "hello\nend\n" {
			t.Errorf("crictl attach = %q, %v; want hello and end", out, err)
		}
		if s := c.wait(t); s.ExitCode != 4 {
			t.Errorf("exit code %d; want 4", s.ExitCode)
		}
		if got := c.log(t, "stdout"); got != "hello\nend\n" {
			t.Errorf("log = %q; want hello and end", got)
		}
		// A client that is killed has ended its input too.
		c = p.run(t, sh("read line; echo got $line; cat; exit 5"), func(c *pb.ContainerConfig) { c.Stdin, c.StdinOnce = true, true })
		ctx, kill := context.WithCancel(t.Context())
		defer kill()
		cmd = n.streamCommand(ctx, t, "attach", "-i", "-r", transport, c.id)
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		io.WriteString(stdin, "a line\n")
		eventually(t, "it is attached", func() bool { return c.log(t, "stdout") == "got a line\n" })
		kill()
		cmd.Wait()
		if s := c.wait(t); s.ExitCode != 5 {
			t.Errorf("exit code %d; want 5", s.ExitCode)
		}
	})
}

// TestAttachTerminal: a container's terminal, its size, and that a detached one runs on.
func TestAttachTerminal(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	c := n.runPod(t).run(t, []string{"/bin/sh"}, func(c *pb.ContainerConfig) { c.Stdin, c.Tty = true, true })
	for i, rows := range []uint16{30, 50} {
		term := startTerminal(t, n.streamCommand(ctx(t), t, "attach", "-it", c.id))
		term.write("echo client-$((1+" + strconv.Itoa(i) + "))\n")
		term.until(fmt.Sprintf("client-%d\r\n", 1+i))
		term.resize(rows, 100)
		term.write(fmt.Sprintf("until test \"$(stty size)\" = '%d 100'; do sleep 0.05; done; echo sized-$((1+1))\n", rows))
		term.until("sized-2\r\n")
		term.cmd.Process.Kill()
		term.cmd.Wait()
	}
	if s := c.status(t); s.State != pb.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after its clients have gone the container is %v; want running", s.State)
	}
	if got := c.log(t, "stdout"); !strings.Contains(got, "client-2") {
		t.Errorf("log = %q; want what the terminal showed", got)
	}
}

var forwarding = regexp.MustCompile(`Forwarding from 127\.0\.0\.1:(\d+) -> (\d+)`)

// forward starts crictl port-forward and returns the local addresses, one for each port.
func (p *pod) forward(t *testing.T, transport string, ports ...string) []string {
	t.Helper()
	local, _ := p.forwardWith(t, transport, ports...)
	return local
}

// forwardWith returns what crictl says when it ends, too.
func (p *pod) forwardWith(t *testing.T, transport string, ports ...string) (local []string, said func() string) {
	t.Helper()
	args := []string{"port-forward", "-r", transport, p.id}
	for _, port := range ports {
		args = append(args, ":"+port)
	}
	cmd := p.streamCommand(t.Context(), t, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	for lines := bufio.NewScanner(out); len(local) < len(ports); {
		if !lines.Scan() {
			t.Fatalf("crictl port-forward ends: %v", lines.Err())
		}
		if m := forwarding.FindStringSubmatch(lines.Text()); m != nil {
			local = append(local, "127.0.0.1:"+m[1])
		}
	}
	return local, func() string {
		io.Copy(io.Discard, out)
		cmd.Wait()
		return stderr.String()
	}
}

// TestPortForward: several connections and ports at once, IPv4 and IPv6, and one that breaks while the others go on.
func TestPortForward(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	p.serveWeb(t)
	p.run(t, []string{"/bin/httpd", "-f", "-p", "[::1]:8086", "-h", "/www"})
	p.run(t, sh("while :; do nc -l -p 8087 -e /bin/cat; done"))
	looking := p.sleeping(t)
	onTransports(t, func(t *testing.T, transport string) {
		// Before there is a client: it ends all of its connections, for good, when one is refused.
		for _, port := range []int{8080, 8086, 8087} {
			eventually(t, fmt.Sprint("something listens on port ", port), func() bool {
				return strings.Contains(looking.exec(t, "cat /proc/net/tcp /proc/net/tcp6 | awk '{ print $2, $4 }'"), fmt.Sprintf(":%04X 0A\n", port))
			})
		}
		local := p.forward(t, transport, "8080", "8086", "8087")
		get(t, local[0])
		get(t, local[1])
		var held net.Conn
		eventually(t, "nc answers", func() bool {
			conn, err := net.Dial("tcp", local[2])
			if err != nil {
				return false
			}
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			io.WriteString(conn, "first\n")
			if got, _ := bufio.NewReader(conn).ReadString('\n'); got != "first\n" {
				conn.Close()
				return false
			}
			held = conn
			return true
		})
		defer held.Close()
		for range 5 {
			get(t, local[0])
			// A client that goes in the middle.
			conn, err := net.Dial("tcp", local[0])
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, "GET / HT")
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
		held.SetDeadline(time.Now().Add(callTimeout))
		io.WriteString(held, "last\n")
		if got, err := bufio.NewReader(held).ReadString('\n'); got != "last\n" {
			t.Errorf("the first connection: %q, %v; want last", got, err)
		}
		// Nothing listens: clients of Kubernetes 1.36 end all of their connections then.
		local, said := p.forwardWith(t, transport, "9")
		conn, err := net.Dial("tcp", local[0])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := said(); !strings.Contains(got, "port 9 ") || !strings.Contains(got, "connection refused") {
			t.Errorf("crictl port-forward to a port on which nothing listens: %s; want an error that names it", got)
		}
	})
}

// TestPortForwardHost: a pod on the node's network.
func TestPortForwardHost(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t, hostNetwork)
	port := strconv.Itoa(int(freePort(t)))
	p.run(t, []string{"/bin/httpd", "-f", "-p", "127.0.0.1:" + port, "-h", "/www"})
	get(t, "127.0.0.1:"+port)
	onTransports(t, func(t *testing.T, transport string) { get(t, p.forward(t, transport, port)[0]) })
}
