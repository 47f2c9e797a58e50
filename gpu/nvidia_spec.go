package gpu

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	cdispec "tags.cncf.io/container-device-interface/specs-go"
)

// Kinds of what is found here.
const (
	KindNVIDIA = "nvidia.com/gpu"
	KindIMEX   = "nvidia.com/imex-channel"
)

// Where the driver's libraries are in a container. Images of CUDA have both directories in their loader's configuration
// and in LD_LIBRARY_PATH; for all others there are entries in the loader's cache.
const (
	LibraryDir   = "/usr/local/nvidia/lib64"
	LibraryDir32 = "/usr/local/nvidia/lib"
)

var readOnlyBind = []string{"ro", "nosuid", "nodev", "rbind", "rprivate"}

func deviceNode(n Node) *cdispec.DeviceNode {
	mode := os.FileMode(n.Mode)
	return &cdispec.DeviceNode{
		Path: n.Path, HostPath: n.HostPath, Type: n.Type, Major: int64(n.Major), Minor: int64(n.Minor), FileMode: &mode,
	}
}

func deviceNodes(nodes ...Node) []*cdispec.DeviceNode {
	out := make([]*cdispec.DeviceNode, 0, len(nodes))
	for _, n := range nodes {
		if n.Path != "" {
			out = append(out, deviceNode(n))
		}
	}
	return out
}

// devices are the GPUs by index, UUID and "all", and MIG devices as GPU:MIG.
func (n *NVIDIA) devices(capabilities []string) []cdispec.Device {
	graphics := slices.Contains(capabilities, CapGraphics) || slices.Contains(capabilities, CapDisplay)
	var out []cdispec.Device
	var all []Node
	for _, g := range n.GPUs {
		if g.Excluded {
			continue
		}
		base := []Node{g.Node}
		if graphics {
			base = append(base, g.DRI...)
		}
		whole := slices.Clone(base)
		names := []string{fmt.Sprint(g.Index)}
		if g.UUID != "" {
			names = append(names, g.UUID)
		}
		for _, m := range g.MIG {
			edits := cdispec.ContainerEdits{DeviceNodes: deviceNodes(append(slices.Clone(base), m.Nodes...)...)}
			out = append(out, cdispec.Device{Name: fmt.Sprintf("%d:%d", g.Index, m.Index), ContainerEdits: edits})
			whole = append(whole, m.Nodes...)
		}
		for _, name := range names {
			out = append(out, cdispec.Device{Name: name, ContainerEdits: cdispec.ContainerEdits{DeviceNodes: deviceNodes(whole...)}})
		}
		all = append(all, whole...)
	}
	if len(all) > 0 {
		out = append(out, cdispec.Device{Name: "all", ContainerEdits: cdispec.ContainerEdits{DeviceNodes: deviceNodes(all...)}})
	}
	return out
}

// libraryView is a directory with the names of libraries in it: links, and empty files over which the libraries are mounted.
// It is made once for a set of libraries, below state, and mounted read-only: no image's directory is written to.
type libraryView struct {
	dir    string // on the host
	target string // in the container
	libs   []Library
}

func newLibraryView(state, target string, libs []Library) *libraryView {
	h := sha256.New()
	for _, l := range libs {
		fmt.Fprintf(h, "%s\x00%s\x00%q\x00", l.Name, l.Soname, l.Links)
	}
	return &libraryView{dir: filepath.Join(state, "view-"+hex.EncodeToString(h.Sum(nil)[:10])), target: target, libs: libs}
}

