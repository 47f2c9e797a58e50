// Package checkpoint writes archives of checkpointed containers in the form that podman began, that containerd and CRI-O
// write, and that checkpointctl shows.
package checkpoint

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Entries of an archive.
const (
	ConfigFile  = "config.dump"
	SpecFile    = "spec.dump"
	StatusFile  = "status"
	NetworkFile = "network.status"
	ImagesDir   = "checkpoint"
	DiffFile    = "rootfs-diff.tar"
	DeletedFile = "deleted.files"
	StatsFile   = "stats-dump"
)

// Config is config.dump.
type Config struct {
	ID             string    `json:"id"`
	Name           string    `json:"name"`
	RootfsImage    string    `json:"rootfsImage,omitempty"`
	RootfsImageRef string    `json:"rootfsImageRef,omitempty"`
	RootfsName     string    `json:"rootfsImageName,omitempty"`
	Runtime        string    `json:"runtime,omitempty"`
	CreatedTime    time.Time `json:"createdTime"`
	CheckpointedAt time.Time `json:"checkpointedTime"`
	RestoredAt     time.Time `json:"restoredTime"`
	Restored       bool      `json:"restored"`
}

// Status is containerd's status file; times are nanoseconds since 1970.
type Status struct {
	CreatedAt  int64
	StartedAt  int64
	FinishedAt int64
	ExitCode   int32
	Pid        uint32
	Reason     string
	Message    string
}

// Network is one network of network.status.
type Network struct {
	Interfaces map[string]Interface `json:"interfaces"`
}

// Interface is one of a pod's.
type Interface struct {
	Subnets    []Subnet `json:"subnets"`
	MACAddress string   `json:"mac_address,omitempty"`
}

// Subnet is an address.
type Subnet struct {
	IPNet   string `json:"ipnet"`
	Gateway string `json:"gateway,omitempty"`
}

// Content is what an archive is made of.
type Content struct {
	JSON  map[string]any    // by the name of an entry
	Dirs  map[string]string // folders of the host by the name of an entry
	Files map[string]string // files of the host; those that are missing are left out
	// Upper is the container's writable layer; "" is none.
	Upper string
}

// Write makes the archive: a whole one at path, mode 0600, or none. The difference of the root file system is collected in
// the folder work first.
func Write(path, work string, c Content) (err error) {
	if c.Upper != "" {
		diff := filepath.Join(work, DiffFile)
		deleted, err := writeDiff(diff, c.Upper)
		if err != nil {
			return fmt.Errorf("difference of the root file system: %w", err)
		}
		c.Files[DiffFile] = diff
		c.JSON[DeletedFile] = deleted
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, tmp.Close())
		if err == nil {
			err = os.Rename(tmp.Name(), path)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(tmp.Name()))
		}
	}()
	w := tar.NewWriter(tmp)
	if err := writeAll(w, c); err != nil {
		return err
	}
	return w.Close()
}

func writeAll(w *tar.Writer, c Content) error {
	for name, v := range c.JSON {
		text, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(text)), ModTime: time.Now()}); err != nil {
			return err
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
	}
	for name, from := range c.Files {
		if err := addFile(w, name, from); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for name, from := range c.Dirs {
		if err := addDir(w, name, from); err != nil {
			return err
		}
	}
	return nil
}

func addDir(w *tar.Writer, name, from string) error {
	if err := w.WriteHeader(&tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o700, ModTime: time.Now()}); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue // criu's links to other images
		}
		if err := addFile(w, name+"/"+e.Name(), filepath.Join(from, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func addFile(w *tar.Writer, name, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: fi.Size(), ModTime: fi.ModTime()}); err != nil {
		return err
	}
	_, err = io.Copy(w, io.LimitReader(f, fi.Size()))
	return err
}
