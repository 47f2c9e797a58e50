package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// verifier writes a verifier. Every call is a line in log: its arguments and its standard input.
func verifier(t *testing.T, dir, name, body string) (log string) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "log")
	text := fmt.Sprintf("#!/bin/sh\necho \"$@\" $(cat) >>%s\n%s\n", log, body)
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return log
}

func calls(t *testing.T, log string) []string {
	t.Helper()
	b, err := os.ReadFile(log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
}

// onlyGood approves what has "good" in its name.
const onlyGood = `case "$2" in *good*) echo fine;; *) echo "nobody signed it"; exit 3;; esac`

func TestVerifiers(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	good := add(t, r, "good", "v1", simple("good"))
	add(t, r, "bad", "v1", simple("bad"))
	dir, root := t.TempDir(), t.TempDir()
	log := verifier(t, dir, "a", onlyGood)
	with := func(c *Config) { c.Verifiers = dir }
	s := openStore(t, root, with)
	denied := func(what string, err error, want string) {
		t.Helper()
		if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s = %v; want ErrDenied with %q", what, err, want)
		}
	}
	before := len(r.Requests())
	_, err := s.Pull(t.Context(), r.Host()+"/bad:v1", nil, PullOptions{})
	denied("Pull", err, "nobody signed it (exit status 3)")
	for _, q := range r.Requests()[before:] {
		if strings.Contains(q.Path, "/blobs/") {
			t.Errorf("%s was fetched of an image that is denied", q.Path)
		}
	}
	isClean(t, s)
	img := mustPull(t, s, r.Host()+"/good:v1")
	got := calls(t, log)
	want := fmt.Sprintf("-name %s/good:v1 -digest %s -stdin-media-type application/vnd.oci.descriptor.v1+json {", r.Host(), good.Manifest.Digest)
	if len(got) != 2 || !strings.HasPrefix(got[1], want) || !strings.Contains(got[1], fmt.Sprintf(`"size":%d`, good.Manifest.Size)) {
		t.Errorf("the verifier was called with %q; want %q and the descriptor", got, want)
	}
	_, err = s.Tag(t.Context(), img.ID, "mine", false)
	denied("Tag", err, "nobody signed it")
	if _, err := s.Tag(t.Context(), img.ID, "good-one", false); err != nil {
		t.Errorf("Tag(good-one) = %v; want nil", err)
	}

	// Imports, with a name and without one.
	archive := export(t, s, r.Host()+"/good:v1")
	_, err = s.Import(t.Context(), bytes.NewReader(bytes.ReplaceAll(archive, []byte("good:v1"), []byte("evil:v1"))), ImportOptions{})
	denied("Import under another name", err, "nobody signed it")
	if _, err := s.Import(t.Context(), bytes.NewReader(archive), ImportOptions{}); err != nil {
		t.Errorf("Import(good) = %v; want nil", err)
	}

	// What was approved is asked about again only when the verifiers change, after a restart too.
	asked := len(calls(t, log))
	for range 2 {
		if err := s.Admit(t.Context(), img.ID); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, root, with)
	}
	if n := len(calls(t, log)); n != asked {
		t.Errorf("%d calls for an image that is approved; want none", n-asked)
	}
	verifier(t, dir, "b", `echo "not today"; exit 1`)
	denied("Admit after a verifier was added", s.Admit(t.Context(), img.ID), "not today")
	second := verifier(t, dir, "b", `exit 0`)
	if err := s.Admit(t.Context(), img.ID); err != nil || len(calls(t, second)) != 1 {
		t.Errorf("Admit = %v after %d calls; want nil after one", err, len(calls(t, second)))
	}
	if err := s.Admit(t.Context(), img.ID); err != nil || len(calls(t, second)) != 1 {
		t.Errorf("Admit = %v after %d calls; want nil without another", err, len(calls(t, second)))
	}
	if err := s.Admit(t.Context(), "nothing"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Admit(nothing) = %v; want ErrNotFound", err)
	}
}

// TestVerifiersNew: images from before there was a policy are asked about when a container is made.
func TestVerifiersNew(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "good", "v1", simple("good"))
	add(t, r, "bad", "v1", simple("bad"))
	root, dir := t.TempDir(), t.TempDir()
	s := openStore(t, root)
	good, bad := mustPull(t, s, r.Host()+"/good:v1"), mustPull(t, s, r.Host()+"/bad:v1")
	if err := s.Admit(t.Context(), bad.ID); err != nil {
		t.Errorf("Admit without verifiers = %v; want nil", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	log := verifier(t, dir, "v", onlyGood)
	s = openStore(t, root, func(c *Config) { c.Verifiers = dir })
	if err := s.Admit(t.Context(), bad.ID); !errors.Is(err, ErrDenied) {
		t.Errorf("Admit(bad) = %v; want ErrDenied", err)
	}
	if err := s.Admit(t.Context(), good.ID); err != nil {
		t.Errorf("Admit(good) = %v; want nil", err)
	}
	if got := calls(t, log); len(got) != 2 || !strings.Contains(got[0], "-name "+r.Host()+"/bad:v1 ") {
		t.Errorf("calls = %q; want one for each, by tag", got)
	}
}

// TestVerifiersFail: whatever goes wrong with a verifier denies.
func TestVerifiersFail(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "good", "v1", simple("good"))
	for want, prepare := range map[string]func(dir string) string{
		"no such file": func(dir string) string { return dir + "/none" },
		"no program":   func(dir string) string { return dir },
		"is not a program": func(dir string) string {
			_ = os.WriteFile(dir+"/v", []byte("#!/bin/sh\n"), 0o644)
			return dir
		},
		"changed by others": func(dir string) string {
			verifier(t, dir, "v", "exit 0")
			_ = os.Chmod(dir+"/v", 0o777)
			return dir
		},
		"longer than": func(dir string) string { verifier(t, dir, "v", "sleep 600 & sleep 600"); return dir },
		"no such file or directory": func(dir string) string {
			_ = os.WriteFile(dir+"/v", []byte("#!/no/shell\n"), 0o755)
			return dir
		},
		"killed": func(dir string) string { verifier(t, dir, "v", "kill -9 $$"); return dir },
		"xxxxx (exit": func(dir string) string {
			verifier(t, dir, "v", "head -c 9000000 /dev/zero | tr '\\0' x; exit 1")
			return dir
		},
		"exit status 4": func(dir string) string { verifier(t, dir, "v", "echo loud >&2; exit 4"); return dir },
	} {
		dir := prepare(t.TempDir())
		limit := time.Minute
		if want == "longer than" {
			limit = time.Second
		}
		s := openStore(t, t.TempDir(), func(c *Config) { c.Verifiers, c.VerifierTimeout = dir, limit })
		_, err := s.Pull(t.Context(), r.Host()+"/good:v1", nil, PullOptions{})
		if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), want) || len(err.Error()) > 2000 {
			t.Errorf("Pull() = %v; want ErrDenied with %q", err, want)
		}
		isClean(t, s)
	}
}
