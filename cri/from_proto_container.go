package cri

import (
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// containerFromProto converts and checks the configuration of a container. The error is
// a sandbox.ErrInvalid that names fields.
func containerFromProto(c *pb.ContainerConfig) (*workload.Container, error) {
	var f fields
	const at = "config"
	if c == nil {
		f.add(at, "missing")
		return nil, f.err()
	}
	f.scan(at, c)
	out := &workload.Container{
		Metadata:    f.containerMetadata(at+".metadata", c.GetMetadata()),
		Image:       f.imageSpec(at+".image", c.GetImage()),
		Command:     c.GetCommand(),
		Args:        c.GetArgs(),
		WorkingDir:  c.GetWorkingDir(),
		Env:         f.env(at+".envs", c.GetEnvs()),
		Mounts:      f.mounts(at+".mounts", c.GetMounts()),
		Devices:     f.devices(at+".devices", c.GetDevices()),
		CDIDevices:  f.cdiDevices(at+".CDI_devices", c.GetCDIDevices()),
		Labels:      c.GetLabels(),
		Annotations: c.GetAnnotations(),
		LogPath:     c.GetLogPath(),
		Stdin:       c.GetStdin(),
		StdinOnce:   c.GetStdinOnce(),
		TTY:         c.GetTty(),
		StopSignal:  signalName(c.GetStopSignal()),
		Resources:   f.resources(at+".linux.resources", c.GetLinux().GetResources()),
		Security:    f.containerSecurity(at+".linux.security_context", c.GetLinux().GetSecurityContext()),
	}
	if out.WorkingDir != "" {
		f.absolute(at+".working_dir", out.WorkingDir)
	}
	f.maps(at, out.Labels, out.Annotations)
	f.logPath(at+".log_path", out.LogPath)
	if c.GetWindows() != nil {
		f.add(at+".windows", "this is a Linux node")
	}
	return out, f.err()
}

func (f *fields) containerMetadata(at string, m *pb.ContainerMetadata) workload.ContainerMetadata {
	if m == nil {
		f.add(at, "missing")
		return workload.ContainerMetadata{}
	}
	f.name(at+".name", m.GetName())
	return workload.ContainerMetadata{Name: m.GetName(), Attempt: m.GetAttempt()}
}

// imageSpec converts a spec that must name an image.
func (f *fields) imageSpec(at string, s *pb.ImageSpec) workload.ImageSpec {
	if f.need(at+".image", s.GetImage()) && hasSpace(s.GetImage()) {
		f.add(at+".image", "%.300q is not an image", s.GetImage())
	}
	return workload.ImageSpec{
		Image:         s.GetImage(),
		Annotations:   s.GetAnnotations(),
		UserSpecified: s.GetUserSpecifiedImage(),
		Handler:       s.GetRuntimeHandler(),
		ImageRef:      s.GetImageRef(),
	}
}

func (f *fields) env(at string, in []*pb.KeyValue) []workload.EnvVar {
	out := make([]workload.EnvVar, 0, len(in))
	for i, e := range in {
		if f.need(index(at, i)+".key", e.GetKey()) && strings.Contains(e.GetKey(), "=") {
			f.add(index(at, i)+".key", "%q contains =", e.GetKey())
		}
		out = append(out, workload.EnvVar{Key: e.GetKey(), Value: string(e.GetValue())})
	}
	return out
}
