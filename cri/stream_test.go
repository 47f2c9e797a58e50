package cri

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/cri-shim/cri-shim/sandbox"
)

// streamNode is a service with a streaming server, a running container and a ready pod.
type streamNode struct {
	fake *fakeRuntime
	pb.RuntimeServiceClient
	server         *StreamServer
	pod, container string
}

func newStreamNode(t *testing.T, edit func(*StreamOptions)) *streamNode {
	t.Helper()
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		var err error
		for range 20 { // each is a patient one; spdystream takes its time after a connection
			if err = goleak.Find(leaks); err == nil {
				return
			}
		}
		t.Error(err)
	})
	r := &fakeRuntime{}
	so := StreamOptions{Listen: "127.0.0.1:0", Runtime: r, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	if edit != nil {
		edit(&so)
	}
	server, err := NewStreamServer(so)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	r.pods = []*sandbox.Pod{{ID: strings.Repeat("a", 64), CreatedAt: time.Unix(1, 0), ReadyAt: time.Unix(2, 0)}}
	r.containers = []*sandbox.Container{{ID: strings.Repeat("c", 64), CreatedAt: time.Unix(1, 0), StartedAt: time.Unix(2, 0)}}
	o := options(r)
	o.Streams = server
	return &streamNode{r, pb.NewRuntimeServiceClient(connect(t, o)), server, r.pods[0].ID, r.containers[0].ID}
}

