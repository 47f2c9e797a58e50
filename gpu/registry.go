package gpu

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
	cdispec "tags.cncf.io/container-device-interface/specs-go"
)

// ErrDevice: what was asked for cannot be had. The text names the device, and the file at fault.
var ErrDevice = errors.New("device")

// Config says where to look.
type Config struct {
	SpecDirs []string // of CDI specifications; a later one has priority
	// DeviceRoot is where proc, sys and dev are; DriverRoot is where the user-space drivers are installed. "" is /.
	DeviceRoot, DriverRoot string
	// State is for what is mounted into containers; on a tmpfs.
	State string
	// Capabilities of the driver that a container gets; empty is compute and utility.
	Capabilities []string
	// TrustEnvironment lets NVIDIA_VISIBLE_DEVICES ask for GPUs and NVIDIA_DRIVER_CAPABILITIES for capabilities.
	TrustEnvironment bool
}

// Registry knows the devices of the node. It is safe for concurrent use and costs nothing until it is used.
type Registry struct {
	cfg   Config
	files specFiles

	mu     sync.Mutex
	nvidia *NVIDIA // with its fingerprint; nil: not looked for, or not there
	driver *Driver
}

// New looks at nothing yet.
func New(cfg Config) *Registry {
	cfg.DeviceRoot, cfg.DriverRoot = cmp.Or(cfg.DeviceRoot, "/"), cmp.Or(cfg.DriverRoot, "/")
	if len(cfg.Capabilities) == 0 {
		cfg.Capabilities = []string{CapCompute, CapUtility}
	}
	return &Registry{cfg: cfg, files: specFiles{dirs: cfg.SpecDirs}}
}

// Injection is what a container needs beyond its specification.
type Injection struct {
	Names []string // of the devices, each once
	// HostNodes are the host's nodes for devices whose path in the container differs, or that are below another root.
	HostNodes map[string]string
	// Warnings are for the log.
	Warnings []string

	entries []ldEntry // for the loader's cache
	dirs    []string  // of entries
}

// Request is what decides on a container's devices.
type Request struct {
	Names       []string          // CRI CDI_devices
	Annotations map[string]string // of the container: cdi.k8s.io/…
	Env         []string          // of the process, the image's included
}

// Names are the qualified names that a request asks for, in a fixed order, each once.
func (r *Registry) Names(q Request) ([]string, error) {
	names := slices.Clone(q.Names)
	for _, key := range slices.Sorted(maps.Keys(q.Annotations)) {
		if !strings.HasPrefix(key, cdi.AnnotationPrefix) {
			continue
		}
		for name := range strings.SplitSeq(q.Annotations[key], ",") {
			if _, _, _, err := parser.ParseQualifiedName(name); err != nil {
				return nil, fmt.Errorf("%w: annotation %s: %w", ErrDevice, key, err)
			}
			names = append(names, name)
		}
	}
	if r.cfg.TrustEnvironment {
		names = append(names, visibleDevices(q.Env)...)
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(names, func(n string) bool {
		twice := seen[n]
		seen[n] = true
		return twice
	}), nil
}

func lookupEnv(env []string, key string) (string, bool) {
	for _, e := range slices.Backward(env) {
		if v, ok := strings.CutPrefix(e, key+"="); ok {
			return v, true
		}
	}
	return "", false
}

// visibleDevices reads NVIDIA_VISIBLE_DEVICES: none and void are no devices, like no variable.
func visibleDevices(env []string) []string {
	v, _ := lookupEnv(env, "NVIDIA_VISIBLE_DEVICES")
	var out []string
	for name := range strings.SplitSeq(v, ",") {
		switch name = strings.TrimSpace(name); {
		case name == "" || name == "none" || name == "void":
		case strings.Contains(name, "="): // a qualified CDI name, as nvidia-container-runtime takes it too
			out = append(out, name)
		default:
			out = append(out, KindNVIDIA+"="+name)
		}
	}
	return out
}

// capabilities are those of a container; what the environment names and nobody knows is left out.
func (r *Registry) capabilities(env []string) []string {
	v, ok := lookupEnv(env, "NVIDIA_DRIVER_CAPABILITIES")
	if !ok || v == "" || !r.cfg.TrustEnvironment {
		return r.cfg.Capabilities
	}
	var out []string
	for name := range strings.SplitSeq(v, ",") {
		switch name = strings.TrimSpace(name); {
		case name == "all":
			return Capabilities
		case slices.Contains(Capabilities, name) && !slices.Contains(out, name):
			out = append(out, name)
		}
	}
	return out
}

// Inject puts what a request asks for into a specification, and returns nil where it asks for nothing.
func (r *Registry) Inject(spec *specs.Spec, q Request) (*Injection, error) {
	if q.Env == nil && spec.Process != nil {
		q.Env = spec.Process.Env
	}
	names, err := r.Names(q)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	catalog, err := r.files.catalog()
	if err != nil {
		return nil, err
	}
	in := &Injection{Names: names, HostNodes: map[string]string{}}
	j := &injector{r: r, spec: spec, in: in, env: q.Env, catalog: catalog, common: map[string]bool{}}
	for _, name := range names {
		if err := j.device(name); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDevice, err)
		}
	}
	return in, nil
}

