package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cri-shim/cri-shim/internal/atomicfile"
)

// records are the JSON files of one kind of object, one file an object, in one folder.
// They are replaced atomically and not synced: a record that a power cut took
// is a pod that the reboot took too.
type records[T any] struct{ dir string }

func (r records[T]) path(id string) string { return filepath.Join(r.dir, id+".json") }

func (r records[T]) save(id string, v *T) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("record %s: %w", r.path(id), err)
	}
	return atomicfile.Write(r.path(id), append(data, '\n'), 0o600)
}

// remove is nil when the record is gone already.
func (r records[T]) remove(id string) error {
	err := os.Remove(r.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// BadRecord is a record that could not be read. It costs its object and nothing else.
type BadRecord struct {
	Path string
	Err  error
}

// load reads every record. One that cannot be read, or whose ID is not its file's
// name, is reported and left where it is.
func (r records[T]) load(id func(*T) string) (all []*T, bad []BadRecord, err error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, nil, err
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !e.Type().IsRegular() {
			continue
		}
		v := new(T)
		path := r.path(name)
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, v)
		}
		if err == nil && id(v) != name {
			err = fmt.Errorf("id: %q is not the file's name", id(v))
		}
		if err != nil {
			bad = append(bad, BadRecord{Path: path, Err: err})
			continue
		}
		all = append(all, v)
	}
	return all, bad, nil
}
