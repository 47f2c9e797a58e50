package container

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzLoad: whatever is in a container's folder, what is loaded is that container and names a group of its own.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"id":"a","bundle":"/b","cgroup_path":"/a","pid":1,"pid_start":2,"creator":3}`), []byte(`{"ociVersion":"1.0.2"}`))
	f.Add([]byte(`{"id":"../a","cgroup_path":"/"}`), []byte(`{"process":null}`))
	f.Add([]byte(`{"id":"a","cgroup_path":"/../x"}`), []byte(`{`))
	f.Add([]byte(`{"id":"a","cgroup_path":"a.slice:b:c"}`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, state, config []byte) {
		rt := &Runtime{Root: t.TempDir(), Warn: func(error) {}}
		dir := filepath.Join(rt.Root, "a")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{recordFile: state, configFile: config} {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := rt.Load("a")
		if err != nil {
			return
		}
		if c.ID != "a" || c.dir != dir || checkGroup(c.CgroupPath) != nil {
			t.Errorf("Load took %s: %+v", state, c.record)
		}
		if spec, err := c.Spec(); err == nil && spec.Process != nil {
			ExecProcess(spec, []string{"true"})
		}
	})
}

// FuzzCheckID: an ID is the name of a folder directly below the root.
func FuzzCheckID(f *testing.F) {
	for _, id := range []string{"a", "..", "a/../b", "a\n", "é", "", "-rf", "a.b+c_d"} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		if CheckID(id) == nil && filepath.Dir(filepath.Join("/root", id)) != "/root" {
			t.Errorf("CheckID(%q) = nil", id)
		}
	})
}