// injector applies devices one after the other, so that an error knows whose it is.
type injector struct {
	r       *Registry
	spec    *specs.Spec
	in      *Injection
	env     []string
	catalog *catalog
	common  map[string]bool     // files and kinds whose own edits were applied
	built   map[string]*builtin // by kind
}

func (j *injector) device(name string) error {
	d, err := j.catalog.find(name)
	if err != nil {
		return err
	}
	if d == nil {
		return j.builtinDevice(name)
	}
	at := d.GetSpec().GetPath()
	if !j.common[at] {
		j.common[at] = true
		if err := j.apply(&d.GetSpec().ContainerEdits); err != nil {
			return fmt.Errorf("CDI device %q: %s: containerEdits: %w", name, at, err)
		}
	}
	if err := j.apply(&d.ContainerEdits); err != nil {
		return fmt.Errorf("CDI device %q: %s: %w", name, at, err)
	}
	return nil
}

func (j *injector) builtin(kind string) (*builtin, error) {
	if b := j.built[kind]; b != nil {
		return b, nil
	}
	look := j.r.otherBuiltins
	if kind == KindNVIDIA || kind == KindIMEX {
		look = func(out map[string]*builtin) error { return j.r.nvidiaBuiltins(j.env, out) }
	}
	if j.built == nil {
		j.built = map[string]*builtin{}
	}
	err := look(j.built)
	return j.built[kind], err
}

func (j *injector) builtinDevice(name string) error {
	kind, device, _ := strings.Cut(name, "=")
	b, err := j.builtin(kind)
	if err != nil {
		return err
	}
	if b == nil {
		return j.catalog.withErrors(fmt.Errorf("CDI device %q: no specification in %s and nothing found on this node is of kind %s",
			name, strings.Join(j.r.cfg.SpecDirs, ", "), kind))
	}
	i := slices.IndexFunc(b.spec.Devices, func(d cdispec.Device) bool { return d.Name == device })
	if i < 0 {
		var names []string
		for _, d := range b.spec.Devices {
			names = append(names, d.Name)
		}
		return fmt.Errorf("CDI device %q: found on this node are of kind %s: %s", name, kind, cmp.Or(listNames(names), "none"))
	}
	if !j.common[kind] {
		j.common[kind] = true
		for _, v := range b.views {
			if err := v.make(); err != nil {
				return fmt.Errorf("CDI device %q: directory for libraries: %w", name, err)
			}
			j.in.entries = append(j.in.entries, v.entries()...)
			j.in.dirs = append(j.in.dirs, v.target)
		}
		j.in.Warnings = append(j.in.Warnings, b.warnings...)
		if err := j.apply(&b.spec.ContainerEdits); err != nil {
			return fmt.Errorf("CDI device %q: %w", name, err)
		}
	}
	if err := j.apply(&b.spec.Devices[i].ContainerEdits); err != nil {
		return fmt.Errorf("CDI device %q: %w", name, err)
	}
	return nil
}

// apply copies what the library changes as it applies (the numbers of nodes, which it looks up only once).
func (j *injector) apply(edits *cdispec.ContainerEdits) error {
	e := *edits
	e.DeviceNodes = make([]*cdispec.DeviceNode, len(edits.DeviceNodes))
	for i, n := range edits.DeviceNodes {
		node := *n
		e.DeviceNodes[i] = &node
		j.in.HostNodes[node.Path] = cmp.Or(node.HostPath, node.Path)
	}
	e.Mounts = make([]*cdispec.Mount, len(edits.Mounts))
	for i, m := range edits.Mounts {
		e.Mounts[i] = m
		if m.Type != "" && m.Type != "bind" {
			continue
		}
		if !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
			// CDI, SPEC.md: "type … default to bind"; OCI has no default.
			bind := *m
			bind.Options = append(slices.Clip(m.Options), "bind")
			e.Mounts[i] = &bind
		}
		if !filepath.IsAbs(m.HostPath) {
			return fmt.Errorf("mount %s: hostPath %q is not absolute", m.ContainerPath, m.HostPath)
		}
		// Now, when it is known who asks for it; the kernel's own message would name the path alone.
		if _, err := os.Stat(m.HostPath); err != nil {
			return fmt.Errorf("mount %s: %w", m.ContainerPath, err)
		}
	}
	if err := checkHooks(e.Hooks); err != nil {
		return err
	}
	if j.spec.Linux == nil {
		j.spec.Linux = &specs.Linux{}
	}
	for _, d := range e.NetDevices {
		if other, ok := j.spec.Linux.NetDevices[d.HostInterfaceName]; ok && other.Name != d.Name {
			return fmt.Errorf("network interface %s is to be named %s and %s", d.HostInterfaceName, other.Name, d.Name)
		}
	}
	// A profile, which containers share, is not among what is edited.
	return (&cdi.ContainerEdits{ContainerEdits: &e}).Apply(j.spec)
}

