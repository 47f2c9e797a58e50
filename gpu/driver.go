package gpu

import (
	"cmp"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Driver capabilities, as NVIDIA_DRIVER_CAPABILITIES has them.
const (
	CapCompute  = "compute"
	CapCompat32 = "compat32"
	CapGraphics = "graphics"
	CapUtility  = "utility"
	CapVideo    = "video"
	CapDisplay  = "display"
	CapNGX      = "ngx"
)

// Capabilities are all that there are.
var Capabilities = []string{CapCompute, CapCompat32, CapGraphics, CapUtility, CapVideo, CapDisplay, CapNGX}

// driverLibraries are those of the user-space driver, named up to ".so", by the capability that needs them.
var driverLibraries = map[string][]string{
	CapUtility: {"libnvidia-ml", "libnvidia-cfg"},
	CapCompute: {
		"libcuda", "libcudadebugger", "libnvidia-opencl", "libnvidia-gpucomp", "libnvidia-ptxjitcompiler",
		"libnvidia-fatbinaryloader", "libnvidia-allocator", "libnvidia-compiler", "libnvidia-pkcs11",
		"libnvidia-pkcs11-openssl3", "libnvidia-nvvm", "libnvidia-nvvm70", "libnvidia-sandboxutils", "libnvidia-tileiras",
	},
	CapVideo: {"libvdpau_nvidia", "libnvidia-encode", "libnvidia-opticalflow", "libnvcuvid"},
	CapGraphics: {
		"libnvidia-eglcore", "libnvidia-glcore", "libnvidia-tls", "libnvidia-glsi", "libnvidia-fbc", "libnvidia-ifr",
		"libnvidia-rtcore", "libnvoptix", "libGLX_nvidia", "libEGL_nvidia", "libGLESv2_nvidia", "libGLESv1_CM_nvidia",
		"libnvidia-glvkspirv", "libnvidia-cbl", "libnvidia-gpucomp", "libnvidia-allocator", "libnvidia-vulkan-producer",
		"libnvidia-egl-wayland", "libnvidia-egl-wayland2", "libnvidia-egl-gbm", "libnvidia-egl-xcb", "libnvidia-egl-xlib",
		"libnvidia-present",
	},
	CapNGX: {"libnvidia-ngx"},
}

var driverPrograms = map[string][]string{
	CapUtility: {"nvidia-smi", "nvidia-debugdump", "nvidia-persistenced"},
	CapCompute: {"nvidia-cuda-mps-control", "nvidia-cuda-mps-server"},
	CapNGX:     {"nvidia-ngx-updater"},
}

// graphicsFiles tell loaders (GLVND, Vulkan, EGL) of the driver.
var graphicsFiles = []string{
	"/usr/share/glvnd/egl_vendor.d/10_nvidia.json", "/usr/share/vulkan/icd.d/nvidia_icd.json",
	"/usr/share/vulkan/icd.d/nvidia_layers.json", "/usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
	"/etc/vulkan/icd.d/nvidia_icd.json", "/etc/vulkan/implicit_layer.d/nvidia_layers.json",
	"/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
	"/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
	"/usr/share/egl/egl_external_platform.d/20_nvidia_xcb.json",
	"/usr/share/egl/egl_external_platform.d/20_nvidia_xlib.json",
	"/usr/share/nvidia/nvoptix.bin",
}

// driverSockets are those of the vendor's services; a container that uses a GPU talks to them.
var driverSockets = []string{"/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket"}

// libraryDirs are where distributions and the vendor's installer put libraries, in the order of preference.
var libraryDirs = []string{
	"/usr/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu/nvidia/current", "/usr/lib/aarch64-linux-gnu",
	"/usr/lib/aarch64-linux-gnu/nvidia/current", "/usr/lib64", "/usr/lib64/nvidia", "/usr/lib", "/usr/lib/nvidia",
	"/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/run/opengl-driver/lib", "/home/kubernetes/bin/nvidia/lib64",
	"/opt/nvidia/lib64", "/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/lib", "/lib64/nvidia",
	"/usr/lib/i386-linux-gnu", "/usr/lib/i386-linux-gnu/nvidia/current", "/usr/lib32", "/lib/i386-linux-gnu",
}

var programDirs = []string{
	"/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/local/nvidia/bin",
	"/usr/lib/nvidia/current", "/run/opengl-driver/bin", "/home/kubernetes/bin/nvidia/bin", "/opt/nvidia/bin",
}

// Library is a file of the user-space driver.
type Library struct {
	Path    string   `json:"path"` // on the host
	Name    string   `json:"name"` // of the file
	Soname  string   `json:"soname"`
	Links   []string `json:"links,omitempty"` // other names for it, beside the soname
	Class   int      `json:"class"`           // 64 or 32
	Machine uint16   `json:"machine"`         // ELF e_machine

	capabilities []string
}

// Driver is the user-space part of a driver version.
type Driver struct {
	Version   string    `json:"version"`
	Root      string    `json:"root"`
	Libraries []Library `json:"libraries"`
	Programs  []File    `json:"programs,omitempty"`
	Files     []File    `json:"files,omitempty"` // firmware, configuration
	Sockets   []File    `json:"sockets,omitempty"`
	// Others are versions of libcuda beside the kernel module's: the cause of "driver/library version mismatch".
	Others []string `json:"other_versions,omitempty"`
}

// File is a file of the host and where it is to be in the container.
type File struct {
	HostPath string `json:"host_path"`
	Path     string `json:"path"`

	capabilities []string
}

// findDriver looks for the files of a driver version below root, in the places named and in those of the loader's cache.
func findDriver(root, version string) *Driver {
	d := &Driver{Version: version, Root: root}
	seen := map[string]bool{}
	dirs := libraryDirs
	for _, dir := range cachedDirs(root) {
		if !slices.Contains(dirs, dir) {
			dirs = append(slices.Clip(dirs), dir)
		}
	}
	for _, dir := range dirs {
		real, err := resolveIn(root, dir)
		if err != nil || seen[real] {
			continue
		}
		seen[real] = true
		d.addLibraries(real)
	}
	slices.Sort(d.Others)
	d.Others = slices.Compact(d.Others)
	d.addFiles()
	return d
}

// maxLinks is the kernel's limit on links in a path.
const maxLinks = 40

// resolveIn returns the host path that p stands for inside root, whose links count from there. The root belongs to the
// administrator: this is no defence against one that changes meanwhile.
func resolveIn(root, p string) (string, error) {
	rest, at, links := strings.Split(path.Clean("/"+p), "/"), "/", 0
	for len(rest) > 0 {
		at, rest = path.Join(at, rest[0]), rest[1:]
		target, err := os.Readlink(filepath.Join(root, at))
		if errors.Is(err, syscall.EINVAL) { // not a link
			continue
		}
		if err != nil {
			return "", err
		}
		if links++; links > maxLinks {
			return "", &fs.PathError{Op: "readlink", Path: p, Err: syscall.ELOOP}
		}
		rest = append(strings.Split(target, "/"), rest...)
		if at = path.Dir(at); path.IsAbs(target) {
			at = "/"
		}
	}
	return filepath.Join(root, at), nil
}

// cachedDirs are the directories in which the driver root's own loader finds libcuda and libnvidia-ml.
func cachedDirs(root string) []string {
	b, err := os.ReadFile(filepath.Join(root, "/etc/ld.so.cache"))
	if err != nil {
		return nil
	}
	entries, err := parseLDCache(b)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if e.Key == "libcuda.so.1" || e.Key == "libnvidia-ml.so.1" {
			out = append(out, path.Dir(path.Clean("/"+e.Value)))
		}
	}
	return out
}

