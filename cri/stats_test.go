package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/testing/protocmp"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/usage"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func testUsage() *usage.Stats {
	psi := func(n uint64) *usage.Pressure {
		return &usage.Pressure{Some: usage.Line{Avg10: 1.5, TotalMicros: n}, Full: usage.Line{Avg300: 0.5, TotalMicros: n + 1}}
	}
	return &usage.Stats{
		CPU: usage.CPU{UsageNanos: 7e9, UserNanos: 4e9, SystemNanos: 3e9, Periods: 9, ThrottledPeriods: 2, ThrottledNanos: 2e9, BurstPeriods: 4, BurstNanos: 3e9, Pressure: psi(1e6)},
		Memory: usage.Memory{Usage: 1000, WorkingSet: 600, RSS: 300, Cache: 400, Limit: 5000, SwapUsage: 5, SwapLimit: 50,
			PageFaults: 77, MajorFaults: 6, OOMKills: 1, Kernel: 90, MappedFile: 30, ActiveFile: 70, MaxUsage: 1500, Failures: 8, Pressure: psi(2e6)},
		Pids: usage.Pids{Current: 12, Limit: usage.Unlimited},
		IO: []usage.IO{{Major: 999999, Minor: 1, ReadBytes: 1, WriteBytes: 1025, ReadOps: 3, WriteOps: 4, DiscardBytes: 5,
			Cost:  &usage.IOCost{UsageMicros: 3e6, WaitMicros: 4e6, IndebtMicros: 5e6, IndelayMicros: 6e6},
			Times: &usage.IOTimes{ReadNanos: 1e9, WriteNanos: 2e9, TotalNanos: 3e9, ReadsMerged: 4, WritesMerged: 5, Queued: 6}}},
		IOPressure: psi(3e6),
		Hugetlb:    []usage.Hugetlb{{PageSize: "2MB", Usage: 2 << 20, MaxUsage: 4 << 20, Failures: 1}},
	}
}

