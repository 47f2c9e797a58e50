package sys

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/tinyelf"
)

// Parked is a process that does nothing: it keeps something alive that a process has to keep, such as a control group
// that systemd removes when it is empty. It is no Go program, and it ends by itself when its maker does.
type Parked struct {
	PID   int
	pidfd *os.File
	hold  *os.File
	once  sync.Once
}

// parkProgram is made once; a process of it costs what clone and execve of a page cost.
var parkProgram = sync.OnceValues(func() (*os.File, error) {
	code := bytes.NewReader(tinyelf.Executable(tinyelf.Wait))
	f, err := SealedExecutable("cri-shim-park", code)
	if err == nil {
		return f, nil
	}
	return copiedExecutable(code)
})

// copiedExecutable is for machines that run no program from a memfd.
func copiedExecutable(code *bytes.Reader) (*os.File, error) {
	if _, err := code.Seek(0, 0); err != nil {
		return nil, err
	}
	tmp, err := os.CreateTemp("/run", "cri-shim-park")
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	_, err = code.WriteTo(tmp)
	if err == nil {
		err = tmp.Chmod(0o500)
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	return ReadOnlyExecutable(tmp.Name())
}

// Park makes such a process. Release ends it.
func Park() (*Parked, error) {
	exe, err := parkProgram()
	if err != nil {
		return nil, fmt.Errorf("park a process: %w", err)
	}
	r, w, err := Pipe(true)
	if err != nil {
		return nil, fmt.Errorf("park a process: %w", err)
	}
	defer r.Close()
	pid, pidfd, err := Spawn(SpawnAttr{Exe: exe, Args: []string{"cri-shim-park"}, Files: []*os.File{r}})
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("park a process: %w", err)
	}
	return &Parked{PID: pid, pidfd: pidfd, hold: w}, nil
}

// Release ends and reaps the process; it may be called twice, and on nil.
func (p *Parked) Release() {
	if p == nil {
		return
	}
	p.once.Do(func() {
		_ = PidfdSignal(p.pidfd, syscall.SIGKILL)
		p.hold.Close()
		for {
			_, err := unix.Wait4(p.PID, nil, unix.WALL, nil)
			if err != unix.EINTR {
				break
			}
		}
		p.pidfd.Close()
		runtime.KeepAlive(p)
	})
}
