package layer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Program is a gzip decompressor in a process of its own. It reads what a registry sent, so it runs as nobody, with
// three pipes and nothing else. It ends when its input or its reader does, the daemon's death included.
type Program struct {
	cmd    *exec.Cmd
	out    *os.File
	stderr limited
	feed   sync.WaitGroup
	inErr  error // of the source; valid after feed
	once   sync.Once
	err    error
}

const (
	nobody   = 65534
	pipeSize = 1 << 20
)

func startProgram(ctx context.Context, path string, r io.Reader) (*Program, error) {
	p := &Program{cmd: exec.CommandContext(ctx, path, "-dc")}
	p.cmd.Env = []string{}
	p.cmd.Dir = "/"
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	in, feed, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		in.Close()
		feed.Close()
		return nil, err
	}
	for _, f := range []*os.File{feed, out} {
		sys.SetPipeSize(f, pipeSize) // smaller ones work too
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in, stdout, &p.stderr
	err = p.cmd.Start()
	in.Close()
	stdout.Close()
	if err != nil {
		feed.Close()
		out.Close()
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	p.out = out
	p.feed.Go(func() {
		defer feed.Close()
		// Not *os.File's own copying: r's reads must end with what the program takes.
		_, p.inErr = io.CopyBuffer(struct{ io.Writer }{feed}, struct{ io.Reader }{r}, make([]byte, copyBuffer))
	})
	return p, nil
}

// Read implements io.Reader: at the end of its output comes what the program had to say.
func (p *Program) Read(b []byte) (int, error) {
	n, err := p.out.Read(b)
	if err != nil {
		if werr := p.wait(); werr != nil {
			err = werr
		}
	}
	return n, err
}

// Kill ends the program at once.
func (p *Program) Kill() { _ = p.cmd.Process.Kill() } // fails if it has ended

func (p *Program) wait() error {
	p.once.Do(func() {
		err := p.cmd.Wait()
		p.feed.Wait()
		if err != nil {
			p.err = fmt.Errorf("%s: %w: %s", p.cmd.Path, err, strings.TrimSpace(p.stderr.b.String()))
		}
	})
	return p.err
}

// Close ends the program and waits until the source is no longer read. What a program says that is ended before its
// output was read to the end is no error.
func (p *Program) Close() error {
	p.Kill()
	_ = p.wait()
	return p.out.Close()
}

// limited keeps the beginning of what is written to it.
type limited struct{ b bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := 300 - l.b.Len(); room > 0 {
		l.b.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}