// checkHooks finds what would fail when the container starts, while it is known whose hook it is. The path of a
// startContainer hook is the container's.
func checkHooks(hooks []*cdispec.Hook) error {
	for _, h := range hooks {
		if !filepath.IsAbs(h.Path) {
			return fmt.Errorf("%s hook: path %q is not absolute", h.HookName, h.Path)
		}
		if h.HookName == cdi.StartContainerHook {
			continue
		}
		fi, err := os.Stat(h.Path)
		if err != nil {
			return fmt.Errorf("%s hook: %w", h.HookName, err)
		}
		if !fi.Mode().IsRegular() || fi.Mode().Perm()&0o111 == 0 {
			return fmt.Errorf("%s hook: %s is no program", h.HookName, h.Path)
		}
	}
	return nil
}

// builtin is a specification that was made here.
type builtin struct {
	spec     *cdispec.Spec
	views    []*libraryView
	warnings []string
}

// nvidiaBuiltins and otherBuiltins look at the node as it is now.
func (r *Registry) nvidiaBuiltins(env []string, out map[string]*builtin) error {
	n, d, err := r.findNVIDIA()
	if err != nil {
		return err
	}
	if n != nil {
		capabilities := r.capabilities(env)
		views := d.views(r.cfg.State, capabilities)
		b := &builtin{spec: nvidiaSpec(n, d, views, capabilities), views: views}
		for _, p := range driverProblems(n, d) {
			b.warnings = append(b.warnings, p.String())
		}
		out[KindNVIDIA] = b
		out[KindIMEX] = &builtin{spec: imexSpec(n)}
	}
	return nil
}

func (r *Registry) otherBuiltins(out map[string]*builtin) error {
	for _, s := range otherSpecs(discoverOthers(r.cfg.DeviceRoot)) {
		out[s.Kind] = &builtin{spec: s}
	}
	return nil
}

// findNVIDIA returns the driver that is loaded, looking again where something has changed since the last time.
func (r *Registry) findNVIDIA() (*NVIDIA, *Driver, error) {
	now := (&finder{root: r.cfg.DeviceRoot}).nvidiaFingerprint()
	r.mu.Lock()
	defer r.mu.Unlock()
	if now == "" {
		r.nvidia, r.driver = nil, nil
		return nil, nil, nil
	}
	if r.nvidia == nil || r.nvidia.fingerprint != now {
		n, err := discoverNVIDIA(r.cfg.DeviceRoot)
		if err != nil || n == nil {
			return nil, nil, err
		}
		r.nvidia = n
	}
	if r.driver == nil || r.driver.Version != r.nvidia.Version || !r.driver.complete() {
		r.driver = findDriver(r.cfg.DriverRoot, r.nvidia.Version)
	}
	return r.nvidia, r.driver, nil
}

// complete: the libraries that a program needs first are there, and where they were found. Else they may be being
// installed, so a look is not remembered.
func (d *Driver) complete() bool {
	for _, l := range d.Libraries {
		if l.Soname == "libcuda.so.1" {
			_, err := os.Stat(l.Path)
			return err == nil
		}
	}
	return false
}

// Files are what is to be written into a container's root file system, before anything is mounted there: the loader's cache
// with the driver's libraries in it, and the line from which the container's own ldconfig would make it again. cache
// is what the image has, nil for nothing.
func (in *Injection) Files(cache []byte) (map[string][]byte, error) {
	if in == nil || len(in.entries) == 0 {
		return nil, nil
	}
	var have []ldEntry
	if cache != nil {
		var err error
		if have, err = parseLDCache(cache); err != nil {
			return nil, err
		}
	}
	return map[string][]byte{
		LDCachePath: encodeLDCache(mergeLDCache(have, in.entries)),
		LDConfPath:  []byte(strings.Join(in.dirs, "\n") + "\n"),
	}, nil
}

// Files of the loader, and how large a cache of an image may be.
const (
	LDCachePath = "/etc/ld.so.cache"
	LDConfPath  = "/etc/ld.so.conf.d/00-cri-shim-gpu.conf"
	LDCacheMax  = ldMaxCache
)
