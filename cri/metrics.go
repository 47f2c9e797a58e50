package cri

import (
	"context"
	"syscall"
	"time"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/usage"
	"github.com/cri-shim/cri-shim/sandbox"
)

// ListMetricDescriptors lists what ListPodSandboxMetrics may have; it never changes while the daemon runs.
func (s *runtimeService) ListMetricDescriptors(context.Context, *pb.ListMetricDescriptorsRequest) (*pb.ListMetricDescriptorsResponse, error) {
	resp := &pb.ListMetricDescriptorsResponse{}
	for i := range metrics {
		resp.Descriptors = append(resp.Descriptors, &pb.MetricDescriptor{
			Name: metrics[i].name, Help: metrics[i].help, LabelKeys: metrics[i].labelKeys(),
		})
	}
	return resp, nil
}

func (s *runtimeService) ListPodSandboxMetrics(ctx context.Context, _ *pb.ListPodSandboxMetricsRequest) (*pb.ListPodSandboxMetricsResponse, error) {
	resp := &pb.ListPodSandboxMetricsResponse{}
	err := s.podMetrics(ctx, func(m *pb.PodSandboxMetrics) error {
		resp.PodMetrics = append(resp.PodMetrics, m)
		return nil
	})
	return resp, err
}

func (s *runtimeService) StreamPodSandboxMetrics(_ *pb.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[pb.StreamPodSandboxMetricsResponse]) error {
	p := pager[*pb.PodSandboxMetrics]{send: func(page []*pb.PodSandboxMetrics) error {
		return stream.Send(&pb.StreamPodSandboxMetricsResponse{PodSandboxMetrics: page})
	}}
	if err := s.podMetrics(stream.Context(), p.add); err != nil {
		return err
	}
	return p.flush()
}

// podMetrics measures the ready pods. Of one that cannot be measured the metrics say that alone.
func (s *runtimeService) podMetrics(ctx context.Context, each func(*pb.PodSandboxMetrics) error) error {
	ready := s.selectPods(&pb.PodSandboxFilter{State: &pb.PodSandboxStateValue{State: pb.PodSandboxState_SANDBOX_READY}})
	m := podMeter{disks: diskNames{}}
	return s.runtime.MeasurePods(ctx, ready, true, func(p *sandbox.PodStats) error {
		out, err := m.pod(p)
		if err != nil {
			s.options.Log.Warn("pod sandbox metrics", "pod", p.Pod.ID, "err", err)
			p.Err = err
			out, err = m.pod(p)
		}
		if err != nil {
			return err
		}
		return each(out)
	})
}

// podMeter is what the metrics of all pods of a call have in common.
type podMeter struct {
	disks diskNames
	fs    *syscall.Statfs_t // all layers are on one file system
}

func (m *podMeter) pod(p *sandbox.PodStats) (*pb.PodSandboxMetrics, error) {
	out := &pb.PodSandboxMetrics{PodSandboxId: p.Pod.ID}
	pod := &sample{pod: p.Pod, at: p.At, usage: &p.Usage, network: p.Network, processes: usage.Processes{Count: p.Processes}, err: p.Err}
	if p.Err != nil {
		out.Metrics = pod.metrics(ofPod, scrapeError)
		return out, nil
	}
	out.Metrics = pod.metrics(ofPod, "")
	for _, c := range p.Containers {
		if m.fs == nil {
			fs := new(syscall.Statfs_t)
			if err := syscall.Statfs(c.Layer.Dir, fs); err != nil {
				return nil, &fsError{c.Layer.Dir, err}
			}
			m.fs = fs
		}
		sample := &sample{
			pod: p.Pod, container: c.Container, at: c.At, usage: c.Usage, processes: c.Processes, layer: &c.Layer, fs: m.fs, disks: m.disks,
		}
		out.ContainerMetrics = append(out.ContainerMetrics, &pb.ContainerMetrics{
			ContainerId: c.Container.ID, Metrics: sample.metrics(ofContainer, ""),
		})
	}
	return out, nil
}

// fsError says which file system could not be asked.
type fsError struct {
	dir string
	err error
}

func (e *fsError) Error() string {
	return "pod sandbox metrics: statfs " + e.dir + ": " + e.err.Error()
}
func (e *fsError) Unwrap() error { return e.err }

// sample is what the metrics of one pod or container are taken from.
type sample struct {
	pod       *sandbox.Pod
	container *sandbox.Container // nil: of the pod as a whole
	at        time.Time
	usage     *usage.Stats
	network   []usage.Interface
	processes usage.Processes
	layer     *sandbox.LayerStats
	fs        *syscall.Statfs_t
	disks     diskNames
	err       error // it could not be measured
}

// baseLabels come first in every metric: those of cAdvisor as the kubelet has them. A pod's own have no container.
var baseLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

func (s *sample) labels() []string {
	meta := &s.pod.Config.Metadata
	if s.container == nil {
		return []string{"", s.pod.ID, "", "", meta.Namespace, meta.Name}
	}
	c := s.container
	return []string{containerName(c), c.ID, imageSpecToProto(&c.Config.Image).Image, c.Config.Metadata.Name, meta.Namespace, meta.Name}
}

// value is one value of a metric with the values of its own labels.
type value struct {
	labels []string
	number uint64
}

func (m *metric) labelKeys() []string {
	return append(append(make([]string, 0, len(baseLabels)+len(m.labels)), baseLabels...), m.labels...)
}

// metrics are those of the table that this kind of object has, or one of them.
func (s *sample) metrics(kind int, only string) []*pb.Metric {
	base := s.labels()
	out := make([]*pb.Metric, 0, len(metrics))
	for i := range metrics {
		m := &metrics[i]
		if m.of&kind == 0 || only != "" && m.name != only {
			continue
		}
		for _, v := range m.values(s) {
			labels := base
			if len(v.labels) > 0 {
				labels = append(append(make([]string, 0, len(base)+len(v.labels)), base...), v.labels...)
			}
			out = append(out, &pb.Metric{Name: m.name, MetricType: m.kind, LabelValues: labels, Value: number(v.number)})
		}
	}
	return out
}
