package gpu

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

func fakeNode(t testing.TB, change ...func(*Config)) (*Registry, string) {
	t.Helper()
	root := t.TempDir()
	testtools.FakeNVIDIA(t, root)
	cfg := Config{SpecDirs: []string{filepath.Join(root, "etc/cdi"), filepath.Join(root, "run/cdi")}, DeviceRoot: root, DriverRoot: root, State: filepath.Join(root, "state")}
	for _, f := range change {
		f(&cfg)
	}
	for _, dir := range cfg.SpecDirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return New(cfg), root
}

func testSpec(env ...string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Env: env}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
}

func paths(s *specs.Spec) (devices, mounts []string) {
	for _, d := range s.Linux.Devices {
		devices = append(devices, d.Path)
	}
	for _, m := range s.Mounts {
		mounts = append(mounts, m.Destination)
	}
	slices.Sort(devices)
	return devices, mounts
}

func TestDiscover(t *testing.T) {
	r, root := fakeNode(t)
	n, d, err := r.findNVIDIA()
	if err != nil {
		t.Fatal(err)
	}
	if n.Version != testtools.FakeNVIDIAVersion || !n.Open || len(n.GPUs) != 3 {
		t.Fatalf("found %+v; want an open driver %s with three GPUs", n, testtools.FakeNVIDIAVersion)
	}
	g := n.GPUs[2]
	if g.Index != 2 || g.PCI != "0000:ca:00.0" || g.NUMANode != 1 || g.Model != "NVIDIA Fake 2" || g.Minor != 2 || len(g.MIG) != 2 {
		t.Errorf("GPU 2 = %+v", g)
	}
	// The node of this capability is in nobody's /dev.
	want := Node{Path: "/dev/nvidia-caps/nvidia-cap31", Type: "c", Major: 234, Minor: 31, Mode: 292}
	if diff := cmp.Diff(want, g.MIG[1].Nodes[1]); diff != "" {
		t.Errorf("capability of MIG 1 (-want +got):\n%s", diff)
	}
	if i := slices.IndexFunc(n.Common, func(c Node) bool { return c.Path == "/dev/nvidia-uvm" }); i < 0 || n.Common[i].Major != 510 {
		t.Errorf("common nodes %+v; want nvidia-uvm with the major number of /proc/devices", n.Common)
	}
	var libs []string
	for _, l := range d.libraries([]string{CapCompute, CapUtility}) {
		libs = append(libs, l.Name)
	}
	v := "." + testtools.FakeNVIDIAVersion
	if diff := cmp.Diff([]string{"libcuda.so" + v, "libnvidia-ml.so" + v, "libnvidia-ptxjitcompiler.so" + v}, libs); diff != "" {
		t.Errorf("libraries (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"535.104.05"}, d.Others); diff != "" {
		t.Errorf("other versions (-want +got):\n%s", diff)
	}
	if err := os.RemoveAll(filepath.Join(root, "proc")); err != nil {
		t.Fatal(err)
	}
	if n, _, err := r.findNVIDIA(); n != nil || err != nil {
		t.Errorf("after the driver was taken away: %v, %v; want none", n, err)
	}
}

func TestInject(t *testing.T) {
	r, root := fakeNode(t)
	s := testSpec("A=1", "NVIDIA_VISIBLE_DEVICES=all")
	in, err := r.Inject(s, Request{Names: []string{"nvidia.com/gpu=2:1", "nvidia.com/gpu=2:1"}})
	if err != nil {
		t.Fatal(err)
	}
	devices, mounts := paths(s)
	want := []string{
		"/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31", "/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia2", "/dev/nvidiactl",
	}
	if diff := cmp.Diff(want, devices); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	v := "." + testtools.FakeNVIDIAVersion
	for _, p := range []string{LibraryDir, LibraryDir + "/libcuda.so" + v, "/usr/bin/nvidia-smi", "/lib/firmware/nvidia/" + testtools.FakeNVIDIAVersion + "/gsp_ga10x.bin"} {
		if !slices.Contains(mounts, p) {
			t.Errorf("mounts %q; want %s", mounts, p)
		}
	}
	if i, j := slices.Index(mounts, LibraryDir), slices.Index(mounts, LibraryDir+"/libcuda.so"+v); i > j {
		t.Errorf("mounts %q: the directory comes after what is in it", mounts)
	}
	if slices.Contains(mounts, LibraryDir+"/libnvidia-glcore.so"+v) || slices.Contains(mounts, "/usr/share/vulkan/icd.d/nvidia_icd.json") {
		t.Errorf("mounts %q: files of graphics, which nobody asked for", mounts)
	}
	if diff := cmp.Diff([]string{"A=1", "NVIDIA_VISIBLE_DEVICES=void"}, s.Process.Env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if len(s.Linux.Resources.Devices) != len(want) {
		t.Errorf("%d rules for %d devices", len(s.Linux.Resources.Devices), len(want))
	}
	files, err := in.Files(nil)
	if err != nil || string(files[LDConfPath]) != LibraryDir+"\n" {
		t.Errorf("Files = %q, %v; want the directory in %s", files, err, LDConfPath)
	}
	entries, err := parseLDCache(files[LDCachePath])
	if err != nil || !slices.Contains(entries, ldEntry{Key: "libcuda.so.1", Value: LibraryDir + "/libcuda.so.1", Flags: ldELFLibc6 | ldFlagX8664}) {
		t.Errorf("cache %+v, %v; want libcuda.so.1", entries, err)
	}
	view := s.Mounts[slices.Index(mounts, LibraryDir)].Source
	for link, want := range map[string]string{"libcuda.so.1": "libcuda.so" + v, "libcuda.so": "libcuda.so" + v} {
		if got, err := os.Readlink(filepath.Join(view, link)); got != want {
			t.Errorf("%s leads to %q, %v; want %s", link, got, err, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(root, "state", "new-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if in, err := r.Inject(testSpec("NVIDIA_VISIBLE_DEVICES=all"), Request{}); in != nil || err != nil {
		t.Errorf("an environment alone = %+v, %v; want nothing", in, err)
	}
}

func TestEnvironment(t *testing.T) {
	r, _ := fakeNode(t, func(c *Config) { c.TrustEnvironment = true })
	for env, want := range map[string]string{
		"": "", "none": "", "void": "", "0": "/dev/nvidia0", "all": "/dev/nvidia0 /dev/nvidia1 /dev/nvidia2",
		"GPU-00000001-1111-2222-3333-444444444444,2:0": "/dev/nvidia1 /dev/nvidia2",
	} {
		s := testSpec("NVIDIA_VISIBLE_DEVICES=" + env)
		if _, err := r.Inject(s, Request{}); err != nil {
			t.Fatal(err)
		}
		devices, _ := paths(s)
		devices = slices.DeleteFunc(devices, func(d string) bool { return len(d) != len("/dev/nvidia0") })
		if got := strings.Join(devices, " "); got != want {
			t.Errorf("NVIDIA_VISIBLE_DEVICES=%s gives %q; want %q", env, got, want)
		}
	}
	s := testSpec("NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_DRIVER_CAPABILITIES=graphics,bogus")
	if _, err := r.Inject(s, Request{}); err != nil {
		t.Fatal(err)
	}
	if _, mounts := paths(s); !slices.Contains(mounts, "/usr/share/vulkan/icd.d/nvidia_icd.json") || slices.Contains(mounts, "/usr/bin/nvidia-smi") {
		t.Errorf("with graphics alone: %q", mounts)
	}
}

func writeSpec(t *testing.T, dir, name, kind string, devices ...string) string {
	t.Helper()
	var list []string
	for _, d := range devices {
		list = append(list, fmt.Sprintf(`{"name": %q, "containerEdits": {"env": ["FROM=%s"]}}`, d, name))
	}
	at := filepath.Join(dir, name)
	text := fmt.Sprintf(`{"cdiVersion": "0.6.0", "kind": %q, "devices": [%s]}`, kind, strings.Join(list, ", "))
	// As vendors' tools do: never half a file.
	if err := os.WriteFile(at+".tmp", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(at+".tmp", at); err != nil {
		t.Fatal(err)
	}
	return at
}

// TestSpecFiles: priority, conflicts, changes; files win over what is found.
func TestSpecFiles(t *testing.T) {
	r, root := fakeNode(t)
	low, high := filepath.Join(root, "etc/cdi"), filepath.Join(root, "run/cdi")
	from := func(name string) string {
		t.Helper()
		s := testSpec()
		if _, err := r.Inject(s, Request{Names: []string{name}}); err != nil {
			return err.Error()
		}
		v, _ := lookupEnv(s.Process.Env, "FROM")
		return v
	}
	want := func(name, want string) {
		t.Helper()
		if got := from(name); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%s = %q; want %q", name, got, want)
		}
	}
	want("v.com/c=x", "nothing found on this node is of kind v.com/c")
	a := writeSpec(t, low, "a.json", "v.com/c", "x", "y")
	want("v.com/c=x", "a.json")
	writeSpec(t, low, "b.json", "v.com/c", "x")
	want("v.com/c=x", "a.json and "+filepath.Join(low, "b.json"))
	want("v.com/c=y", "a.json")
	writeSpec(t, high, "c.json", "v.com/c", "x")
	want("v.com/c=x", "c.json") // decides between the others too
	if err := os.Remove(filepath.Join(high, "c.json")); err != nil {
		t.Fatal(err)
	}
	writeSpec(t, low, "b.json", "v.com/c", "z")
	want("v.com/c=x", "a.json")
	want("v.com/c=w", a+", "+filepath.Join(low, "b.json")+", which has x, y, z")
	want("nvidia.com/gpu=0", "")
	writeSpec(t, low, "nvidia.json", "nvidia.com/gpu", "0")
	want("nvidia.com/gpu=0", "nvidia.json")
	want("nvidia.com/gpu=1", "which has 0")
	report, err := r.Report()
	if err != nil || len(report.Files) != 3 {
		t.Errorf("Report = %+v, %v; want three files", report, err)
	}
}

func TestLaterVersions(t *testing.T) {
	r, root := fakeNode(t)
	text := `cdiVersion: 1.1.0
kind: v.com/c
containerEdits: {env: [COMMON=1], additionalGids: [7]}
devices:
- name: x
  containerEdits:
    netDevices: [{hostInterfaceName: eth7, name: net1}]
    intelRdt: {closID: gold, schemata: ["L3:0=f"], enableMonitoring: true}
    hooks: [{hookName: createContainer, path: /bin/true, args: [true]}]
- name: y
  containerEdits:
    netDevices: [{hostInterfaceName: eth7, name: net2}]
`
	if err := os.WriteFile(filepath.Join(root, "etc/cdi/v.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s := testSpec()
	if _, err := r.Inject(s, Request{Names: []string{"v.com/c=x"}}); err != nil {
		t.Fatal(err)
	}
	if s.Linux.NetDevices["eth7"].Name != "net1" || s.Linux.IntelRdt.ClosID != "gold" || !s.Linux.IntelRdt.EnableMonitoring ||
		len(s.Hooks.CreateContainer) != 1 || !slices.Equal(s.Process.User.AdditionalGids, []uint32{7}) {
		t.Errorf("spec = %+v, %+v", s.Linux, s.Process)
	}
	if _, err := r.Inject(testSpec(), Request{Names: []string{"v.com/c=x", "v.com/c=y"}}); err == nil || !strings.Contains(err.Error(), "eth7") {
		t.Errorf("an interface with two names: %v; want an error", err)
	}
}

func TestOthers(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes device nodes")
	}
	for _, dev := range []string{"kfd", "dri/card0", "dri/card1", "dri/renderD128", "dri/renderD129", "accel/accel0", "vfio/vfio", "vfio/9",
		"infiniband/uverbs0", "infiniband/rdma_cm", "habanalabs/hl0", "habanalabs/hl_controlD0"} {
		testtools.MakeNode(t, filepath.Join(root, "dev", dev), 1, 3)
	}
	link := func(class, pci string) {
		t.Helper()
		put(class+"/name", "")
		put("sys/devices/"+pci+"/numa_node", "1\n")
		put("sys/bus/pci/devices/"+pci+"/numa_node", "1\n")
		if err := os.Symlink("../../../devices/"+pci, filepath.Join(root, class, "device")); err != nil {
			t.Fatal(err)
		}
	}
	put("sys/devices/0000:03:00.0/vendor", "0x1002\n")
	put("sys/devices/0000:04:00.0/vendor", "0x8086\n")
	put("sys/devices/0000:05:00.0/vendor", "0x8086\n")
	for class, pci := range map[string]string{"drm/card0": "0000:03:00.0", "drm/renderD128": "0000:03:00.0", "drm/card1": "0000:04:00.0",
		"drm/renderD129": "0000:04:00.0", "accel/accel0": "0000:05:00.0", "infiniband/mlx5_0": "0000:06:00.0"} {
		link("sys/class/"+class, pci)
	}
	put("sys/class/drm/card0-HDMI-A-1/status", "")
	put("sys/class/infiniband_verbs/uverbs0/ibdev", "mlx5_0\n")
	put("sys/kernel/iommu_groups/9/devices/0000:07:00.0/x", "")
	got := map[string]string{}
	for _, o := range discoverOthers(root) {
		var nodes []string
		for _, n := range o.Nodes {
			nodes = append(nodes, strings.TrimPrefix(n.Path, "/dev/"))
		}
		got[o.Kind+"="+strings.Join(o.Names, ",")] = strings.Join(nodes, " ")
	}
	want := map[string]string{
		"amd.com/gpu=0,0000:03:00.0":                 "kfd dri/card0 dri/renderD128",
		"intel.com/gpu=0,0000:04:00.0":               "dri/card1 dri/renderD129",
		"intel.com/npu=0,0000:05:00.0":               "accel/accel0",
		"habana.ai/gaudi=0":                          "habanalabs/hl0 habanalabs/hl_controlD0",
		"cri-shim.io/infiniband=mlx5_0,0000:06:00.0": "infiniband/uverbs0 infiniband/rdma_cm",
		"cri-shim.io/vfio=9,0000:07:00.0":            "vfio/vfio vfio/9",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("devices (-want +got):\n%s", diff)
	}
	r := New(Config{DeviceRoot: root, DriverRoot: root, State: t.TempDir()})
	for _, o := range discoverOthers(root) {
		for _, name := range append(o.Names, "all") {
			_, err := r.Inject(testSpec(), Request{Names: []string{o.Kind + "=" + name}})
			if (err != nil) != (o.Kind == KindVFIO && name == "all") {
				t.Errorf("%s=%s: %v", o.Kind, name, err)
			}
		}
	}
}

func TestCheck(t *testing.T) {
	r, root := fakeNode(t)
	text := func() string {
		t.Helper()
		report, err := r.Report()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(report.Problems)
	}
	if err := os.Remove(filepath.Join(root, "usr/lib/x86_64-linux-gnu/libcuda.so."+testtools.FakeNVIDIAVersion)); err != nil {
		t.Fatal(err)
	}
	if got := text(); !strings.Contains(got, "libcuda below "+root+" is of 535.104.05") || !strings.Contains(got, "/dev/nvidia-uvm is not on the host") {
		t.Errorf("problems = %s", got)
	}
	if err := os.WriteFile(filepath.Join(root, "proc/devices"), []byte("Character devices:\n195 nvidia\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := text(); !strings.Contains(got, "nvidia-uvm is not loaded") {
		t.Errorf("problems = %s", got)
	}
	if err := os.WriteFile(filepath.Join(root, "proc/driver/nvidia/version"), []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Report(); err == nil || !strings.Contains(err.Error(), "proc/driver/nvidia/version") {
		t.Errorf("Report with a damaged version = %v; want an error that names the file", err)
	}
}

func FuzzNVIDIAVersion(f *testing.F) {
	f.Add([]byte("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, _ := parseNVIDIAVersion(b)
		if v != "" && !looksLikeDriver(v) {
			t.Errorf("version %q", v)
		}
		parseFields(b)
		parseMajors(b)
	})
}

// BenchmarkInject is what a GPU adds to a container's specification once the driver is known.
func BenchmarkInject(b *testing.B) {
	r, _ := fakeNode(b)
	var have []ldEntry
	for i := range 300 {
		name := fmt.Sprintf("libexample%d.so.1", i)
		have = append(have, ldEntry{Key: name, Value: "/usr/lib/x86_64-linux-gnu/" + name, Flags: ldELFLibc6 | ldFlagX8664})
	}
	cache := encodeLDCache(have)
	for b.Loop() {
		in, err := r.Inject(testSpec(), Request{Names: []string{"nvidia.com/gpu=0"}})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := in.Files(cache); err != nil {
			b.Fatal(err)
		}
	}
}
