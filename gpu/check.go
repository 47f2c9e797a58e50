package gpu

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	cdispec "tags.cncf.io/container-device-interface/specs-go"
)

// Problem is what keeps devices from working, or may.
type Problem struct {
	What string `json:"what"`
	Fix  string `json:"fix,omitempty"`
}

func (p Problem) String() string {
	if p.Fix == "" {
		return p.What
	}
	return p.What + ": " + p.Fix
}

// driverProblems keep every program from using a GPU.
func driverProblems(n *NVIDIA, d *Driver) []Problem {
	var out []Problem
	add := func(fix, format string, args ...any) { out = append(out, Problem{fmt.Sprintf(format, args...), fix}) }
	if !d.complete() {
		if len(d.Others) > 0 {
			add("install the libraries of the kernel module's version, or restart to load the module of theirs",
				"nvidia: the kernel module is %s, but libcuda below %s is of %s", n.Version, d.Root, strings.Join(d.Others, ", "))
		} else {
			add("install the user-space driver, or set gpu_driver_root to where it is",
				"nvidia: the kernel module is %s; no libcuda.so.%s was found below %s", n.Version, n.Version, d.Root)
		}
	}
	has := func(path string) bool {
		return slices.ContainsFunc(n.Common, func(c Node) bool { return c.Path == path })
	}
	if !has("/dev/nvidia-uvm") {
		add("load it: modprobe nvidia-uvm", "nvidia: the module nvidia-uvm is not loaded; CUDA does not start without it")
	}
	return out
}

// nvidiaProblems are all those of the driver that is loaded.
func nvidiaProblems(n *NVIDIA, d *Driver) []Problem {
	out := driverProblems(n, d)
	add := func(fix, format string, args ...any) { out = append(out, Problem{fmt.Sprintf(format, args...), fix}) }
	if len(n.GPUs) == 0 {
		add("", "nvidia: the driver %s is loaded and has no GPU", n.Version)
	}
	for _, g := range n.GPUs {
		if g.Excluded {
			add("", "nvidia: GPU %d (%s) is excluded by the driver's configuration", g.Index, g.PCI)
		}
		out = append(out, nodeProblems("nvidia", g.Node, nvidiaMajor, g.Minor)...)
	}
	for _, c := range n.Common {
		out = append(out, nodeProblems("nvidia", c, 0, 0)...)
	}
	return out
}

// nodeProblems compares a node with what the driver says that it should be.
func nodeProblems(driver string, n Node, major, minor uint32) []Problem {
	switch {
	case n.HostPath == "":
		// A container gets its node anyway, but nothing on the host works, and none can be bound into a user namespace.
		return []Problem{{driver + ": " + n.Path + " is not on the host",
			"run nvidia-modprobe -c 0 -u, or nvidia-smi; pods with a user namespace cannot use the device until then"}}
	case major != 0 && (n.Major != major || n.Minor != minor):
		return []Problem{{fmt.Sprintf("%s: %s is device %d:%d; the driver's is %d:%d", driver, n.HostPath, n.Major, n.Minor, major, minor),
			"remove the node and let the driver's tools make it again"}}
	case n.Mode&0o666 != 0o666:
		return []Problem{{fmt.Sprintf("%s: %s has the mode %04o: processes that are not root cannot use it", driver, n.HostPath, n.Mode),
			"chmod 0666, or set NVreg_DeviceFileMode=0666"}}
	}
	return nil
}

// Report is everything that is known of the node's devices.
type Report struct {
	NVIDIA *NVIDIA `json:"nvidia,omitempty"`
	Driver *Driver `json:"nvidia_driver,omitempty"`
	Others []Other `json:"others,omitempty"`
	// Files are CDI specifications on disk with the devices of each.
	Files    map[string][]string `json:"spec_files,omitempty"`
	Problems []Problem           `json:"problems,omitempty"`
}

