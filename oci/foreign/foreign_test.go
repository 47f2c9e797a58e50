package foreign

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// script is a runtime that is a shell script; it notes its arguments in the file "calls" beside it.
func script(t *testing.T, text string) *Runtime {
	t.Helper()
	dir := t.TempDir()
	r := &Runtime{Name: "fake", Program: filepath.Join(dir, "fake"), Options: []string{"--debug"}, Root: filepath.Join(dir, "root"), Timeout: 10 * time.Second}
	if err := os.WriteFile(r.Program, []byte("#!/bin/sh\necho \"$@\" >> "+dir+"/calls\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(r.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	return r
}

func calls(t *testing.T, r *Runtime) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(filepath.Dir(r.Program), "calls"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Split(strings.ReplaceAll(strings.TrimSpace(string(text)), r.Root, "ROOT"), "\n")
}

func TestCheck(t *testing.T) {
	r := script(t, "")
	if err := r.Check(); err != nil {
		t.Errorf("Check() = %v; want nil", err)
	}
	for _, tc := range []struct {
		want   string
		change func() error
	}{
		{"is not executable", func() error { return os.Chmod(r.Program, 0o644) }},
		{"no such file", func() error { return os.Remove(r.Program) }},
		{"is not a file", func() error { return os.Mkdir(r.Program, 0o755) }},
	} {
		if err := tc.change(); err != nil {
			t.Fatal(err)
		}
		if err := r.Check(); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), r.Program) {
			t.Errorf("Check() = %v; want %s and %q", err, r.Program, tc.want)
		}
	}
}

