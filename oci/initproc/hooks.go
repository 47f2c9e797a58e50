package initproc

import (
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// runHooks runs hooks one after the other; the first that fails ends the start
// (runtime-spec, "Lifecycle").
func runHooks(kind string, hooks []initmsg.Hook, state []byte) error {
	for i := range hooks {
		if err := runHook(&hooks[i], state); err != nil {
			return wrap(kind+" hook", hooks[i].Path, err)
		}
	}
	return nil
}

// awaitHooks lets whoever started the init run hooks in its own namespaces. The kernel says over the socket which
// process the init is (unix(7), SCM_CREDENTIALS).
func (s *setup) awaitHooks() error {
	if s.m.HookFile == nil {
		return nil
	}
	sock := int(file(*s.m.HookFile))
	if err := writeOnce(sock, initmsg.HooksDue); err != nil {
		return wrap("ask for the runtime's hooks", "", err)
	}
	buf := make([]byte, 2048)
	for {
		n, err := unix.Read(sock, buf)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return wrap("wait for the runtime's hooks", "", err)
		case n == 0:
			return text("wait for the runtime's hooks: the runtime is gone")
		case string(buf[:n]) != initmsg.HooksDone:
			return text(string(buf[:n]))
		}
		return nil
	}
}

// hookState adds the status and the process ID, as its own PID namespace knows it, to the state of the message.
func hookState(status string, state []byte) []byte {
	head := `{"status":"` + status + `","pid":` + itoa(unix.Getpid())
	if len(state) > len("{}") {
		return append([]byte(head+","), state[1:]...)
	}
	return []byte(head + "}")
}

// runHook runs one with the state on its stdin. Its output is only kept for the error.
func runHook(h *initmsg.Hook, state []byte) error {
	in, err := memory("state", state)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	out, err := memory("output", nil)
	if err != nil {
		return err
	}
	defer unix.Close(out)
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	pid, err := syscall.ForkExec(h.Path, args, &syscall.ProcAttr{
		Env:   h.Env,
		Files: []uintptr{uintptr(in), uintptr(out), uintptr(out)},
		Sys:   &syscall.SysProcAttr{Setpgid: true}, // so that a timeout ends what it has started too
	})
	if err != nil {
		return wrap("exec", "", err)
	}
	status, err := waitHook(pid, h.Timeout)
	if err != nil {
		return err
	}
	if status.Exited() && status.ExitStatus() == 0 {
		return nil
	}
	what := "exit status " + itoa(status.ExitStatus())
	if status.Signaled() {
		what = "signal " + itoa(int(status.Signal()))
	}
	buf := make([]byte, 1024)
	if n, _ := unix.Pread(out, buf, 0); n > 0 {
		what += ": " + strings.TrimSpace(string(buf[:n]))
	}
	return text(what)
}

// waitHook waits for the process, at most for timeout seconds where that is not 0.
func waitHook(pid int, timeout uint64) (ws syscall.WaitStatus, err error) {
	if timeout > 0 {
		// A pidfd becomes readable when the process ends (pidfd_open(2)).
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return 0, wrap("pidfd_open", "", needs("5.3", err))
		}
		defer unix.Close(fd)
		if !pollFor(fd, timeout) {
			syscall.Kill(-pid, syscall.SIGKILL)
			err = text("no end after " + itoa(int(timeout)) + " s")
		}
		if err != nil {
			reap(pid)
			return 0, err
		}
	}
	return reap(pid)
}

func reap(pid int) (ws syscall.WaitStatus, err error) {
	for {
		_, err = syscall.Wait4(pid, &ws, 0, nil)
		if err != syscall.EINTR {
			return ws, wrap("wait", "", err)
		}
	}
}

// pollFor says whether fd became readable within so many seconds.
func pollFor(fd int, seconds uint64) bool {
	var start, now unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &start)
	for {
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)
		left := int64(min(seconds, 1<<20))*1000 - (now.Nano()-start.Nano())/1e6
		if left <= 0 {
			return false
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left))
		if err == nil && n > 0 {
			return true
		}
		if err != nil && err != unix.EINTR {
			return false
		}
	}
}

// memory is an anonymous file with data in it, at its start.
func memory(name string, data []byte) (int, error) {
	// NOEXEC_SEAL is new in Linux 6.3, which also warns without it.
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, wrap("memfd_create", name, err)
	}
	for off := 0; off < len(data); {
		n, err := unix.Pwrite(fd, data[off:], int64(off))
		if err != nil && err != unix.EINTR {
			unix.Close(fd)
			return -1, wrap("write", name, err)
		}
		off += max(n, 0)
	}
	return fd, nil
}
