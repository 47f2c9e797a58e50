package gpu

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// nvidiaMajor is assigned to the driver (Documentation/admin-guide/devices.txt); the others are dynamic.
const (
	nvidiaMajor        = 195
	nvidiaModesetMinor = 254
	nvidiaCtlMinor     = 255
)

// NVIDIA is what the kernel driver tells of itself and its GPUs, without a library of the vendor's.
type NVIDIA struct {
	Version string      `json:"driver_version"` // of the kernel module
	Open    bool        `json:"open_kernel_module"`
	GPUs    []NVIDIAGPU `json:"gpus"`
	// Common are the nodes that every use of a GPU needs.
	Common []Node `json:"common_nodes"`
	// Channels are IMEX channels by number.
	Channels []Channel `json:"imex_channels,omitempty"`

	fingerprint string
}

// NVIDIAGPU is one GPU. Index counts in the order of the PCI bus, as nvidia-smi does.
type NVIDIAGPU struct {
	Index    int    `json:"index"`
	UUID     string `json:"uuid"`
	Model    string `json:"model"`
	PCI      string `json:"pci"`
	Minor    uint32 `json:"minor"`
	NUMANode int    `json:"numa_node"` // -1: unknown
	Excluded bool   `json:"excluded,omitempty"`
	Node     Node   `json:"node"`
	// DRI are the nodes of the direct rendering manager, for graphics.
	DRI []Node `json:"dri,omitempty"`
	MIG []MIG  `json:"mig,omitempty"`
}

// MIG is a compute instance of a GPU that was partitioned. Index counts in the order of the instances' numbers.
type MIG struct {
	Index           int    `json:"index"`
	GPUInstance     int    `json:"gpu_instance"`
	ComputeInstance int    `json:"compute_instance"`
	Nodes           []Node `json:"nodes"` // both capabilities
}

// Channel is an IMEX channel.
type Channel struct {
	Number int  `json:"number"`
	Node   Node `json:"node"`
}

// Node is a device node as it is to be in a container.
type Node struct {
	Path  string `json:"path"`
	Type  string `json:"type"` // "c" or "b"
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	// HostPath is where the node is on the host; "" where there is none, and the numbers are the driver's word.
	HostPath string `json:"host_path,omitempty"`
	Mode     uint32 `json:"mode"` // permissions
}

var versionPattern = regexp.MustCompile(`\b[0-9]{3,4}\.[0-9]{1,3}(\.[0-9]{1,3})?\b`)

// parseNVIDIAVersion reads /proc/driver/nvidia/version: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  …",
// or "… Open Kernel Module for x86_64  560.35.03  …".
func parseNVIDIAVersion(b []byte) (version string, open bool) {
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("NVRM version:")); ok {
			return string(versionPattern.Find(rest)), bytes.Contains(rest, []byte("Open Kernel Module"))
		}
	}
	return "", false
}