func TestDelete(t *testing.T) {
	r := script(t, `rm -r "$3/$6" || exit 1`)
	if err := r.Delete(t.Context(), "c"); err != nil || calls(t, r)[0] != "" {
		t.Errorf("Delete() of what the runtime does not know = %v, calls %q; want none", err, calls(t, r))
	}
	if err := os.Mkdir(filepath.Join(r.Root, "c"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := r.Delete(t.Context(), "c"); err != nil || r.Knows("c") {
		t.Errorf("Delete() = %v", err)
	}
	if diff := cmp.Diff([]string{"--debug --root ROOT delete --force c"}, calls(t, r)); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	r.Systemd = true
	if got, want := r.Arguments(), []string{"--debug", "--root", r.Root, "--systemd-cgroup"}; !cmp.Equal(got, want) {
		t.Errorf("Arguments() = %q; want %q", got, want)
	}
}

// A runtime that fails or hangs is an error in its own words, within its time.
func TestErrors(t *testing.T) {
	for _, tc := range []struct {
		script, want string
		timeout      time.Duration
	}{
		{"echo first >&2; echo the reason >&2; exit 1", "fake delete: the reason: exit status 1", time.Minute},
		{"exit 2", "fake delete: exit status 2", time.Minute},
		{"sleep 1000 & sleep 1000", "has not ended after 200ms", 200 * time.Millisecond},
		{"head -c 5000000 /dev/zero | tr '\\0' x >&2; exit 1", "…: exit status 1", time.Minute},
	} {
		r := script(t, tc.script)
		r.Timeout = tc.timeout
		if err := os.Mkdir(filepath.Join(r.Root, "c"), 0o700); err != nil {
			t.Fatal(err)
		}
		err := r.Delete(t.Context(), "c")
		if err == nil || !strings.Contains(err.Error(), tc.want) || len(err.Error()) > maxText+1000 {
			t.Errorf("Delete() by %q = %.200v; want %q", tc.script, err, tc.want)
		}
	}
	r := script(t, "sleep 1000")
	if err := os.Mkdir(filepath.Join(r.Root, "c"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := r.Delete(ctx, "c"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Delete() with a context that ends = %v; want DeadlineExceeded", err)
	}
}

func TestUpdate(t *testing.T) {
	r := script(t, `cat "$6" >> $3/../limits`)
	limit := int64(1 << 20)
	if err := r.Update(t.Context(), "c", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Fatal(err)
	}
	if got := calls(t, r)[0]; !strings.HasPrefix(got, "--debug --root ROOT update --resources ROOT/resources-") || !strings.HasSuffix(got, " c") {
		t.Errorf("the runtime is called with %q", got)
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(r.Program), "limits"))
	if err != nil || string(text) != `{"memory":{"limit":1048576}}` {
		t.Errorf("it got %s, %v", text, err)
	}
	if left, _ := os.ReadDir(r.Root); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFeatures(t *testing.T) {
	r := script(t, `cat <<EOF
{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.0","mountOptions":["rro"],"linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":true}}}}
EOF`)
	f, err := r.Features(t.Context())
	if err != nil || !UserNamespaces(f) || !RecursiveReadOnly(f) {
		t.Errorf("Features() = %+v, %v; want user namespaces and rro", f, err)
	}
	for _, text := range []string{
		`{"ociVersionMin":"1.0.0","mountOptions":["ro"],"linux":{"namespaces":["user"]}}`,
		`{"ociVersionMin":"1.0.0","linux":{"namespaces":["pid"],"mountExtensions":{"idmap":{"enabled":true}}}}`,
		`{"ociVersionMin":"1.0.0","linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":false}}}}`,
		`{"ociVersionMin":"1.0.0","linux":{"namespaces":["user"],"mountExtensions":{"idmap":{}}}}`,
		`{"ociVersionMin":"1.0.0"}`,
	} {
		f, err := ParseFeatures([]byte(text))
		if err != nil || UserNamespaces(f) || RecursiveReadOnly(f) {
			t.Errorf("features %s: %v, user namespaces %v, rro %v; want neither", text, err, UserNamespaces(f), RecursiveReadOnly(f))
		}
	}
	if _, err := ParseFeatures([]byte(`{"usage":"none"}`)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("ParseFeatures() of another document = %v; want ErrUnsupported", err)
	}
	if UserNamespaces(nil) || RecursiveReadOnly(nil) {
		t.Error("a runtime without features has some")
	}
}

func FuzzParseFeatures(f *testing.F) {
	f.Add([]byte(`{"ociVersionMin":"1.0.0","mountOptions":["rro"],"linux":{"namespaces":["user"],"mountExtensions":{"idmap":{"enabled":true}}}}`))
	f.Add([]byte(`{"ociVersionMax":"1","linux":null}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		features, err := ParseFeatures(text)
		if err != nil {
			return
		}
		UserNamespaces(features)
		RecursiveReadOnly(features)
	})
}

// A bundle is made of mounts that are in no mount table, and goes whatever of it is there.
func TestBundle(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts: needs root")
	}
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	mount := func() *os.File {
		t.Helper()
		dir, err := os.Open(source)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		f, err := sys.CloneTree(dir, false, nil)
		if err != nil {
			t.Skipf("needs detached mounts: %v", err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	b := Bundle(filepath.Join(t.TempDir(), "bundle"))
	if err := b.Remove(); err != nil || b.Exists() {
		t.Errorf("Remove() of nothing = %v", err)
	}
	for range 2 { // over what is there from before
		if err := b.Make(mount(), []*os.File{mount(), mount()}); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(string(b)); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("the bundle: %v, %v; want that nobody but root gets at the container's root in it", fi, err)
		}
		if err := b.OpenTo(65533); err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(string(b)); err != nil || fi.Mode().Perm() != 0o710 || fi.Sys().(*syscall.Stat_t).Gid != 65533 {
			t.Errorf("the bundle, opened to a group: %v, %v; want it passable for that group", fi, err)
		}
	}
	if err := b.Configure(&specs.Spec{Version: "1.0.2"}); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{b.Rootfs() + "/file", b.Volume(0) + "/file", b.Volume(1) + "/file", string(b) + "/config.json"} {
		if _, err := os.Stat(file); err != nil {
			t.Error(err)
		}
	}
	dir, process, err := b.Exec(&specs.Process{Args: []string{"true"}})
	if err != nil || filepath.Dir(process) != dir {
		t.Errorf("Exec() = %s, %s, %v", dir, process, err)
	}
	for range 2 {
		if err := b.Remove(); err != nil || b.Exists() {
			t.Errorf("Remove() = %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(source, "file")); err != nil {
		t.Errorf("what was mounted was deleted: %v", err)
	}
	plain, err := os.Open(source) // no mount
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := b.Make(mount(), []*os.File{plain}); err == nil || b.Exists() {
		t.Errorf("Make() with what is no mount = %v, left %v; want an error and nothing left", err, b.Exists())
	}
}
