package cri

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// TestStreamConnections: who shares the node's network reaches the port, but has no token. Neither connections that say nothing nor
// guesses take the sessions of others.
func TestStreamConnections(t *testing.T) {
	n := newStreamNode(t, nil)
	n.fake.stream = echo
	at := n.execURL(t)
	host := n.server.base.Host
	var idle []net.Conn
	defer func() {
		for _, c := range idle {
			c.Close()
		}
	}()
	for range maxWaiting + 50 {
		c, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	// The last ones are closed at once.
	last := idle[len(idle)-1]
	last.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := last.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("connection %d: %v; want it closed", len(idle), err)
	}
	fewer := func(than int64) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); n.server.waiting.Load() >= than; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d connections wait; want fewer than %d", n.server.waiting.Load(), than)
			}
		}
	}
	fewer(maxWaiting + 1)
	for _, c := range idle {
		c.Close()
	}
	fewer(1)
	// The session is there still.
	c := dialSPDY(t, at, "v4.channel.k8s.io")
	word, in, out := c.stream(t, "error"), c.stream(t, "stdin"), c.stream(t, "stdout")
	c.stream(t, "stderr")
	in.Write([]byte("hello"))
	in.Close()
	if got, err := io.ReadAll(out); string(got) != "hello" {
		t.Errorf("stdout = %q, %v; want hello", got, err)
	}
	io.ReadAll(word)
	c.Close()
}

// FuzzStreamURL: no path is a session but the one that was offered, and that once.
func FuzzStreamURL(f *testing.F) {
	const token = "AAAAAAAAAAAAAAAAAAAAAA"
	f.Add("GET", "/exec/"+token)
	f.Add("POST", "/exec/"+token+"/")
	f.Add("GET", "//exec/"+token)
	f.Add("GET", "/attach/"+token)
	f.Add("GET", "/exec/../exec/"+token+"?x=%2f#y")
	f.Add("PUT", "")
	f.Fuzz(func(t *testing.T, method, path string) {
		served := 0
		s := &StreamServer{offered: map[string]offer{token: {op: "exec", expires: time.Now().Add(time.Minute), serve: func(w http.ResponseWriter, _ *http.Request) error {
			served++
			return nil
		}}}}
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Method, r.URL.Path = method, path
		op, got := splitPath(path)
		if o, ok := s.take(op, got); ok != (op == "exec" && got == token) {
			t.Errorf("take(%q) = %v, %v", path, o, ok)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r) // what was taken, or asked for wrongly, is gone
		if served != 0 && got == token || w.Code != http.StatusNotFound && w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s %q = %d, served %d times", method, path, w.Code, served)
		}
	})
}

// TestResizeIsBounded: a size that has no end, from a client that may execute commands, is no way to the daemon's memory.
func TestResizeIsBounded(t *testing.T) {
	endless := &countedReader{prefix: `{"Width":80,"Height":24}{"Width":81,"Height":25}{"x":"`}
	resize := make(chan remotecommand.TerminalSize, 10)
	readSizes(t.Context(), endless, resize)
	if len(resize) != 2 || endless.read > 1<<20 {
		t.Errorf("%d sizes out of %d bytes; want the two that are whole, out of few", len(resize), endless.read)
	}
}

// countedReader is a prefix and then one letter again and again, up to 64 MiB.
type countedReader struct {
	prefix string
	read   int
}

func (r *countedReader) Read(p []byte) (int, error) {
	if r.read > 64<<20 {
		return 0, io.EOF
	}
	n := copy(p, r.prefix)
	if r.prefix = r.prefix[n:]; n == 0 {
		for i := range p {
			p[i] = 'x'
		}
		n = len(p)
	}
	r.read += n
	return n, nil
}

func FuzzSizes(f *testing.F) {
	f.Add([]byte(`{"Width":80,"Height":24}`))
	f.Add([]byte(`{"Width":70000}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		resize := make(chan remotecommand.TerminalSize, len(data)+1)
		readSizes(t.Context(), bytes.NewReader(data), resize)
		for range resize {
		}
	})
}
