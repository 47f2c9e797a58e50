package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// imageFile is a layer's EROFS image. It has the directories fs and, if need be, replaced, as the layer else would.
const imageFile = "image.erofs"

// treeIdle is how long a layer's image stays mounted for nobody. What containers have mounted of it is theirs, and does not
// end with that; but another mount of the same image would not share its page cache.
const treeIdle = 5 * time.Minute

// treeCache are the mounts of layers that are EROFS images. They are attached nowhere: a descriptor is all there is.
type treeCache struct {
	mu     sync.Mutex
	m      map[digest.Digest]*imageMount
	idle   time.Duration
	timer  *time.Timer // runs, or nil
	held   func() map[digest.Digest]bool
	closed bool
}

// imageMount is one of them. What is open below it can be mounted only as long as it is open itself.
type imageMount struct {
	ready chan struct{} // closed when mounting it has ended
	err   error
	root  *os.File
	users int
	gone  bool // in the cache no more: the last user closes it
	last  time.Time
}

// get returns the mount of the layer, which mount makes if there is none; callers at the same time get the same. put gives
// it back.
func (c *treeCache) get(id digest.Digest, mount func() (*os.File, error)) (*imageMount, error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	m := c.m[id]
	if m != nil {
		m.users++
		c.mu.Unlock()
		<-m.ready
		if m.err != nil {
			return nil, m.err
		}
		return m, nil
	}
	m = &imageMount{ready: make(chan struct{}), users: 1}
	c.m[id] = m
	c.mu.Unlock()
	m.root, m.err = mount()
	close(m.ready)
	if m.err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.m[id] == m {
			delete(c.m, id)
		}
		return nil, m.err
	}
	return m, nil
}

func (c *treeCache) put(m *imageMount) {
	c.mu.Lock()
	m.users--
	m.last = time.Now()
	last := m.gone && m.users == 0
	if !m.gone {
		c.arm()
	}
	c.mu.Unlock()
	if last {
		m.root.Close()
	}
}

// add has the cache take a mount that was just made, unless somebody else was faster.
func (c *treeCache) add(id digest.Digest, root *os.File) {
	c.mu.Lock()
	taken := c.closed || c.m[id] != nil
	if !taken {
		m := &imageMount{ready: make(chan struct{}), root: root, last: time.Now()}
		close(m.ready)
		c.m[id] = m
		c.arm()
	}
	c.mu.Unlock()
	if taken {
		root.Close()
	}
}

// drop forgets the layer's mount: it is to be deleted, or was replaced. Nothing keeps a deleted image on the disk then but
// who uses it.
func (c *treeCache) drop(id digest.Digest) {
	c.mu.Lock()
	m := c.m[id]
	unused := m != nil && c.forget(id, m)
	c.mu.Unlock()
	if unused {
		m.root.Close()
	}
}

// forget takes m out and tells whether the caller is to close it. The caller holds mu.
func (c *treeCache) forget(id digest.Digest, m *imageMount) bool {
	delete(c.m, id)
	m.gone = true
	return m.users == 0 && m.root != nil
}

// arm has the cache looked at when something in it may be idle. The caller holds mu.
func (c *treeCache) arm() {
	if c.timer == nil && !c.closed && len(c.m) > 0 {
		c.timer = time.AfterFunc(c.idle, c.sweep)
	}
}

// released is called when containers have ended.
func (c *treeCache) released() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.arm()
}

// sweep closes the mounts that nobody has used for a while and whose layers no container has: mounts of the same image that
// are made at different times share no page cache.
func (c *treeCache) sweep() {
	held := c.held()
	c.mu.Lock()
	c.timer = nil
	var idle []*imageMount
	again := false
	for id, m := range c.m {
		if m.users > 0 || held[id] {
			continue // whose end calls arm
		}
		if time.Since(m.last) < c.idle {
			again = true
		} else if c.forget(id, m) {
			idle = append(idle, m)
		}
	}
	if again {
		c.arm()
	}
	c.mu.Unlock()
	for _, m := range idle {
		m.root.Close()
	}
}

// close closes all. Who still uses one closes it.
func (c *treeCache) close() {
	c.mu.Lock()
	c.closed = true
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	var idle []*imageMount
	for id, m := range c.m {
		if c.forget(id, m) {
			idle = append(idle, m)
		}
	}
	c.mu.Unlock()
	for _, m := range idle {
		m.root.Close()
	}
}

// tree is a directory of a layer, open for its name only.
type tree struct {
	*os.File
	release func() // of the mount that it is in
}

// Close gives it back.
func (t *tree) Close() error {
	err := t.File.Close()
	t.release()
	return err
}

// openTree opens what the layer is unpacked to, whatever its format. It can be mounted until it is closed.
func (s *Store) openTree(id digest.Digest, info *layerInfo) (*tree, error) {
	t, err := s.openTreeAs(id, info.Format)
	if errors.Is(err, os.ErrNotExist) {
		// A repair may have made another one of it just now.
		if other, oerr := s.openTreeAs(id, otherFormat(info.Format)); oerr == nil {
			return other, nil
		}
	}
	switch {
	case errors.Is(err, ErrDigest):
		return nil, fmt.Errorf("layer %s is damaged (cri-shim image verify --repair fetches it again): %w", id, err)
	case err != nil:
		return nil, fmt.Errorf("layer %s: %w", id, err)
	}
	return t, nil
}

func otherFormat(format string) string {
	if format == LayerErofs {
		return ""
	}
	return LayerErofs
}

func (s *Store) openTreeAs(id digest.Digest, format string) (*tree, error) {
	if format != LayerErofs {
		f, err := os.OpenFile(filepath.Join(s.layerDir(id), "fs"), sys.OpenPath|sys.OpenDirectory, 0)
		if err != nil {
			return nil, err
		}
		return &tree{f, func() {}}, nil
	}
	m, err := s.trees.get(id, func() (*os.File, error) { return mountImage(filepath.Join(s.layerDir(id), imageFile)) })
	if err != nil {
		return nil, err
	}
	f, err := openDirAt(m.root, "fs")
	if err != nil {
		s.trees.put(m)
		return nil, err
	}
	return &tree{f, func() { s.trees.put(m) }}, nil
}

// mountImage mounts an image anew: it shares nothing with other mounts of it.
func mountImage(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := sys.MountErofs(f)
	for _, damaged := range []error{syscall.EBADMSG, syscall.EUCLEAN, syscall.EINVAL} {
		if errors.Is(err, damaged) {
			return nil, fmt.Errorf("%w: %w", ErrDigest, err)
		}
	}
	return m, err
}

// heldLayers are those of images that containers have.
func (s *Store) heldLayers() map[digest.Digest]bool {
	held := map[digest.Digest]bool{}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, ids := range s.holds {
		for id := range ids {
			if r := s.images[id]; r != nil {
				for _, l := range r.layerIDs() {
					held[l] = true
				}
			}
		}
	}
	return held
}
