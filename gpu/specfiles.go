package gpu

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// specFiles are the CDI specifications in folders. Each use compares the files with what was read before, which takes some
// microseconds and is never late, as a notification can be: a device plugin writes its file and the kubelet
// asks for the container at once.
type specFiles struct {
	dirs []string // a later one has priority over an earlier one

	mu    sync.Mutex
	files map[string]*specFile
}

type specFile struct {
	stamp stamp
	spec  *cdi.Spec // nil with err
	err   error
}

// stamp is what changes when a file is written or replaced.
type stamp struct {
	size, inode uint64
	ctime       time.Time
}

// settled: a file that is older than this cannot be written again within the same tick of the kernel's clock.
const settled = 50 * time.Millisecond

func stampOf(fi os.FileInfo) (stamp, bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return stamp{}, false
	}
	at := time.Unix(st.Ctim.Unix())
	return stamp{uint64(st.Size), st.Ino, at}, time.Since(at) > settled
}

// refresh reads what is new, and returns all files in the order of their priority, the lowest first.
func (s *specFiles) refresh() (paths []string, files map[string]*specFile, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := make(map[string]*specFile, len(s.files))
	for priority, dir := range s.dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("CDI specifications: %w", err)
		}
		for _, e := range entries {
			at := filepath.Join(dir, e.Name())
			if ext := filepath.Ext(at); ext != ".json" && ext != ".yaml" || e.IsDir() {
				continue
			}
			if f := s.load(at, priority); f != nil {
				paths = append(paths, at)
				now[at] = f
			}
		}
	}
	s.files = now
	return paths, maps.Clone(now), nil
}

func (s *specFiles) load(at string, priority int) *specFile {
	fi, err := os.Stat(at)
	if errors.Is(err, fs.ErrNotExist) { // removed meanwhile, or a link that leads nowhere
		return nil
	}
	if err != nil {
		return &specFile{err: err}
	}
	mark, old := stampOf(fi)
	if f := s.files[at]; f != nil && f.stamp == mark {
		return f
	}
	f := &specFile{}
	if old {
		f.stamp = mark
	}
	if !fi.Mode().IsRegular() {
		f.err = errors.New("not a regular file")
		return f
	}
	f.spec, f.err = cdi.ReadSpec(at, priority)
	if errors.Is(f.err, fs.ErrNotExist) {
		return nil
	}
	return f
}

// catalog is what the files say at one moment.
type catalog struct {
	devices   map[string]*cdi.Device // by qualified name
	conflicts map[string][]string    // names that files of the same priority define, to the files
	kinds     map[string][]string    // kind to the files that define it
	errors    map[string]error       // files that cannot be used
}

func (s *specFiles) catalog() (*catalog, error) {
	paths, files, err := s.refresh()
	if err != nil {
		return nil, err
	}
	c := &catalog{
		devices: map[string]*cdi.Device{}, conflicts: map[string][]string{}, kinds: map[string][]string{}, errors: map[string]error{},
	}
	for _, at := range paths {
		f := files[at]
		if f.err != nil {
			c.errors[at] = f.err
			continue
		}
		c.kinds[f.spec.Kind] = append(c.kinds[f.spec.Kind], at)
		for i := range f.spec.Devices {
			d := f.spec.GetDevice(f.spec.Devices[i].Name)
			name := d.GetQualifiedName()
			old := c.devices[name]
			switch {
			case old == nil || old.GetSpec().GetPriority() < f.spec.GetPriority():
				c.devices[name] = d
				delete(c.conflicts, name)
			default: // the same priority: files come in the order of theirs
				if c.conflicts[name] == nil {
					c.conflicts[name] = []string{old.GetSpec().GetPath()}
				}
				c.conflicts[name] = append(c.conflicts[name], at)
			}
		}
	}
	return c, nil
}

// find returns a device; nil without an error where no file has its kind.
func (c *catalog) find(name string) (*cdi.Device, error) {
	if files := c.conflicts[name]; files != nil {
		return nil, fmt.Errorf("CDI device %q is defined by %s, which have the same priority", name, strings.Join(files, " and "))
	}
	if d := c.devices[name]; d != nil {
		return d, nil
	}
	kind, _, _ := strings.Cut(name, "=")
	if files := c.kinds[kind]; files != nil {
		return nil, c.withErrors(fmt.Errorf("CDI device %q is not in %s, which has %s", name, strings.Join(files, ", "), c.namesOf(kind)))
	}
	return nil, nil
}

// withErrors adds the files that cannot be used: the device may be in one of them.
func (c *catalog) withErrors(err error) error {
	for _, at := range slices.Sorted(maps.Keys(c.errors)) {
		err = fmt.Errorf("%w; %s: %w", err, at, c.errors[at])
	}
	return err
}

const shownNames = 20

// namesOf lists devices of a kind.
func (c *catalog) namesOf(kind string) string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(c.devices)) {
		if k, n, _ := strings.Cut(name, "="); k == kind {
			names = append(names, n)
		}
	}
	return listNames(names)
}

func listNames(names []string) string {
	if len(names) > shownNames {
		return strings.Join(names[:shownNames], ", ") + fmt.Sprintf(" and %d more", len(names)-shownNames)
	}
	return strings.Join(names, ", ")
}