// statsRuntime has n ready pods with a running container each, and one exited container.
func statsRuntime(t testing.TB, n int) *fakeRuntime {
	t.Helper()
	r := &fakeRuntime{usage: testUsage()}
	for i := range n {
		cfg := &workload.Pod{
			Metadata: workload.PodMetadata{Name: fmt.Sprint("p", i), Namespace: "ns", UID: "u"}, Labels: map[string]string{"n": fmt.Sprint(i)},
		}
		id, err := r.RunPod(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		c := &workload.Container{
			Metadata: workload.ContainerMetadata{Name: "web"}, Image: workload.ImageSpec{Image: "a:1"}, Labels: map[string]string{"n": fmt.Sprint(i)},
			Resources: &workload.Resources{CPUPeriod: 100000, CPUQuota: 5000, CPUShares: 2},
		}
		ctr, err := r.CreateContainer(t.Context(), id, c)
		if err != nil || r.StartContainer(t.Context(), ctr) != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestStats(t *testing.T) {
	r := statsRuntime(t, 2)
	c, ctx := runtimeClient(t, r), t.Context()
	pod, ctr := r.pods[0], r.containers[0]
	got, err := c.ContainerStats(ctx, &pb.ContainerStatsRequest{ContainerId: ctr.ID[:8]})
	if err != nil {
		t.Fatal(err)
	}
	const at = 1700000010000000005
	psi := func(n uint64) *pb.PsiStats {
		return &pb.PsiStats{Some: &pb.PsiData{Avg10: 1.5, Total: n * 1000}, Full: &pb.PsiData{Avg300: 0.5, Total: (n + 1) * 1000}}
	}
	memory := &pb.MemoryUsage{
		Timestamp: at, WorkingSetBytes: number(600), AvailableBytes: number(4400), UsageBytes: number(1000), RssBytes: number(300),
		PageFaults: number(71), MajorPageFaults: number(6), Psi: psi(2e6),
	}
	want := &pb.ContainerStats{
		Attributes: &pb.ContainerAttributes{Id: ctr.ID, Metadata: &pb.ContainerMetadata{Name: "web"}, Labels: ctr.Config.Labels},
		Cpu:        &pb.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: number(7e9), UsageNanoCores: number(250_000_000), Psi: psi(1e6)},
		Memory:     memory,
		Swap:       &pb.SwapUsage{Timestamp: at, SwapAvailableBytes: number(45), SwapUsageBytes: number(5)},
		Io:         &pb.IoUsage{Timestamp: at, Psi: psi(3e6)},
		WritableLayer: &pb.FilesystemUsage{Timestamp: 1700000009e9, FsId: &pb.FilesystemIdentifier{Mountpoint: "/"},
			UsedBytes: number(8192), InodesUsed: number(4)},
	}
	if d := cmp.Diff(want, got.Stats, protocmp.Transform()); d != "" {
		t.Errorf("ContainerStats (-want +got):\n%s", d)
	}
	pods, err := c.PodSandboxStats(ctx, &pb.PodSandboxStatsRequest{PodSandboxId: pod.ID})
	if err != nil {
		t.Fatal(err)
	}
	wantPod := &pb.LinuxPodSandboxStats{
		Cpu:    &pb.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: number(7e9), UsageNanoCores: number(5), Psi: psi(1e6)},
		Memory: memory, Io: want.Io, Process: &pb.ProcessUsage{Timestamp: at, ProcessCount: number(3)},
		Network: &pb.NetworkUsage{Timestamp: at,
			DefaultInterface: &pb.NetworkInterfaceUsage{Name: "eth0", RxBytes: number(1), RxErrors: number(3), TxBytes: number(5), TxErrors: number(7)},
			Interfaces:       []*pb.NetworkInterfaceUsage{{Name: "net1", RxBytes: number(5), RxErrors: number(0), TxBytes: number(0), TxErrors: number(0)}}},
		Containers: []*pb.ContainerStats{want},
	}
	if d := cmp.Diff(wantPod, pods.Stats.Linux, protocmp.Transform()); d != "" {
		t.Errorf("PodSandboxStats (-want +got):\n%s", d)
	}
	pod.Config.Security.Namespaces.Network = workload.ModeNode
	if pods, _ = c.PodSandboxStats(ctx, &pb.PodSandboxStatsRequest{PodSandboxId: pod.ID}); pods.Stats.Linux.Network != nil {
		t.Errorf("network of a pod on the node's = %v; want none", pods.Stats.Linux.Network)
	}
	// No limit, nothing available to tell of; no PSI, no PSI.
	r.usage.Memory.Limit, r.usage.Memory.SwapLimit, r.usage.CPU.Pressure = usage.Unlimited, usage.Unlimited, nil
	got, _ = c.ContainerStats(ctx, &pb.ContainerStatsRequest{ContainerId: ctr.ID})
	if s := got.Stats; s.Memory.AvailableBytes != nil || s.Swap.SwapAvailableBytes != nil || s.Cpu.Psi != nil {
		t.Errorf("stats without limits = %v", s)
	}
	// One that has ended has no use of anything but its layer, and is not listed.
	ctr.FinishedAt = time.Unix(1700000003, 0)
	got, err = c.ContainerStats(ctx, &pb.ContainerStatsRequest{ContainerId: ctr.ID})
	if err != nil || got.Stats.Cpu != nil || got.Stats.WritableLayer.Timestamp == 0 || got.Stats.WritableLayer.UsedBytes != nil {
		t.Errorf("stats of an ended container = %v, %v", got, err)
	}
	for _, tt := range []struct {
		filter *pb.ContainerStatsFilter
		want   int
	}{
		{nil, 1}, {&pb.ContainerStatsFilter{Id: ctr.ID}, 0}, {&pb.ContainerStatsFilter{Id: r.containers[1].ID[:8]}, 1},
		{&pb.ContainerStatsFilter{PodSandboxId: r.pods[1].ID}, 1}, {&pb.ContainerStatsFilter{PodSandboxId: pod.ID}, 0},
		{&pb.ContainerStatsFilter{LabelSelector: map[string]string{"n": "0"}}, 1}, {&pb.ContainerStatsFilter{LabelSelector: map[string]string{"n": "9"}}, 0},
	} {
		list, err := c.ListContainerStats(ctx, &pb.ListContainerStatsRequest{Filter: tt.filter})
		if err != nil || len(list.Stats) != tt.want {
			t.Errorf("ListContainerStats(%v) = %v, %v; want %d", tt.filter, list, err, tt.want)
		}
	}
	pod.StoppedAt = time.Unix(1700000004, 0)
	list, err := c.ListPodSandboxStats(ctx, &pb.ListPodSandboxStatsRequest{})
	if err != nil || len(list.Stats) != 1 || list.Stats[0].Attributes.Id != r.pods[1].ID {
		t.Errorf("ListPodSandboxStats = %v, %v; want the ready one", list, err)
	}
	list, err = c.ListPodSandboxStats(ctx, &pb.ListPodSandboxStatsRequest{Filter: &pb.PodSandboxStatsFilter{LabelSelector: map[string]string{"n": "1"}}})
	if err != nil || len(list.Stats) != 0 {
		t.Errorf("ListPodSandboxStats of the stopped one = %v, %v; want none", list, err)
	}
}

// TestMetrics: every metric has a descriptor with as many labels, its name and labels are Prometheus', and every
// descriptor has a metric where the kernel measures everything.
func TestMetrics(t *testing.T) {
	r := statsRuntime(t, 1)
	c, ctx := runtimeClient(t, r), t.Context()
	d, err := c.ListMetricDescriptors(ctx, &pb.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	described, seen := map[string]*pb.MetricDescriptor{}, map[string]bool{}
	for _, m := range d.Descriptors {
		if described[m.Name] != nil || m.Help == "" || !strings.HasPrefix(m.Name, "container_") || slices.Contains(m.LabelKeys, "") {
			t.Errorf("descriptor %v", m)
		}
		described[m.Name] = m
	}
	for _, name := range strings.Fields(documented) {
		if described[name] == nil {
			t.Errorf("no descriptor %s", name)
		}
	}
	list, err := c.ListPodSandboxMetrics(ctx, &pb.ListPodSandboxMetricsRequest{})
	if err != nil || len(list.PodMetrics) != 1 || len(list.PodMetrics[0].ContainerMetrics) != 1 {
		t.Fatalf("ListPodSandboxMetrics = %v, %v; want a pod with a container", list, err)
	}
	unique := map[string]bool{}
	all := slices.Concat(list.PodMetrics[0].Metrics, list.PodMetrics[0].ContainerMetrics[0].Metrics)
	for _, m := range all {
		d := described[m.Name]
		if d == nil || len(d.LabelKeys) != len(m.LabelValues) || m.Value == nil || m.Timestamp != 0 {
			t.Errorf("metric %v; descriptor %v", m, d)
		}
		seen[m.Name] = true
		if key := fmt.Sprint(m.Name, m.LabelValues); unique[key] {
			t.Errorf("twice: %s", key)
		} else {
			unique[key] = true
		}
	}
	for name := range described {
		if !seen[name] {
			t.Errorf("%s is described and never there", name)
		}
	}
	find := func(name, container string, more ...string) uint64 {
		for _, m := range all {
			if m.Name == name && m.LabelValues[0] == container && slices.Equal(m.LabelValues[len(baseLabels):], more) {
				return m.Value.Value
			}
		}
		t.Errorf("no %s of %q with %v", name, container, more)
		return 0
	}
	for _, tt := range []struct {
		want            uint64
		name, container string
		labels          []string
	}{
		{7, "container_cpu_usage_seconds_total", "web", []string{"total"}},
		{600, "container_memory_working_set_bytes", "web", nil},
		{6, "container_memory_failures_total", "", []string{"pgmajfault", "hierarchy"}},
		{4, "container_network_receive_packets_dropped_total", "", []string{"eth0"}},
		{1025, "container_fs_writes_bytes_total", "web", []string{"999999:1"}},
		{5, "container_blkio_device_usage_total", "web", []string{"999999:1", "999999", "1", "Discard"}},
		{8192, "container_fs_usage_bytes", "web", []string{""}},
		{4 << 20, "container_hugetlb_max_usage_bytes", "web", []string{"2MB"}},
		{2, "container_fs_sector_writes_total", "web", []string{"999999:1"}},
		{5, "container_tasks_state", "web", []string{"sleeping"}},
		{70, "container_memory_total_active_file_bytes", "web", nil},
		{0, "container_threads_max", "web", nil},
		{1024, "container_ulimits_soft", "web", []string{"max_open_files"}},
		{5000, "container_spec_cpu_quota", "web", nil},
		{3, "container_pressure_io_stalled_seconds_total", "", nil},
		{4, "container_cpu_cfs_burst_periods_total", "web", nil},
		{6, "container_fs_io_cost_indelay_seconds_total", "web", []string{"999999:1"}},
		{5, "container_fs_writes_merged_total", "web", []string{"999999:1"}},
		{6, "container_fs_io_current", "web", []string{"999999:1"}},
		{0, "container_scrape_error", "", nil},
	} {
		if got := find(tt.name, tt.container, tt.labels...); got != tt.want {
			t.Errorf("%s%v = %d; want %d", tt.name, tt.labels, got, tt.want)
		}
	}
}

// documented are the metrics that KEP-2371 lists and those that cAdvisor 0.56 has with the sets that kubelet 1.36 asks it for.
// Left out: container_cpu_load_average_10s, which the KEP removes as cgroup v2 has none; container_fs_io_time_weighted_seconds_total,
// which is of whole disks; container_health_state, as the CRI has no health checks.
const documented = `
container_blkio_device_usage_total container_cpu_cfs_burst_periods_total container_cpu_cfs_burst_seconds_total
container_cpu_cfs_periods_total container_cpu_cfs_throttled_periods_total container_cpu_cfs_throttled_seconds_total
container_cpu_system_seconds_total container_cpu_usage_seconds_total container_cpu_user_seconds_total
container_file_descriptors container_fs_inodes_free container_fs_inodes_total container_fs_io_cost_indebt_seconds_total
container_fs_io_cost_indelay_seconds_total container_fs_io_cost_usage_seconds_total container_fs_io_cost_wait_seconds_total
container_fs_io_current container_fs_io_time_seconds_total container_fs_limit_bytes container_fs_read_seconds_total
container_fs_reads_bytes_total container_fs_reads_merged_total container_fs_reads_total container_fs_sector_reads_total
container_fs_sector_writes_total container_fs_usage_bytes container_fs_write_seconds_total container_fs_writes_bytes_total
container_fs_writes_merged_total container_fs_writes_total container_last_seen container_memory_cache
container_memory_failcnt container_memory_failures_total container_memory_kernel_usage container_memory_mapped_file
container_memory_max_usage_bytes container_memory_rss container_memory_swap container_memory_total_active_file_bytes
container_memory_total_inactive_file_bytes container_memory_usage_bytes container_memory_working_set_bytes
container_network_receive_bytes_total container_network_receive_errors_total container_network_receive_packets_dropped_total
container_network_receive_packets_total container_network_transmit_bytes_total container_network_transmit_errors_total
container_network_transmit_packets_dropped_total container_network_transmit_packets_total container_oom_events_total
container_pressure_cpu_stalled_seconds_total container_pressure_cpu_waiting_seconds_total
container_pressure_io_stalled_seconds_total container_pressure_io_waiting_seconds_total
container_pressure_memory_stalled_seconds_total container_pressure_memory_waiting_seconds_total container_processes
container_scrape_error container_sockets container_spec_cpu_period container_spec_cpu_quota container_spec_cpu_shares
container_spec_memory_limit_bytes container_spec_memory_reservation_limit_bytes container_spec_memory_swap_limit_bytes
container_start_time_seconds container_tasks_state container_threads container_threads_max container_ulimits_soft`

// TestScrapeError: a pod that cannot be measured has one metric, and no entry in the statistics; the others have theirs.
func TestScrapeError(t *testing.T) {
	r := statsRuntime(t, 2)
	r.unmeasured = r.pods[0].ID
	c := runtimeClient(t, r)
	list, err := c.ListPodSandboxMetrics(t.Context(), &pb.ListPodSandboxMetricsRequest{})
	if err != nil || len(list.PodMetrics) != 2 {
		t.Fatalf("ListPodSandboxMetrics = %v, %v; want both pods", list, err)
	}
	for _, p := range list.PodMetrics {
		bad := p.PodSandboxId == r.unmeasured
		if one := len(p.Metrics) == 1 && p.Metrics[0].Name == "container_scrape_error" && p.Metrics[0].Value.Value == 1; one != bad {
			t.Errorf("metrics of %s = %v; broken is %v", p.PodSandboxId, p.Metrics, bad)
		}
	}
	stats, err := c.ListPodSandboxStats(t.Context(), &pb.ListPodSandboxStatsRequest{})
	if err != nil || len(stats.Stats) != 1 || stats.Stats[0].Attributes.Id == r.unmeasured {
		t.Errorf("ListPodSandboxStats = %v, %v; want the other pod alone", stats, err)
	}
}

// collect reads a stream to its end.
func collect[M, T any](t *testing.T, stream grpc.ServerStreamingClient[M], err error, items func(*M) []T) (pages int, all []T) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return pages, all
		}
		if err != nil {
			t.Fatal(err)
		}
		page := items(m)
		if len(page) == 0 {
			t.Error("an empty page")
		}
		pages, all = pages+1, append(all, page...)
	}
}

