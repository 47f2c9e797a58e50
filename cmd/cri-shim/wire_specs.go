package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// specStore keeps the specifications of running containers, which an exec needs, over a
// restart of the daemon. Seccomp profiles are most of a specification and the same in nearly
// all: each is kept once, in memory and on disk, by the digest of its content.
type specStore struct {
	dir string

	mu       sync.Mutex
	specs    map[string]*specs.Spec         // of the last execs
	profiles map[string]*specs.LinuxSeccomp // by digest
	digests  map[*specs.LinuxSeccomp]string
}

// maxKnownSpecs bounds the specifications in memory: each takes as much as the rest of what is
// known of its pod, and reading one again takes a fifth of a millisecond.
const maxKnownSpecs = 8

// maxKnownProfiles bounds the profiles in memory; specifications in use keep theirs.
const maxKnownProfiles = 64

// storedSpec is a specification on disk.
type storedSpec struct {
	Spec    *specs.Spec `json:"spec"`              // without its seccomp profile
	Seccomp string      `json:"seccomp,omitempty"` // the profile's digest
	// Env is the environment where a value is not UTF-8, which JSON strings cannot hold; Spec has none then.
	Env [][]byte `json:"env,omitempty"`
}

func openSpecStore(dir string) (*specStore, error) {
	s := &specStore{
		dir: dir, specs: map[string]*specs.Spec{},
		profiles: map[string]*specs.LinuxSeccomp{}, digests: map[*specs.LinuxSeccomp]string{},
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return s, s.collect()
}

// collect removes the profiles that no specification refers to, and what an interrupted write left. A
// specification that cannot be read may need any of them.
func (s *specStore) collect() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	used := map[string]bool{}
	var profiles []string
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		switch name, isSpec := strings.CutSuffix(e.Name(), ".json"); {
		case strings.HasSuffix(e.Name(), newSuffix):
			if err := os.Remove(path); err != nil {
				return err
			}
		case !isSpec:
		case strings.HasPrefix(name, profilePrefix):
			profiles = append(profiles, strings.TrimPrefix(name, profilePrefix))
		default:
			var stored struct{ Seccomp string }
			if readJSON(path, &stored) != nil {
				return nil
			}
			used[stored.Seccomp] = true
		}
	}
	for _, digest := range profiles {
		if used[digest] {
			continue
		}
		if err := os.Remove(s.profilePath(digest)); err != nil {
			return err
		}
	}
	return nil
}

const (
	profilePrefix = "seccomp-"
	newSuffix     = ".new" // of a file that is being written
)

func (s *specStore) path(id string) string { return filepath.Join(s.dir, id+".json") }

// poststopPath is where the hooks for a container's end are kept, if it has any.
func (s *specStore) poststopPath(id string) string { return filepath.Join(s.dir, id+".poststop") }

func (s *specStore) profilePath(digest string) string {
	return filepath.Join(s.dir, profilePrefix+digest+".json")
}

// save keeps the specification of a container that is about to be launched.
func (s *specStore) save(id string, spec *specs.Spec) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	stored := storedSpec{Spec: spec}
	if spec.Linux != nil && spec.Linux.Seccomp != nil {
		digest, err := s.keepProfile(spec.Linux.Seccomp)
		if err != nil {
			return err
		}
		linux, bare := *spec.Linux, *spec
		linux.Seccomp = nil
		bare.Linux = &linux
		stored = storedSpec{Spec: &bare, Seccomp: digest}
		spec.Linux.Seccomp = s.profiles[digest]
	}
	stored.moveEnv()
	text, err := json.Marshal(stored)
	if err != nil {
		return fmt.Errorf("specification of %s: %w", id, err)
	}
	delete(s.specs, id)
	return replaceFile(s.path(id), text)
}

// keepProfile writes a profile unless it is there, and returns its digest.
func (s *specStore) keepProfile(p *specs.LinuxSeccomp) (string, error) {
	if digest := s.digests[p]; digest != "" {
		return digest, nil
	}
	text, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("seccomp profile: %w", err)
	}
	sum := sha256.Sum256(text)
	digest := hex.EncodeToString(sum[:])
	if s.profiles[digest] == nil {
		if err := replaceFile(s.profilePath(digest), text); err != nil {
			return "", err
		}
	}
	s.remember(digest, p)
	return digest, nil
}

func (s *specStore) remember(digest string, p *specs.LinuxSeccomp) {
	if len(s.digests) >= maxKnownProfiles {
		clear(s.profiles)
		clear(s.digests)
	}
	if s.profiles[digest] == nil {
		s.profiles[digest] = p
	}
	s.digests[p] = digest
}

// load returns the specification of a container; it is shared and must not be changed.
func (s *specStore) load(id string) (*specs.Spec, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if spec := s.specs[id]; spec != nil {
		return spec, nil
	}
	var stored storedSpec
	if err := readJSON(s.path(id), &stored); err != nil {
		return nil, err
	}
	if stored.Spec == nil || stored.Seccomp != "" && stored.Spec.Linux == nil || len(stored.Env) > 0 && stored.Spec.Process == nil {
		return nil, fmt.Errorf("%s: not a specification", s.path(id))
	}
	if stored.Seccomp != "" {
		p := s.profiles[stored.Seccomp]
		if p == nil {
			p = new(specs.LinuxSeccomp)
			if err := readJSON(s.profilePath(stored.Seccomp), p); err != nil {
				return nil, err // without its profile nothing may be executed
			}
			s.remember(stored.Seccomp, p)
		}
		stored.Spec.Linux.Seccomp = p
	}
	for _, v := range stored.Env {
		stored.Spec.Process.Env = append(stored.Spec.Process.Env, string(v))
	}
	if len(s.specs) >= maxKnownSpecs {
		clear(s.specs)
	}
	s.specs[id] = stored.Spec
	return stored.Spec, nil
}

// moveEnv keeps an environment that JSON strings would change.
func (s *storedSpec) moveEnv() {
	p := s.Spec.Process
	if p == nil || !slices.ContainsFunc(p.Env, func(v string) bool { return !utf8.ValidString(v) }) {
		return
	}
	for _, v := range p.Env {
		s.Env = append(s.Env, []byte(v))
	}
	spec, process := *s.Spec, *p
	process.Env = nil
	spec.Process = &process
	s.Spec = &spec
}

// remove forgets a container; nil when it is not known.
func (s *specStore) remove(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.specs, id)
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func readJSON(path string, into any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// replaceFile writes a file that is whole or not there, should the daemon die. It need not
// survive the machine: what runs does not either.
func replaceFile(path string, text []byte) error {
	tmp := path + newSuffix
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
