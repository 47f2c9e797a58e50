package cri

import (
	"bufio"
	"errors"
	"net"
	"net/http"
	"strings"

	"golang.org/x/net/websocket"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// serveTunnel serves SPDY in the binary messages of a WebSocket (the protocols "SPDY/3.1+…"): inner gets the request as the
// client would have made it over SPDY.
func (s *StreamServer) serveTunnel(w http.ResponseWriter, r *http.Request, inner func(http.ResponseWriter, *http.Request) error) error {
	err := errNoSession
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			for _, p := range c.Protocol {
				if p == portforward.WebsocketsSPDYTunnelingPortForwardV1 {
					c.Protocol = []string{p}
					return nil
				}
			}
			return errors.New("no protocol that is known: " + strings.Join(c.Protocol, ", "))
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			spdied := r.Clone(r.Context())
			spdied.Header = http.Header{}
			spdied.Header.Set(httpstream.HeaderConnection, httpstream.HeaderUpgrade)
			spdied.Header.Set(httpstream.HeaderUpgrade, spdy.HeaderSpdy31)
			spdied.Header.Set(httpstream.HeaderProtocolVersion, portforward.ProtocolV1Name)
			err = inner(&tunnelWriter{conn: ws, header: http.Header{}}, spdied)
		},
	}.ServeHTTP(w, r)
	return err
}

// tunnelWriter is the answer to a request in a tunnel: its header has been sent by the outer one.
type tunnelWriter struct {
	conn   net.Conn
	header http.Header
}

func (t *tunnelWriter) Header() http.Header         { return t.header }
func (t *tunnelWriter) WriteHeader(int)             {}
func (t *tunnelWriter) Write(p []byte) (int, error) { return len(p), nil }

// Hijack implements http.Hijacker.
func (t *tunnelWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return t.conn, bufio.NewReadWriter(bufio.NewReader(t.conn), bufio.NewWriter(t.conn)), nil
}
