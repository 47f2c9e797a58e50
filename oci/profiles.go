package oci

import (
	"fmt"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/oci/seccomp"
)

// maxProfiles bounds the default profiles that are kept: a node has a handful of capability sets.
const maxProfiles = 64

// profiles makes the seccomp profiles of a node and compiles them, each once. It is safe for concurrent use.
type profiles struct {
	cache *seccomp.Cache
	// node is the administrator's profile for runtime/default; nil is the built-in one.
	node []byte

	mu       sync.Mutex
	defaults map[string]*specs.LinuxSeccomp // by capabilities
	// filters of the profiles in defaults, so that a start need not even hash one.
	filters map[*specs.LinuxSeccomp]*Filter
}

func newProfiles() *profiles {
	return &profiles{
		cache:    seccomp.NewCache(),
		defaults: map[string]*specs.LinuxSeccomp{},
		filters:  map[*specs.LinuxSeccomp]*Filter{},
	}
}

// Default is the node's profile for runtime/default. Equal sets share one.
func (p *profiles) Default(caps []string) (*specs.LinuxSeccomp, error) {
	key := strings.Join(caps, ",")
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.defaults[key]; s != nil {
		return s, nil
	}
	s, err := p.makeDefault(caps)
	if err != nil {
		return nil, err
	}
	if len(p.defaults) >= maxProfiles {
		clear(p.defaults)
		clear(p.filters)
	}
	p.defaults[key] = s
	return s, nil
}

func (p *profiles) makeDefault(caps []string) (*specs.LinuxSeccomp, error) {
	if p.node != nil {
		return seccomp.Load(p.node, caps)
	}
	return seccomp.Default(caps)
}

// useForDefault makes the profile in a file the one for runtime/default. It is compiled once, so that a
// mistake in it is known before a container needs it.
func (p *profiles) useForDefault(path string) error {
	body, err := seccomp.ReadFile(path)
	if err != nil {
		return err
	}
	s, err := seccomp.Load(body, nil)
	if err == nil {
		_, err = p.cache.Compile(s)
	}
	if err != nil {
		return fmt.Errorf("%w (in %s)", err, path)
	}
	p.node = body
	return nil
}

// Localhost reads a file, every time: it may have been changed.
func (p *profiles) Localhost(path string, caps []string) (*specs.LinuxSeccomp, error) {
	return seccomp.LoadFile(path, caps)
}

// compile is Options.Seccomp.
func (p *profiles) compile(s *specs.LinuxSeccomp) (*Filter, error) {
	p.mu.Lock()
	f := p.filters[s]
	p.mu.Unlock()
	if f != nil {
		return f, nil
	}
	c, err := p.cache.Compile(s)
	if err != nil {
		return nil, err
	}
	f = &Filter{Program: c.Program, Flags: c.Flags}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, d := range p.defaults {
		if d == s {
			p.filters[s] = f
		}
	}
	return f, nil
}

// CompileSeccomp compiles one profile, for Options.Seccomp of a program that prepares no more than one container.
func CompileSeccomp(s *specs.LinuxSeccomp) (*Filter, error) { return newProfiles().compile(s) }
