package gpu

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	cdispec "tags.cncf.io/container-device-interface/specs-go"
)

// Other is a device that needs its nodes and nothing else: its driver's libraries come with the image.
type Other struct {
	Kind     string   `json:"kind"`  // CDI vendor/class
	Names    []string `json:"names"` // CDI device names; the first is the one to show
	Driver   string   `json:"driver,omitempty"`
	PCI      string   `json:"pci,omitempty"`
	NUMANode int      `json:"numa_node"`
	Nodes    []Node   `json:"nodes"`
}

// Kinds of other devices.
const (
	KindAMD        = "amd.com/gpu"
	KindIntel      = "intel.com/gpu"
	KindDRI        = "cri-shim.io/dri"
	KindIntelNPU   = "intel.com/npu"
	KindAccel      = "cri-shim.io/accel"
	KindHabana     = "habana.ai/gaudi"
	KindInfiniband = "cri-shim.io/infiniband"
	KindVFIO       = "cri-shim.io/vfio"
)

// PCI vendors.
const (
	pciAMD    = "0x1002"
	pciIntel  = "0x8086"
	pciNVIDIA = "0x10de"
	pciHabana = "0x1da3"
)

// discoverOthers finds devices by what the kernel's classes say.
func discoverOthers(root string) []Other {
	f := &finder{root: root}
	return slices.Concat(f.drmDevices(), f.accelDevices(), f.habanaDevices(), f.infinibandDevices(), f.vfioDevices())
}

// pciOf is the PCI address that a class device's "device" link leads to; "" for another bus.
func (f *finder) pciOf(class string) string {
	p, err := resolveIn(f.root, class+"/device")
	if err != nil {
		return ""
	}
	name := path.Base(p)
	if strings.Count(name, ":") != 2 || !strings.Contains(name, ".") {
		return ""
	}
	return name
}

func (f *finder) word(p string) string { return strings.TrimSpace(string(f.read(p))) }

func (f *finder) driverOf(class string) string {
	p, err := resolveIn(f.root, class+"/device/driver")
	if err != nil {
		return ""
	}
	return path.Base(p)
}

// drmDevices are GPUs with nodes in /dev/dri, but NVIDIA's: those are found by their own driver.
func (f *finder) drmDevices() []Other {
	byDevice := map[string]*Other{}
	var order []string
	count := map[string]int{}
	for _, name := range f.sorted("/sys/class/drm") {
		if strings.Contains(name, "-") || !strings.HasPrefix(name, "card") && !strings.HasPrefix(name, "renderD") {
			continue // a connector, as in card0-HDMI-A-1
		}
		class := "/sys/class/drm/" + name
		vendor := f.word(class + "/device/vendor")
		if vendor == pciNVIDIA {
			continue
		}
		node, ok := f.node("/dev/dri/" + name)
		if !ok {
			continue
		}
		device, err := resolveIn(f.root, class+"/device")
		if err != nil {
			device = name
		}
		o := byDevice[device]
		if o == nil {
			kind := map[string]string{pciAMD: KindAMD, pciIntel: KindIntel}[vendor]
			if kind == "" {
				kind = KindDRI
			}
			o = &Other{Kind: kind, PCI: f.pciOf(class), Driver: f.driverOf(class), NUMANode: -1, Names: []string{fmt.Sprint(count[kind])}}
			count[kind]++
			if o.PCI != "" {
				o.NUMANode = f.numaNode(o.PCI)
				o.Names = append(o.Names, o.PCI)
			}
			byDevice[device] = o
			order = append(order, device)
			if kind == KindAMD {
				if kfd, ok := f.node("/dev/kfd"); ok {
					o.Nodes = append(o.Nodes, kfd)
				}
			}
		}
		o.Nodes = append(o.Nodes, node)
	}
	out := make([]Other, 0, len(order))
	for _, d := range order {
		out = append(out, *byDevice[d])
	}
	return out
}

// sorted lists a directory with card10 after card9.
func (f *finder) sorted(dir string) []string {
	names := f.names(dir)
	slices.SortFunc(names, libcmp)
	return names
}

// accelDevices are those of the compute accelerators subsystem (Documentation/accel).
func (f *finder) accelDevices() []Other {
	var out []Other
	count := map[string]int{}
	for _, name := range f.sorted("/sys/class/accel") {
		if !isNumbered(name, "accel") {
			continue
		}
		node, ok := f.node("/dev/accel/" + name)
		if !ok {
			continue
		}
		class := "/sys/class/accel/" + name
		kind := map[string]string{pciIntel: KindIntelNPU, pciHabana: KindHabana}[f.word(class+"/device/vendor")]
		if kind == "" {
			kind = KindAccel
		}
		o := Other{Kind: kind, PCI: f.pciOf(class), Driver: f.driverOf(class), NUMANode: -1, Nodes: []Node{node}}
		o.Names = []string{fmt.Sprint(count[kind])}
		count[kind]++
		if o.PCI != "" {
			o.NUMANode = f.numaNode(o.PCI)
			o.Names = append(o.Names, o.PCI)
		}
		if control, ok := f.node("/dev/accel/accel_controlD" + strings.TrimPrefix(name, "accel")); ok {
			o.Nodes = append(o.Nodes, control)
		}
		out = append(out, o)
	}
	return out
}

