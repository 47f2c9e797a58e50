package seccomp

import (
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/singleflight"
)

// cacheSize bounds a [Cache]. A node has a handful of profiles times a handful of
// capability sets; a filter is a few KiB.
const cacheSize = 256

// Cache compiles each profile once. It is safe for concurrent use: callers that
// ask for a profile while it is being compiled wait for that one compilation.
type Cache struct {
	flight  singleflight.Group
	compile func(p *specs.LinuxSeccomp, hash string) (*Filter, error)

	mu      sync.Mutex
	filters map[string]*cached
	clock   uint64 // counts lookups, to find the filter unused for longest
}

type cached struct {
	filter *Filter
	used   uint64
}

// NewCache returns an empty cache.
func NewCache() *Cache {
	return &Cache{compile: compileHashed, filters: make(map[string]*cached)}
}

// Compile is [Compile] for a profile that may have been compiled before. Profiles
// with equal JSON share one filter, which the caller must not change. Errors
// are not kept.
func (c *Cache) Compile(p *specs.LinuxSeccomp) (*Filter, error) {
	hash, err := hashProfile(p)
	if err != nil {
		return nil, err
	}
	if f := c.lookup(hash); f != nil {
		return f, nil
	}
	v, err, _ := c.flight.Do(hash, func() (any, error) {
		// A flight may have landed between the lookup and this one's start.
		if f := c.lookup(hash); f != nil {
			return f, nil
		}
		f, err := c.compile(p, hash)
		if err != nil {
			return nil, err
		}
		c.store(hash, f)
		return f, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*Filter), nil
}

func (c *Cache) lookup(hash string) *Filter {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.filters[hash]
	if e == nil {
		return nil
	}
	c.clock++
	e.used = c.clock
	return e.filter
}

func (c *Cache) store(hash string, f *Filter) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.filters) >= cacheSize {
		oldest := ""
		for h, e := range c.filters {
			if oldest == "" || e.used < c.filters[oldest].used {
				oldest = h
			}
		}
		delete(c.filters, oldest)
	}
	c.clock++
	c.filters[hash] = &cached{f, c.clock}
}
