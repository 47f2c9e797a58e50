// Package launcher starts a process through the init: the clone with the init's descriptors in their places, and
// the reading of what the init reports. It is what the supervisor and the command line have in common, and knows
// neither specifications nor profiles, whose code would be part of every supervisor.
package launcher

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
)

// Process is what is started. Its files stay the caller's.
type Process struct {
	Init    *os.File // the init program
	Message *os.File // the encoded message, at its start
	Stdio   [3]*os.File
	// Files are those that the message refers to, in order; the socket for a terminal is the last (see Terminal).
	Files        []*os.File
	CloneFlags   uint64
	Cgroup       *os.File // cgroup v2 directory to be cloned into, or nil
	PIDNamespace *os.File // pidfd or namespace file whose PID namespace is joined, or nil
	// Late leaves PIDNamespace to the init, as initmsg.Message.PIDFile says: the namespace and the page are the last files.
	// Reap waits for that init and takes its status; nil is sys.WaitChild.
	Late bool
	Reap func(pid int) syscall.WaitStatus
	// UserNamespace and TimeNamespace are entered before the clone, Host is done before that (sys.SpawnAttr).
	UserNamespace, TimeNamespace *os.File
	Host                         sys.HostSetup
	TimeOffsets                  string // of a new time namespace
	// Affinity are the CPUs to start on, as words of a mask; empty leaves them.
	Affinity []uint64
	// Server starts the init, or nil.
	Server *Server
}

// Child is the started init, and then the workload. Pidfd is the caller's. Of a Late process these are two: PID and Pidfd
// are the init's until Executed has returned without an error.
type Child struct {
	PID   int
	Pidfd *os.File

	reports *os.File
	quiet   *sync.Mutex // held as long as reports is a quiet pipe, else nil
	page    *os.File    // of a Late one, with the workload's PID
	reap    func(pid int) syscall.WaitStatus
	ended   func(executed bool) // lets the server get ready for the next one like it
}

// Start makes the process. An error is an *initmsg.Report, as those of the init are.
func Start(p Process) (*Child, error) {
	c := &Child{}
	w, err := p.Server.pipe(c)
	if err != nil {
		return nil, failed("stdio", err)
	}
	defer w.Close()
	list := make([]*os.File, 0, initmsg.FirstFile+len(p.Files))
	list = append(append(append(list, p.Stdio[:]...), p.Message, w), p.Files...)
	if p.Late {
		if c.page, err = sys.SharedPage("pid"); err != nil {
			c.close()
			return nil, failed("clone", err)
		}
		list, p.PIDNamespace = append(list, p.PIDNamespace, c.page), nil
		if c.reap = p.Reap; c.reap == nil {
			c.reap = sys.WaitChild
		}
	}
	attr := sys.SpawnAttr{
		Exe: p.Init, Args: []string{"cri-shim-init"}, Env: initmsg.Env(), Files: list,
		CloneFlags: p.CloneFlags, Cgroup: p.Cgroup, PIDNamespace: p.PIDNamespace, Secret: true,
		UserNamespace: p.UserNamespace, TimeNamespace: p.TimeNamespace, TimeOffsets: p.TimeOffsets, Host: p.Host,
		Affinity: p.Affinity,
	}
	pid, pidfd, err := p.Server.spawn(attr)
	if err != nil {
		c.close()
		return nil, failed("clone", err)
	}
	c.PID, c.Pidfd = pid, pidfd
	c.ended = p.Server.next(attr, p.Message)
	return c, nil
}

func (c *Child) close() {
	c.reports.Close()
	if c.quiet != nil {
		c.quiet.Unlock()
	}
	if c.page != nil {
		c.page.Close()
	}
}

func failed(stage string, err error) *initmsg.Report {
	r := &initmsg.Report{Kind: initmsg.KindError, Stage: stage, Text: err.Error()}
	errors.As(err, &r.Errno)
	return r
}

// quietLimit is how long reports wait to be read: an init that has more of them than a pipe holds waits for that.
const quietLimit = 100 * time.Millisecond