// make makes the directory, if it is not there. It appears whole.
func (v *libraryView) make() (err error) {
	if _, err := os.Stat(v.dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(v.dir), 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(v.dir), "new-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	for _, l := range v.libs {
		f, err := os.OpenFile(filepath.Join(tmp, l.Name), os.O_CREATE|os.O_WRONLY, 0o555)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	for _, l := range v.libs {
		for _, name := range append([]string{l.Soname}, l.Links...) {
			if err := os.Symlink(l.Name, filepath.Join(tmp, name)); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := os.Rename(tmp, v.dir); err != nil {
		if _, serr := os.Stat(v.dir); serr != nil {
			return err
		}
		return os.RemoveAll(tmp) // another made it meanwhile
	}
	return nil
}

func (v *libraryView) mounts() []*cdispec.Mount {
	out := []*cdispec.Mount{{HostPath: v.dir, ContainerPath: v.target, Type: "bind", Options: readOnlyBind}}
	for _, l := range v.libs {
		out = append(out, &cdispec.Mount{
			HostPath: l.Path, ContainerPath: path.Join(v.target, l.Name), Type: "bind", Options: readOnlyBind,
		})
	}
	return out
}

// entries are those of the loader's cache.
func (v *libraryView) entries() []ldEntry {
	var out []ldEntry
	for _, l := range v.libs {
		flags, ok := ldFlags(l)
		if !ok {
			continue
		}
		for _, name := range append([]string{l.Soname}, l.Links...) {
			out = append(out, ldEntry{Key: name, Value: path.Join(v.target, name), Flags: flags})
		}
	}
	return out
}

// ldFlags are what the loader of an architecture looks for (sysdeps/unix/sysv/linux, dl-cache.h).
func ldFlags(l Library) (int32, bool) {
	switch {
	case elf.Machine(l.Machine) == elf.EM_X86_64 && l.Class == 64:
		return ldELFLibc6 | ldFlagX8664, true
	case elf.Machine(l.Machine) == elf.EM_AARCH64 && l.Class == 64:
		return ldELFLibc6 | ldFlagAArch64, true
	case elf.Machine(l.Machine) == elf.EM_386:
		return ldELFLibc6, true
	}
	return 0, false
}

// views are the directories of libraries for some capabilities.
func (d *Driver) views(state string, capabilities []string) []*libraryView {
	var wide, narrow []Library
	for _, l := range d.libraries(capabilities) {
		if l.Class == 32 {
			narrow = append(narrow, l)
		} else {
			wide = append(wide, l)
		}
	}
	var out []*libraryView
	if len(wide) > 0 {
		out = append(out, newLibraryView(state, LibraryDir, wide))
	}
	if len(narrow) > 0 {
		out = append(out, newLibraryView(state, LibraryDir32, narrow))
	}
	return out
}

// mounts are the files of the driver beside its libraries.
func (d *Driver) mounts(capabilities []string) []*cdispec.Mount {
	var out []*cdispec.Mount
	for _, f := range slices.Concat(d.Programs, d.Files) {
		if wanted(f.capabilities, capabilities) {
			out = append(out, &cdispec.Mount{HostPath: f.HostPath, ContainerPath: f.Path, Type: "bind", Options: readOnlyBind})
		}
	}
	for _, f := range d.Sockets {
		out = append(out, &cdispec.Mount{
			HostPath: f.HostPath, ContainerPath: f.Path, Type: "bind", Options: []string{"nosuid", "nodev", "noexec", "rbind", "rprivate"},
		})
	}
	return out
}

// nvidiaSpec is the specification of the GPUs with the driver's files for some capabilities.
func nvidiaSpec(n *NVIDIA, d *Driver, views []*libraryView, capabilities []string) *cdispec.Spec {
	common := cdispec.ContainerEdits{
		// Of images that come with the vendor's own hook in mind; void keeps that from granting more.
		Env:         []string{"NVIDIA_VISIBLE_DEVICES=void"},
		DeviceNodes: deviceNodes(n.Common...),
	}
	for _, v := range views {
		common.Mounts = append(common.Mounts, v.mounts()...)
	}
	common.Mounts = append(common.Mounts, d.mounts(capabilities)...)
	return &cdispec.Spec{Version: cdispec.CurrentVersion, Kind: KindNVIDIA, ContainerEdits: common, Devices: n.devices(capabilities)}
}

func imexSpec(n *NVIDIA) *cdispec.Spec {
	s := &cdispec.Spec{Version: cdispec.CurrentVersion, Kind: KindIMEX}
	var all []Node
	for _, c := range n.Channels {
		s.Devices = append(s.Devices, cdispec.Device{
			Name: fmt.Sprint(c.Number), ContainerEdits: cdispec.ContainerEdits{DeviceNodes: deviceNodes(c.Node)},
		})
		all = append(all, c.Node)
	}
	if len(all) > 0 {
		s.Devices = append(s.Devices, cdispec.Device{Name: "all", ContainerEdits: cdispec.ContainerEdits{DeviceNodes: deviceNodes(all...)}})
	}
	return s
}
