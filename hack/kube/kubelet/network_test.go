package kubelet

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func contains(s, sub string) bool { return strings.Contains(s, sub) }

func (n *node) answers(t *testing.T, url, want string) {
	t.Helper()
	n.eventually(t, url+" answers", func() error {
		got, err := get(url)
		if err == nil && !contains(got, want) {
			t.Fatalf("GET %s = %q; want %q in it", url, got, want)
		}
		return err
	})
}

func TestPodAddressAndHostPort(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.Containers[0] = server("main")
		s.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 8080, HostPort: 18080}}
	}))
	got := p.ready(t)
	machine.answers(t, "http://"+got.Status.PodIP+":8080/", got.Name)
	machine.answers(t, "http://127.0.0.1:18080/", got.Name)
}

func TestHostNetwork(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.HostNetwork = true
		s.Containers[0] = server("main", "-http=127.0.0.1:18081")
	}))
	p.ready(t)
	machine.answers(t, "http://127.0.0.1:18081/", "/")
}

func TestSharedPIDs(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.ShareProcessNamespace = ptr(true)
		s.Containers = []corev1.Container{server("main"), container("looker", "until ps | grep -q '[t]estserver'; do sleep 0.1; done; echo seen; sleep 100000")}
	}))
	p.ready(t)
	p.logsWant(t, "looker", "", "seen")
}

func TestUserNamespace(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.HostUsers = ptr(false)
		s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
		s.Containers[0] = container("main", "id -u; touch /v/f /f; stat -c owner=%u /v/f /f; cat /proc/self/uid_map; sleep 100000")
		s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
	}))
	p.ready(t)
	p.logsWant(t, "main", "", "0\nowner=0\nowner=0\n")
	log, err := p.logs("main", "")
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(log)
	if got := fields[len(fields)-3:]; got[0] != "0" || got[1] == "0" || got[2] != "65536" {
		t.Errorf("uid_map %v; want 65536 users from 0 on that are not the host's", got)
	}
}
