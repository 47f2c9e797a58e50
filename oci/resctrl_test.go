package oci

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// fakeResctrl is a folder with the files that the kernel would make.
func fakeResctrl(t *testing.T, classes ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, c := range append(classes, ".") {
		if err := os.MkdirAll(filepath.Join(root, c, "mon_groups"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{"tasks": "", "schemata": "    L3:0=00f;1=ff\n    MB:0=100\n"} {
			if err := os.WriteFile(filepath.Join(root, c, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

func TestResctrl(t *testing.T) {
	root := fakeResctrl(t, "gold")
	for name, tc := range map[string]struct {
		rdt   specs.LinuxIntelRdt
		tasks string
		err   string
	}{
		"class":            {specs.LinuxIntelRdt{ClosID: "gold"}, "gold/tasks", ""},
		"root class":       {specs.LinuxIntelRdt{ClosID: "/"}, "tasks", ""},
		"no class":         {specs.LinuxIntelRdt{ClosID: "tin"}, "tin/tasks", "there is no class"},
		"same schema":      {specs.LinuxIntelRdt{ClosID: "gold", Schemata: []string{"L3:0=f;1=0ff"}, MemBwSchema: "MB:0=100"}, "gold/tasks", ""},
		"another schema":   {specs.LinuxIntelRdt{ClosID: "gold", L3CacheSchema: "L3:0=1"}, "gold/tasks", "without L3:0=1"},
		"of its own":       {specs.LinuxIntelRdt{Schemata: []string{"L3:0=1"}}, "id/tasks", ""},
		"counted":          {specs.LinuxIntelRdt{EnableMonitoring: true}, "mon_groups/id/tasks", ""},
		"counted in class": {specs.LinuxIntelRdt{ClosID: "gold", EnableMonitoring: true}, "gold/mon_groups/id/tasks", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := parseResctrl(&tc.rdt, root, "id")
			if err != nil {
				t.Fatal(err)
			}
			if want := filepath.Join(root, tc.tasks); r.tasks() != want {
				t.Errorf("tasks = %s; want %s", r.tasks(), want)
			}
			err = r.make()
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("make = %v; want %q", err, tc.err)
			}
			// What the kernel removes with its directory.
			if err := os.RemoveAll(filepath.Join(root, "id", "schemata")); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := RemoveResctrl(root, "id"); err != nil {
					t.Errorf("remove = %v", err)
				}
			}
			for _, dir := range []string{"id", "mon_groups/id", "gold/mon_groups/id"} {
				if _, err := os.Stat(filepath.Join(root, dir)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is left behind: %v", dir, err)
				}
			}
		})
	}
	if err := (&resctrl{root: t.TempDir()}).make(); err == nil || !strings.Contains(err.Error(), "not mounted") {
		t.Errorf("make without resctrl = %v; want an error that says so", err)
	}
	s := minimalSpec()
	s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "gold"}
	m := mustCompile(t, s, Options{ResctrlRoot: root, CgroupTasks: []string{"/cg/tasks"}}).Message
	if want := []string{"/cg/tasks", filepath.Join(root, "gold/tasks")}; !slices.Equal(m.CgroupTasks, want) {
		t.Errorf("the init enters %q; want %q", m.CgroupTasks, want)
	}
}
