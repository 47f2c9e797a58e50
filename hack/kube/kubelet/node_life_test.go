package kubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestLogs(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.Containers[0] = container("main", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.2; done")
	}))
	p.ready(t)
	r, err := client.Get(secure + "/containerLogs/default/" + p.fullName() + "/main?follow=true&tailLines=1")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		t.Fatal(r.Status)
	}
	var lines int
	buffer := make([]byte, 64)
	for lines < 5 {
		n, err := r.Body.Read(buffer)
		if err != nil {
			t.Fatalf("following the log: %d lines, %v", lines, err)
		}
		lines += strings.Count(string(buffer[:n]), "\n")
	}
}

func TestLogRotation(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.Containers[0] = container("main", "i=0; while [ $i -lt 6000 ]; do echo this is line number $i of many; i=$((i+1)); done; while :; do echo after; sleep 0.1; done")
	}))
	p.ready(t)
	machine.eventually(t, "the log is rotated and written on", func() error {
		files, err := filepath.Glob(machine.path("pod-logs", "default_"+p.fullName()+"_*", "main", "*"))
		if err != nil || len(files) < 2 {
			return fmt.Errorf("log files %v, %v", files, err)
		}
		text, err := os.ReadFile(filepath.Join(filepath.Dir(files[0]), "0.log"))
		if err != nil {
			return err
		}
		if contains(string(text), "line number 1 ") || !contains(string(text), "after") {
			return fmt.Errorf("the newest log has %d bytes", len(text))
		}
		return nil
	})
}

func TestStatsSummary(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		s.Containers[0] = container("main", "dd if=/dev/zero of=/v/f bs=1M count=4; dd if=/dev/zero of=/f bs=1M count=3; while :; do :; done")
		s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
	}))
	p.ready(t)
	machine.eventually(t, "the summary has the pod's use of everything", func() error {
		s, err := p.statistics()
		if err != nil {
			return err
		}
		if len(s.Containers) != 1 {
			return fmt.Errorf("the pod's %s", s)
		}
		c := s.Containers[0]
		switch {
		case !some(c.CPU.UsageNanoCores):
			return fmt.Errorf("the container's cpu of %s", s)
		case !some(c.Memory.WorkingSetBytes):
			return fmt.Errorf("the container's memory of %s", s)
		case c.Rootfs.UsedBytes == nil || *c.Rootfs.UsedBytes < 3<<20:
			return fmt.Errorf("the container's rootfs of %s", s)
		case s.CPU.UsageNanoCores == nil || s.Memory.WorkingSetBytes == nil:
			return fmt.Errorf("the pod's %s", s)
		}
		return nil
	})
}

type cpuStatistics struct{ UsageNanoCores *uint64 }

type memoryStatistics struct{ WorkingSetBytes, UsageBytes, RSSBytes, PageFaults *uint64 }

// podStatistics is what the tests look at of a pod in the kubelet's /stats/summary.
type podStatistics struct {
	PodRef     struct{ Name string }
	Network    struct{ RxBytes *uint64 }
	CPU        cpuStatistics
	Memory     memoryStatistics
	Containers []struct {
		CPU    cpuStatistics
		Memory memoryStatistics
		Rootfs struct{ UsedBytes, InodesUsed *uint64 }
	}
	ProcessStats struct {
		ProcessCount *uint64 `json:"process_count"`
	} `json:"process_stats"`
}

func (p *pod) statistics() (*podStatistics, error) {
	text, err := get(secure + "/stats/summary")
	if err != nil {
		return nil, err
	}
	var summary struct{ Pods []podStatistics }
	if err := json.Unmarshal([]byte(text), &summary); err != nil {
		return nil, err
	}
	for _, s := range summary.Pods {
		if s.PodRef.Name == p.fullName() {
			return &s, nil
		}
	}
	return nil, fmt.Errorf("no pod %s", p.fullName())
}

// String is JSON: it has no pointers.
func (s *podStatistics) String() string {
	text, _ := json.Marshal(s)
	return string(text)
}

func some(all ...*uint64) bool {
	return !slices.ContainsFunc(all, func(v *uint64) bool { return v == nil || *v == 0 })
}