func (n *streamNode) execURL(t *testing.T, edits ...func(*pb.ExecRequest)) string {
	t.Helper()
	req := &pb.ExecRequest{ContainerId: n.container, Cmd: []string{"sh"}, Stdin: true, Stdout: true, Stderr: true}
	for _, edit := range edits {
		edit(req)
	}
	resp, err := n.Exec(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

func (n *streamNode) forwardURL(t *testing.T) string {
	t.Helper()
	resp, err := n.PortForward(t.Context(), &pb.PortForwardRequest{PodSandboxId: n.pod})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Url
}

// spdyClient is a SPDY connection with the TCP connection below it.
type spdyClient struct {
	httpstream.Connection
	tcp net.Conn
}

func dialSPDY(t *testing.T, at, protocol string) *spdyClient {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	req, _ := http.NewRequest(http.MethodPost, at, nil)
	req.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
	req.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	if err := req.Write(tcp); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(tcp)
	resp, err := http.ReadResponse(r, req)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%s: %v, %v; want 101", at, resp, err)
	}
	conn, err := spdy.NewClientConnection(&bufferedConn{tcp, r})
	if err != nil {
		t.Fatal(err)
	}
	return &spdyClient{conn, tcp}
}

// bufferedConn has read more than the answer's header.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *spdyClient) stream(t *testing.T, kind string, more ...string) httpstream.Stream {
	t.Helper()
	h := http.Header{}
	h.Set("streamType", kind)
	for i := 0; i < len(more); i += 2 {
		h.Set(more[i], more[i+1])
	}
	s, err := c.CreateStream(h)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// echo copies standard input to standard output, says how much on standard error, and ends with 7.
func echo(_ context.Context, _ []string, s sandbox.Streams) (int, error) {
	n, err := io.Copy(s.Stdout, s.Stdin)
	fmt.Fprint(s.Stderr, n)
	return 7, err
}

// exitCode reads the last word of v4 and v5.
func exitCode(t *testing.T, word []byte) string {
	t.Helper()
	var status struct {
		Status, Reason string
		Details        struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(word, &status); err != nil {
		t.Fatalf("last word %q: %v", word, err)
	}
	if len(status.Details.Causes) == 0 {
		return status.Status
	}
	return status.Reason + " " + status.Details.Causes[0].Reason + " " + status.Details.Causes[0].Message
}

const someData = 5 << 20

func TestStreamSPDY(t *testing.T) {
	n := newStreamNode(t, nil)
	n.fake.stream = echo
	c := dialSPDY(t, n.execURL(t), "v4.channel.k8s.io")
	word, in, out, err := c.stream(t, "error"), c.stream(t, "stdin"), c.stream(t, "stdout"), c.stream(t, "stderr")
	data := bytes.Repeat([]byte("0123456789abcde\n"), someData/16)
	go func() {
		in.Write(data)
		in.Close() // half: the answer still comes
	}()
	if got, err := io.ReadAll(out); err != nil || !bytes.Equal(got, data) {
		t.Errorf("stdout: %d bytes, %v; want the %d of stdin", len(got), err, len(data))
	}
	if got, _ := io.ReadAll(err); string(got) != fmt.Sprint(someData) {
		t.Errorf("stderr = %q; want %d", got, someData)
	}
	got, _ := io.ReadAll(word)
	if got := exitCode(t, got); got != "NonZeroExitCode ExitCode 7" {
		t.Errorf("exit = %s; want 7", got)
	}
	c.Close()
}

func TestStreamTerminal(t *testing.T) {
	n := newStreamNode(t, nil)
	n.fake.stream = func(_ context.Context, _ []string, s sandbox.Streams) (int, error) {
		if !s.Terminal || s.Stderr != nil {
			return 0, errors.New("want a terminal")
		}
		for size := range s.Resizes {
			fmt.Fprintf(s.Stdout, "%d rows, %d columns;", size.Rows, size.Cols)
			if size.Rows == 50 {
				break
			}
		}
		return 0, nil
	}
	c := dialSPDY(t, n.execURL(t, func(r *pb.ExecRequest) { r.Tty, r.Stderr = true, false }), "v4.channel.k8s.io")
	word, _, out, sizes := c.stream(t, "error"), c.stream(t, "stdin"), c.stream(t, "stdout"), c.stream(t, "resize")
	io.WriteString(sizes, `{"Width":80,"Height":24}{"Width":100,"Height":50}`)
	if got, _ := io.ReadAll(out); string(got) != "24 rows, 80 columns;50 rows, 100 columns;" {
		t.Errorf("sizes: %q", got)
	}
	got, _ := io.ReadAll(word)
	if got := exitCode(t, got); got != "Success" {
		t.Errorf("exit = %s; want Success", got)
	}
	c.Close()
}

func dialWebSocket(t *testing.T, at string, protocol string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig("ws"+strings.TrimPrefix(at, "http"), "http://127.0.0.1/")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{protocol}
	ws, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	ws.PayloadType = websocket.BinaryFrame
	return ws
}

// webSocketMessages reads until the connection ends, by channel.
func webSocketMessages(ws *websocket.Conn) (got [5][]byte) {
	for {
		var message []byte
		if websocket.Message.Receive(ws, &message) != nil {
			return got
		}
		if len(message) > 0 && message[0] < 5 {
			got[message[0]] = append(got[message[0]], message[1:]...)
		}
	}
}

func TestStreamWebSocket(t *testing.T) {
	n := newStreamNode(t, nil)
	n.fake.stream = echo
	ws := dialWebSocket(t, n.execURL(t), "v5.channel.k8s.io")
	piece := append([]byte{channelStdin}, bytes.Repeat([]byte("x"), 1<<16)...)
	go func() {
		for range someData >> 16 {
			ws.Write(piece)
		}
		ws.Write([]byte{255, channelStdin})
	}()
	got := webSocketMessages(ws)
	if len(got[channelStdout]) != someData || string(got[channelStderr]) != fmt.Sprint(someData) {
		t.Errorf("%d bytes on stdout, %q on stderr; want %d", len(got[channelStdout]), got[channelStderr], someData)
	}
	if got := exitCode(t, got[channelError]); got != "NonZeroExitCode ExitCode 7" {
		t.Errorf("exit = %s; want 7", got)
	}

	n.fake.stream = func(context.Context, []string, sandbox.Streams) (int, error) { return 0, errors.New("no shell") }
	ws = dialWebSocket(t, n.execURL(t), "v5.channel.k8s.io")
	if got := webSocketMessages(ws); !strings.Contains(string(got[channelError]), "no shell") {
		t.Errorf("last word %q; want the error", got[channelError])
	}

	n.fake.stream = func(_ context.Context, _ []string, s sandbox.Streams) (int, error) {
		for size := range s.Resizes {
			fmt.Fprint(s.Stdout, size.Rows)
			return 0, nil
		}
		return 1, nil
	}
	ws = dialWebSocket(t, n.execURL(t, func(r *pb.ExecRequest) { r.Tty, r.Stderr = true, false }), "v5.channel.k8s.io")
	ws.Write(append([]byte{channelResize}, `{"Width":80,"Height":24}`...))
	if got := webSocketMessages(ws); string(got[channelStdout]) != "24" {
		t.Errorf("after a resize: %q; want 24 rows", got[channelStdout])
	}

	n.fake.stream = echo // the older protocol, which the library speaks; a client that goes is the end of its input
	ws = dialWebSocket(t, n.execURL(t), "v4.channel.k8s.io")
	ws.Write([]byte("\x00hello"))
	var message []byte
	for !strings.Contains(string(message), "hello") {
		if err := websocket.Message.Receive(ws, &message); err != nil {
			t.Fatalf("v4: %v; want hello", err)
		}
	}
	ws.Close()
}

// A client that is gone ends its session, also where nobody reads what it has sent.
func TestStreamVanished(t *testing.T) {
	n := newStreamNode(t, nil)
	begun, ended := make(chan struct{}), make(chan error)
	n.fake.stream = func(ctx context.Context, _ []string, _ sandbox.Streams) (int, error) {
		close(begun)
		<-ctx.Done()
		ended <- ctx.Err()
		return 0, ctx.Err()
	}
	// What spdystream holds of a stream that nobody reads, and some that stays in the socket, before the end.
	const unread = 50<<16 + 256<<10
	for name, sent := range map[string]int{"quiet": 0, "with unread input": unread} {
		begun = make(chan struct{})
		c := dialSPDY(t, n.execURL(t), "v4.channel.k8s.io")
		c.stream(t, "error")
		in := c.stream(t, "stdin")
		c.stream(t, "stdout")
		c.stream(t, "stderr")
		<-begun
		for ; sent > 0; sent -= 1 << 16 {
			if _, err := in.Write(make([]byte, 1<<16)); err != nil {
				t.Fatal(err)
			}
		}
		c.tcp.Close()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Fatalf("a client that vanishes %s: its session goes on", name)
		}
	}
}

// A client that takes nothing holds its session for as long as an idle one may, and no longer.
func TestStreamStalled(t *testing.T) {
	n := newStreamNode(t, func(o *StreamOptions) { o.IdleTimeout = time.Second })
	ended := make(chan error)
	n.fake.stream = func(_ context.Context, _ []string, s sandbox.Streams) (int, error) {
		for {
			if _, err := s.Stdout.Write(make([]byte, 1<<16)); err != nil {
				ended <- err
				return 0, err
			}
		}
	}
	c := dialSPDY(t, n.execURL(t, func(r *pb.ExecRequest) { r.Stdin, r.Stderr = false, false }), "v4.channel.k8s.io")
	c.stream(t, "error")
	c.stream(t, "stdout") // is never read
	select {
	case <-ended:
	case <-time.After(30 * time.Second):
		t.Fatal("the session of a client that stalls goes on")
	}
	c.tcp.Close()
	c.Close()
}

// A server that ends takes its sessions with it.
func TestStreamClose(t *testing.T) {
	n := newStreamNode(t, nil)
	begun, ended := make(chan struct{}), make(chan struct{})
	n.fake.stream = func(ctx context.Context, _ []string, _ sandbox.Streams) (int, error) {
		close(begun)
		<-ctx.Done()
		close(ended)
		return 0, ctx.Err()
	}
	at := n.execURL(t, func(r *pb.ExecRequest) { r.Stdin, r.Stderr = false, false })
	c := dialSPDY(t, at, "v4.channel.k8s.io")
	word := c.stream(t, "error")
	c.stream(t, "stdout")
	<-begun
	n.server.Close()
	<-ended
	if got, _ := io.ReadAll(word); !strings.Contains(string(got), "canceled") {
		t.Errorf("last word %q; want that it was canceled", got)
	}
	c.Close()
	_, err := n.Exec(t.Context(), &pb.ExecRequest{ContainerId: n.container, Cmd: []string{"a"}, Stdout: true})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("Exec after Close = %v; want Unavailable", err)
	}
}

