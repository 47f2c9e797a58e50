// Package foreign is the daemon's side of other OCI runtimes: what is asked of them beside the start of processes,
// which the supervisor has them do, and the bundles that they run. A runtime is a program with runc's command line
// (https://github.com/opencontainers/runtime-tools/blob/master/docs/command-line-interface.md).
package foreign

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Runtime is a program and how it is called.
type Runtime struct {
	Name    string // the handler's
	Program string // absolute path
	Options []string
	// Root is the folder where the runtime keeps its state, one that nobody else uses.
	Root string
	// Systemd has the runtime make control groups through systemd.
	Systemd bool
	Timeout time.Duration // of one call
}

// killDelay is how long the output of a killed runtime is waited for: what it has started may hold it.
const killDelay = time.Second

// maxText bounds what is passed on of a runtime's own words, in bytes.
const maxText = 2 << 10

// featuresTimeout bounds the question what a runtime can do, which is asked while the daemon starts.
const featuresTimeout = 5 * time.Second

// Check says why the program cannot be run.
func (r *Runtime) Check() error {
	fi, err := os.Stat(r.Program)
	var pathError *fs.PathError
	switch {
	case errors.As(err, &pathError):
		return fmt.Errorf("path: %s: %w", r.Program, pathError.Err)
	case err != nil:
		return fmt.Errorf("path: %w", err)
	case !fi.Mode().IsRegular():
		return fmt.Errorf("path: %s is not a file", r.Program)
	case fi.Mode()&0o111 == 0:
		return fmt.Errorf("path: %s is not executable", r.Program)
	}
	return nil
}

// Arguments are those before every command.
func (r *Runtime) Arguments() []string {
	args := append(slices.Clone(r.Options), "--root", r.Root)
	if r.Systemd {
		args = append(args, "--systemd-cgroup")
	}
	return args
}

// Features asks the runtime what it can do; errors.ErrUnsupported where it has no such command.
func (r *Runtime) Features(ctx context.Context) (*features.Features, error) {
	ctx, cancel := context.WithTimeout(ctx, min(r.Timeout, featuresTimeout))
	defer cancel()
	out, err := r.run(ctx, "features")
	if err != nil {
		return nil, err
	}
	return ParseFeatures(out)
}

// ParseFeatures reads what a runtime's features command prints.
func ParseFeatures(text []byte) (*features.Features, error) {
	f := new(features.Features)
	if err := json.Unmarshal(text, f); err != nil {
		return nil, fmt.Errorf("features: %w", err)
	}
	if f.OCIVersionMin == "" && f.OCIVersionMax == "" {
		return nil, fmt.Errorf("features: no document: %w", errors.ErrUnsupported)
	}
	return f, nil
}

// UserNamespaces and RecursiveReadOnly are how the CRI's features follow from a runtime's.
func UserNamespaces(f *features.Features) bool {
	if f == nil || f.Linux == nil || !slices.Contains(f.Linux.Namespaces, string(specs.UserNamespace)) {
		return false
	}
	m := f.Linux.MountExtensions
	return m != nil && m.IDMap != nil && m.IDMap.Enabled != nil && *m.IDMap.Enabled
}

// RecursiveReadOnly says whether mounts can be read-only with all that is below them.
func RecursiveReadOnly(f *features.Features) bool {
	return f != nil && slices.Contains(f.MountOptions, "rro")
}

// Delete ends what the runtime has of a container and makes it forget it; nil where it knows none.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	if !r.Knows(id) {
		return nil
	}
	_, err := r.run(ctx, "delete", "--force", id)
	if err != nil && !r.Knows(id) { // somebody was faster
		return nil
	}
	return err
}

// Knows says whether the runtime has a folder for the container, as all of them make one below their root.
func (r *Runtime) Knows(id string) bool {
	_, err := os.Lstat(filepath.Join(r.Root, id))
	return !errors.Is(err, fs.ErrNotExist)
}

// Update changes the limits of a running container.
func (r *Runtime) Update(ctx context.Context, id string, limits *specs.LinuxResources) error {
	text, err := json.Marshal(limits)
	if err != nil {
		return fmt.Errorf("update %s: %w", id, err)
	}
	file, err := os.CreateTemp(r.Root, "resources-")
	if err != nil {
		return fmt.Errorf("update %s: %w", id, err)
	}
	defer os.Remove(file.Name())
	_, err = file.Write(text)
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("update %s: %w", id, err)
	}
	_, err = r.run(ctx, "update", "--resources", file.Name(), id)
	return err
}

// run calls the runtime and returns what it prints. The error names the program, the command and the runtime's own words.
func (r *Runtime) run(ctx context.Context, command ...string) ([]byte, error) {
	bounded, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	cmd := exec.CommandContext(bounded, r.Program, append(r.Arguments(), command...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killDelay
	out, errs := new(head), new(head)
	cmd.Stdout, cmd.Stderr = out, errs
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	op := r.Program + " " + command[0]
	var exited *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: %w", op, context.Cause(ctx))
	case bounded.Err() != nil:
		return nil, fmt.Errorf("%s: it has not ended after %s: %w", op, r.Timeout, bounded.Err())
	case errors.As(err, &exited):
		if text := lastLine(errs.String()); text != "" {
			return nil, fmt.Errorf("%s: %s: %w", op, text, err)
		}
	}
	return nil, fmt.Errorf("%s: %w", op, err)
}

// lastLine is the last line with something in it.
func lastLine(text string) string {
	text = strings.ToValidUTF8(strings.TrimSpace(text), "?")
	text = strings.TrimSpace(text[strings.LastIndexByte(text, '\n')+1:])
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// maxOutput bounds what is kept of a runtime's output, in bytes.
const maxOutput = 1 << 20

// head keeps the beginning of what is written to it.
type head struct{ bytes.Buffer }

func (h *head) Write(p []byte) (int, error) {
	if room := maxOutput - h.Len(); room > 0 {
		h.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
