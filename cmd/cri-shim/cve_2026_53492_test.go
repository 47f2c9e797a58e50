package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// The specification in a checkpoint has annotations that name CDI devices. Of it a container gets the process's arguments,
// environment and working directory, and nothing else.
func TestCVE_2026_53492(t *testing.T) {
	c := &sandbox.Container{ID: "c1", Config: workload.Container{
		Metadata: workload.ContainerMetadata{Name: "c"}, Annotations: map[string]string{"a": "b"}, CDIDevices: []string{"x/y=z"},
		Mounts: []workload.Mount{{ContainerPath: "/data", HostPath: "/x"}}, Args: []string{"gone"},
	}}
	p := restoredSpec().Process
	got := withProcess(c, p)
	want := *c
	want.Config.Command, want.Config.Args, want.Config.WorkingDir = []string{"sh"}, nil, "/"
	want.Config.Env = []workload.EnvVar{{Key: "A", Value: "b"}, {Key: "HOSTNAME", Value: "old"}, {Key: "HOME", Value: "/root"}}
	if diff := cmp.Diff(&want, got); diff != "" {
		t.Errorf("withProcess (-want +got):\n%s", diff)
	}
	old := restoredSpec()
	old.Annotations = map[string]string{"cdi.k8s.io/devices": "vendor.example/gpu=all"}
	old.Linux.Devices = append(old.Linux.Devices, specs.LinuxDevice{Path: "/dev/mem", Type: "c", Major: 1, Minor: 1})
	old.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}
	now := restoredSpec()
	if err := fits(old, now); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(restoredSpec(), now); diff != "" {
		t.Errorf("the comparison has changed the container's specification (-want +got):\n%s", diff)
	}
}