func TestStreamTokens(t *testing.T) {
	n := newStreamNode(t, nil)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(method, at string) int {
		req, _ := http.NewRequest(method, at, nil)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	at := n.execURL(t)
	if got := get(http.MethodDelete, at); got != http.StatusMethodNotAllowed {
		t.Errorf("DELETE = %d; want 405", got)
	}
	if got := get(http.MethodGet, at); got != http.StatusBadRequest { // it is no upgrade
		t.Errorf("GET = %d; want 400", got)
	}
	for _, bad := range []string{at, n.server.base.String(), n.server.base.String() + "/exec/", strings.Replace(n.execURL(t), "/exec/", "/attach/", 1)} {
		if got := get(http.MethodGet, bad); got != http.StatusNotFound {
			t.Errorf("GET %s = %d; want 404", bad, got)
		}
	}
	late := n.execURL(t)
	n.server.mu.Lock()
	for token, o := range n.server.offered {
		o.expires = time.Now().Add(-time.Second)
		n.server.offered[token] = o
	}
	n.server.mu.Unlock()
	if got := get(http.MethodGet, late); got != http.StatusNotFound {
		t.Errorf("GET after a minute = %d; want 404", got)
	}
	for range maxTokens {
		n.execURL(t)
	}
	_, err := n.Exec(t.Context(), &pb.ExecRequest{ContainerId: n.container, Cmd: []string{"a"}, Stdout: true})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("Exec number %d = %v; want ResourceExhausted", maxTokens+1, err)
	}
}