// Executed waits until the workload is executed and returns the init's warnings. An error is an *initmsg.Report: what
// went wrong, or that the init was killed.
func (c *Child) Executed() (warnings []string, err error) {
	defer c.close()
	defer func() { c.ended(err == nil) }()
	if c.quiet != nil {
		sys.AwaitHangup(c.reports, quietLimit)
	}
	warnings, name, err := readReports(c.reports, initmsg.KindExecute)
	if c.page == nil {
		return warnings, err
	}
	if err != nil {
		sys.PidfdSignal(c.Pidfd, syscall.SIGKILL) // unless it has ended
	}
	status := c.reap(c.PID)
	pid, pidErr := c.workload()
	if err == nil {
		err = lastStep(status, pid, name)
	}
	if err == nil && pidErr != nil {
		err = failed("init", pidErr)
	}
	if pid == 0 || pidErr != nil {
		return warnings, err
	}
	pidfd, openErr := sys.PidfdOpen(pid)
	if err == nil && openErr != nil {
		err = failed("init", openErr)
	}
	if err != nil {
		// It may have been executed all the same, and have children by now.
		if openErr == nil {
			sys.KillFamily(pidfd, pid)
			pidfd.Close()
		}
		syscall.Kill(pid, syscall.SIGKILL)
		c.reap(pid)
		return warnings, err
	}
	c.Pidfd.Close()
	c.PID, c.Pidfd = pid, pidfd
	return warnings, nil
}

// workload is the process ID that the kernel has written, or 0. It is of a child that has not been reaped, so it is
// that child's still.
func (c *Child) workload() (int, error) {
	var b [4]byte
	if _, err := c.page.ReadAt(b[:], 0); err != nil {
		return 0, err
	}
	pid := int(binary.NativeEndian.Uint32(b[:]))
	if pid != 0 && !sys.IsChild(pid) {
		return 0, fmt.Errorf("process %d is not a child", pid)
	}
	return pid, nil
}

// lastStep says what the init's end says about the workload.
func lastStep(status syscall.WaitStatus, pid int, name string) error {
	switch errno := syscall.Errno(status.ExitStatus()); {
	case status.Signaled():
		return failed("init", errors.New("it was killed before the workload was executed"))
	case pid == 0:
		return failed("clone", fmt.Errorf("clone into the pid namespace: %w", errno))
	case errno != 0:
		return failed("exec", fmt.Errorf("exec %s: %w", name, errno))
	}
	return nil
}

// Ready waits until everything is set up and the init waits at its start file.
func (c *Child) Ready() (warnings []string, err error) {
	defer c.close()
	defer c.ended(false)
	return ReadReports(c.reports, initmsg.KindReady)
}

// maxReports bounds what is read of an init's reports, in bytes.
const maxReports = 64 << 10

// ReadReports reads reports until the init is where it should be: waiting at its start file (KindReady), or replaced
// by the workload (KindExecute). The mark for the latter says only that it is about to happen; nothing may come after
// it, and execve(2) closes the pipe. Without the mark the init was killed.
func ReadReports(r io.Reader, until initmsg.Kind) (warnings []string, err error) {
	warnings, _, err = readReports(r, until)
	return warnings, err
}

// readReports also says what is executed.
func readReports(r io.Reader, until initmsg.Kind) (warnings []string, name string, err error) {
	buf := make([]byte, 0, 512)
	executed := false
	for read := 0; ; {
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, 512)
		}
		n, readErr := r.Read(buf[len(buf):cap(buf)])
		buf, read = buf[:len(buf)+n], read+n
		if read > maxReports {
			return nil, "", failed("init", fmt.Errorf("it reports more than %d bytes", maxReports))
		}
		for {
			rep, rest, err := initmsg.DecodeReport(buf)
			if err != nil {
				return nil, "", failed("init", err)
			}
			if rep == nil {
				break
			}
			buf = rest
			switch rep.Kind {
			case initmsg.KindError:
				return nil, "", rep
			case initmsg.KindWarning:
				warnings = append(warnings, rep.Error())
			case initmsg.KindExecute:
				executed, name = true, rep.Text
			case initmsg.KindReady:
				if until == initmsg.KindReady {
					return warnings, "", nil
				}
			}
		}
		if readErr == nil || errors.Is(readErr, syscall.EINTR) {
			continue
		}
		return warnings, name, ended(readErr, len(buf), executed && until == initmsg.KindExecute)
	}
}

// ended says whether the reports were to end here.
func ended(cause error, rest int, executed bool) error {
	switch {
	case cause != io.EOF:
		return failed("init", cause)
	case rest > 0:
		return failed("init", errors.New("its report ends early"))
	case !executed:
		return failed("init", errors.New("it was killed before the workload was executed"))
	}
	return nil
}

// Terminal makes the socket over which the init sends the master of a terminal: child is the last of Process.Files.
func Terminal() (conn *sys.Conn, child *os.File, err error) { return sys.Socketpair() }

// ReceiveTerminal takes the master that the init sends before it reports.
func ReceiveTerminal(c *sys.Conn) (*os.File, error) {
	n, fds, err := c.Recv(make([]byte, 16), 1)
	if err != nil {
		return nil, err
	}
	if n == 0 || len(fds) != 1 {
		return nil, errors.New("no terminal")
	}
	return sys.Pollable(fds[0])
}