// habanaDevices are those of the driver before it moved to the accelerators subsystem.
func (f *finder) habanaDevices() []Other {
	var out []Other
	for _, name := range f.sorted("/dev/habanalabs") {
		if !isNumbered(name, "hl") {
			continue
		}
		o := Other{Kind: KindHabana, NUMANode: -1, Driver: "habanalabs", Names: []string{strings.TrimPrefix(name, "hl")}}
		for _, p := range []string{name, "hl_controlD" + strings.TrimPrefix(name, "hl")} {
			if n, ok := f.node("/dev/habanalabs/" + p); ok {
				o.Nodes = append(o.Nodes, n)
			}
		}
		if len(o.Nodes) > 0 {
			out = append(out, o)
		}
	}
	return out
}

// infinibandDevices are host channel adapters with the character devices of verbs.
func (f *finder) infinibandDevices() []Other {
	var out []Other
	for _, hca := range f.sorted("/sys/class/infiniband") {
		class := "/sys/class/infiniband/" + hca
		o := Other{Kind: KindInfiniband, Names: []string{hca}, PCI: f.pciOf(class), Driver: f.driverOf(class), NUMANode: -1}
		for _, sub := range []string{"infiniband_verbs", "infiniband_mad"} {
			for _, name := range f.sorted("/sys/class/" + sub) {
				if f.word("/sys/class/"+sub+"/"+name+"/ibdev") != hca {
					continue
				}
				if n, ok := f.node("/dev/infiniband/" + name); ok {
					o.Nodes = append(o.Nodes, n)
				}
			}
		}
		if len(o.Nodes) == 0 {
			continue
		}
		if n, ok := f.node("/dev/infiniband/rdma_cm"); ok {
			o.Nodes = append(o.Nodes, n)
		}
		if o.PCI != "" {
			o.NUMANode = f.numaNode(o.PCI)
			o.Names = append(o.Names, o.PCI)
		}
		out = append(out, o)
	}
	return out
}

// vfioDevices are IOMMU groups that were given to VFIO.
func (f *finder) vfioDevices() []Other {
	container, ok := f.node("/dev/vfio/vfio")
	if !ok {
		return nil
	}
	var out []Other
	for _, name := range f.sorted("/dev/vfio") {
		if !isNumbered(name, "") {
			continue
		}
		n, ok := f.node("/dev/vfio/" + name)
		if !ok {
			continue
		}
		o := Other{Kind: KindVFIO, Names: []string{name}, NUMANode: -1, Driver: "vfio-pci", Nodes: []Node{container, n}}
		for _, pci := range f.names("/sys/kernel/iommu_groups/" + name + "/devices") {
			o.Names = append(o.Names, pci)
			o.PCI, o.NUMANode = pci, f.numaNode(pci)
		}
		out = append(out, o)
	}
	return out
}

func isNumbered(name, prefix string) bool {
	rest, ok := strings.CutPrefix(name, prefix)
	_, err := strconv.ParseUint(rest, 10, 20)
	return ok && err == nil
}

// otherSpecs are the specifications of such devices, one a kind. "all" is every device but VFIO's: to be given all of
// those is no sensible request.
func otherSpecs(others []Other) []*cdispec.Spec {
	var out []*cdispec.Spec
	at := map[string]*cdispec.Spec{}
	all := map[string][]Node{}
	for _, o := range others {
		s := at[o.Kind]
		if s == nil {
			s = &cdispec.Spec{Version: cdispec.CurrentVersion, Kind: o.Kind}
			at[o.Kind] = s
			out = append(out, s)
		}
		for _, name := range o.Names {
			s.Devices = append(s.Devices, cdispec.Device{Name: name, ContainerEdits: cdispec.ContainerEdits{DeviceNodes: deviceNodes(o.Nodes...)}})
		}
		all[o.Kind] = append(all[o.Kind], o.Nodes...)
	}
	for _, s := range out {
		if s.Kind != KindVFIO {
			nodes := uniqueNodes(all[s.Kind])
			s.Devices = append(s.Devices, cdispec.Device{Name: "all", ContainerEdits: cdispec.ContainerEdits{DeviceNodes: deviceNodes(nodes...)}})
		}
	}
	return out
}

func uniqueNodes(in []Node) []Node {
	seen := map[string]bool{}
	var out []Node
	for _, n := range in {
		if !seen[n.Path] {
			seen[n.Path] = true
			out = append(out, n)
		}
	}
	return out
}
