package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/cri-shim/cri-shim/sandbox"
)

// remoteCommand is a session of Exec or Attach.
type remoteCommand struct {
	options remotecommand.Options
	attach  bool
	// run returns when the command or the container has ended; an exitError for an exit code that is not 0.
	run func(context.Context, sandbox.Streams) error
	err error // of run
}

// exitError is an exit code; it is what remotecommand knows as an exit.
type exitError int

func (e exitError) Error() string   { return fmt.Sprintf("exit code %d", int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }

func (s *StreamServer) serveRemote(w http.ResponseWriter, r *http.Request, c *remoteCommand) error {
	if wsstream.IsWebSocketRequestWithStreamCloseProtocol(r) {
		return s.serveRemoteV5(w, r, c)
	}
	c.err = errNoSession
	protocols := remotecommand.SupportedStreamingProtocols
	if c.attach {
		remotecommand.ServeAttach(w, r, c, "", "", "", &c.options, s.idle, createTime, protocols)
	} else {
		remotecommand.ServeExec(w, r, c, "", "", "", nil, &c.options, s.idle, createTime, protocols)
	}
	return c.err
}

var errNoSession = errors.New("the client did not open its streams")

// ExecInContainer implements remotecommand.Executor; what is to be run is known.
func (c *remoteCommand) ExecInContainer(ctx context.Context, _, _, _ string, _ []string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	return c.with(ctx, in, out, err, resize)
}

// AttachContainer implements remotecommand.Attacher.
func (c *remoteCommand) AttachContainer(ctx context.Context, _, _, _ string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	return c.with(ctx, in, out, err, resize)
}

// with runs it with the streams that the client opened.
func (c *remoteCommand) with(ctx context.Context, in io.Reader, out, err io.Writer, resize <-chan remotecommand.TerminalSize) error {
	streams := sandbox.Streams{Terminal: c.options.TTY}
	// Over WebSocket there is something for each stream, asked for or not.
	if c.options.Stdin && in != nil {
		streams.Stdin = in
	}
	if c.options.Stdout && out != nil {
		streams.Stdout = out
	}
	if c.options.Stderr && err != nil {
		streams.Stderr = err
	}
	if resize != nil {
		streams.Resizes = sizes(resize)
	}
	c.err = c.run(ctx, streams)
	return c.err
}

func sizes(resize <-chan remotecommand.TerminalSize) iter.Seq[sandbox.TerminalSize] {
	return func(yield func(sandbox.TerminalSize) bool) {
		for s := range resize {
			if !yield(sandbox.TerminalSize{Rows: s.Height, Cols: s.Width}) {
				return
			}
		}
	}
}

// Channels of v5.channel.k8s.io.
const (
	channelStdin = iota
	channelStdout
	channelStderr
	channelError
	channelResize
	channels
)

// serveRemoteV5 speaks v5.channel.k8s.io, which is v4 with a way to close standard input.
func (s *StreamServer) serveRemoteV5(w http.ResponseWriter, r *http.Request, c *remoteCommand) error {
	kinds := make([]wsstream.ChannelType, channels)
	kinds[channelError], kinds[channelResize] = wsstream.WriteChannel, wsstream.ReadChannel
	first := channelError // the lowest that we write to
	for _, ch := range []struct {
		wanted bool
		number int
		kind   wsstream.ChannelType
	}{
		{c.options.Stderr, channelStderr, wsstream.WriteChannel},
		{c.options.Stdout, channelStdout, wsstream.WriteChannel},
		{c.options.Stdin, channelStdin, wsstream.ReadChannel},
	} {
		if ch.wanted {
			kinds[ch.number] = ch.kind
			if ch.kind == wsstream.WriteChannel {
				first = ch.number
			}
		}
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: kinds},
	})
	conn.SetIdleTimeout(s.idle)
	_, streams, err := conn.Open(w, r)
	if err != nil {
		return err
	}
	defer conn.Close()
	streams[first].Write(nil) // clients take it as the sign that all is set up
	resize := make(chan remotecommand.TerminalSize)
	go readSizes(r.Context(), streams[channelResize], resize)
	err = c.with(r.Context(), streams[channelStdin], streams[channelStdout], streams[channelStderr], resize)
	if _, sent := streams[channelError].Write(statusJSON(err)); sent != nil {
		return errors.Join(err, sent)
	}
	return err
}

// maxResize is how much of the stream is read for one size: the decoder keeps a value whole.
const maxResize = 4 << 10

// bounded ends once more than left has been read.
type bounded struct {
	r    io.Reader
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errors.New("too long")
	}
	n, err := b.r.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// readSizes closes resize when the client's stream ends.
func readSizes(ctx context.Context, from io.Reader, resize chan<- remotecommand.TerminalSize) {
	defer close(resize)
	in := &bounded{r: from}
	for dec := json.NewDecoder(in); ; {
		var size remotecommand.TerminalSize
		in.left = maxResize
		if dec.Decode(&size) != nil {
			return
		}
		select {
		case resize <- size:
		case <-ctx.Done():
			return
		}
	}
}

// statusJSON is the last word of v4 and v5: what a client reads as a metav1.Status.
func statusJSON(err error) []byte {
	type cause struct {
		Type    string `json:"reason,omitempty"`
		Message string `json:"message,omitempty"`
	}
	type details struct {
		Causes []cause `json:"causes,omitempty"`
	}
	status := struct {
		Status  string   `json:"status"`
		Message string   `json:"message,omitempty"`
		Reason  string   `json:"reason,omitempty"`
		Details *details `json:"details,omitempty"`
		Code    int      `json:"code,omitempty"`
	}{Status: "Success"}
	var exit exitError
	switch {
	case errors.As(err, &exit):
		status.Status, status.Reason = "Failure", remotecommand.NonZeroExitCodeReason
		status.Message = fmt.Sprintf("command terminated with non-zero exit code: %v", err)
		status.Details = &details{[]cause{{remotecommand.ExitCodeCauseType, fmt.Sprint(int(exit))}}}
	case err != nil:
		status.Status, status.Reason, status.Code = "Failure", "InternalError", http.StatusInternalServerError
		status.Message = "Internal error occurred: " + err.Error()
	}
	data, _ := json.Marshal(status) // strings and numbers
	return data
}
