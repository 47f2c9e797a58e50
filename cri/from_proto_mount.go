package cri

import (
	"path/filepath"
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// mountOptions are the options that a client may add to a bind mount: the attributes of
// mount_setattr(2) that restrict it, and their opposites.
var mountOptions = map[string]bool{
	"noexec": true, "nodev": true, "nosuid": true, "noatime": true, "nodiratime": true,
	"relatime": true, "strictatime": true, "nosymfollow": true, "ro": true,
	"exec": true, "dev": true, "suid": true, "atime": true, "diratime": true, "symfollow": true, "rw": true,
}

func (f *fields) mounts(at string, in []*pb.Mount) []workload.Mount {
	var out []workload.Mount
	for i, m := range in {
		out = append(out, f.mount(index(at, i), m))
	}
	return out
}

func (f *fields) mount(at string, m *pb.Mount) workload.Mount {
	out := workload.Mount{
		ContainerPath:     m.GetContainerPath(),
		HostPath:          m.GetHostPath(),
		Readonly:          m.GetReadonly(),
		RecursiveReadonly: m.GetRecursiveReadOnly(),
		SELinuxRelabel:    m.GetSelinuxRelabel(),
		Propagation:       propagation(m.GetPropagation()),
		UIDMappings:       f.mappings(at+".uidMappings", m.GetUidMappings()),
		GIDMappings:       f.mappings(at+".gidMappings", m.GetGidMappings()),
		ImageSubPath:      m.GetImageSubPath(),
		Options:           m.GetMountOptions(),
	}
	f.absolute(at+".container_path", out.ContainerPath)
	f.mountSource(at, m, &out)
	if out.RecursiveReadonly && !out.Readonly {
		f.add(at+".recursive_read_only", "set without readonly")
	}
	if out.RecursiveReadonly && out.Propagation != workload.PropagationPrivate {
		f.add(at+".recursive_read_only", "set with propagation %s", m.GetPropagation())
	}
	if (len(out.UIDMappings) == 0) != (len(out.GIDMappings) == 0) {
		f.add(at+".uidMappings", "uidMappings and gidMappings go together")
	}
	for i, o := range out.Options {
		if !mountOptions[o] {
			f.add(index(at+".mount_options", i), "%q is not an option of a bind mount", o)
		}
	}
	return out
}

// mountSource checks that there is one source, a host path or an image.
func (f *fields) mountSource(at string, m *pb.Mount, out *workload.Mount) {
	sub := out.ImageSubPath
	if m.GetImage() == nil {
		out.ImageSubPath = "" // the kubelet sends a volume's subPath here too, which is in host_path already
		f.absolute(at+".host_path", out.HostPath)
		return
	}
	if out.HostPath != "" {
		f.add(at+".host_path", "set together with image")
	}
	spec := f.imageSpec(at+".image", m.GetImage())
	out.Image = &spec
	out.Readonly = true // "All image mounts are per feature definition readonly."
	if sub != "" && !filepath.IsLocal(strings.TrimPrefix(sub, "/")) {
		f.add(at+".image_sub_path", "%q does not stay in the image", sub)
	}
}

func propagation(p pb.MountPropagation) string {
	switch p {
	case pb.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		return workload.PropagationHostToContainer
	case pb.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return workload.PropagationBidirectional
	}
	return workload.PropagationPrivate
}

func (f *fields) devices(at string, in []*pb.Device) []workload.Device {
	var out []workload.Device
	for i, d := range in {
		f.absolute(index(at, i)+".host_path", d.GetHostPath())
		f.absolute(index(at, i)+".container_path", d.GetContainerPath())
		if strings.Trim(d.GetPermissions(), "rwm") != "" {
			f.add(index(at, i)+".permissions", "%q is not made of r, w and m", d.GetPermissions())
		}
		out = append(out, workload.Device{ContainerPath: d.GetContainerPath(), HostPath: d.GetHostPath(), Permissions: d.GetPermissions()})
	}
	return out
}

// cdiDevices checks names: vendor/class=device (CDI specification, "kind" and "name").
func (f *fields) cdiDevices(at string, in []*pb.CDIDevice) []string {
	var out []string
	for i, d := range in {
		kind, device, ok := strings.Cut(d.GetName(), "=")
		vendor, class, slash := strings.Cut(kind, "/")
		if !ok || !slash || vendor == "" || class == "" || device == "" || hasSpace(d.GetName()) {
			f.add(index(at, i)+".name", "%q is not a fully qualified device, vendor/class=name", d.GetName())
		}
		out = append(out, d.GetName())
	}
	return out
}
