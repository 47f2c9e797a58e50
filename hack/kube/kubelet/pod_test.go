package kubelet

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pod is a static pod.
type pod struct {
	*node
	name string // without the node's
}

// newPod has one container "main" that sleeps; edit may change all of it.
func newPod(t *testing.T, edit func(*corev1.PodSpec)) *corev1.Pod {
	t.Helper()
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(strings.TrimPrefix(t.Name(), "Test")))
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": name}},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr(int64(5)),
			Containers:                    []corev1.Container{container("main", "trap 'exit 0' TERM; while :; do sleep 0.1; done")},
		},
	}
	if edit != nil {
		edit(&p.Spec)
	}
	return p
}

func ptr[T any](v T) *T { return &v }

// container runs a shell script in the tests' image.
func container(name, script string) corev1.Container {
	return corev1.Container{
		Name: name, Image: machine.image(), ImagePullPolicy: corev1.PullIfNotPresent,
		Command: []string{"/bin/sh", "-c", script},
	}
}

// server runs the test server.
func server(name string, args ...string) corev1.Container {
	return corev1.Container{
		Name: name, Image: machine.image(), ImagePullPolicy: corev1.PullIfNotPresent,
		Command: append([]string{"/testserver"}, args...),
	}
}

// create hands the pod to the kubelet; it is deleted at the test's end.
func create(t *testing.T, p *corev1.Pod) *pod {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	out := &pod{node: machine, name: p.Name}
	t.Cleanup(func() {
		if t.Failed() {
			if s, err := out.status(); err == nil {
				text, _ := json.MarshalIndent(s.Status, "", " ")
				t.Logf("pod %s: %s", out.name, text)
			}
		}
		out.delete(t)
	})
	// The kubelet reads the folder at any time: the file appears whole.
	tmp := machine.path("manifest.tmp-" + p.Name)
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(tmp, out.manifest()); err != nil {
		t.Fatal(err)
	}
	return out
}

func (p *pod) manifest() string { return p.path("manifests", p.name+".json") }

// fullName is the one that the kubelet gives a static pod.
func (p *pod) fullName() string { return p.name + "-" + nodeName }

// delete removes the pod and waits until the kubelet has forgotten it.
func (p *pod) delete(t *testing.T) {
	t.Helper()
	if err := os.Remove(p.manifest()); err != nil {
		return // the test did it
	}
	p.eventually(t, "pod "+p.name+" is gone", func() error {
		if _, err := p.status(); err == nil {
			return fmt.Errorf("still there")
		}
		return nil
	})
}

func (p *pod) status() (*corev1.Pod, error) {
	all, err := pods()
	if err != nil {
		return nil, err
	}
	for _, got := range all {
		if got.Name == p.fullName() {
			return &got, nil
		}
	}
	return nil, fmt.Errorf("no pod %s", p.fullName())
}

// when waits for a status.
func (p *pod) when(t *testing.T, what string, is func(*corev1.PodStatus) error) *corev1.Pod {
	t.Helper()
	var out *corev1.Pod
	p.eventually(t, p.name+": "+what, func() error {
		s, err := p.status()
		if err != nil {
			return err
		}
		out = s
		return is(&s.Status)
	})
	return out
}

func (p *pod) ready(t *testing.T) *corev1.Pod {
	t.Helper()
	return p.when(t, "ready", func(s *corev1.PodStatus) error {
		for _, c := range s.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("phase %s, containers %+v", s.Phase, s.ContainerStatuses)
	})
}

// ended waits for the pod's end in phase.
func (p *pod) ended(t *testing.T, phase corev1.PodPhase) *corev1.Pod {
	t.Helper()
	return p.when(t, "in phase "+string(phase), func(s *corev1.PodStatus) error {
		if s.Phase != phase {
			return fmt.Errorf("phase %s, containers %+v", s.Phase, s.ContainerStatuses)
		}
		return nil
	})
}

// logs reads a container's log through the kubelet.
func (p *pod) logs(container, query string) (string, error) {
	return get(secure + "/containerLogs/default/" + p.fullName() + "/" + container + query)
}

func (p *pod) logsWant(t *testing.T, container, query, want string) {
	t.Helper()
	p.eventually(t, fmt.Sprintf("%q in the log of %s", want, container), func() error {
		got, err := p.logs(container, query)
		if err == nil && !strings.Contains(got, want) {
			err = fmt.Errorf("the log is %q", got)
		}
		return err
	})
}
