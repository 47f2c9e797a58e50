package oci

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/oci/cgroup"
)

// defaultNodes are what a runtime must supply (runtime-spec, "Default Devices").
var defaultNodes = [...]struct {
	path         string
	major, minor uint32
}{
	{"/dev/null", 1, 3},
	{"/dev/zero", 1, 5},
	{"/dev/full", 1, 7},
	{"/dev/random", 1, 8},
	{"/dev/urandom", 1, 9},
	{"/dev/tty", 5, 0},
}

// defaultLinks are runtime-spec's "Dev symbolic links" and the ptmx of the container's own devpts.
var defaultLinks = []initmsg.Symlink{
	{Target: "/proc/self/fd", Path: "/dev/fd"},
	{Target: "/proc/self/fd/0", Path: "/dev/stdin"},
	{Target: "/proc/self/fd/1", Path: "/dev/stdout"},
	{Target: "/proc/self/fd/2", Path: "/dev/stderr"},
	{Target: "pts/ptmx", Path: "/dev/ptmx"},
	{Target: "/proc/kcore", Path: "/dev/core"},
}

// devices lists the nodes to make. Where the client brings a /dev of its own nothing is put into it.
func (c *compiler) devices() error {
	devices := c.spec.Linux.Devices
	c.msg.Devices = make([]initmsg.Device, 0, len(defaultNodes)+len(devices))
	if !c.bringsDev() {
		c.msg.Symlinks = defaultLinks
		for _, d := range defaultNodes {
			if hasDevice(devices, d.path) {
				continue
			}
			n := initmsg.Device{Path: d.path, Mode: sys.ModeChar | 0o666, Major: d.major, Minor: d.minor}
			if c.hasUserNamespace() {
				n.Bind = d.path
			}
			c.msg.Devices = append(c.msg.Devices, n)
		}
	}
	seen := make(map[string]int, len(devices))
	for i := range devices {
		d := &devices[i]
		field := index("linux.devices", i)
		n, err := compileDevice(field, d)
		if err != nil {
			return err
		}
		if j, twice := seen[n.Path]; twice {
			return fieldf(field+".path", "%q is linux.devices[%d] too", n.Path, j)
		}
		seen[n.Path] = i
		if c.isDefaultLink(n.Path) {
			continue
		}
		if c.hasUserNamespace() && n.Mode&sys.ModeFIFO != sys.ModeFIFO {
			// mknod(2) needs the capability in the initial user namespace.
			if n.Bind, err = hostNode(d, c.opt.HostNodes[d.Path]); err != nil {
				return &FieldError{Field: field, Err: err}
			}
		}
		c.msg.Devices = append(c.msg.Devices, n)
	}
	return nil
}

// isDefaultLink: a privileged container is given the host's /dev, with its ptmx: that one would open the host's
// terminals, so the container's own stays (runc does likewise).
func (c *compiler) isDefaultLink(p string) bool { return p == "/dev/ptmx" && len(c.msg.Symlinks) > 0 }

func (c *compiler) bringsDev() bool {
	for i := range c.spec.Mounts {
		if m := &c.spec.Mounts[i]; path.Join("/", m.Destination) == "/dev" && isBind(m) {
			return true
		}
	}
	return false
}

func hasDevice(devices []specs.LinuxDevice, p string) bool {
	for i := range devices {
		if path.Clean(devices[i].Path) == p {
			return true
		}
	}
	return false
}

var deviceModes = map[string]uint32{"c": sys.ModeChar, "u": sys.ModeChar, "b": sys.ModeBlock, "p": sys.ModeFIFO}

func compileDevice(field string, d *specs.LinuxDevice) (initmsg.Device, error) {
	var n initmsg.Device
	typ, ok := deviceModes[d.Type]
	if !ok {
		return n, fieldf(field+".type", "%q is not one of c, u, b and p", d.Type)
	}
	if !path.IsAbs(d.Path) || strings.IndexByte(d.Path, 0) >= 0 {
		return n, fieldf(field+".path", "%q is not an absolute path", d.Path)
	}
	if typ != sys.ModeFIFO {
		if d.Major < 0 || d.Major > math.MaxUint32 || d.Minor < 0 || d.Minor > math.MaxUint32 {
			return n, fieldf(field, "%d:%d is not a device number", d.Major, d.Minor)
		}
		n.Major, n.Minor = uint32(d.Major), uint32(d.Minor)
	}
	n.Path, n.Mode = path.Clean(d.Path), typ|0o666
	if d.FileMode != nil {
		// What crun and runc accept: the bits of mknod(2), with or without the type.
		n.Mode = typ | uint32(*d.FileMode)&0o7777
	}
	if d.UID != nil {
		n.UID = *d.UID
	}
	if d.GID != nil {
		n.GID = *d.GID
	}
	return n, nil
}

// rootFiles has the files written that the specification cannot name.
func (c *compiler) rootFiles() error {
	for _, p := range slices.Sorted(maps.Keys(c.opt.RootFiles)) {
		if !path.IsAbs(p) || path.Clean(p) != p {
			return fieldf("rootFiles", "%q is not an absolute path in its shortest form", p)
		}
		c.msg.Files = append(c.msg.Files, initmsg.File{Path: p, Data: c.opt.RootFiles[p]})
	}
	return nil
}

// hostNode finds a node of the host for a device: where it is known to be, at the same path, or where the kernel says
// that devtmpfs has it.
func hostNode(d *specs.LinuxDevice, known string) (string, error) {
	is := func(p string) bool {
		n, err := sys.StatNode(p)
		return err == nil && n.Type() == deviceModes[d.Type] && int64(n.Major) == d.Major && int64(n.Minor) == d.Minor
	}
	for _, p := range [...]string{known, d.Path} {
		if p != "" && is(p) {
			return p, nil
		}
	}
	class := "char"
	if d.Type == "b" {
		class = "block"
	}
	b, err := os.ReadFile(fmt.Sprintf("/sys/dev/%s/%d:%d/uevent", class, d.Major, d.Minor))
	if err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
				if p := filepath.Join("/dev", name); is(p) {
					return p, nil
				}
			}
		}
	}
	return "", fmt.Errorf("%q: no node for %s %d:%d on the host to bind into a user namespace", d.Path, d.Type, d.Major, d.Minor)
}

// CgroupResources are the limits of a specification for its control group, with the device rules that every
// container has: everything denied first, and the defaults allowed unless the specification allows everything.
func CgroupResources(spec *specs.Spec) *specs.LinuxResources {
	out := &specs.LinuxResources{}
	if spec.Linux != nil && spec.Linux.Resources != nil {
		*out = *spec.Linux.Resources
	}
	rules := make([]specs.LinuxDeviceCgroup, 0, len(out.Devices)+12)
	rules = append(rules, specs.LinuxDeviceCgroup{Allow: false, Access: "rwm"})
	rules = append(rules, out.Devices...)
	out.Devices = append(rules, cgroup.DefaultDevices()...)
	return out
}
