package cri

import (
	"cmp"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/usage"
	"github.com/cri-shim/cri-shim/sandbox"
)

func containerStatsToProto(c *sandbox.ContainerStats) *pb.ContainerStats {
	out := &pb.ContainerStats{
		Attributes: &pb.ContainerAttributes{
			Id:          c.Container.ID,
			Metadata:    &pb.ContainerMetadata{Name: c.Container.Config.Metadata.Name, Attempt: c.Container.Config.Metadata.Attempt},
			Labels:      c.Container.Config.Labels,
			Annotations: c.Container.Config.Annotations,
		},
		WritableLayer: layerToProto(c),
	}
	if c.Usage == nil {
		return out
	}
	at := c.At.UnixNano()
	out.Cpu = cpuToProto(at, &c.Usage.CPU, c.NanoCores)
	out.Memory = memoryToProto(at, &c.Usage.Memory)
	out.Swap = swapToProto(at, &c.Usage.Memory)
	out.Io = ioToProto(at, c.Usage)
	return out
}

// layerToProto leaves the sizes out as long as they are not known: 0 would be a lie.
func layerToProto(c *sandbox.ContainerStats) *pb.FilesystemUsage {
	l := &c.Layer
	out := &pb.FilesystemUsage{Timestamp: c.At.UnixNano(), FsId: &pb.FilesystemIdentifier{Mountpoint: l.Dir}}
	if l.Known {
		out.Timestamp, out.UsedBytes, out.InodesUsed = l.At.UnixNano(), number(l.Bytes), number(l.Inodes)
	}
	return out
}

func podStatsToProto(p *sandbox.PodStats) *pb.PodSandboxStats {
	at := p.At.UnixNano()
	linux := &pb.LinuxPodSandboxStats{
		Cpu:     cpuToProto(at, &p.Usage.CPU, p.NanoCores),
		Memory:  memoryToProto(at, &p.Usage.Memory),
		Network: networkToProto(at, p),
		Process: &pb.ProcessUsage{Timestamp: at, ProcessCount: number(p.Processes)},
		Io:      ioToProto(at, &p.Usage),
	}
	for _, c := range p.Containers {
		linux.Containers = append(linux.Containers, containerStatsToProto(c))
	}
	return &pb.PodSandboxStats{
		Attributes: &pb.PodSandboxAttributes{
			Id: p.Pod.ID, Metadata: podMetadataToProto(p.Pod.Config.Metadata),
			Labels: p.Pod.Config.Labels, Annotations: p.Pod.Config.Annotations,
		},
		Linux: linux,
	}
}

func cpuToProto(at int64, c *usage.CPU, nanoCores uint64) *pb.CpuUsage {
	return &pb.CpuUsage{
		Timestamp: at, UsageCoreNanoSeconds: number(c.UsageNanos), UsageNanoCores: number(nanoCores), Psi: pressureToProto(c.Pressure),
	}
}

func memoryToProto(at int64, m *usage.Memory) *pb.MemoryUsage {
	return &pb.MemoryUsage{
		Timestamp:       at,
		WorkingSetBytes: number(m.WorkingSet),
		AvailableBytes:  available(m.Limit, m.WorkingSet),
		UsageBytes:      number(m.Usage),
		RssBytes:        number(m.RSS),
		// The kernel's pgfault counts the major ones too.
		PageFaults:      number(m.PageFaults - min(m.MajorFaults, m.PageFaults)),
		MajorPageFaults: number(m.MajorFaults),
		Psi:             pressureToProto(m.Pressure),
	}
}

func swapToProto(at int64, m *usage.Memory) *pb.SwapUsage {
	return &pb.SwapUsage{Timestamp: at, SwapAvailableBytes: available(m.SwapLimit, m.SwapUsage), SwapUsageBytes: number(m.SwapUsage)}
}

func ioToProto(at int64, s *usage.Stats) *pb.IoUsage {
	return &pb.IoUsage{Timestamp: at, Psi: pressureToProto(s.IOPressure)}
}

// available is nil where there is no limit.
func available(limit, used uint64) *pb.UInt64Value {
	if limit == usage.Unlimited {
		return nil
	}
	return number(limit - min(used, limit))
}

// defaultInterface is what libcni attaches a pod's first network to.
const defaultInterface = "eth0"

// networkToProto is nil for a pod on the node's network: the node's traffic is not the pod's.
func networkToProto(at int64, p *sandbox.PodStats) *pb.NetworkUsage {
	if !p.OwnNetwork {
		return nil
	}
	n := &pb.NetworkUsage{Timestamp: at}
	for i := range p.Network {
		from := &p.Network[i]
		to := &pb.NetworkInterfaceUsage{
			Name: from.Name, RxBytes: number(from.RxBytes), RxErrors: number(from.RxErrors),
			TxBytes: number(from.TxBytes), TxErrors: number(from.TxErrors),
		}
		if from.Name == defaultInterface {
			n.DefaultInterface = to
		} else {
			n.Interfaces = append(n.Interfaces, to)
		}
	}
	return n
}

func pressureToProto(p *usage.Pressure) *pb.PsiStats {
	if p == nil {
		return nil
	}
	line := func(l *usage.Line) *pb.PsiData {
		return &pb.PsiData{Total: l.TotalMicros * 1000, Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
	}
	return &pb.PsiStats{Full: line(&p.Full), Some: line(&p.Some)}
}

func number(v uint64) *pb.UInt64Value { return &pb.UInt64Value{Value: v} }

// containerName is the name that people and Kubernetes give a container.
func containerName(c *sandbox.Container) string {
	return cmp.Or(c.Config.Labels["io.kubernetes.container.name"], c.Config.Metadata.Name)
}
