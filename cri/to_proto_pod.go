package cri

import (
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func podMetadataToProto(m workload.PodMetadata) *pb.PodSandboxMetadata {
	return &pb.PodSandboxMetadata{Name: m.Name, Uid: m.UID, Namespace: m.Namespace, Attempt: m.Attempt}
}

func podStateToProto(s sandbox.State) pb.PodSandboxState {
	if s == sandbox.PodReady {
		return pb.PodSandboxState_SANDBOX_READY
	}
	return pb.PodSandboxState_SANDBOX_NOTREADY
}

// podToProto is a pod as lists show it.
func podToProto(p *sandbox.Pod) *pb.PodSandbox {
	return &pb.PodSandbox{
		Id:             p.ID,
		Metadata:       podMetadataToProto(p.Config.Metadata),
		State:          podStateToProto(p.State()),
		CreatedAt:      nanoseconds(p.CreatedAt),
		Labels:         p.Config.Labels,
		Annotations:    p.Config.Annotations,
		RuntimeHandler: p.Config.Handler,
	}
}

// podStatusToProto is all that is told of a pod.
func podStatusToProto(p *sandbox.Pod) *pb.PodSandboxStatus {
	return &pb.PodSandboxStatus{
		Id:             p.ID,
		Metadata:       podMetadataToProto(p.Config.Metadata),
		State:          podStateToProto(p.State()),
		CreatedAt:      nanoseconds(p.CreatedAt),
		Network:        podNetworkToProto(p),
		Linux:          &pb.LinuxPodSandboxStatus{Namespaces: &pb.Namespace{Options: namespacesToProto(p.Config.Security.Namespaces)}},
		Labels:         p.Config.Labels,
		Annotations:    p.Config.Annotations,
		RuntimeHandler: p.Config.Handler,
	}
}

// podNetworkToProto has no addresses for a pod on the node's network: those are the
// kubelet's to tell.
func podNetworkToProto(p *sandbox.Pod) *pb.PodSandboxNetworkStatus {
	n := &pb.PodSandboxNetworkStatus{}
	if p.Config.Security.Namespaces.Network == workload.ModeNode {
		return n
	}
	for i, ip := range p.IPs {
		if i == 0 {
			n.Ip = ip.String()
			continue
		}
		n.AdditionalIps = append(n.AdditionalIps, &pb.PodIP{Ip: ip.String()})
	}
	return n
}

func namespaceModeToProto(m workload.NamespaceMode) pb.NamespaceMode {
	switch m {
	case workload.ModeContainer:
		return pb.NamespaceMode_CONTAINER
	case workload.ModeNode:
		return pb.NamespaceMode_NODE
	case workload.ModeTarget:
		return pb.NamespaceMode_TARGET
	}
	return pb.NamespaceMode_POD
}

func namespacesToProto(n workload.Namespaces) *pb.NamespaceOption {
	o := &pb.NamespaceOption{
		Network:  namespaceModeToProto(n.Network),
		Pid:      namespaceModeToProto(n.PID),
		Ipc:      namespaceModeToProto(n.IPC),
		TargetId: n.Target,
	}
	if n.User != nil {
		o.UsernsOptions = &pb.UserNamespace{
			Mode: namespaceModeToProto(n.User.Mode),
			Uids: mappingsToProto(n.User.UIDs),
			Gids: mappingsToProto(n.User.GIDs),
		}
	}
	return o
}

func mappingsToProto(in []workload.IDMapping) []*pb.IDMapping {
	var out []*pb.IDMapping
	for _, m := range in {
		out = append(out, &pb.IDMapping{HostId: m.HostID, ContainerId: m.ContainerID, Length: m.Length})
	}
	return out
}

// nanoseconds since the epoch, 0 for a time that is not set.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}
