package cri

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"
)

const (
	tokenTTL    = time.Minute // the kubelet and crictl connect at once
	tokenBytes  = 16
	maxTokens   = 1000
	maxWaiting  = 1000             // connections that have begun no session; whoever shares the node's network can make some
	createTime  = 30 * time.Second // for a client to open its streams
	headerTime  = 30 * time.Second // for a request's header
	closeTime   = 5 * time.Second  // for connections to end with the server
	maxHeader   = 64 << 10
	defaultIdle = 4 * time.Hour // the kubelet's streamingConnectionIdleTimeout
)

// StreamOptions are those of the server that exec, attach and port-forward connect to.
type StreamOptions struct {
	Listen string // host:port; port 0 is any that is free
	// TLSCert and TLSKey are files in PEM. They are read again when they have changed. Empty: no TLS.
	TLSCert, TLSKey string
	// IdleTimeout ends a connection without traffic, and one whose client takes nothing; 0 is four hours.
	IdleTimeout time.Duration
	Runtime     Processes
	Log         *slog.Logger
}

// StreamServer serves the streams of Exec, Attach and PortForward. The protocols are those of k8s.io/cri-streaming; the server
// around them is ours, because that of the library neither learns that a client has gone nor speaks what
// current clients speak over WebSocket (v5.channel.k8s.io, SPDY in WebSocket).
type StreamServer struct {
	runtime  Processes
	log      *slog.Logger
	idle     time.Duration
	base     url.URL
	http     *http.Server
	life     context.Context
	stop     context.CancelFunc
	sessions sync.WaitGroup
	served   chan struct{}

	waiting atomic.Int64 // connections without a session

	mu      sync.Mutex
	closed  bool
	offered map[string]offer // by token
}

// offer is a session that a client may begin, once.
type offer struct {
	op      string
	serve   func(http.ResponseWriter, *http.Request) error
	about   slog.Attr
	expires time.Time
}

// NewStreamServer listens and serves until Close.
func NewStreamServer(o StreamOptions) (*StreamServer, error) {
	if o.IdleTimeout == 0 {
		o.IdleTimeout = defaultIdle
	}
	var config *tls.Config
	if o.TLSCert != "" {
		c := &certificate{certFile: o.TLSCert, keyFile: o.TLSKey, log: o.Log}
		if _, err := c.get(nil); err != nil {
			return nil, fmt.Errorf("streaming server: %w", err)
		}
		// The protocols are upgrades of HTTP/1.1.
		config = &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, fmt.Errorf("streaming server: %w", err)
	}
	s := &StreamServer{
		runtime: o.Runtime, log: o.Log, idle: o.IdleTimeout, served: make(chan struct{}), offered: map[string]offer{},
		base: url.URL{Scheme: "http", Host: reachable(l.Addr())},
	}
	s.life, s.stop = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: headerTime, IdleTimeout: headerTime, MaxHeaderBytes: maxHeader,
		BaseContext: func(net.Listener) context.Context { return s.life },
		ConnContext: connContext,
		ConnState:   s.bound,
		ErrorLog:    slog.NewLogLogger(demoted{o.Log.Handler()}, slog.LevelDebug),
	}
	l = &streamListener{Listener: l, stall: o.IdleTimeout}
	if config != nil {
		s.base.Scheme, l = "https", tls.NewListener(l, config)
	}
	go func() {
		defer close(s.served)
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("streaming server", "err", err)
		}
	}()
	return s, nil
}

// reachable is where a client on this node reaches an address that is listened on.
func reachable(addr net.Addr) string {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return addr.String()
	}
	host := "127.0.0.1"
	if tcp.IP.To4() == nil {
		host = "::1"
	}
	return net.JoinHostPort(host, fmt.Sprint(tcp.Port))
}

// Close ends all sessions, and waits a moment for them.
func (s *StreamServer) Close() {
	s.mu.Lock()
	s.closed = true
	clear(s.offered)
	s.mu.Unlock()
	s.stop()
	s.http.Close()
	<-s.served
	ended := make(chan struct{})
	go func() { s.sessions.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(closeTime):
		s.log.Warn("streaming server: sessions have not ended", "after", closeTime)
	}
}

// offer returns the URL under which the session can be had, once and for a minute.
func (s *StreamServer) offer(o offer) (string, error) {
	if s == nil {
		return "", status.Error(codes.Unavailable, "there is no streaming server")
	}
	var raw [tokenBytes]byte
	rand.Read(raw[:]) // it never fails
	token := base64.RawURLEncoding.EncodeToString(raw[:])
	now := time.Now()
	o.expires = now.Add(tokenTTL)
	s.mu.Lock()
	defer s.mu.Unlock()
	for token, old := range s.offered {
		if now.After(old.expires) {
			delete(s.offered, token)
		}
	}
	switch {
	case s.closed:
		return "", status.Error(codes.Unavailable, "the daemon is ending")
	case len(s.offered) >= maxTokens:
		return "", status.Errorf(codes.ResourceExhausted, "%d sessions were asked for within %s and not begun", maxTokens, tokenTTL)
	}
	s.offered[token] = o
	return s.base.JoinPath(o.op, token).String(), nil
}

// bound closes connections that are too many. Those that have become a session do not count, as they had a token.
func (s *StreamServer) bound(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		if s.waiting.Add(1) > maxWaiting {
			streamConnOf(c).Conn.Close() // without lingering
		}
	case http.StateHijacked, http.StateClosed:
		s.waiting.Add(-1)
	}
}

func (s *StreamServer) take(op, token string) (offer, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.offered[token]
	delete(s.offered, token)
	if !ok || s.closed || o.op != op || time.Now().After(o.expires) {
		return offer{}, false
	}
	s.sessions.Add(1)
	return o, true
}

// ServeHTTP begins the session that a token stands for.
func (s *StreamServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.Error(w, "GET or POST", http.StatusMethodNotAllowed)
		return
	}
	op, token := splitPath(r.URL.Path)
	o, ok := s.take(op, token)
	if !ok {
		http.NotFound(w, r)
		return
	}
	defer s.sessions.Done()
	conn := connOf(r.Context())
	conn.watch(r.Context())
	defer conn.closeLater()
	begin := time.Now()
	err := o.serve(w, r)
	attrs := []slog.Attr{slog.String("op", op), o.about, slog.Duration("took", time.Since(begin).Round(time.Microsecond))}
	if err != nil {
		attrs = append(attrs, slog.String("err", err.Error()))
	}
	s.log.LogAttrs(r.Context(), slog.LevelInfo, "stream", attrs...)
}

// LogStreams has what the streaming library logs, for the whole process, at debug: what concerns a session is told once, at
// its end. It is for the program's start.
func LogStreams(log *slog.Logger) { klog.SetSlogLogger(slog.New(demoted{log.Handler()})) }

// demoted lowers what is logged through it to debug.
type demoted struct{ slog.Handler }

func (d demoted) Enabled(ctx context.Context, _ slog.Level) bool {
	return d.Handler.Enabled(ctx, slog.LevelDebug)
}

func (d demoted) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

func (d demoted) WithAttrs(attrs []slog.Attr) slog.Handler {
	return demoted{d.Handler.WithAttrs(attrs)}
}
func (d demoted) WithGroup(name string) slog.Handler { return demoted{d.Handler.WithGroup(name)} }