func TestStreamRequests(t *testing.T) {
	n := newStreamNode(t, nil)
	gone := &sandbox.Container{ID: strings.Repeat("d", 64), CreatedAt: time.Unix(1, 0), FinishedAt: time.Unix(2, 0)}
	n.fake.containers = append(n.fake.containers, gone)
	n.fake.pods = append(n.fake.pods, &sandbox.Pod{ID: strings.Repeat("b", 64), ReadyAt: time.Unix(1, 0), StoppedAt: time.Unix(2, 0)})
	exec := func(r *pb.ExecRequest) error { _, err := n.Exec(t.Context(), r); return err }
	attach := func(r *pb.AttachRequest) error { _, err := n.Attach(t.Context(), r); return err }
	forward := func(r *pb.PortForwardRequest) error { _, err := n.PortForward(t.Context(), r); return err }
	wantCode(t, "no command", exec(&pb.ExecRequest{ContainerId: n.container, Stdout: true}), codes.InvalidArgument, "cmd")
	wantCode(t, "no stream", exec(&pb.ExecRequest{ContainerId: n.container, Cmd: []string{"a"}}), codes.InvalidArgument, "stdin")
	wantCode(t, "tty with stderr", attach(&pb.AttachRequest{ContainerId: n.container, Tty: true, Stderr: true}), codes.InvalidArgument, "stderr")
	wantCode(t, "unknown", exec(&pb.ExecRequest{ContainerId: "x", Cmd: []string{"a"}, Stdout: true}), codes.NotFound, "x")
	wantCode(t, "exited", attach(&pb.AttachRequest{ContainerId: gone.ID, Stdout: true}), codes.FailedPrecondition, "exited")
	wantCode(t, "port", forward(&pb.PortForwardRequest{PodSandboxId: n.pod, Port: []int32{70000}}), codes.InvalidArgument, "port[0]")
	wantCode(t, "stopped", forward(&pb.PortForwardRequest{PodSandboxId: n.fake.pods[1].ID}), codes.FailedPrecondition, "not-ready")
	wantCode(t, "no server", func() error {
		_, err := pb.NewRuntimeServiceClient(connect(t, options(n.fake))).Exec(t.Context(), &pb.ExecRequest{ContainerId: n.container, Cmd: []string{"a"}, Stdout: true})
		return err
	}(), codes.Unavailable, "streaming server")
}

// upperServer answers what it is sent in capitals, once the client has half-closed. It resets a
// connection on which it is sent "break".
func upperServer(t *testing.T) (port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				data, _ := io.ReadAll(c)
				if string(data) == "break" {
					c.(*net.TCPConn).SetLinger(0)
					return
				}
				c.Write(bytes.ToUpper(data))
			}()
		}
	}()
	_, port, _ = net.SplitHostPort(l.Addr().String())
	return port
}

// forwardOne sends data through a forwarded connection and returns the answer and the error.
func forwardOne(t *testing.T, c *spdyClient, id int, port, data string) (string, string) {
	t.Helper()
	request := fmt.Sprint(id)
	word := c.stream(t, "error", "port", port, "requestID", request)
	stream := c.stream(t, "data", "port", port, "requestID", request)
	io.WriteString(stream, data)
	stream.Close()
	answer, _ := io.ReadAll(stream)
	failed, _ := io.ReadAll(word)
	return string(answer), string(failed)
}

