package kubelet

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func readFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	return string(b), err
}

func TestVolumes(t *testing.T) {
	t.Parallel()
	host := machine.path("host-path")
	if err := os.MkdirAll(host+"/sub", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(host+"/sub/file", []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.Volumes = []corev1.Volume{
			{Name: "disk", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "memory", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
				Medium: corev1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("8Mi")),
			}}},
			{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: host}}},
			{Name: "image", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{
				Reference: machine.registry + "/kube/volume:1", PullPolicy: corev1.PullIfNotPresent,
			}}},
			{Name: "downward", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
				Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}},
			}}},
		}
		c := &s.Containers[0]
		*c = container("main", `set -e
			echo disk > /disk/f; cat /disk/f
			grep ' /memory tmpfs' /proc/mounts
			cat /sub/file /image/content /downward/labels
			if echo x > /image/new; then echo the image is writable; fi
			echo name=$POD_NAME cpu=$CPU
			echo all there; exec sleep 100000`)
		c.VolumeMounts = []corev1.VolumeMount{
			{Name: "disk", MountPath: "/disk"}, {Name: "memory", MountPath: "/memory"},
			{Name: "host", MountPath: "/sub", SubPath: "sub", ReadOnly: true, RecursiveReadOnly: ptr(corev1.RecursiveReadOnlyIfPossible)},
			{Name: "image", MountPath: "/image"}, {Name: "downward", MountPath: "/downward"},
		}
		c.Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}
		c.Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
		c.Env = []corev1.EnvVar{
			{Name: "POD_NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
			{Name: "CPU", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.cpu"}}},
		}
	}))
	p.ready(t)
	for _, want := range []string{
		"all there", "disk\n", "size=8192k", "from the host", "from the image", `app="volumes"`, "name=volumes-node cpu=1",
	} {
		p.logsWant(t, "main", "", want)
	}
	if log, err := p.logs("main", ""); err != nil || contains(log, "the image is writable") {
		t.Errorf("log %q, %v; want an image volume that is read-only", log, err)
	}
}

// TestImageVolumeError: the kubelet counts an image volume that cannot be mounted, by the first word of the runtime's error.
func TestImageVolumeError(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.Volumes = []corev1.Volume{{Name: "image", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{
			Reference: machine.registry + "/kube/volume:1", PullPolicy: corev1.PullIfNotPresent,
		}}}}
		s.Containers[0] = container("main", "sleep 100000")
		s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "image", MountPath: "/image", SubPath: "no/such"}}
	}))
	machine.eventually(t, "the kubelet counts the volume, and its pod says why", func() error {
		text, err := get(readOnly + "/metrics")
		if err != nil {
			return err
		}
		if !regexp.MustCompile(`(?m)^kubelet_image_volume_mounted_errors_total [1-9]`).MatchString(text) {
			return errors.New("no error of an image volume is counted")
		}
		all, err := pods()
		if err != nil {
			return err
		}
		for _, pod := range all {
			if pod.Name != p.fullName() || len(pod.Status.ContainerStatuses) == 0 {
				continue
			}
			if w := pod.Status.ContainerStatuses[0].State.Waiting; w != nil && strings.HasPrefix(w.Message, "ImageVolumeMountFailed: ") && strings.Contains(w.Message, "no/such") {
				return nil
			}
			return fmt.Errorf("the container is %+v", pod.Status.ContainerStatuses[0].State)
		}
		return fmt.Errorf("no pod %s", p.fullName())
	})
}
