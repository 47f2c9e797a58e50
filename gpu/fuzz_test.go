package gpu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// FuzzReadLibrary: a file in a library folder of the node, which an installer or a container of an operator's has put there.
func FuzzReadLibrary(f *testing.F) {
	f.Add(testtools.SharedObject("libcuda.so.1"))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		at := filepath.Join(t.TempDir(), "lib.so")
		if err := os.WriteFile(at, b, 0o644); err != nil {
			t.Fatal(err)
		}
		if l, ok := readLibrary(at); ok && (l.Soname == "" || strings.Contains(l.Soname, "/")) {
			t.Errorf("soname %q", l.Soname)
		}
	})
}

// FuzzSpecFile: a CDI specification is an error that is kept with its file, or its devices can be asked for.
func FuzzSpecFile(f *testing.F) {
	f.Add([]byte(`{"cdiVersion":"0.6.0","kind":"vendor.com/class","devices":[{"name":"d","containerEdits":{"env":["A=1"],
"deviceNodes":[{"path":"/dev/null","hostPath":"/dev/null","permissions":"rw"}],"mounts":[{"hostPath":"/a","containerPath":"/b","options":["ro","bind"]}],
"hooks":[{"hookName":"createContainer","path":"/h","args":["h"]}]}}],"containerEdits":{"additionalGids":[1],"intelRdt":{"closID":"a"}}}`))
	f.Add([]byte("cdiVersion: 0.5.0\nkind: a.b/c\ndevices:\n- name: \"0\"\n  containerEdits: {env: [x=y]}\n"))
	r, root := fakeNode(f)
	at := filepath.Join(root, "etc/cdi/fuzz.json")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(at, b, 0o644); err != nil {
			t.Fatal(err)
		}
		file := (&specFiles{}).load(at, 0)
		if file == nil || file.err != nil {
			return
		}
		for _, d := range file.spec.Devices {
			name := file.spec.GetDevice(d.Name).GetQualifiedName()
			in, err := r.Inject(testSpec(), Request{Names: []string{name}})
			if err == nil && in == nil {
				t.Errorf("Inject(%q) = nil", name)
			}
		}
	})
}
