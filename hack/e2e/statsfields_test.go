package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// groupFile reads a file of the control group of a container, as the node has it.
func (c *container) groupFile(t *testing.T, v1, v2 string) string {
	t.Helper()
	pid := strings.TrimSpace(c.crictl(t, "inspect", "--output", "go-template", "--template", "{{.info.pid}}", c.id))
	text, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	controller, _, _ := strings.Cut(v1, "/")
	path := v2
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if unified() && fields[0] == "0" {
			path = filepath.Join("/sys/fs/cgroup", fields[2], v2)
		} else if !unified() && strings.Contains(","+fields[1]+",", ","+controller+",") {
			path = filepath.Join("/sys/fs/cgroup", controller, fields[2], filepath.Base(v1))
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// TestStatsFields: each field of a container's and its pod's statistics says what the kernel does.
func TestStatsFields(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	const limit = 64 << 20
	// 8 MiB of memory that the shell holds, and two processes beside it.
	c := p.run(t, sh(`x=$(head -c 8000000 /dev/zero | tr '\0' x); touch /tmp/a /tmp/b; head -c 300000 /dev/zero > /tmp/c; echo ready
sleep 1000051 & sleep 1000051 & wait`), func(c *pb.ContainerConfig) {
		c.Labels, c.Annotations = map[string]string{"l": "1"}, map[string]string{"a": "2"}
		c.Linux.Resources = &pb.LinuxContainerResources{MemoryLimitInBytes: limit}
	})
	eventually(t, "ready", func() bool { return strings.Contains(c.rawLog(t), "ready") })
	var s *pb.ContainerStats
	eventually(t, "the size of the layer", func() bool {
		r, err := n.ContainerStats(ctx(t), &pb.ContainerStatsRequest{ContainerId: c.id})
		if err != nil {
			t.Fatal(err)
		}
		s = r.Stats
		return s.WritableLayer.GetUsedBytes().GetValue() >= 300000
	})
	if a := s.Attributes; a.Id != c.id || a.Metadata.Name == "" || a.Labels["l"] != "1" || a.Annotations["a"] != "2" {
		t.Errorf("attributes %v; want those of %s", a, c.id)
	}
	now := time.Now().UnixNano()
	for what, at := range map[string]int64{"cpu": s.Cpu.Timestamp, "memory": s.Memory.Timestamp, "swap": s.Swap.Timestamp, "layer": s.WritableLayer.Timestamp, "io": s.Io.Timestamp} {
		if at <= now-int64(callTimeout) || at > now {
			t.Errorf("timestamp of %s: %d; now it is %d", what, at, now)
		}
	}
	if l := s.WritableLayer; l.InodesUsed.GetValue() < 3 || l.FsId.GetMountpoint() == "" {
		t.Errorf("writable layer %v; want three files at least, and where", l)
	}
	m := s.Memory
	kernel := c.groupFile(t, "memory/memory.usage_in_bytes", "memory.current")
	var usage uint64
	fmt.Sscan(kernel, &usage)
	near := func(what string, got, want uint64) {
		t.Helper()
		if got < want/2 || got > want*2 {
			t.Errorf("%s = %d; want about %d", what, got, want)
		}
	}
	near("usage_bytes", m.UsageBytes.GetValue(), usage)
	if rss := m.RssBytes.GetValue(); rss < 8_000_000 || rss > usage*2 {
		t.Errorf("rss_bytes = %d; want the shell's 8 MB at least", rss)
	}
	if ws := m.WorkingSetBytes.GetValue(); ws < 8_000_000 || ws > m.UsageBytes.GetValue() || m.AvailableBytes.GetValue() != limit-ws {
		t.Errorf("working_set_bytes = %d, available_bytes = %d; want the first below the usage, and what it leaves of the limit", ws, m.AvailableBytes.GetValue())
	}
	if m.PageFaults.GetValue() < 1000 || m.MajorPageFaults == nil { // 8 MB are 2000 pages
		t.Errorf("page_faults = %v, major_page_faults = %v; want a thousand at least", m.PageFaults, m.MajorPageFaults)
	}
	if s.Swap.SwapUsageBytes == nil {
		t.Errorf("swap %v; want its use", s.Swap)
	}
	var nanos uint64
	if !unified() {
		fmt.Sscan(c.groupFile(t, "cpuacct/cpuacct.usage", ""), &nanos)
		if got := s.Cpu.UsageCoreNanoSeconds.GetValue(); got == 0 || got > nanos {
			t.Errorf("usage_core_nano_seconds = %d; the kernel says %d now", got, nanos)
		}
	}
	_, psi := os.Stat("/proc/pressure/cpu")
	if want := unified() && psi == nil; (s.Cpu.Psi != nil) != want || (m.Psi != nil) != want || (s.Io.Psi != nil) != want {
		t.Errorf("pressure of cpu, memory and io: %v, %v, %v; want it on cgroup v2 with PSI alone", s.Cpu.Psi, m.Psi, s.Io.Psi)
	}
	pod, err := n.PodSandboxStats(ctx(t), &pb.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	linux := pod.Stats.Linux
	if got := linux.Process.ProcessCount.GetValue(); got != 3 {
		t.Errorf("process_count = %d; want the shell and two sleeps", got)
	}
	if a := pod.Stats.Attributes; a.Id != p.id || a.Metadata.Uid != p.config.Metadata.Uid {
		t.Errorf("attributes of the pod: %v", a)
	}
	if linux.Memory.WorkingSetBytes.GetValue() < 8_000_000 || linux.Cpu.UsageCoreNanoSeconds.GetValue() == 0 ||
		len(linux.Containers) != 1 || linux.Containers[0].Attributes.Id != c.id {
		t.Errorf("the pod's statistics %v; want those of its container in them", linux)
	}
	c.checkMetrics(t, s)
}

// checkMetrics compares the metrics with the statistics.
func (c *container) checkMetrics(t *testing.T, s *pb.ContainerStats) {
	t.Helper()
	list, err := c.ListPodSandboxMetrics(ctx(t), &pb.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]uint64{}
	for _, p := range list.PodMetrics {
		if p.PodSandboxId != c.pod.id {
			continue
		}
		for _, m := range p.Metrics {
			values["pod "+m.Name] = m.Value.GetValue()
		}
		for _, m := range p.ContainerMetrics[0].Metrics {
			values[m.Name] = m.Value.GetValue()
		}
	}
	between := func(name string, low, high uint64) {
		t.Helper()
		if v, ok := values[name]; !ok || v < low || v > high {
			t.Errorf("%s = %d (there: %v); want %d to %d", name, v, ok, low, high)
		}
	}
	usage := s.Memory.UsageBytes.GetValue()
	between("container_memory_usage_bytes", usage/2, usage*2)
	between("container_memory_rss", 8_000_000, usage*2)
	between("container_memory_working_set_bytes", 8_000_000, usage*2)
	between("container_spec_memory_limit_bytes", 64<<20, 64<<20)
	between("container_fs_usage_bytes", 300000, 10<<20)
	between("container_processes", 3, 3)
	between("container_threads", 3, 3)
	between("container_file_descriptors", 9, 100)
	between("container_tasks_state", 0, 3)
	between("container_oom_events_total", 0, 0)
	between("container_start_time_seconds", uint64(time.Now().Add(-callTimeout).Unix()), uint64(time.Now().Unix()))
	between("container_last_seen", uint64(time.Now().Add(-callTimeout).Unix()), uint64(time.Now().Unix()))
	between("pod container_network_receive_bytes_total", 0, 1<<30)
	between("pod container_network_transmit_packets_total", 0, 1<<20)
	between("pod container_scrape_error", 0, 0)
	if unified() {
		return
	}
	between("container_memory_max_usage_bytes", usage/2, 64<<20)
	between("container_memory_failcnt", 0, 1000)
}
