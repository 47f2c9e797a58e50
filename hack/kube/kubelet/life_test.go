package kubelet

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestRestartWithBackOff(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.Containers[0] = container("main", "echo attempt; exit 3")
	}))
	waited := false
	s := p.when(t, "restarted twice, with a wait", func(s *corev1.PodStatus) error {
		if len(s.ContainerStatuses) == 0 {
			return fmt.Errorf("no container yet")
		}
		c := s.ContainerStatuses[0]
		waited = waited || c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff"
		if c.RestartCount < 2 || !waited {
			return fmt.Errorf("%+v", c)
		}
		return nil
	})
	last := s.Status.ContainerStatuses[0].LastTerminationState.Terminated
	if last == nil || last.ExitCode != 3 || last.Reason != "Error" {
		t.Errorf("last termination %+v; want exit code 3, reason Error", last)
	}
	p.logsWant(t, "main", "?previous=true", "attempt")
}

func TestInitAndSidecars(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.RestartPolicy = corev1.RestartPolicyNever
		s.Volumes = []corev1.Volume{{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		always := corev1.ContainerRestartPolicyAlways
		sidecar := container("sidecar", "echo sidecar >> /s/order; trap 'echo sidecar ends; exit 0' TERM; while :; do sleep 0.1; done")
		sidecar.RestartPolicy = &always
		s.InitContainers = []corev1.Container{container("first", "echo first >> /s/order"), sidecar, container("second", "sleep 0.2; echo second >> /s/order")}
		s.Containers[0] = container("main", "echo main >> /s/order; cat /s/order")
		for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
			for i := range list {
				list[i].VolumeMounts = []corev1.VolumeMount{{Name: "shared", MountPath: "/s"}}
			}
		}
	}))
	got := p.ended(t, corev1.PodSucceeded)
	p.logsWant(t, "main", "", "first\nsidecar\nsecond\nmain\n")
	for _, c := range got.Status.InitContainerStatuses {
		if c.State.Terminated == nil || c.State.Terminated.ExitCode != 0 {
			t.Errorf("init container %s: %+v; want exit code 0", c.Name, c.State)
		}
	}
}

func TestHooksAndGracefulDeletion(t *testing.T) {
	t.Parallel()
	dir := machine.path("hooks")
	p := newPod(t, func(s *corev1.PodSpec) {
		s.TerminationGracePeriodSeconds = ptr(int64(30))
		s.Volumes = []corev1.Volume{{Name: "out", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{
			Path: dir, Type: ptr(corev1.HostPathDirectoryOrCreate),
		}}}}
		c := &s.Containers[0]
		*c = container("main", "trap 'echo term >> /out/order; exit 0' TERM; while :; do sleep 0.1; done")
		c.VolumeMounts = []corev1.VolumeMount{{Name: "out", MountPath: "/out"}}
		c.Lifecycle = &corev1.Lifecycle{
			PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", "echo post-start >> /out/order"}}},
			PreStop:   &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", "sleep 1; echo pre-stop >> /out/order"}}},
		}
	})
	running := create(t, p)
	running.ready(t)
	running.delete(t)
	machine.eventually(t, "the hooks' order", func() error {
		got, err := readFile(dir + "/order")
		if err == nil && got != "post-start\npre-stop\nterm\n" {
			err = fmt.Errorf("%q", got)
		}
		return err
	})
}

func TestLimitsAndOOM(t *testing.T) {
	t.Parallel()
	requests := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("16Mi"), corev1.ResourceCPU: resource.MustParse("10m")}
	limits := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("48Mi"), corev1.ResourceCPU: resource.MustParse("500m")}
	t.Run("seen inside", func(t *testing.T) {
		t.Parallel()
		p := create(t, newPod(t, func(s *corev1.PodSpec) {
			s.Containers[0] = container("main", `cd /sys/fs/cgroup
				cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us 2>/dev/null || cat memory.max cpu.max; sleep 100000`)
			s.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
		}))
		p.ready(t)
		p.logsWant(t, "main", "", "50331648\n50000")
	})
	t.Run("killed", func(t *testing.T) {
		t.Parallel()
		p := create(t, newPod(t, func(s *corev1.PodSpec) {
			s.RestartPolicy = corev1.RestartPolicyNever
			s.Containers[0] = container("main", "tail /dev/zero")
			s.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
		}))
		got := p.ended(t, corev1.PodFailed).Status.ContainerStatuses[0].State.Terminated
		if got == nil || got.Reason != "OOMKilled" || got.ExitCode != 137 {
			t.Errorf("terminated %+v; want OOMKilled, 137", got)
		}
	})
}

func TestTerminationMessage(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.RestartPolicy = corev1.RestartPolicyNever
		s.Containers[0] = container("main", "echo because > /dev/termination-log; exit 4")
	}))
	got := p.ended(t, corev1.PodFailed).Status.ContainerStatuses[0].State.Terminated
	if got == nil || strings.TrimSpace(got.Message) != "because" || got.ExitCode != 4 {
		t.Errorf("terminated %+v; want the message because, exit code 4", got)
	}
}
