package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

const (
	// eventQueue is how many exits may wait for a daemon that does not read; beyond, the
	// connection is closed and the daemon learns the rest from OpList and the exit files.
	eventQueue  = 256
	sendTimeout = 10 * time.Second
	// refuseTimeout bounds the wait until a daemon was told why its connection is closed.
	refuseTimeout = time.Second
)

// session is one connection of a daemon.
type session struct {
	s    *Supervisor
	conn *sys.Conn
	out  chan outgoing
	done chan struct{}
}

type outgoing struct {
	reply api.Reply
	file  *os.File      // closed after sending
	last  bool          // the supervisor ends after it
	sent  chan struct{} // if any, closed after sending
}

func newSession(s *Supervisor, conn *sys.Conn) *session {
	return &session{s: s, conn: conn, out: make(chan outgoing, eventQueue), done: make(chan struct{})}
}

func (ses *session) serve() {
	go ses.send()
	defer func() {
		ses.s.mu.Lock()
		delete(ses.s.sessions, ses)
		ses.s.mu.Unlock()
		close(ses.done)
		ses.conn.Close()
	}()
	buf := make([]byte, api.MaxFrame)
	for {
		n, files, err := ses.conn.Recv(buf, api.MaxFiles)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, os.ErrClosed) {
				ses.s.cfg.Log.Error("receive", "err", err)
			}
			return
		}
		req := new(api.Request)
		err = api.Decode(buf[:n], req)
		if err == nil && req.Seq == 0 {
			err = fmt.Errorf("%w: no sequence number", api.ErrFrame)
		}
		if err != nil {
			closeAll(files)
			ses.refuse(err)
			return
		}
		switch req.Op { // these may take long, the others do not
		case api.OpLaunch:
			l := ses.s.expect(req.ID)
			go func() {
				defer ses.s.expected(req.ID, l)
				ses.answer(req, files, l)
			}()
		case api.OpAttach, api.OpReopenLog:
			go ses.answer(req, files, nil)
		default:
			ses.answer(req, files, nil)
		}
	}
}

// refuse says why the connection is closed, if the daemon still reads.
func (ses *session) refuse(err error) {
	ses.s.cfg.Log.Error("frame refused, connection closed", "err", err)
	last := outgoing{reply: api.Reply{Err: clipped(&api.Error{Stage: "frame", Text: err.Error()})}, sent: make(chan struct{})}
	select {
	case ses.out <- last:
	default:
		return
	}
	select {
	case <-last.sent:
	case <-time.After(refuseTimeout):
	}
}

// event queues an exit; the supervisor's lock is held, so it must not wait.
func (ses *session) event(r api.Reply) {
	select {
	case ses.out <- outgoing{reply: r}:
	default:
		ses.conn.Close()
	}
}

func (ses *session) send() {
	for {
		select {
		case o := <-ses.out:
			err := ses.sendOne(o)
			if o.sent != nil {
				close(o.sent)
			}
			if o.last {
				ses.s.end()
				return
			}
			if err != nil {
				ses.conn.Close()
				<-ses.done
				ses.drop()
				return
			}
		case <-ses.done:
			ses.drop()
			return
		}
	}
}

// drop lets go of what nobody will read.
func (ses *session) drop() {
	for {
		select {
		case o := <-ses.out:
			if o.file != nil {
				o.file.Close()
			}
			if o.last {
				ses.s.end()
			}
		default:
			return
		}
	}
}

func (ses *session) sendOne(o outgoing) error {
	var files []*os.File
	if o.file != nil {
		defer o.file.Close()
		files = append(files, o.file)
	}
	frame, err := api.Encode(o.reply)
	if err != nil {
		return err
	}
	ses.conn.SetSendDeadline(time.Now().Add(sendTimeout))
	return ses.conn.Send(frame, files...)
}

func (ses *session) answer(req *api.Request, files []*os.File, l *pending) {
	o := outgoing{reply: api.Reply{Seq: req.Seq}}
	err := ses.do(req, files, l, &o)
	if err != nil {
		var e *api.Error
		if !errors.As(err, &e) {
			e = &api.Error{Stage: string(req.Op), Text: err.Error()}
		}
		o.reply.Err = clipped(e)
	}
	select {
	case ses.out <- o:
	case <-ses.done:
		if o.file != nil {
			o.file.Close()
		}
		if o.last { // it launches nothing any more, so it must not stay
			ses.s.end()
		}
	}
}