// parseFields reads "Name:  value" lines.
func parseFields(b []byte) map[string]string {
	out := map[string]string{}
	for line := range bytes.Lines(b) {
		if k, v, ok := strings.Cut(string(line), ":"); ok {
			out[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return out
}

// parseMajors reads the character devices of /proc/devices.
func parseMajors(b []byte) map[string]uint32 {
	out := map[string]uint32{}
	for line := range bytes.Lines(b) {
		if bytes.HasPrefix(line, []byte("Block devices")) {
			break
		}
		f := strings.Fields(string(line))
		if len(f) != 2 {
			continue
		}
		if n, err := strconv.ParseUint(f[0], 10, 12); err == nil {
			out[f[1]] = uint32(n)
		}
	}
	return out
}

// finder looks below a root at the kernel's files and at /dev.
type finder struct {
	root   string
	majors map[string]uint32
}

func (f *finder) path(p string) string { return filepath.Join(f.root, p) }

func (f *finder) read(p string) []byte {
	b, err := os.ReadFile(f.path(p))
	if err != nil {
		return nil
	}
	return b
}

// names lists a directory; one that is not there is empty.
func (f *finder) names(p string) []string {
	entries, err := os.ReadDir(f.path(p))
	if err != nil {
		return nil
	}
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = e.Name()
	}
	return out
}

// node is the device node at p, if there is one.
func (f *finder) node(p string) (Node, bool) {
	st, err := sys.StatNode(f.path(p))
	if err != nil {
		return Node{}, false
	}
	n := Node{Path: p, Major: st.Major, Minor: st.Minor, HostPath: f.path(p), Mode: st.Perm()}
	switch st.Type() {
	case sys.ModeChar:
		n.Type = "c"
	case sys.ModeBlock:
		n.Type = "b"
	default:
		return n, false
	}
	return n, true
}

// nodeOr is the node at p, or what the driver says that it would be: nothing but nvidia-modprobe makes these nodes, and a
// container is given one of its own anyway.
func (f *finder) nodeOr(p string, major string, fallback, minor uint32) (Node, bool) {
	if n, ok := f.node(p); ok {
		return n, true
	}
	m, ok := f.majors[major]
	if !ok {
		m = fallback
	}
	return Node{Path: p, Type: "c", Major: m, Minor: minor, Mode: 0o666}, m != 0
}

const nvidiaProc = "/proc/driver/nvidia"

// nvidiaFingerprint changes when the driver is loaded or taken away, a GPU comes or goes, or MIG is configured. It
// is what makes a discovery stale.
func (f *finder) nvidiaFingerprint() string {
	version := f.read(nvidiaProc + "/version")
	if version == nil {
		return ""
	}
	parts := []string{string(version), string(f.read("/proc/devices"))}
	parts = append(parts, f.names(nvidiaProc+"/gpus")...)
	for _, g := range f.names(nvidiaProc + "/capabilities") {
		for _, gi := range f.names(nvidiaProc + "/capabilities/" + g + "/mig") {
			parts = append(parts, g+gi)
			parts = append(parts, f.names(nvidiaProc+"/capabilities/"+g+"/mig/"+gi)...)
		}
	}
	for _, dir := range []string{"/dev", "/dev/dri", "/dev/nvidia-caps-imex-channels"} {
		// A directory's time is that of its last new or removed node.
		if fi, err := os.Stat(f.path(dir)); err == nil {
			parts = append(parts, fi.ModTime().String())
		}
	}
	return strings.Join(parts, "\x00")
}

// discoverNVIDIA returns nil where the driver is not loaded.
func discoverNVIDIA(root string) (*NVIDIA, error) {
	f := &finder{root: root}
	text, err := os.ReadFile(f.path(nvidiaProc + "/version"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nvidia driver: %w", err)
	}
	f.majors = parseMajors(f.read("/proc/devices"))
	n := &NVIDIA{fingerprint: f.nvidiaFingerprint()}
	if n.Version, n.Open = parseNVIDIAVersion(text); n.Version == "" {
		return nil, fmt.Errorf("nvidia driver: no version in %s: %.200q", f.path(nvidiaProc+"/version"), text)
	}
	if err := n.findGPUs(f); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		path, major     string
		fallback, minor uint32
	}{
		{"/dev/nvidiactl", "nvidiactl", nvidiaMajor, nvidiaCtlMinor},
		{"/dev/nvidia-uvm", "nvidia-uvm", 0, 0},
		{"/dev/nvidia-uvm-tools", "nvidia-uvm", 0, 1},
		{"/dev/nvidia-modeset", "nvidia-modeset", 0, nvidiaModesetMinor},
	} {
		if node, ok := f.nodeOr(c.path, c.major, c.fallback, c.minor); ok {
			n.Common = append(n.Common, node)
		}
	}
	n.findChannels(f)
	return n, nil
}

func (n *NVIDIA) findGPUs(f *finder) error {
	for _, pci := range f.names(nvidiaProc + "/gpus") { // os.ReadDir sorts
		at := nvidiaProc + "/gpus/" + pci + "/information"
		b, err := os.ReadFile(f.path(at))
		if errors.Is(err, fs.ErrNotExist) { // taken away meanwhile
			continue
		}
		if err != nil {
			return fmt.Errorf("nvidia driver: %w", err)
		}
		info := parseFields(b)
		minor, err := strconv.ParseUint(info["Device Minor"], 10, 20)
		if err != nil {
			return fmt.Errorf("nvidia driver: %s: Device Minor %q is not a number", f.path(at), info["Device Minor"])
		}
		g := NVIDIAGPU{
			Index: len(n.GPUs), UUID: info["GPU UUID"], Model: info["Model"], PCI: pci, Minor: uint32(minor),
			NUMANode: f.numaNode(pci), Excluded: info["GPU Excluded"] == "Yes",
		}
		g.Node, _ = f.nodeOr(fmt.Sprintf("/dev/nvidia%d", minor), "nvidia", nvidiaMajor, g.Minor)
		g.DRI = f.drm(pci)
		g.MIG = f.mig(g.Minor)
		n.GPUs = append(n.GPUs, g)
	}
	return nil
}

func (f *finder) numaNode(pci string) int {
	n, err := strconv.Atoi(strings.TrimSpace(string(f.read("/sys/bus/pci/devices/" + pci + "/numa_node"))))
	if err != nil || n < 0 {
		return -1
	}
	return n
}

// drm are the nodes of a PCI device in /dev/dri.
func (f *finder) drm(pci string) []Node {
	var out []Node
	for _, name := range f.names("/sys/bus/pci/devices/" + pci + "/drm") {
		if n, ok := f.node("/dev/dri/" + name); ok {
			out = append(out, n)
		}
	}
	return out
}

// mig finds the compute instances of a GPU, and the capability nodes that grant access to them.
func (f *finder) mig(gpuMinor uint32) []MIG {
	var out []MIG
	base := fmt.Sprintf("%s/capabilities/gpu%d/mig", nvidiaProc, gpuMinor)
	for _, gi := range f.numbered(base, "gi") {
		at := fmt.Sprintf("%s/gi%d", base, gi)
		for _, ci := range f.numbered(at, "ci") {
			m := MIG{Index: len(out), GPUInstance: gi, ComputeInstance: ci}
			for _, file := range []string{at + "/access", fmt.Sprintf("%s/ci%d/access", at, ci)} {
				if n, ok := f.capability(file); ok {
					m.Nodes = append(m.Nodes, n)
				}
			}
			if len(m.Nodes) == 2 {
				out = append(out, m)
			}
		}
	}
	return out
}

// numbered lists the numbers of "gi0", "gi1", … in order.
func (f *finder) numbered(dir, prefix string) []int {
	var out []int
	for _, name := range f.names(dir) {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			if n, err := strconv.ParseUint(rest, 10, 20); err == nil {
				out = append(out, int(n))
			}
		}
	}
	slices.Sort(out)
	return out
}

// capability is the node that a file of /proc/driver/nvidia/capabilities stands for.
func (f *finder) capability(file string) (Node, bool) {
	info := parseFields(f.read(file))
	minor, err := strconv.ParseUint(info["DeviceFileMinor"], 10, 20)
	if err != nil {
		return Node{}, false
	}
	n, ok := f.nodeOr(fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor), "nvidia-caps", 0, uint32(minor))
	if mode, err := strconv.ParseUint(info["DeviceFileMode"], 10, 12); err == nil && n.HostPath == "" {
		n.Mode = uint32(mode)
	}
	return n, ok
}

func (n *NVIDIA) findChannels(f *finder) {
	const dir = "/dev/nvidia-caps-imex-channels"
	for _, number := range f.numbered(dir, "channel") {
		if node, ok := f.node(fmt.Sprintf("%s/channel%d", dir, number)); ok {
			n.Channels = append(n.Channels, Channel{number, node})
		}
	}
}