// libraryCapabilities says who needs a library; none, where it is not the driver's.
func libraryCapabilities(stem string) []string {
	var out []string
	for _, c := range Capabilities {
		if slices.Contains(driverLibraries[c], stem) {
			out = append(out, c)
		}
	}
	return out
}

func (d *Driver) addLibraries(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	links := map[string][]string{} // names by the file that they lead to
	found := len(d.Libraries)
	for _, e := range entries {
		stem, version, ok := strings.Cut(e.Name(), ".so")
		capabilities := libraryCapabilities(stem)
		if !ok || capabilities == nil {
			continue
		}
		at := filepath.Join(dir, e.Name())
		if e.Type()&os.ModeSymlink != 0 {
			if inside, err := filepath.Rel(d.Root, at); err == nil {
				if real, err := resolveIn(d.Root, inside); err == nil {
					links[real] = append(links[real], e.Name())
				}
			}
			continue
		}
		version = strings.TrimPrefix(version, ".")
		// Libraries of the driver carry its version; a few have their own, which is short (egl-wayland 1.1.13).
		if version != d.Version && looksLikeDriver(version) {
			if stem == "libcuda" {
				d.Others = append(d.Others, version)
			}
			continue
		}
		l, ok := readLibrary(at)
		if !ok {
			continue
		}
		// Of two directories with the same library the first counts.
		if slices.ContainsFunc(d.Libraries, func(o Library) bool { return o.Name == l.Name && o.Class == l.Class }) {
			continue
		}
		l.capabilities = capabilities
		d.Libraries = append(d.Libraries, l)
	}
	for i := range d.Libraries[found:] {
		l := &d.Libraries[found+i]
		for _, name := range links[l.Path] {
			if name != l.Soname {
				l.Links = append(l.Links, name)
			}
		}
	}
}

