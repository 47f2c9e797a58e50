package gpu

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// TestCheckFinds: each fault of a node is found and named, and none is found where there is none.
func TestCheckFinds(t *testing.T) {
	const v = testtools.FakeNVIDIAVersion
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(t *testing.T, root, name, text string) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(root, name), []byte(text), 0o644))
	}
	lib := "usr/lib/x86_64-linux-gnu/libcuda.so."
	cdiFile := func(kind, device, edits string) string {
		return fmt.Sprintf(`{"cdiVersion": "0.6.0", "kind": %q, "devices": [{"name": %q, "containerEdits": {%s}}]}`, kind, device, edits)
	}
	for name, tc := range map[string]struct {
		root  bool // needs device nodes
		spoil func(t *testing.T, root string)
		want  []string
	}{
		"nothing": {true, func(*testing.T, string) {}, nil},
		"library of another version": {false, func(t *testing.T, root string) { must(t, os.Remove(filepath.Join(root, lib+v))) },
			[]string{"the kernel module is " + v, "is of 535.104.05", "install the libraries"}},
		"no library": {false, func(t *testing.T, root string) {
			must(t, os.Remove(filepath.Join(root, lib+v)))
			must(t, os.Remove(filepath.Join(root, lib+"535.104.05")))
		}, []string{"no libcuda.so." + v + " was found below", "gpu_driver_root"}},
		"uvm not loaded": {false, func(t *testing.T, root string) {
			write(t, root, "proc/devices", "Character devices:\n195 nvidia\n195 nvidiactl\n195 nvidia-modeset\n234 nvidia-caps\n")
			must(t, os.RemoveAll(filepath.Join(root, "dev/nvidia-uvm")))
			must(t, os.RemoveAll(filepath.Join(root, "dev/nvidia-uvm-tools")))
		}, []string{"nvidia-uvm is not loaded", "modprobe nvidia-uvm"}},
		"node missing": {true, func(t *testing.T, root string) { must(t, os.Remove(filepath.Join(root, "dev/nvidia1"))) },
			[]string{"/dev/nvidia1 is not on the host", "nvidia-modprobe"}},
		"node of another device": {true, func(t *testing.T, root string) {
			must(t, os.Remove(filepath.Join(root, "dev/nvidia1")))
			testtools.MakeNode(t, filepath.Join(root, "dev/nvidia1"), 1, 3)
		}, []string{"dev/nvidia1 is device 1:3", "195:1"}},
		"permissions": {true, func(t *testing.T, root string) { must(t, os.Chmod(filepath.Join(root, "dev/nvidia0"), 0o660)) },
			[]string{"dev/nvidia0 has the mode 0660", "not root"}},
		"excluded": {false, func(t *testing.T, root string) {
			at := "proc/driver/nvidia/gpus/0000:17:00.0/information"
			b, err := os.ReadFile(filepath.Join(root, at))
			must(t, err)
			write(t, root, at, strings.Replace(string(b), "GPU Excluded:\t No", "GPU Excluded:\t Yes", 1))
		}, []string{"GPU 0 (0000:17:00.0) is excluded"}},
		"no GPU": {false, func(t *testing.T, root string) { must(t, os.RemoveAll(filepath.Join(root, "proc/driver/nvidia/gpus"))) },
			[]string{"is loaded and has no GPU"}},
		"broken CDI file": {false, func(t *testing.T, root string) { write(t, root, "etc/cdi/b.json", "{") }, []string{"etc/cdi/b.json"}},
		"conflict": {false, func(t *testing.T, root string) {
			write(t, root, "etc/cdi/a.json", cdiFile("v.com/c", "x", `"env": ["A=1"]`))
			write(t, root, "etc/cdi/b.json", cdiFile("v.com/c", "x", `"env": ["A=2"]`))
		}, []string{"v.com/c=x is defined by", "a.json and", "b.json"}},
		"CDI file without its files": {false, func(t *testing.T, root string) {
			write(t, root, "etc/cdi/a.json", cdiFile("v.com/c", "x", `"mounts": [{"hostPath": "/not/there", "containerPath": "/x"}],
				"hooks": [{"hookName": "createContainer", "path": "/no/hook"}], "deviceNodes": [{"path": "/dev/not-there"}]`))
		}, []string{"mount /x", "/not/there", "createContainer hook", "/no/hook", "/dev/not-there"}},
		"CDI file of another driver": {false, func(t *testing.T, root string) {
			at := filepath.Join(root, lib+"535.104.05")
			write(t, root, "etc/cdi/nvidia.json", cdiFile("nvidia.com/gpu", "0", fmt.Sprintf(`"mounts": [{"hostPath": %q, "containerPath": "/x"}]`, at)))
		}, []string{"nvidia.json", "is of driver 535.104.05; the kernel module is " + v, "nvidia-ctk cdi generate"}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.root && os.Geteuid() != 0 {
				t.Skip("needs root: makes device nodes")
			}
			r, root := fakeNode(t)
			if os.Geteuid() == 0 { // the driver's own numbers, so that nothing is wrong; nobody opens them
				for node, number := range map[string][2]uint32{
					"nvidia0": {195, 0}, "nvidia1": {195, 1}, "nvidia2": {195, 2}, "nvidiactl": {195, 255}, "nvidia-modeset": {195, 254},
					"nvidia-uvm": {510, 0}, "nvidia-uvm-tools": {510, 1},
				} {
					must(t, os.RemoveAll(filepath.Join(root, "dev", node)))
					testtools.MakeNode(t, filepath.Join(root, "dev", node), number[0], number[1])
				}
			}
			tc.spoil(t, root)
			report, err := r.Report()
			must(t, err)
			got := fmt.Sprint(report.Problems)
			for _, want := range tc.want {
				if !strings.Contains(got, want) {
					t.Errorf("problems = %s; want %q", got, want)
				}
			}
			if tc.want == nil && len(report.Problems) > 0 {
				t.Errorf("problems = %s; want none", got)
			}
		})
	}
}
