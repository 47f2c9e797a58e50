package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/workload"
)

const defaultPathTimeout = 10 * time.Second

// mounts puts the file systems of the runtime first, less those that the client mounts over, then the pod's files and
// the client's volumes, a parent before what is below it.
func (b *builder) mounts(ctx context.Context) error {
	client, err := b.clientMounts(ctx)
	if err != nil {
		return err
	}
	taken := make(map[string]bool, len(client))
	for i := range client {
		taken[client[i].Destination] = true
	}
	base := b.baseMounts()
	all := make([]specs.Mount, 0, len(base)+len(client)+4)
	for _, m := range base {
		// A /dev of the client's own comes with everything in it.
		if !taken[m.Destination] && (!taken["/dev"] || !strings.HasPrefix(m.Destination, "/dev/")) {
			all = append(all, m)
		}
	}
	for _, f := range [...]struct{ source, target string }{
		{b.ResolvConf, "/etc/resolv.conf"}, {b.Hosts, "/etc/hosts"}, {b.Hostname, "/etc/hostname"},
	} {
		if f.source == "" || taken[f.target] {
			continue
		}
		client = append(client, specs.Mount{
			Destination: f.target, Type: "bind", Source: f.source,
			Options: []string{"rbind", "rprivate", readonlyOption(b.sec.ReadonlyRootfs)},
		})
	}
	slices.SortStableFunc(client, func(x, y specs.Mount) int { return depth(x.Destination) - depth(y.Destination) })
	b.spec.Mounts = append(all, client...)
	return nil
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

func readonlyOption(ro bool) string {
	if ro {
		return "ro"
	}
	return "rw"
}

// baseMounts are those of runtime-spec's "Default Filesystems" with containerd's options. CRI, privileged: "Any sysfs and
// procfs mounts are mounted RW".
func (b *builder) baseMounts() []specs.Mount {
	ro := readonlyOption(!b.sec.Privileged)
	sys := specs.Mount{
		Destination: "/sys", Type: "sysfs", Source: "sysfs",
		Options: []string{"nosuid", "noexec", "nodev", ro},
	}
	if b.Namespaces.User != "" && b.Namespaces.Net == "" {
		// sysfs belongs to the network namespace: the kernel lets nobody but its owner mount one.
		sys = specs.Mount{
			Destination: "/sys", Type: "bind", Source: "/sys",
			Options: []string{"rbind", "nosuid", "noexec", "nodev", "rro"},
		}
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}
	if b.Namespaces.User != "" && !b.mapsGroup(5) {
		pts = pts[:len(pts)-1]
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{
			Destination: "/dev", Type: "tmpfs", Source: "tmpfs",
			Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"},
		},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		b.shm(),
		sys,
		{
			Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", ro},
		},
	}
}

// mapsGroup tells whether the pod's user namespace has the group gid.
func (b *builder) mapsGroup(gid uint32) bool {
	u := b.Pod.Security.Namespaces.User
	if u == nil {
		return false
	}
	return slices.ContainsFunc(u.GIDs, func(m workload.IDMapping) bool {
		return m.ContainerID <= gid && gid-m.ContainerID < m.Length
	})
}

func (b *builder) shm() specs.Mount {
	source := b.ShmPath
	if b.Namespaces.IPC == "" {
		source = "/dev/shm"
	}
	if source == "" {
		return specs.Mount{
			Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
			Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"},
		}
	}
	return specs.Mount{
		Destination: "/dev/shm", Type: "bind", Source: source,
		Options: []string{"rbind", "nosuid", "noexec", "nodev", "rprivate", "rw"},
	}
}

// clientMounts turns the client's mounts, and those of ExtraMounts that it does not override, into binds.
func (b *builder) clientMounts(ctx context.Context) ([]specs.Mount, error) {
	mounts := b.ctr.Mounts
	for _, e := range b.ExtraMounts {
		if !slices.ContainsFunc(b.ctr.Mounts, func(m workload.Mount) bool {
			return path.Clean(m.ContainerPath) == path.Clean(e.ContainerPath)
		}) {
			mounts = append(mounts[:len(mounts):len(mounts)], e)
		}
	}
	if len(mounts) == 0 {
		return nil, nil
	}
	sources, err := b.resolveSources(ctx, mounts)
	if err != nil {
		return nil, err
	}
	out := make([]specs.Mount, len(mounts), len(mounts)+3)
	for i := range mounts {
		if out[i], err = b.clientMount(i, &mounts[i], sources[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (b *builder) clientMount(i int, m *workload.Mount, source string) (specs.Mount, error) {
	var none specs.Mount
	if !strings.HasPrefix(m.ContainerPath, "/") || strings.IndexByte(m.ContainerPath, 0) >= 0 {
		return none, fieldf(indexf("mounts", i, "container_path"), "%q is not an absolute path", m.ContainerPath)
	}
	target := path.Clean(m.ContainerPath)
	if target == "/" {
		return none, fieldf(indexf("mounts", i, "container_path"), "%q: the root file system cannot be mounted over", m.ContainerPath)
	}
	out := specs.Mount{
		Destination: target, Type: "bind", Source: source,
		UIDMappings: idMappings(m.UIDMappings), GIDMappings: idMappings(m.GIDMappings),
	}
	access, err := accessOption(i, m)
	if err != nil {
		return none, err
	}
	propagation, err := b.propagation(i, m, source)
	if err != nil {
		return none, err
	}
	out.Options = append(make([]string, 0, 4+len(m.Options)), "rbind", propagation, access)
	for j, o := range m.Options {
		if err := checkClientOption(o, m.Readonly); err != nil {
			return none, fieldf(indexf("mounts", i, index("mount_options", j)), "%w", err)
		}
		out.Options = append(out.Options, o)
	}
	if (len(m.UIDMappings) == 0) != (len(m.GIDMappings) == 0) {
		return none, fieldf(indexf("mounts", i, "uidMappings"), "uidMappings and gidMappings must be given together")
	}
	if len(m.UIDMappings) > 0 {
		out.Options = append(out.Options, "ridmap")
	}
	if m.SELinuxRelabel {
		b.built.Relabel = append(b.built.Relabel, source)
	}
	return out, nil
}

// accessOption: "recursive_read_only" demands readonly and private propagation (CRI Mount).
func accessOption(i int, m *workload.Mount) (string, error) {
	if !m.RecursiveReadonly {
		return readonlyOption(m.Readonly), nil
	}
	if !m.Readonly {
		return "", fieldf(indexf("mounts", i, "recursive_read_only"), "needs readonly")
	}
	if m.Propagation != "" && m.Propagation != workload.PropagationPrivate {
		return "", fieldf(indexf("mounts", i, "recursive_read_only"), "needs private propagation, not %s", m.Propagation)
	}
	return "rro", nil
}

// checkClientOption lets a client set what belongs to one mount point.
func checkClientOption(o string, readonly bool) error {
	opt, ok := mountOptions[o]
	if !ok || opt.kind != optionAttr {
		return fmt.Errorf("unknown mount option %q", o)
	}
	if readonly && (o == "rw" || o == "rrw") {
		return fmt.Errorf("%q contradicts readonly", o)
	}
	return nil
}

// propagation returns the option for the mode, and makes the root's agree, which runc and crun need. The source must be
// in a peer group (CRI MountPropagation): else nothing would propagate, and nobody would be told.
func (b *builder) propagation(i int, m *workload.Mount, source string) (string, error) {
	root := &b.spec.Linux.RootfsPropagation
	switch m.Propagation {
	case "", workload.PropagationPrivate:
		return "rprivate", nil
	case workload.PropagationHostToContainer:
		if err := checkPeers(source, "shared:", "master:"); err != nil {
			return "", &FieldError{Field: indexf("mounts", i, "propagation"), Err: err}
		}
		if *root == "" {
			*root = "rslave"
		}
		return "rslave", nil
	case workload.PropagationBidirectional:
		if err := checkPeers(source, "shared:"); err != nil {
			return "", &FieldError{Field: indexf("mounts", i, "propagation"), Err: err}
		}
		*root = "rshared"
		return "rshared", nil
	}
	return "", fieldf(indexf("mounts", i, "propagation"), "unknown mode %q", m.Propagation)
}

// checkPeers looks at the mount that path is on.
func checkPeers(path string, kinds ...string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return err
	}
	var on *mountinfo.Info
	for _, m := range mounts {
		if on == nil || len(m.Mountpoint) >= len(on.Mountpoint) { // of equal ones the later covers
			on = m
		}
	}
	if on == nil {
		return fmt.Errorf("%s is on no mount", path)
	}
	for _, kind := range kinds {
		for o := range strings.FieldsSeq(on.Optional) {
			if strings.HasPrefix(o, kind) {
				return nil
			}
		}
	}
	if len(kinds) == 1 {
		return fmt.Errorf("%s is on the mount %s, which is not shared", path, on.Mountpoint)
	}
	return fmt.Errorf("%s is on the mount %s, which is neither shared nor a slave", path, on.Mountpoint)
}

// resolveSources finds the host path of each mount. It looks from a goroutine of its own, since a stat on a dead network
// file system does not return.
func (b *builder) resolveSources(ctx context.Context, mounts []workload.Mount) ([]string, error) {
	for i := range mounts {
		if err := checkSource(i, &mounts[i]); err != nil {
			return nil, err
		}
	}
	out := make([]string, len(mounts))
	return out, b.bounded(ctx, func(now func(string)) error {
		for i := range mounts {
			m := &mounts[i]
			if m.Image != nil {
				source, err := b.imageVolume(m)
				if err != nil {
					return &FieldError{Field: indexf("mounts", i, "image"), Err: err}
				}
				out[i] = source
				continue
			}
			now(indexf("mounts", i, "host_path") + fmt.Sprintf(" %q", m.HostPath))
			source, err := filepath.EvalSymlinks(m.HostPath)
			if err != nil {
				return &pathError{field: indexf("mounts", i, "host_path"), path: m.HostPath, err: err}
			}
			out[i] = source
		}
		return nil
	})
}

func checkSource(i int, m *workload.Mount) error {
	switch {
	case m.Image != nil && m.HostPath != "":
		return fieldf(indexf("mounts", i, "host_path"), "%q: set together with image", m.HostPath)
	case m.Image == nil && m.HostPath == "":
		return fieldf(indexf("mounts", i, "host_path"), "neither host_path nor image is set")
	case m.Image == nil && (!filepath.IsAbs(m.HostPath) || strings.IndexByte(m.HostPath, 0) >= 0):
		return fieldf(indexf("mounts", i, "host_path"), "%q is not an absolute path", m.HostPath)
	}
	return nil
}

func (b *builder) imageVolume(m *workload.Mount) (string, error) {
	if b.ImageVolume == nil {
		return "", errors.New("image volumes are not available")
	}
	return b.ImageVolume(m)
}

// pathError shows the path that the client named and why it cannot be used, without what was tried on the way.
type pathError struct {
	field, path string
	err         error
}

func (e *pathError) Error() string {
	err := e.err
	var pe *os.PathError
	if errors.As(err, &pe) {
		if pe.Path != e.path {
			return fmt.Sprintf("%s %q: %s: %v", e.field, e.path, pe.Path, pe.Err)
		}
		err = pe.Err
	}
	return fmt.Sprintf("%s %q: %v", e.field, e.path, err)
}

func (e *pathError) Unwrap() error { return &FieldError{Field: e.field, Err: e.err} }

// bounded runs look, which says by now what it is about to look at, until ctx or the time limit ends; look is
// then left behind, so it must touch nothing that the caller uses after an error.
func (b *builder) bounded(ctx context.Context, look func(now func(string)) error) error {
	limit := b.host.PathTimeout
	if limit == 0 {
		limit = defaultPathTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	at := make(chan string, 1)
	done := make(chan error, 1)
	go func() {
		done <- look(func(what string) {
			select {
			case <-at:
			default:
			}
			at <- what
		})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	what := "host path"
	select {
	case what = <-at:
	default:
	}
	return fmt.Errorf("%s: no answer from its file system: %w", what, ctx.Err())
}
