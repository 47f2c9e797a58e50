package registry

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Fault is what goes wrong with one request. The fields that are set apply together.
type Fault struct {
	Status     int           // answer this, with a body as registries write it
	Message    string        // of the body
	RetryAfter int           // seconds, with Status
	Delay      time.Duration // before anything is answered
	// CutAfter breaks the connection after so many bytes of the body; -1 before the first.
	CutAfter int64
	// StallAfter sends nothing more after so many bytes, until the client or the server goes; -1 before the first.
	StallAfter int64
	// Length is told as the length of the body, whatever that is.
	Length int64
	// Redirect sends the client on to this URL (307), or to one below it if it ends in a slash.
	Redirect string
	// FlipAt changes the byte at this offset of the body; -1 the first.
	FlipAt int64
}

// SetFault makes f decide, for each request that passed authentication, what goes wrong: nil for nothing.
func (s *Server) SetFault(f func(*http.Request) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// applyFault returns where to write the answer, and whether there already was one.
func (s *Server) applyFault(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, bool) {
	s.mu.Lock()
	f := s.fault
	s.mu.Unlock()
	if f == nil {
		return w, false
	}
	fault := f(r)
	if fault == nil {
		return w, false
	}
	if fault.Delay > 0 {
		s.wait(r, fault.Delay)
	}
	if fault.Status != 0 {
		if fault.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(fault.RetryAfter))
		}
		fail(w, fault.Status, "FAULT", fault.Message)
		return w, true
	}
	if fault.Redirect != "" {
		to := fault.Redirect
		if strings.HasSuffix(to, "/") {
			to += strings.TrimPrefix(r.URL.Path, "/")
		}
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
		return w, true
	}
	return &faultyWriter{ResponseWriter: w, fault: fault, s: s, r: r}, false
}

func (s *Server) wait(r *http.Request, d time.Duration) {
	select {
	case <-time.After(d):
	case <-r.Context().Done():
	case <-s.closed:
	}
}

type faultyWriter struct {
	http.ResponseWriter
	fault *Fault
	s     *Server
	r     *http.Request
	off   int64
}

// WriteHeader implements http.ResponseWriter.
func (w *faultyWriter) WriteHeader(code int) {
	if w.fault.Length > 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(w.fault.Length, 10))
	}
	w.ResponseWriter.WriteHeader(code)
}

var errCut = errors.New("fault: cut")

func limit(after, off int64) (int64, bool) {
	switch {
	case after == 0:
		return 0, false
	case after < 0:
		after = 0
	}
	return max(after-off, 0), true
}

func (w *faultyWriter) Write(p []byte) (int, error) {
	flip := w.fault.FlipAt
	if flip < 0 {
		flip = 0
	}
	if w.fault.FlipAt != 0 && flip >= w.off && flip < w.off+int64(len(p)) {
		p = append([]byte(nil), p...)
		p[flip-w.off] ^= 0xff
	}
	if n, ok := limit(w.fault.StallAfter, w.off); ok && n < int64(len(p)) {
		w.send(p[:n])
		w.s.wait(w.r, time.Hour)
		return 0, errCut
	}
	if n, ok := limit(w.fault.CutAfter, w.off); ok && n < int64(len(p)) {
		w.send(p[:n])
		panic(http.ErrAbortHandler) // net/http's way to break a connection
	}
	n, err := w.ResponseWriter.Write(p)
	w.off += int64(n)
	return n, err
}

func (w *faultyWriter) send(p []byte) {
	n, _ := w.ResponseWriter.Write(p)
	w.off += int64(n)
	_ = http.NewResponseController(w.ResponseWriter).Flush()
}
