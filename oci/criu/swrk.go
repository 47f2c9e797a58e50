package criu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"

	"github.com/cri-shim/cri-shim/internal/sys"
)

const (
	maxAnswer = 64 << 10
	// endTime is how long criu may go on once its caller's time is over. It is not killed at once: with it would die
	// the processes that it has its code in just then.
	endTime = 10 * time.Second
)

// firstFile is the descriptor of the first file that is passed on; the one before it is the socket.
const firstFile = 4

// session is a criu that serves one request.
type session struct {
	conn *sys.Conn
	*Process
}

func open(program string, start Start, files []*os.File) (*session, error) {
	conn, theirs, err := sys.Socketpair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	p, err := start(program, theirs, files)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &session{conn, p}, nil
}

// local starts criu as this process's child.
func local(stdio [3]*os.File) Start {
	return func(program string, socket *os.File, files []*os.File) (*Process, error) {
		cmd := exec.Command(program, "swrk", "3")
		if stdio[0] != nil {
			cmd.Stdin = stdio[0]
		}
		if stdio[1] != nil {
			cmd.Stdout = stdio[1]
		}
		if stdio[2] != nil {
			cmd.Stderr = stdio[2]
		}
		cmd.ExtraFiles = append([]*os.File{socket}, files...)
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		return &Process{PID: cmd.Process.Pid, Wait: cmd.Wait, Kill: func() { _ = cmd.Process.Kill() }}, nil
	}
}

// notify hears of the stages of a request. files are the callee's to close.
type notify func(script string, pid int, files []*os.File) error

// call sends a request and returns the answer to it. When ctx ends it waits for criu a little longer.
func (s *session) call(ctx context.Context, req *rpc.CriuReq, told notify) (*rpc.CriuResp, error) {
	stop := context.AfterFunc(ctx, func() { s.conn.SetRecvDeadline(time.Now().Add(endTime)) })
	defer stop()
	kind := req.GetType()
	buf := make([]byte, maxAnswer)
	for {
		data, err := req.MarshalVT()
		if err != nil {
			return nil, err
		}
		if err := s.conn.Send(data); err != nil {
			return nil, fmt.Errorf("criu: %w", err)
		}
		n, files, err := s.conn.Recv(buf, 4)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.Kill()
			return nil, fmt.Errorf("criu does not end: %w", context.Cause(ctx))
		case errors.Is(err, io.EOF):
			return nil, errors.New("criu: it ended without an answer")
		case err != nil:
			return nil, fmt.Errorf("criu: %w", err)
		}
		resp := new(rpc.CriuResp)
		if err := resp.UnmarshalVT(buf[:n]); err != nil {
			closeAll(files)
			return nil, fmt.Errorf("criu: its answer: %w", err)
		}
		if resp.GetType() != rpc.CriuReqType_NOTIFY {
			closeAll(files)
			return resp, failure(kind, resp)
		}
		ok := true
		if told == nil {
			closeAll(files)
		} else if err = told(resp.GetNotify().GetScript(), int(resp.GetNotify().GetPid()), files); err != nil {
			ok = false
		}
		t := rpc.CriuReqType_NOTIFY
		req = &rpc.CriuReq{Type: &t, NotifySuccess: &ok}
		if err != nil {
			if data, marshalErr := req.MarshalVT(); marshalErr == nil {
				_ = s.conn.Send(data)
			}
			return nil, err
		}
	}
}

func failure(kind rpc.CriuReqType, r *rpc.CriuResp) error {
	switch {
	case r.GetType() != kind:
		return fmt.Errorf("criu: an answer to %s instead of %s", r.GetType(), kind)
	case r.GetSuccess():
		return nil
	}
	err := fmt.Errorf("criu: %s refused", kind)
	if e := r.GetCrErrno(); e > 0 {
		err = fmt.Errorf("%w: %w", err, syscall.Errno(e))
	}
	if text := r.GetCrErrmsg(); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// close lets go of criu and waits until it has ended.
func (s *session) close(ctx context.Context) error {
	s.conn.Close()
	ended := make(chan error, 1)
	go func() { ended <- s.Wait() }()
	timer := time.NewTimer(endTime)
	defer timer.Stop()
	var done <-chan struct{}
	if ctx.Err() == nil {
		done = ctx.Done()
	}
	for {
		select {
		case <-ended: // its status says no more than its answer
			return nil
		case <-done:
			done = nil
			timer.Reset(endTime)
		case <-timer.C:
			s.Kill()
			<-ended
			return errors.New("criu did not end by itself")
		}
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
