// Package node has what the tests of the kubelet and of the cluster share: programs that run until they are told to end,
// the daemon's configuration, and what a kubelet's log says about its runtime.
package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// Program is a process that is expected to run until it is told to end.
type Program struct {
	Name  string
	Log   string // file of its output
	cmd   *exec.Cmd
	ended chan error
}

// Start starts path; its output is appended to dir/name.log.
func Start(dir, name, path string, args ...string) (*Program, error) {
	p := &Program{Name: name, cmd: exec.Command(path, args...), Log: filepath.Join(dir, name+".log"), ended: make(chan error, 1)}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Dir = log, log, "/"
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.ended <- p.cmd.Wait() }()
	return p, nil
}

// Stop ends it with a signal; an exit by that signal or with status 0 is expected.
func (p *Program) Stop(sig syscall.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	select {
	case err := <-p.ended:
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == sig {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
		return nil
	case <-time.After(time.Minute):
		return errors.Join(fmt.Errorf("%s does not end", p.Name), p.cmd.Process.Kill())
	}
}

// Err is nil while it runs.
func (p *Program) Err() error {
	select {
	case err := <-p.ended:
		p.ended <- err
		return fmt.Errorf("%s ended: %v\n%s", p.Name, err, p.Tail())
	default:
		return nil
	}
}

// Tail is the end of what it wrote.
func (p *Program) Tail() string {
	text, _ := os.ReadFile(p.Log)
	return string(text[max(0, len(text)-4000):])
}

// Until tries again until there is no error, and tells the last one; the end of a program (nil ones do not count) ends it.
func Until(what string, limit time.Duration, programs []*Program, try func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := try()
		if err == nil {
			return nil
		}
		for _, p := range programs {
			if p == nil {
				continue
			}
			if ended := p.Err(); ended != nil {
				return ended
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not after %v: %s: %w", limit, what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Env is the value of a variable that the script which runs the tests has to set.
func Env(name string) string {
	v := os.Getenv(name)
	if v == "" {
		panic("$" + name + " is not set: run the script in hack/kube that does it")
	}
	return v
}