// Report looks at the node.
func (r *Registry) Report() (*Report, error) {
	n, d, err := r.findNVIDIA()
	if err != nil {
		return nil, err
	}
	c, err := r.files.catalog()
	if err != nil {
		return nil, err
	}
	out := &Report{NVIDIA: n, Driver: d, Others: discoverOthers(r.cfg.DeviceRoot), Files: map[string][]string{}}
	for name, device := range c.devices {
		at := device.GetSpec().GetPath()
		out.Files[at] = append(out.Files[at], name)
	}
	for _, names := range out.Files {
		slices.Sort(names)
	}
	if n != nil {
		out.Problems = nvidiaProblems(n, d)
	}
	for _, at := range slices.Sorted(maps.Keys(c.errors)) {
		out.Problems = append(out.Problems, Problem{What: fmt.Sprintf("CDI specification %s: %v", at, c.errors[at])})
	}
	for _, name := range slices.Sorted(maps.Keys(c.conflicts)) {
		out.Problems = append(out.Problems, Problem{
			What: fmt.Sprintf("CDI device %s is defined by %s", name, strings.Join(c.conflicts[name], " and ")),
			Fix:  "remove one; nobody gets the device",
		})
	}
	out.Problems = append(out.Problems, c.hostProblems()...)
	if n != nil {
		out.Problems = append(out.Problems, c.staleDrivers(n.Version)...)
	}
	return out, nil
}

// staleDrivers are specifications that were made for another version of NVIDIA's driver than is loaded, whose libraries are
// still there: every program that uses them ends with "driver/library version mismatch".
func (c *catalog) staleDrivers(loaded string) []Problem {
	var out []Problem
	seen := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(c.devices)) {
		d := c.devices[name]
		at := d.GetSpec().GetPath()
		for _, m := range slices.Concat(d.GetSpec().ContainerEdits.Mounts, d.ContainerEdits.Mounts) {
			version, ok := strings.CutPrefix(path.Base(m.HostPath), "libcuda.so.")
			if ok && looksLikeDriver(version) && version != loaded && !seen[at] {
				seen[at] = true
				out = append(out, Problem{
					What: fmt.Sprintf("CDI specification %s: %s is of driver %s; the kernel module is %s", at, m.HostPath, version, loaded),
					Fix:  "make it anew with nvidia-ctk cdi generate, or remove it",
				})
			}
		}
	}
	return out
}

// hostProblems are files and nodes that specifications name and the host does not have.
func (c *catalog) hostProblems() []Problem {
	var out []Problem
	seen := map[string]bool{}
	look := func(at string, e *cdispec.ContainerEdits) {
		check := func(what, p string) {
			if _, err := os.Stat(p); err != nil && !seen[at+p] {
				seen[at+p] = true
				out = append(out, Problem{What: fmt.Sprintf("CDI specification %s: %s: %v", at, what, err), Fix: "make it anew with the vendor's tool"})
			}
		}
		for _, m := range e.Mounts {
			check("mount "+m.ContainerPath, m.HostPath)
		}
		for _, h := range e.Hooks {
			check(h.HookName+" hook", h.Path)
		}
		for _, n := range e.DeviceNodes {
			if n.HostPath != "" || n.Type == "" || n.Major == 0 {
				check("device node", cmp.Or(n.HostPath, n.Path))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.devices)) {
		d := c.devices[name]
		look(d.GetSpec().GetPath(), &d.GetSpec().ContainerEdits)
		look(d.GetSpec().GetPath(), &d.ContainerEdits)
	}
	return out
}

// Specs are the specifications that would be used: those made here, of the kinds that no file has.
func (r *Registry) Specs() ([]*cdispec.Spec, error) {
	c, err := r.files.catalog()
	if err != nil {
		return nil, err
	}
	built := map[string]*builtin{}
	if err := errors.Join(r.nvidiaBuiltins(nil, built), r.otherBuiltins(built)); err != nil {
		return nil, err
	}
	var out []*cdispec.Spec
	for _, kind := range slices.Sorted(maps.Keys(built)) {
		if c.kinds[kind] == nil && len(built[kind].spec.Devices) > 0 {
			out = append(out, built[kind].spec)
		}
	}
	return out, nil
}
