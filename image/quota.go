package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Quota limits and counts what containers write, where the file system of their directories has project quotas: each
// directory is a project of its own. The number is kept by the directory itself, so a daemon that starts anew finds out
// which are taken by looking.
type Quota struct {
	root *os.File
	mu   sync.Mutex
	used map[uint32]bool
}

// Projects are numbered from here on: above those that administrators and other programs (the kubelet: from 1048577 on) give.
const firstProject = 1 << 30

// projects is how many there can be.
const projects = 1 << 20

// Limit is what a directory may take; 0 is no limit.
type Limit struct{ Bytes, Inodes uint64 }

// OpenQuota takes up the directories below those named; the first is where new ones are made. The error matches
// errors.ErrUnsupported and says why where the file system has no project quotas.
func OpenQuota(dirs ...string) (_ *Quota, err error) {
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	root, err := os.Open(dirs[0])
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			root.Close()
		}
	}()
	if err := sys.ProjectQuotas(root); err != nil {
		return nil, err
	}
	q := &Quota{root: root, used: map[uint32]bool{}}
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			id, err := q.project(filepath.Join(d, e.Name()))
			if err != nil {
				return nil, err
			}
			if id != 0 {
				q.used[id] = true
			}
		}
	}
	return q, q.dropStale()
}

// dropStale takes the limits from projects of ours that have no directory any more: their daemon died in between.
func (q *Quota) dropStale() error {
	for id := uint32(firstProject); id < firstProject+projects; id++ {
		next, u, ok, err := sys.NextProject(q.root, id)
		if err != nil {
			return err
		}
		if !ok || next >= firstProject+projects {
			return nil
		}
		id = next
		if !q.used[id] && u.Inodes == 0 && (u.MaxBytes > 0 || u.MaxInodes > 0) {
			if err := sys.SetProjectLimit(q.root, id, 0, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close lets go; limits stay.
func (q *Quota) Close() error { return q.root.Close() }

// project is that of a directory; 0 where it has none, or is not there.
func (q *Quota) project(dir string) (uint32, error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|sys.OpenDirectory|sys.OpenNoFollow, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	id, err := sys.Project(f)
	if id < firstProject || id >= firstProject+projects {
		id = 0 // somebody else's
	}
	return id, err
}

// Assign makes an empty directory a project with a number that nothing on the file system has, and limits it; without limits
// what it takes is counted. The directory itself is one of its inodes.
func (q *Quota) Assign(dir string, limit Limit) error {
	f, err := os.OpenFile(dir, os.O_RDONLY|sys.OpenDirectory|sys.OpenNoFollow, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// Numbers that others have, or that deleted files are still counted for (xfs counts later), are asked for again the next
	// time.
	var taken []uint32
	defer func() {
		for _, id := range taken {
			q.free(id)
		}
	}()
	for {
		id, err := q.take()
		if err != nil {
			return err
		}
		if err = q.assign(f, id, limit); err == nil {
			return nil
		}
		taken = append(taken, id)
		if !errors.Is(err, errTaken) {
			return err
		}
	}
}

var errTaken = errors.New("the project belongs to somebody else")

func (q *Quota) assign(dir *os.File, id uint32, limit Limit) error {
	u, err := sys.ProjectQuota(q.root, id)
	if err != nil {
		return err
	}
	if u.Inodes > 0 || u.Bytes > 0 {
		return errTaken
	}
	if err := sys.SetProject(dir, id); err != nil {
		return err
	}
	// Another daemon on the same file system may have had the same thought.
	if u, err = sys.ProjectQuota(q.root, id); err != nil {
		return err
	}
	if u.Inodes > 1 {
		return errTaken
	}
	return sys.SetProjectLimit(q.root, id, limit.Bytes, limit.Inodes)
}

func (q *Quota) take() (uint32, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id := uint32(firstProject); id < firstProject+projects; id++ {
		if !q.used[id] {
			q.used[id] = true
			return id, nil
		}
	}
	return 0, fmt.Errorf("all %d projects of %s are taken", projects, q.root.Name())
}

func (q *Quota) free(id uint32) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.used, id)
}

// Limit changes the limits of a directory that is a project.
func (q *Quota) Limit(dir string, limit Limit) error {
	id, err := q.project(dir)
	if err != nil {
		return err
	}
	if id == 0 {
		return fmt.Errorf("limit of %s: it is no project: %w", dir, ErrNotFound)
	}
	return sys.SetProjectLimit(q.root, id, limit.Bytes, limit.Inodes)
}

// Usage tells what a directory takes without looking at its files; false where it is no project, since it is older than the
// quotas.
func (q *Quota) Usage(dir string) (bytes, inodes uint64, ok bool, err error) {
	id, err := q.project(dir)
	if err != nil || id == 0 {
		return 0, 0, false, err
	}
	u, err := sys.ProjectQuota(q.root, id)
	return u.Bytes, u.Inodes, err == nil, err
}

// Remove deletes a directory and gives its number back. Files that a process still has open keep the number from being used
// again until they are closed.
func (q *Quota) Remove(dir string) error {
	id, err := q.project(dir)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil || id == 0 {
		return err
	}
	err = sys.SetProjectLimit(q.root, id, 0, 0)
	q.free(id)
	return err
}

// LayerUsage is what a container's directory takes: as its quota says, or as its files add up.
func LayerUsage(ctx context.Context, q *Quota, dir string) (bytes, inodes uint64, err error) {
	if q != nil {
		bytes, inodes, ok, err := q.Usage(dir)
		if ok || err != nil {
			return bytes, inodes, err
		}
	}
	return DirUsage(ctx, dir)
}