func testForward(t *testing.T, c *spdyClient) {
	port := upperServer(t)
	go io.Copy(io.Discard, c.stream(t, "error", "port", port, "requestID", "100"))
	held := c.stream(t, "data", "port", port, "requestID", "100")
	for i := range 5 {
		if got, failed := forwardOne(t, c, i, port, fmt.Sprint("hello ", i)); got != fmt.Sprint("HELLO ", i) || failed != "" {
			t.Errorf("connection %d: %q, %q; want its answer", i, got, failed)
		}
		if got, failed := forwardOne(t, c, 20+i, port, "break"); got+failed != "" {
			t.Errorf("connection that breaks: %q, %q; want its end", got, failed)
		}
		if got, failed := forwardOne(t, c, 10+i, "1", "x"); got != "" || !strings.Contains(failed, "port 1 ") {
			t.Errorf("connection to a closed port: %q, %q; want an error that names it", got, failed)
		}
	}
	io.WriteString(held, "still there")
	held.Close()
	if got, _ := io.ReadAll(held); string(got) != "STILL THERE" {
		t.Errorf("the first connection: %q; want that the others do not end it", got)
	}
	c.Close()
}

func TestStreamPortForward(t *testing.T) {
	n := newStreamNode(t, nil)
	testForward(t, dialSPDY(t, n.forwardURL(t), "portforward.k8s.io"))
}

func TestStreamPortForwardWebSocket(t *testing.T) {
	n := newStreamNode(t, nil)
	ws := dialWebSocket(t, n.forwardURL(t), "SPDY/3.1+portforward.k8s.io")
	conn, err := spdy.NewClientConnection(ws)
	if err != nil {
		t.Fatal(err)
	}
	testForward(t, &spdyClient{conn, ws})
}

// A client that vanishes takes its forwarded connections with it, also where neither side reads.
func TestStreamPortForwardVanished(t *testing.T) {
	n := newStreamNode(t, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	c := dialSPDY(t, n.forwardURL(t), "portforward.k8s.io")
	c.stream(t, "error", "port", port, "requestID", "1")
	stream := c.stream(t, "data", "port", port, "requestID", "1")
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		for {
			if _, err := stream.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	}()
	time.Sleep(300 * time.Millisecond) // until it is stuck
	c.tcp.Close()
	<-wrote
	server.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.Copy(io.Discard, server); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection to the pod is open after its client has vanished")
	}
}

// writeCertificate makes a certificate for 127.0.0.1 with a serial number.
func writeCertificate(t *testing.T, dir string, serial int64) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestStreamTLS(t *testing.T) {
	dir := t.TempDir()
	n := newStreamNode(t, func(o *StreamOptions) { o.TLSCert, o.TLSKey = writeCertificate(t, dir, 1) })
	n.fake.stream = echo
	serial := func() int64 {
		conn, err := tls.Dial("tcp", n.server.base.Host, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	if got := serial(); got != 1 {
		t.Errorf("serial number = %d; want 1", got)
	}
	cert, _ := writeCertificate(t, dir, 2)
	soon := time.Now().Add(time.Second)
	if err := os.Chtimes(cert, soon, soon); err != nil { // whatever the file system's clock shows
		t.Fatal(err)
	}
	if got := serial(); got != 2 {
		t.Errorf("after a change: serial number = %d; want 2", got)
	}
	if err := os.WriteFile(cert, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != 2 {
		t.Errorf("in the middle of a change: serial number = %d; want 2", got)
	}
	rt, err := spdy.NewRoundTripper(&tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	at := n.execURL(t)
	if !strings.HasPrefix(at, "https://127.0.0.1:") {
		t.Errorf("URL = %s; want https", at)
	}
	req, _ := http.NewRequest(http.MethodPost, at, nil)
	req.Header.Set(httpstream.HeaderProtocolVersion, "v4.channel.k8s.io")
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := rt.NewConnection(resp)
	if err != nil {
		t.Fatal(err)
	}
	c := &spdyClient{Connection: conn}
	word, in, out, stderr := c.stream(t, "error"), c.stream(t, "stdin"), c.stream(t, "stdout"), c.stream(t, "stderr")
	io.WriteString(in, "hello")
	in.Close()
	if got, _ := io.ReadAll(out); string(got) != "hello" {
		t.Errorf("stdout = %q; want hello", got)
	}
	io.ReadAll(stderr)
	io.ReadAll(word)
	c.Close()

	_, err = NewStreamServer(StreamOptions{Listen: "127.0.0.1:0", TLSCert: cert, TLSKey: cert, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), cert) {
		t.Errorf("NewStreamServer with a broken certificate = %v; want an error that names it", err)
	}
}
