package supervisor

import (
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

const (
	streamStdout = "stdout"
	streamStderr = "stderr"
	// drainTime bounds the wait for output after a container's exit: whatever still
	// holds its pipes open then (it left the container's namespaces) is not waited for.
	drainTime = time.Second
)

// process is one that this supervisor started.
type process struct {
	id     string
	launch api.Launch
	pid    int
	pidfd  *os.File
	// mounts holds the mount namespace beyond the exit, so that the kernel takes it apart
	// after the exit was told and not before.
	mounts *os.File

	warnings []string // of the init

	log     *logFile // nil for execs
	fan     fanout
	in      *input
	console *os.File   // the terminal's master, of a container with one
	ends    []*os.File // our ends of the pipes
	copying sync.WaitGroup

	started chan struct{} // closed when the launch has succeeded or failed
	failed  string        // with started closed: why the workload was not executed
	exit    *api.Exit     // set once, under the supervisor's lock

	// Under the supervisor's lock too: what of launch.OOMParent is not this process's, and whether it was us who sent SIGKILL.
	oomBase uint64
	killed  bool
}

// pump starts copying output, once the process runs.
func (p *process) pump(stdout, stderr *os.File) {
	maxLine := p.launch.MaxLine
	if maxLine <= 0 {
		maxLine = defaultMaxLine
	}
	for stream, r := range map[string]*os.File{streamStdout: stdout, streamStderr: stderr} {
		if r == nil {
			continue
		}
		p.ends = append(p.ends, r)
		w := &lineWriter{log: p.log, stream: stream, maxLine: maxLine}
		p.copying.Go(func() { copyLines(r, w, &p.fan) })
	}
}

// drain waits for the rest of the output, then lets go of everything that copied it. It
// ends even where the log's file system does not: an exit is told whatever becomes of the log.
func (p *process) drain() {
	if p.log == nil {
		return
	}
	copied := make(chan struct{})
	go func() { p.copying.Wait(); close(copied) }()
	wait(copied, drainTime)
	p.in.close()
	for _, f := range p.ends {
		f.Close() // wakes a copier that still waits
	}
	p.ends = nil
	released := make(chan struct{})
	go func() {
		<-copied
		p.fan.end()
		p.log.close()
		close(released)
	}()
	wait(released, drainTime)
}

func wait(done <-chan struct{}, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// signal sends a signal; nil when the process has ended.
func (p *process) signal(n int) error { return sys.PidfdSignal(p.pidfd, syscall.Signal(n)) }