// clipped keeps an error's text within a frame.
func clipped(e *api.Error) *api.Error {
	const most = 8 << 10
	if len(e.Text) > most {
		c := *e
		c.Text = c.Text[:most] + "…"
		return &c
	}
	return e
}

// do carries a request out. Files it does not take over are closed.
func (ses *session) do(req *api.Request, received []*os.File, l *pending, o *outgoing) error {
	fs, err := sortFiles(req.Roles, received)
	if err != nil {
		closeAll(received)
		return &api.Error{Stage: "frame", Text: err.Error()}
	}
	keep := map[*os.File]bool{}
	ses.s.trim.Poke()
	defer func() {
		for _, f := range received {
			if !keep[f] {
				f.Close()
			}
		}
	}()
	switch req.Op {
	case api.OpHello:
		o.reply.Hello = &api.Hello{PID: os.Getpid(), Release: ses.s.cfg.Release, InitID: ses.s.cfg.InitID}
		return nil
	case api.OpLaunch:
		return ses.launch(req, fs, keep, l, o)
	case api.OpList:
		o.reply.Processes, o.reply.More = ses.s.list(req.After)
		return nil
	case api.OpForget:
		return ses.s.forget(req.ID)
	case api.OpQuit:
		err := ses.s.stop()
		o.last = err == nil
		return err
	case api.OpSignal:
		return ses.s.signal(req.ID, req.Signal, req.Family)
	case api.OpPidfd, api.OpResize, api.OpReopenLog, api.OpAttach:
	default:
		return &api.Error{Stage: "frame", Text: fmt.Sprintf("unknown operation %q", req.Op)}
	}
	p, err := ses.s.lookup(req.ID)
	if err != nil {
		return err
	}
	return ses.about(p, req, fs, keep, o)
}

func (ses *session) launch(req *api.Request, fs files, keep map[*os.File]bool, l *pending, o *outgoing) error {
	if req.Launch == nil || req.ID == "" {
		return &api.Error{Stage: "frame", Text: "launch without an ID or its configuration"}
	}
	p, err := ses.s.start(req.ID, req.Launch, fs, l)
	if p != nil && p.log != nil {
		keep[fs.log] = true
	}
	if err != nil {
		return err
	}
	o.reply.PID, o.reply.Warnings = p.pid, p.warnings
	if o.file, err = sys.Dup(p.pidfd); err != nil {
		err = errors.Join(err, p.signal(int(syscall.SIGKILL))) // who asked will take it for failed
	}
	return err
}

// about is every request that concerns one known process.
func (ses *session) about(p *process, req *api.Request, fs files, keep map[*os.File]bool, o *outgoing) (err error) {
	if req.Op == api.OpPidfd {
		o.reply.PID = p.pid
		o.file, err = sys.Dup(p.pidfd)
		return err
	}
	select {
	case <-p.started: // what follows is made by the launch
	default:
		return &api.Error{Stage: string(req.Op), Text: fmt.Sprintf("process %q is still being launched", p.id)}
	}
	switch req.Op {
	case api.OpResize:
		if p.console == nil {
			return &api.Error{Stage: "resize", Text: "the process has no terminal"}
		}
		return sys.Winsize(p.console, req.Rows, req.Cols)
	case api.OpReopenLog:
		if p.log == nil || fs.log == nil {
			return &api.Error{Stage: "reopen log", Text: "no log"}
		}
		keep[fs.log] = true
		return p.log.reopen(fs.log)
	case api.OpAttach:
		return p.attach(fs, keep)
	}
	return nil
}

func (p *process) attach(fs files, keep map[*os.File]bool) (err error) {
	session := fs.session
	if session != nil {
		keep[session] = true
		if session, err = sys.Pollable(session); err != nil {
			return err
		}
	}
	keep[fs.stdout], keep[fs.stderr] = true, true
	c, err := p.fan.attach(fs.stdout, fs.stderr, session)
	if err != nil {
		return err
	}
	var fed *feeder
	if fs.stdin != nil && p.in != nil {
		keep[fs.stdin] = true
		if fed, err = p.feed(fs.stdin); err != nil {
			p.fan.detach(c)
			return err
		}
	}
	if session != nil {
		go p.attend(c, fed)
	}
	return nil
}

// feed takes over a client's input; nil where the container's is closed.
func (p *process) feed(stdin *os.File) (*feeder, error) {
	from, err := sys.Pollable(stdin)
	if err != nil {
		return nil, err
	}
	f, err := p.in.feeder(from)
	if f != nil {
		go f.run()
	}
	return f, err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
