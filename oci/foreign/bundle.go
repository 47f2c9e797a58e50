package foreign

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// A Bundle is the folder that a runtime makes a container from: config.json, the root file system, volumes, and a folder
// for the files of each launch. It exists from the start of a container until it has ended.
type Bundle string

// Rootfs is where the root file system is mounted.
func (b Bundle) Rootfs() string { return filepath.Join(string(b), "rootfs") }

// Volume is where the n-th volume is mounted.
func (b Bundle) Volume(n int) string { return filepath.Join(string(b), "volumes", strconv.Itoa(n)) }

// PIDLink is a link to the PID namespace that the container joins; the supervisor makes it.
func (b Bundle) PIDLink() string { return filepath.Join(string(b), "pid-namespace") }

// Make makes the folder and mounts the root and the volumes. What an earlier start has left goes first; on an error
// nothing is left.
func (b Bundle) Make(root *os.File, volumes []*os.File) (err error) {
	if err := b.Remove(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("bundle: %w", err), b.Remove())
		}
	}()
	// Root's alone: its name is in everybody's /proc/self/mountinfo, and the container's set-user-ID programs are in it.
	if err := os.Mkdir(string(b), 0o700); err != nil {
		return err
	}
	if err := attach(root, b.Rootfs()); err != nil {
		return err
	}
	for n, f := range volumes {
		if err := attach(f, b.Volume(n)); err != nil {
			return err
		}
	}
	return nil
}

// OpenTo lets a group through to what is in the bundle: the root of a user namespace, with whose rights the runtime mounts.
func (b Bundle) OpenTo(gid uint32) error {
	return errors.Join(os.Chown(string(b), -1, int(gid)), os.Chmod(string(b), 0o710))
}

func attach(mount *os.File, at string) error {
	if err := os.MkdirAll(at, 0o711); err != nil {
		return err
	}
	return sys.AttachMount(mount, at)
}

// Configure writes config.json.
func (b Bundle) Configure(spec *specs.Spec) error {
	return writeJSON(filepath.Join(string(b), "config.json"), spec)
}

// Launch makes the folder for the files of a launch.
func (b Bundle) Launch() (dir string, err error) { return os.MkdirTemp(string(b), "launch-") }

// Exec makes the folder for an exec, with the process in it.
func (b Bundle) Exec(p *specs.Process) (dir, process string, err error) {
	if dir, err = b.Launch(); err != nil {
		return "", "", err
	}
	process = filepath.Join(dir, "process.json")
	if err := writeJSON(process, p); err != nil {
		return "", "", errors.Join(err, os.RemoveAll(dir))
	}
	return dir, process, nil
}

// File keeps the content of a file that a container is to have, and returns its path.
func (b Bundle) File(n int, content []byte) (string, error) {
	dir := filepath.Join(string(b), "files")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	path := filepath.Join(dir, strconv.Itoa(n))
	return path, os.WriteFile(path, content, 0o644)
}

// Exists says whether there is something to be removed.
func (b Bundle) Exists() bool {
	_, err := os.Lstat(string(b))
	return !errors.Is(err, fs.ErrNotExist)
}

// Remove unmounts what is mounted and deletes the folder; nil when gone.
func (b Bundle) Remove() error {
	mounted := []string{b.Rootfs()}
	volumes, err := os.ReadDir(filepath.Join(string(b), "volumes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, v := range volumes {
		mounted = append(mounted, filepath.Join(string(b), "volumes", v.Name()))
	}
	for _, at := range mounted {
		if err := sys.UnmountDetach(at); err != nil {
			return err
		}
		// Not RemoveAll: it must fail, and touch nothing, where something is still mounted.
		if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.RemoveAll(string(b))
}

func writeJSON(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}
