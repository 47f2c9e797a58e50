package cri

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
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
