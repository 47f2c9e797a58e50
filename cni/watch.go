package cni

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	settle     = 20 * time.Millisecond // of quiet after a change, before it is read
	settleMost = 200 * time.Millisecond
	rewatch    = 2 * time.Second // after the watcher failed
)

// watch follows the configuration folder, also where it is made, replaced or removed later, by itself or with
// a folder above it, or reached through links that change.
func (n *Networks) watch(ctx context.Context) {
	failed := ""
	for ctx.Err() == nil {
		err := n.watchChain(ctx)
		if err == nil {
			continue // the folders have changed
		}
		if err.Error() != failed {
			failed = err.Error()
			n.log.Warn("network configuration is not watched, only looked at now and then", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(rewatch):
			n.reload()
		}
	}
}

// chain is what a path leads through.
type chain struct {
	parents []string          // existing folders on the way
	leaves  []string          // the folder that the path leads to, and those in it; empty while it is not there
	steps   map[string]fileID // what is at each name that is looked up; the zero fileID where nothing is
}

type fileID struct {
	dev, ino uint64
	mode     os.FileMode
	target   string // of a link
}

// resolveChain follows path as the kernel would.
func resolveChain(path string) chain {
	c := chain{steps: map[string]fileID{}}
	todo := splitPath(path)
	cur := "/"
	for links := 0; len(todo) > 0; {
		if !slices.Contains(c.parents, cur) {
			c.parents = append(c.parents, cur)
		}
		step := filepath.Join(cur, todo[0]) // ".." is right here, because cur has no links in it
		todo = todo[1:]
		id := idOf(step)
		c.steps[step] = id
		switch {
		case id.mode&os.ModeSymlink != 0:
			if links++; links > 40 {
				return c // as the kernel's ELOOP
			}
			if filepath.IsAbs(id.target) {
				cur = "/"
			}
			todo = append(splitPath(id.target), todo...)
		case id.mode.IsDir():
			cur = step
		default:
			return c
		}
	}
	c.leaves = []string{cur}
	entries, err := os.ReadDir(cur)
	if err != nil {
		return c
	}
	for _, e := range entries {
		if e.IsDir() { // may be a network's folder of plugins (CNI 1.1)
			sub := filepath.Join(cur, e.Name())
			c.leaves = append(c.leaves, sub)
			c.steps[sub] = idOf(sub)
		}
	}
	return c
}

func splitPath(path string) []string {
	return strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
}

func idOf(path string) fileID {
	fi, err := os.Lstat(path)
	if err != nil {
		return fileID{}
	}
	id := fileID{mode: fi.Mode().Type()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		id.dev, id.ino = uint64(st.Dev), st.Ino
	}
	if id.mode&os.ModeSymlink != 0 {
		id.target, _ = os.Readlink(path)
	}
	return id
}

func (c chain) same(d chain) bool {
	return slices.Equal(c.parents, d.parents) && slices.Equal(c.leaves, d.leaves) && maps.Equal(c.steps, d.steps)
}

// concerns tells whether a change of the file name may change the configuration.
func (c chain) concerns(name string) bool {
	_, step := c.steps[name]
	return step || slices.Contains(c.leaves, filepath.Dir(name)) ||
		slices.Contains(c.leaves, name) || slices.Contains(c.parents, name)
}

// watchChain returns nil when the folders are no longer those that are watched, or ctx ended.
func (n *Networks) watchChain(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", n.cfg.ConfDir, err)
	}
	defer w.Close()
	c := resolveChain(n.cfg.ConfDir)
	for _, dir := range slices.Concat(c.parents, c.leaves) {
		if err := w.Add(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	for {
		// The first time for what changed before the watches were there.
		n.reload()
		if !c.same(resolveChain(n.cfg.ConfDir)) {
			return nil
		}
		if err := waitChange(ctx, w, c); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// waitChange waits for changes that concern c, and until they pause.
func waitChange(ctx context.Context, w *fsnotify.Watcher, c chain) error {
	var quiet, most <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-quiet:
			return nil
		case <-most:
			return nil
		case ev, ok := <-w.Events:
			if !ok {
				return errors.New("the watcher has ended")
			}
			if !c.concerns(ev.Name) {
				continue
			}
		case err, ok := <-w.Errors:
			if !ok {
				return errors.New("the watcher has ended")
			}
			if !errors.Is(err, fsnotify.ErrEventOverflow) { // events are lost: look at everything
				return fmt.Errorf("the watcher: %w", err)
			}
		}
		quiet = time.After(settle)
		if most == nil {
			most = time.After(settleMost)
		}
	}
}
