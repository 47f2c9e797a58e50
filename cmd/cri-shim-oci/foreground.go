package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci/container"
)

// outputTime bounds the wait for the rest of a terminal's output, whose other end an orphan may hold open.
const outputTime = 2 * time.Second

// foreground stands between a process and the user who waits for it: signals, and the terminal if it has one.
type foreground struct {
	signals chan os.Signal
	master  *os.File
	restore func() error
	copied  chan struct{}
}

// forwarded are the signals that a user or a service manager sends to a command. Each costs the Go runtime a round
// between threads, so it is not all of them.
var forwarded = []os.Signal{
	syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGCONT, syscall.SIGWINCH,
}

// listen collects signals from now on.
func (f *foreground) listen() {
	f.signals = make(chan os.Signal, 16)
	signal.Notify(f.signals, forwarded...)
}

// terminal takes the master of the process's terminal. Ours is raw from now on.
func (f *foreground) terminal(master *os.File) {
	f.master, f.copied = master, make(chan struct{})
	f.resize()
	if sys.IsTerminal(os.Stdin) {
		if restore, err := sys.MakeRaw(os.Stdin); err == nil {
			f.restore = restore
		}
	}
	go passInput(master, os.Stdin)
	go func() {
		io.Copy(os.Stdout, master) // ends with EIO once nobody has the other end
		close(f.copied)
	}()
}

// passInput gives a terminal what is typed, or what is in a file or pipe. The end of that is told as a user would, by ^D,
// of which one on a line that is not empty only sends the line; or who reads there would wait for ever.
func passInput(master io.Writer, stdin *os.File) {
	w := &lastByte{w: master, last: '\n'}
	if _, err := io.Copy(w, stdin); err != nil || sys.IsTerminal(stdin) {
		return
	}
	const eot = "\x04"
	if w.last != '\n' {
		_, _ = io.WriteString(master, eot)
	}
	_, _ = io.WriteString(master, eot)
}

// lastByte remembers what was written last.
type lastByte struct {
	w    io.Writer
	last byte
}

func (l *lastByte) Write(p []byte) (int, error) {
	if len(p) > 0 {
		l.last = p[len(p)-1]
	}
	return l.w.Write(p)
}

func (f *foreground) resize() {
	if f.master == nil {
		return
	}
	if rows, cols, err := sys.GetWinsize(os.Stdin); err == nil {
		_ = sys.Winsize(f.master, rows, cols)
	}
}

// wait forwards signals until the process has ended and returns its exit code. Orphans are reaped meanwhile.
func (f *foreground) wait(child *container.Child) int {
	ended := make(chan syscall.WaitStatus, 1)
	go func() {
		for {
			var status syscall.WaitStatus
			pid, err := syscall.Wait4(-1, &status, 0, nil)
			if pid == child.PID || err != nil && err != syscall.EINTR {
				ended <- status
				return
			}
		}
	}()
	for {
		select {
		case status := <-ended:
			if f.copied != nil {
				select {
				case <-f.copied:
				case <-time.After(outputTime):
				}
			}
			code, _ := sys.ExitCode(status)
			return code
		case s := <-f.signals:
			switch sig := s.(syscall.Signal); sig {
			case syscall.SIGWINCH:
				f.resize()
			default:
				_ = sys.PidfdSignal(child.Pidfd, sig)
			}
		}
	}
}

func (f *foreground) close() {
	if f.restore != nil {
		_ = f.restore()
	}
}
