package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/testtools"
	"github.com/cri-shim/cri-shim/oci/container"
)

func TestMain(m *testing.M) { os.Exit(testtools.RunPrivate(m)) }

const busybox = "/bin/busybox"

// bench is one runtime with a folder and a bundle of its own.
type bench struct {
	t       *testing.T
	program string
	root    string
	bundle  string
	spec    *specs.Spec
}

func newBench(t *testing.T, program, script string) *bench {
	t.Helper()
	testtools.NeedPrivate(t)
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("needs /bin/busybox (busybox-static)")
	}
	dir := t.TempDir()
	b := &bench{t: t, program: program, root: filepath.Join(dir, "root"), bundle: filepath.Join(dir, "bundle"), spec: container.Example()}
	for _, d := range []string{"bin", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(b.bundle, "rootfs", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.bundle, "rootfs/bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "echo", "sleep", "id", "ls", "tty", "env", "pwd", "true"} {
		b.applet(name)
	}
	b.spec.Version = "1.0.2" // runc refuses what it does not know
	b.spec.Process.Terminal, b.spec.Process.Rlimits = false, nil
	b.spec.Process.Args = []string{"sh", "-c", script}
	b.spec.Linux.CgroupsPath = "/cri-shim-oci-test-" + strings.ToLower(filepath.Base(filepath.Dir(dir)))
	b.spec.Annotations = map[string]string{"key": "value"}
	b.write()
	t.Cleanup(func() {
		for _, id := range strings.Fields(b.run("list", "-q").out) {
			b.run("delete", "-f", id)
		}
	})
	return b
}

// applet gives the container another of busybox's programs.
func (b *bench) applet(name string) {
	b.t.Helper()
	if err := os.Symlink("busybox", filepath.Join(b.bundle, "rootfs/bin", name)); err != nil {
		b.t.Fatal(err)
	}
}

func ours(t *testing.T, script string) *bench {
	t.Helper()
	return newBench(t, testtools.CRIShimOCI(t), script)
}

func (b *bench) write() {
	b.t.Helper()
	data, err := json.Marshal(b.spec)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(b.bundle, "config.json"), data, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

type result struct {
	code      int
	out, errs string
}

func (b *bench) command(args ...string) *exec.Cmd {
	cmd := exec.Command(b.program, append([]string{"--root", b.root}, args...)...)
	cmd.Dir = b.bundle
	return cmd
}

// run runs one command. Its output goes to files: what a container keeps open must not be waited for.
func (b *bench) run(args ...string) result {
	b.t.Helper()
	return b.runCommand(b.command(args...))
}

func (b *bench) runCommand(cmd *exec.Cmd) result {
	b.t.Helper()
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(b.t.TempDir(), "out")
		if err != nil {
			b.t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	timer := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		b.t.Fatal(err)
	}
	var text [2]string
	for i, f := range files {
		data, err := os.ReadFile(f.Name())
		if err != nil {
			b.t.Fatal(err)
		}
		text[i] = string(data)
	}
	return result{cmd.ProcessState.ExitCode(), text[0], text[1]}
}

// ok runs a command that has to succeed.
func (b *bench) ok(args ...string) string {
	b.t.Helper()
	r := b.run(args...)
	if r.code != 0 {
		b.t.Fatalf("%s = %d, %s%s", strings.Join(args, " "), r.code, r.out, r.errs)
	}
	return r.out
}

// fails runs a command that has to fail, and wants words of its message.
func (b *bench) fails(want string, args ...string) {
	b.t.Helper()
	if r := b.run(args...); r.code != 1 || !strings.Contains(r.errs, want) {
		b.t.Errorf("%s = %d, %q; want 1 and %q", strings.Join(args, " "), r.code, r.errs, want)
	}
}

func (b *bench) state(id string) (s container.State) {
	b.t.Helper()
	if err := json.Unmarshal([]byte(b.ok("state", id)), &s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// until waits for a status.
func (b *bench) until(id string, want specs.ContainerState) {
	b.t.Helper()
	for end := time.Now().Add(20 * time.Second); b.state(id).Status != want; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("%s is %s; want %s", id, b.state(id).Status, want)
		}
	}
}

// gone checks that nothing is left of a container.
func (b *bench) gone(id string) {
	b.t.Helper()
	if _, err := os.Stat(filepath.Join(b.root, id)); !errors.Is(err, os.ErrNotExist) {
		b.t.Errorf("the folder of %s: %v; want none", id, err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		left, _ := filepath.Glob(pattern + b.spec.Linux.CgroupsPath)
		if len(left) > 0 {
			b.t.Errorf("left of the control group of %s: %v", id, left)
		}
	}
}

func alive(pid int) bool {
	data, err := os.ReadFile("/proc/" + itoa(pid) + "/stat")
	return err == nil && !bytes.Contains(data, []byte(") Z ")) && syscall.Kill(pid, 0) == nil
}
