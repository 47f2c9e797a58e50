package e2e

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// TestStats: what a container does is what its statistics show.
func TestStats(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	c := p.run(t, sh("dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; sleep 100000 & while :; do :; done"))
	eventually(t, "the container's file in its statistics", func() bool {
		s, err := n.ContainerStats(ctx(t), &pb.ContainerStatsRequest{ContainerId: c.id})
		return err == nil && s.Stats.WritableLayer.GetUsedBytes().GetValue() >= 3<<20
	})
	eventually(t, "a busy container's CPU in its statistics", func() bool {
		s, err := n.ContainerStats(ctx(t), &pb.ContainerStatsRequest{ContainerId: c.id})
		return err == nil && s.Stats.Cpu.UsageNanoCores.GetValue() > 1e7 && s.Stats.Memory.WorkingSetBytes.GetValue() > 0
	})
	before, err := n.PodSandboxStats(ctx(t), &pb.PodSandboxStatsRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	linux := before.Stats.Linux
	if linux.Network.GetDefaultInterface().GetName() != "eth0" || linux.Process.ProcessCount.Value < 2 || len(linux.Containers) != 1 || linux.Cpu.UsageCoreNanoSeconds.Value == 0 {
		t.Errorf("PodSandboxStats = %v; want eth0, two processes, a container", linux)
	}
	c.exec(t, "ping -c 2 -s 1000 "+n.gateway())
	after, err := n.PodSandboxStats(ctx(t), &pb.PodSandboxStatsRequest{PodSandboxId: p.id})
	if got := after.GetStats().GetLinux().GetNetwork().GetDefaultInterface().GetTxBytes().GetValue(); err != nil ||
		got < linux.Network.DefaultInterface.TxBytes.Value+2000 {
		t.Errorf("bytes sent after two pings of 1000 bytes = %d, %v; before %v", got, err, linux.Network.DefaultInterface)
	}
	host := n.runPod(t, hostNetwork)
	if s, err := n.PodSandboxStats(ctx(t), &pb.PodSandboxStatsRequest{PodSandboxId: host.id}); err != nil || s.Stats.Linux.Network != nil {
		t.Errorf("PodSandboxStats on the node's network = %v, %v; want no network", s, err)
	}
	wants := func(want string, args ...string) {
		t.Helper()
		if got := n.crictl(t, args...); !strings.Contains(got, want) {
			t.Errorf("crictl %s = %q; want %q in it", strings.Join(args, " "), got, want)
		}
	}
	wants(c.id[:13], "stats", "--seconds", "1")
	wants(p.id[:13], "statsp", "--seconds", "1")
	wants("container_memory_working_set_bytes", "metricdescs")
	var metrics struct {
		PodMetrics []struct {
			ID         string `json:"podSandboxId"`
			Containers []struct {
				Metrics []struct{ Name string }
			} `json:"containerMetrics"`
		}
	}
	if err := json.Unmarshal([]byte(n.crictl(t, "metricsp")), &metrics); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, m := range metrics.PodMetrics {
		found = found || m.ID == p.id && len(m.Containers) == 1 && len(m.Containers[0].Metrics) > 20
	}
	if !found {
		t.Errorf("crictl metricsp = %+v; want the pod with its container", metrics)
	}
}

// TestCrictlEvents: crictl shows the whole life of a container.
func TestCrictlEvents(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	cmd := exec.CommandContext(ctx(t), testtools.Crictl(t), "--config", "/dev/null", "--runtime-endpoint", "unix://"+n.socket(), "events")
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	}()
	// crictl does not say when it listens: pods come and go until it does.
	eventually(t, "the first event", func() bool {
		p := n.runPod(t)
		time.Sleep(50 * time.Millisecond)
		return strings.Contains(out.String(), p.id)
	})
	p := n.runPod(t)
	c := p.sleeping(t)
	c.stopIt(t, 0)
	if _, err := n.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if t.Failed() {
			t.Log(out.String())
		}
	}()
	eventually(t, "the events of a life", func() bool {
		var kinds []string
		for d := json.NewDecoder(strings.NewReader(out.String())); ; {
			var e struct{ ContainerID, ContainerEventType string }
			if err := d.Decode(&e); err != nil {
				break // the end, or half an event
			}
			if e.ContainerID == c.id {
				kinds = append(kinds, e.ContainerEventType)
			}
		}
		return strings.Join(kinds, " ") == "CONTAINER_CREATED_EVENT CONTAINER_STARTED_EVENT CONTAINER_STOPPED_EVENT CONTAINER_DELETED_EVENT"
	})
}