// TestStatsFromCRI comes before the parallel tests: a kubelet that asks the runtime for all statistics, and not cAdvisor.
func TestStatsFromCRI(t *testing.T) {
	restart := func(more ...string) {
		t.Helper()
		if err := machine.kubelet.Stop(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := machine.startKubelet(more...); err != nil {
			t.Fatal(err)
		}
	}
	restart("--feature-gates=PodAndContainerStatsFromCRI=true")
	defer restart()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.Containers[0] = container("main", "dd if=/dev/zero of=/f bs=1M count=3; while :; do :; done")
	}))
	p.ready(t)
	machine.eventually(t, "the kubelet's metrics have the runtime's", func() error {
		text, err := get(secure + "/metrics/cadvisor") // an error if two of them contradicted each other
		if err != nil {
			return err
		}
		for _, name := range []string{
			"container_cpu_usage_seconds_total", "container_memory_working_set_bytes", "container_memory_rss", "container_fs_usage_bytes",
			"container_processes", "container_start_time_seconds", "container_spec_memory_limit_bytes",
		} {
			sample := regexp.MustCompile(`(?m)^` + name + `\{container="main",.*pod="` + p.fullName() + `"\} (\S+)$`).FindStringSubmatch(text)
			if sample == nil || sample[1] == "0" && name != "container_spec_memory_limit_bytes" {
				return fmt.Errorf("%s of the container: %q", name, sample)
			}
		}
		if !regexp.MustCompile(`(?m)^container_network_receive_bytes_total\{container="",.*interface="eth0".* [1-9]`).MatchString(text) {
			return errors.New("no bytes were received by eth0")
		}
		return nil
	})
	machine.eventually(t, "the summary has the runtime's statistics", func() error {
		s, err := p.statistics()
		if err != nil {
			return err
		}
		if len(s.Containers) != 1 ||
			!some(s.Network.RxBytes, s.CPU.UsageNanoCores, s.Memory.WorkingSetBytes, s.Memory.RSSBytes, s.Memory.PageFaults, s.ProcessStats.ProcessCount) {
			return fmt.Errorf("the pod's %s", s)
		}
		c := s.Containers[0]
		if !some(c.CPU.UsageNanoCores, c.Memory.WorkingSetBytes, c.Memory.UsageBytes, c.Rootfs.UsedBytes, c.Rootfs.InodesUsed) {
			return fmt.Errorf("the container's %s", s)
		}
		return nil
	})
}

func TestImageCollection(t *testing.T) {
	t.Parallel()
	ref := machine.registry + "/kube/unused:1"
	if _, err := machine.cri("pull", ref); err != nil {
		t.Fatal(err)
	}
	// The kubelet looks every five minutes, and never before it has seen an image for imageMaximumGCAge.
	err := machine.until("an image that nobody uses is collected", 8*time.Minute, func() error {
		out, err := machine.cri("images", "-q", ref)
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("%s is still there", ref)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// beginMany creates pods that are at different stages when it returns.
func beginMany(t *testing.T) (begun []*pod) {
	for i := range 6 {
		p := newPod(t, func(s *corev1.PodSpec) {
			s.InitContainers = []corev1.Container{container("first", "sleep 1")}
			s.Containers[0].ReadinessProbe = probe(corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"/bin/true"}}})
		})
		p.Name += fmt.Sprintf("-%d", i)
		begun = append(begun, create(t, p))
		time.Sleep(150 * time.Millisecond)
	}
	return begun
}

// TestRestarts comes before the parallel tests, and changes what pods run on: those must not notice.
func TestRestarts(t *testing.T) {
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.Containers[0] = container("main", "i=0; while :; do echo count $i; i=$((i+1)); sleep 0.1; done")
	}))
	before := p.ready(t)
	same := func(t *testing.T) {
		t.Helper()
		after := p.ready(t)
		if a, b := before.Status.ContainerStatuses[0], after.Status.ContainerStatuses[0]; a.ContainerID != b.ContainerID || b.RestartCount != 0 {
			t.Errorf("container %s (%d restarts); want %s to live on", b.ContainerID, b.RestartCount, a.ContainerID)
		}
	}
	t.Run("kubelet", func(t *testing.T) {
		if err := machine.kubelet.Stop(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := machine.startKubelet(); err != nil {
			t.Fatal(err)
		}
		same(t)
	})
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run("daemon by "+sig.String(), func(t *testing.T) {
			begun := beginMany(t)
			if err := machine.daemon.Stop(sig); err != nil {
				t.Fatal(err)
			}
			if err := machine.startDaemon(); err != nil {
				t.Fatal(err)
			}
			for _, p := range begun {
				p.ready(t)
			}
			same(t)
		})
	}
	after := create(t, func() *corev1.Pod { n := newPod(t, nil); n.Name += "-after"; return n }())
	after.ready(t)
	log, err := p.logs("main", "")
	if err != nil {
		t.Fatal(err)
	}
	next := 0
	for line := range strings.Lines(log) {
		if want := fmt.Sprintf("count %d\n", next); line != want {
			t.Fatalf("the log has %q; want %q", line, want)
		}
		next++
	}
}
