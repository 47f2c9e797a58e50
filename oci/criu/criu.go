// Package criu checkpoints and restores the processes of containers by the criu program. Nothing of it runs, and nothing
// is looked for, before somebody asks. It speaks criu's own protocol (criu swrk): requests and answers in protobuf over
// a socket that criu inherits.
package criu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/checkpoint-restore/go-criu/v8/rpc"
)

// minVersion is the first that takes external PID namespaces and changes the labels of an LSM on restore.
const minVersion = 31600

// UnavailableError says what a checkpoint or a restore lacks on this machine.
type UnavailableError struct {
	Missing string // "the program criu", "criu 3.16", "kernel feature …"
	Err     error
}

func (e *UnavailableError) Error() string {
	text := "checkpoint and restore need " + e.Missing
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

// Unwrap returns the cause.
func (e *UnavailableError) Unwrap() error { return e.Err }

// Is makes errors.Is(err, errors.ErrUnsupported) true.
func (e *UnavailableError) Is(target error) bool { return target == errors.ErrUnsupported }

// Tool is the criu program of this machine.
type Tool struct {
	// Program is a path, or a name to be looked for in $PATH; "" is criu.
	Program string

	mu      sync.Mutex
	checked time.Time
	version int
	err     error
}

// checkAge is how long the result of a check holds: a program or a kernel module may be installed any time.
const checkAge = time.Minute

// checkTimeout bounds a look at the kernel.
const checkTimeout = 20 * time.Second

// Check returns criu's version (4.2.1 is 40201), or an UnavailableError that says what is missing.
func (t *Tool) Check(ctx context.Context) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.checked.IsZero() && time.Since(t.checked) < checkAge {
		return t.version, t.err
	}
	version, err := t.check(ctx)
	if ctx.Err() == nil {
		t.checked, t.version, t.err = time.Now(), version, err
	}
	return version, err
}

// Path is where the program is; an UnavailableError where there is none.
func (t *Tool) Path() (string, error) {
	name := t.Program
	if name == "" {
		name = "criu"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", &UnavailableError{Missing: "the program criu", Err: err}
	}
	return path, nil
}

func (t *Tool) check(ctx context.Context) (int, error) {
	path, err := t.Path()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	s, err := open(path, local([3]*os.File{}), nil)
	if err != nil {
		return 0, &UnavailableError{Missing: path, Err: err}
	}
	kind := rpc.CriuReqType_VERSION
	resp, err := s.call(ctx, &rpc.CriuReq{Type: &kind}, nil)
	if err = errors.Join(err, s.close(ctx)); err != nil {
		return 0, &UnavailableError{Missing: "a working " + path, Err: err}
	}
	v := resp.GetVersion()
	version := int(v.GetMajorNumber())*10000 + int(v.GetMinorNumber())*100 + int(v.GetSublevel())
	if version < minVersion {
		return version, &UnavailableError{Missing: "criu 3.16 or later", Err: fmt.Errorf("%s is %s", path, Version(version))}
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "check")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return version, &UnavailableError{Missing: "what criu check misses", Err: fmt.Errorf("%s: %s", path, complaints(&out, err))}
	}
	return version, nil
}

// complaints are what criu says, in one line.
func complaints(out *bytes.Buffer, err error) string {
	var said []string
	for s := bufio.NewScanner(out); s.Scan(); {
		if line := strings.TrimSpace(s.Text()); strings.HasPrefix(line, "Error") && len(said) < 4 {
			said = append(said, line)
		}
	}
	if len(said) == 0 {
		return err.Error()
	}
	return strings.Join(said, "; ")
}

// Version is a version as people write it.
func Version(v int) string {
	text := fmt.Sprintf("%d.%d", v/10000, v/100%100)
	if v%100 != 0 {
		text += fmt.Sprintf(".%d", v%100)
	}
	return text
}

// logTail bounds what is quoted of criu's log.
const logTail = 4

// withLog adds to an error what criu has written about it.
func withLog(err error, dir, name string) error {
	if err == nil {
		return nil
	}
	f, openErr := os.Open(filepath.Join(dir, name))
	if openErr != nil {
		return err
	}
	defer f.Close()
	var said []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.Contains(s.Text(), "Error (") && !strings.Contains(s.Text(), "RLIMIT_NOFILE") {
			said = append(said, strings.TrimSpace(s.Text()))
		}
	}
	if len(said) > logTail {
		said = said[:logTail] // the first ones are the cause
	}
	if len(said) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s", err, strings.Join(said, "; "))
}