func looksLikeDriver(version string) bool {
	return versionPattern.FindString(version) == version && version != ""
}

// readLibrary looks at an ELF file; false where it is no shared object.
func readLibrary(at string) (Library, bool) {
	f, err := elf.Open(at)
	if err != nil {
		return Library{}, false
	}
	defer f.Close()
	if f.Type != elf.ET_DYN {
		return Library{}, false
	}
	l := Library{Path: at, Name: filepath.Base(at), Class: 64, Machine: uint16(f.Machine)}
	if f.Class == elf.ELFCLASS32 {
		l.Class = 32
	}
	l.Soname = l.Name
	if names, err := f.DynString(elf.DT_SONAME); err == nil && len(names) == 1 && !strings.Contains(names[0], "/") && names[0] != "" {
		l.Soname = names[0]
	}
	return l, true
}

func (d *Driver) addFiles() {
	exists := func(p string) (string, bool) {
		real, err := resolveIn(d.Root, p)
		return real, err == nil
	}
	for _, c := range Capabilities {
		for _, name := range driverPrograms[c] {
			for _, dir := range programDirs {
				if real, ok := exists(path.Join(dir, name)); ok {
					d.Programs = append(d.Programs, File{real, "/usr/bin/" + name, []string{c}})
					break
				}
			}
		}
	}
	for _, p := range graphicsFiles {
		if real, ok := exists(p); ok {
			d.Files = append(d.Files, File{real, p, []string{CapGraphics, CapDisplay}})
		}
	}
	// Files of the GPU System Processor, which the driver loads for whoever opens the device first.
	for _, base := range []string{"/lib/firmware", "/usr/lib/firmware"} {
		dir := base + "/nvidia/" + d.Version
		if entries, err := os.ReadDir(filepath.Join(d.Root, dir)); err == nil {
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), "gsp") {
					d.Files = append(d.Files, File{filepath.Join(d.Root, dir, e.Name()), path.Join("/lib/firmware/nvidia", d.Version, e.Name()), nil})
				}
			}
			break
		}
	}
	for _, p := range driverSockets {
		if real, ok := exists(p); ok {
			d.Sockets = append(d.Sockets, File{real, p, nil})
		}
	}
}

// libraries are those that capabilities need: of 64 bits, and with compat32 of 32 bits too.
func (d *Driver) libraries(capabilities []string) []Library {
	var out []Library
	for _, l := range d.Libraries {
		if l.Class == 32 && !slices.Contains(capabilities, CapCompat32) {
			continue
		}
		if wanted(l.capabilities, capabilities) {
			out = append(out, l)
		}
	}
	slices.SortFunc(out, func(a, b Library) int { return cmp.Or(cmp.Compare(b.Class, a.Class), cmp.Compare(a.Name, b.Name)) })
	return out
}

// wanted: of nobody in particular, or of one of those.
func wanted(of, capabilities []string) bool {
	return len(of) == 0 || slices.ContainsFunc(of, func(c string) bool { return slices.Contains(capabilities, c) })
}
