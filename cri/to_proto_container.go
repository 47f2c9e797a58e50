package cri

import (
	"strings"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func containerStateToProto(s sandbox.State) pb.ContainerState {
	switch s {
	case sandbox.ContainerCreated:
		return pb.ContainerState_CONTAINER_CREATED
	case sandbox.ContainerRunning:
		return pb.ContainerState_CONTAINER_RUNNING
	case sandbox.ContainerExited:
		return pb.ContainerState_CONTAINER_EXITED
	}
	return pb.ContainerState_CONTAINER_UNKNOWN
}

// containerToProto is a container as lists show it.
func containerToProto(c *sandbox.Container) *pb.Container {
	return &pb.Container{
		Id:           c.ID,
		PodSandboxId: c.PodID,
		Metadata:     &pb.ContainerMetadata{Name: c.Config.Metadata.Name, Attempt: c.Config.Metadata.Attempt},
		Image:        imageSpecToProto(&c.Config.Image),
		ImageRef:     c.ImageRef,
		ImageId:      c.ImageID,
		State:        containerStateToProto(c.State()),
		CreatedAt:    nanoseconds(c.CreatedAt),
		Labels:       c.Config.Labels,
		Annotations:  c.Config.Annotations,
	}
}

// containerStatusToProto is all that is told of a container.
func containerStatusToProto(c *sandbox.Container) *pb.ContainerStatus {
	s := &pb.ContainerStatus{
		Id:          c.ID,
		Metadata:    &pb.ContainerMetadata{Name: c.Config.Metadata.Name, Attempt: c.Config.Metadata.Attempt},
		State:       containerStateToProto(c.State()),
		CreatedAt:   nanoseconds(c.CreatedAt),
		StartedAt:   nanoseconds(c.StartedAt),
		FinishedAt:  nanoseconds(c.FinishedAt),
		ExitCode:    int32(c.ExitCode),
		Image:       imageSpecToProto(&c.Config.Image),
		ImageRef:    c.ImageRef,
		ImageId:     c.ImageID,
		Reason:      c.Reason,
		Message:     c.Message,
		Labels:      c.Config.Labels,
		Annotations: c.Config.Annotations,
		Mounts:      mountsToProto(c.Config.Mounts),
		LogPath:     c.LogPath,
		StopSignal:  signalToProto(c.StopSignal),
	}
	if c.OOMKilled {
		s.Reason = "OOMKilled" // the CRI wants this very word
	}
	if r := resourcesToProto(c.Limits()); r != nil {
		s.Resources = &pb.ContainerResources{Linux: r}
	}
	if c.User != nil {
		s.User = &pb.ContainerUser{Linux: userToProto(c.User)}
	}
	return s
}

// imageSpecToProto echoes a spec. The kubelet names images by ID once it has pulled them;
// people want to read the name that they gave.
func imageSpecToProto(s *workload.ImageSpec) *pb.ImageSpec {
	name := s.Image
	if s.UserSpecified != "" && isImageID(name) {
		name = s.UserSpecified
	}
	return &pb.ImageSpec{
		Image:              name,
		Annotations:        s.Annotations,
		UserSpecifiedImage: s.UserSpecified,
		RuntimeHandler:     s.Handler,
		ImageRef:           s.ImageRef,
	}
}

// isImageID says whether a name is the digest of a configuration, whole or without its prefix.
func isImageID(s string) bool {
	hex := strings.TrimPrefix(s, "sha256:")
	return len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == ""
}

func userToProto(u *workload.User) *pb.LinuxContainerUser {
	out := &pb.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, g := range u.Groups {
		out.SupplementalGroups = append(out.SupplementalGroups, int64(g))
	}
	return out
}

func mountsToProto(in []workload.Mount) []*pb.Mount {
	var out []*pb.Mount
	for i := range in {
		m := &in[i]
		p := &pb.Mount{
			ContainerPath:     m.ContainerPath,
			HostPath:          m.HostPath,
			Readonly:          m.Readonly,
			SelinuxRelabel:    m.SELinuxRelabel,
			RecursiveReadOnly: m.RecursiveReadonly,
			UidMappings:       mappingsToProto(m.UIDMappings),
			GidMappings:       mappingsToProto(m.GIDMappings),
			ImageSubPath:      m.ImageSubPath,
			MountOptions:      m.Options,
		}
		switch m.Propagation {
		case workload.PropagationHostToContainer:
			p.Propagation = pb.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case workload.PropagationBidirectional:
			p.Propagation = pb.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
		if m.Image != nil {
			p.Image = imageSpecToProto(m.Image)
			p.Image.Image = m.Image.Image // the kubelet compares it with what it asked for
		}
		out = append(out, p)
	}
	return out
}

func resourcesToProto(r *workload.Resources) *pb.LinuxContainerResources {
	if r == nil {
		return nil
	}
	out := &pb.LinuxContainerResources{
		CpuPeriod:              r.CPUPeriod,
		CpuQuota:               r.CPUQuota,
		CpuShares:              r.CPUShares,
		MemoryLimitInBytes:     r.MemoryLimit,
		MemorySwapLimitInBytes: r.MemorySwapLimit,
		OomScoreAdj:            r.OOMScoreAdj,
		CpusetCpus:             r.CPUSetCPUs,
		CpusetMems:             r.CPUSetMems,
		Unified:                r.Unified,
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &pb.HugepageLimit{PageSize: h.PageSize, Limit: h.Limit})
	}
	return out
}
