package kubelet

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func probe(h corev1.ProbeHandler) *corev1.Probe {
	return &corev1.Probe{ProbeHandler: h, PeriodSeconds: 1, FailureThreshold: 1, TimeoutSeconds: 5}
}

// TestProbes: each kind of probe as startup, readiness and liveness; when liveness fails the container is restarted.
func TestProbes(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]corev1.ProbeHandler{
		"exec": {Exec: &corev1.ExecAction{Command: []string{"/bin/sh", "-c", "wget -qO- http://127.0.0.1:8080/healthz"}}},
		"http": {HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(8080)}},
		"grpc": {GRPC: &corev1.GRPCAction{Port: 9000}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := create(t, newPod(t, func(s *corev1.PodSpec) {
				s.Containers[0] = server("main", "-grpc=:9000")
				c := &s.Containers[0]
				c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = probe(h), probe(h), probe(h)
				c.StartupProbe.FailureThreshold = 60
				c.LivenessProbe.FailureThreshold = 3
			}))
			p.ready(t)
			if _, errOut, code, err := p.exec("websocket", "", "wget", "-qO-", "http://127.0.0.1:8080/fail"); err != nil || code != 0 {
				t.Fatalf("asking the server to fail: %d, %v, %s", code, err, errOut)
			}
			p.when(t, "restarted after its liveness probe failed", func(s *corev1.PodStatus) error {
				if len(s.ContainerStatuses) == 0 || s.ContainerStatuses[0].RestartCount == 0 {
					return fmt.Errorf("%+v", s.ContainerStatuses)
				}
				return nil
			})
			p.ready(t)
		})
	}
	t.Run("tcp", func(t *testing.T) {
		t.Parallel()
		p := create(t, newPod(t, func(s *corev1.PodSpec) {
			s.Containers[0] = server("main")
			s.Containers[0].ReadinessProbe = probe(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}})
			other := server("deaf", "-http=:8081")
			other.ReadinessProbe = probe(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(1)}})
			s.Containers = append(s.Containers, other)
		}))
		p.when(t, "one ready, one not", func(s *corev1.PodStatus) error {
			ready := map[string]bool{}
			for _, c := range s.ContainerStatuses {
				ready[c.Name] = c.Ready
			}
			if len(ready) != 2 || !ready["main"] || ready["deaf"] {
				return fmt.Errorf("%v", ready)
			}
			return nil
		})
	})
}