// TestStreams: the streams have what the lists have, in pages, each item once.
func TestStreams(t *testing.T) {
	const n = pageItems + 10
	r := statsRuntime(t, n)
	o := options(r)
	images := o.Images.(*fakeImages)
	for i := range n {
		images.byName[fmt.Sprint("i", i)] = &Image{ID: fmt.Sprint(i), Size: 1}
	}
	conn := connect(t, o)
	c, ic, ctx := pb.NewRuntimeServiceClient(conn), pb.NewImageServiceClient(conn), t.Context()
	only1 := map[string]string{"n": "1"}
	check := func(what string, pages, items, want int) {
		t.Helper()
		if items != want || pages != (want+pageItems-1)/pageItems {
			t.Errorf("%s: %d items in %d pages; want %d", what, items, pages, want)
		}
	}
	for _, tt := range []struct {
		pods   *pb.PodSandboxFilter
		ctrs   *pb.ContainerFilter
		cstats *pb.ContainerStatsFilter
		pstats *pb.PodSandboxStatsFilter
		want   int
	}{
		{want: n},
		{&pb.PodSandboxFilter{LabelSelector: only1}, &pb.ContainerFilter{LabelSelector: only1}, &pb.ContainerStatsFilter{LabelSelector: only1},
			&pb.PodSandboxStatsFilter{LabelSelector: only1}, 1},
		{&pb.PodSandboxFilter{Id: "none"}, &pb.ContainerFilter{Id: "none"}, &pb.ContainerStatsFilter{Id: "none"}, &pb.PodSandboxStatsFilter{Id: "none"}, 0},
	} {
		s1, err := c.StreamPodSandboxes(ctx, &pb.StreamPodSandboxesRequest{Filter: tt.pods})
		pages, pods := collect(t, s1, err, (*pb.StreamPodSandboxesResponse).GetPodSandboxes)
		check("StreamPodSandboxes", pages, len(pods), tt.want)
		s2, err := c.StreamContainers(ctx, &pb.StreamContainersRequest{Filter: tt.ctrs})
		pages, ctrs := collect(t, s2, err, (*pb.StreamContainersResponse).GetContainers)
		check("StreamContainers", pages, len(ctrs), tt.want)
		s3, err := c.StreamContainerStats(ctx, &pb.StreamContainerStatsRequest{Filter: tt.cstats})
		pages, cstats := collect(t, s3, err, (*pb.StreamContainerStatsResponse).GetContainerStats)
		check("StreamContainerStats", pages, len(cstats), tt.want)
		s4, err := c.StreamPodSandboxStats(ctx, &pb.StreamPodSandboxStatsRequest{Filter: tt.pstats})
		pages, pstats := collect(t, s4, err, (*pb.StreamPodSandboxStatsResponse).GetPodSandboxStats)
		check("StreamPodSandboxStats", pages, len(pstats), tt.want)
	}
	s5, err := c.StreamPodSandboxMetrics(ctx, &pb.StreamPodSandboxMetricsRequest{})
	if _, all := collect(t, s5, err, (*pb.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics); len(all) != n {
		t.Errorf("StreamPodSandboxMetrics: %d; want %d", len(all), n)
	}
	s6, err := ic.StreamImages(ctx, &pb.StreamImagesRequest{})
	pages, all := collect(t, s6, err, (*pb.StreamImagesResponse).GetImages)
	check("StreamImages", pages, len(all), n)
	s6, err = ic.StreamImages(ctx, &pb.StreamImagesRequest{Filter: &pb.ImageFilter{Image: &pb.ImageSpec{Image: "i7"}}})
	if _, all = collect(t, s6, err, (*pb.StreamImagesResponse).GetImages); len(all) != 1 || all[0].Id != "7" {
		t.Errorf("StreamImages of one = %v", all)
	}
}

// TestPagerBytes: large items do not make a page that no client takes.
func TestPagerBytes(t *testing.T) {
	var sizes []int
	p := pager[*pb.PodSandbox]{send: func(page []*pb.PodSandbox) error { sizes = append(sizes, len(page)); return nil }}
	for _, size := range []int{10, pageBytes / 2, pageBytes / 2, pageBytes * 2, 10, 10} {
		if err := p.add(&pb.PodSandbox{Id: strings.Repeat("a", size)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]int{2, 1, 1, 2}, sizes); d != "" {
		t.Errorf("pages (-want +got):\n%s", d)
	}
	p.send = func([]*pb.PodSandbox) error { return context.Canceled }
	if err := errors.Join(p.add(&pb.PodSandbox{Id: "a"}), p.flush()); !errors.Is(err, context.Canceled) {
		t.Errorf("flush to a client that is gone = %v; want its error", err)
	}
}

// TestEventsEnd: the daemon's end ends the streams, whatever the client does.
func TestEventsEnd(t *testing.T) {
	ending := make(chan struct{})
	o := options(&fakeRuntime{})
	o.Ending = ending
	c := pb.NewRuntimeServiceClient(connect(t, o))
	streams := make([]grpc.ServerStreamingClient[pb.ContainerEventResponse], 3)
	for i := range streams {
		var err error
		if streams[i], err = c.GetContainerEvents(t.Context(), &pb.GetEventsRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := streams[i].Header(); err != nil {
			t.Fatal(err)
		}
	}
	close(ending)
	for _, s := range streams {
		_, err := s.Recv()
		wantCode(t, "GetContainerEvents", err, codes.Unavailable, "ending")
	}
}

func TestEventToProto(t *testing.T) {
	for kind, want := range eventKinds {
		e := &sandbox.Event{ID: "c", Kind: kind, At: time.Unix(5, 0), Pod: &sandbox.Pod{ID: "p"}, Containers: []*sandbox.Container{{ID: "c"}, {ID: "d"}}}
		got := eventToProto(e)
		if got.ContainerEventType != want || got.ContainerId != "c" || got.CreatedAt != 5e9 || got.PodSandboxStatus.Id != "p" || len(got.ContainersStatuses) != 2 {
			t.Errorf("eventToProto(%s) = %v", kind, got)
		}
	}
	if len(eventKinds) != len(pb.ContainerEventType_name) {
		t.Errorf("%d kinds of events; the CRI has %d", len(eventKinds), len(pb.ContainerEventType_name))
	}
}
