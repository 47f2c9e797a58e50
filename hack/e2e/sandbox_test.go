package e2e

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodLife(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t, func(c *pb.PodSandboxConfig) {
		c.Labels, c.Annotations = map[string]string{"app": "life"}, map[string]string{"note": "a b"}
	})
	s := p.status(t)
	if s.State != pb.PodSandboxState_SANDBOX_READY || s.Metadata.String() != p.config.Metadata.String() ||
		s.Labels["app"] != "life" || s.Annotations["note"] != "a b" || s.CreatedAt == 0 {
		t.Errorf("PodSandboxStatus() = %v; want ready, as it was asked for", s)
	}
	again, err := n.RunPodSandbox(ctx(t), &pb.RunPodSandboxRequest{Config: p.config})
	if err != nil || again.PodSandboxId != p.id {
		t.Errorf("RunPodSandbox() again = %v, %v; want %s", again, err, p.id)
	}
	for name, tc := range map[string]struct {
		filter *pb.PodSandboxFilter
		want   bool
	}{
		"id":             {&pb.PodSandboxFilter{Id: p.id}, true},
		"short id":       {&pb.PodSandboxFilter{Id: p.id[:13]}, true},
		"label":          {&pb.PodSandboxFilter{LabelSelector: map[string]string{"app": "life"}}, true},
		"other label":    {&pb.PodSandboxFilter{LabelSelector: map[string]string{"app": "other"}}, false},
		"ready":          {&pb.PodSandboxFilter{State: &pb.PodSandboxStateValue{State: pb.PodSandboxState_SANDBOX_READY}}, true},
		"not ready":      {&pb.PodSandboxFilter{State: &pb.PodSandboxStateValue{State: pb.PodSandboxState_SANDBOX_NOTREADY}}, false},
		"id, not of pod": {&pb.PodSandboxFilter{Id: strings.Repeat("0", 64)}, false},
	} {
		list, err := n.ListPodSandbox(ctx(t), &pb.ListPodSandboxRequest{Filter: tc.filter})
		if err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(list.Items, func(i *pb.PodSandbox) bool { return i.Id == p.id })
		if got != tc.want {
			t.Errorf("ListPodSandbox(%s) has the pod: %v; want %v", name, got, tc.want)
		}
	}
	for range 2 {
		if _, err := n.StopPodSandbox(ctx(t), &pb.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Fatal(err)
		}
	}
	if s := p.status(t); s.State != pb.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("after StopPodSandbox: %v; want not ready", s.State)
	}
	for range 2 {
		if _, err := n.RemovePodSandbox(ctx(t), &pb.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = n.PodSandboxStatus(ctx(t), &pb.PodSandboxStatusRequest{PodSandboxId: p.id})
	if status.Code(err) != codes.NotFound {
		t.Errorf("PodSandboxStatus() of a removed pod = %v; want NotFound", err)
	}
}

// TestPodStopKills: StopPodSandbox and RemovePodSandbox take running containers with them.
func TestPodStopKills(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	p := n.runPod(t)
	c := p.sleeping(t)
	if _, err := n.StopPodSandbox(ctx(t), &pb.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if s := c.status(t); s.State != pb.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("after StopPodSandbox: %v with %d; want exited with 137", s.State, s.ExitCode)
	}
	p = n.runPod(t)
	c = p.sleeping(t)
	if _, err := n.RemovePodSandbox(ctx(t), &pb.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	_, err := n.ContainerStatus(ctx(t), &pb.ContainerStatusRequest{ContainerId: c.id})
	if status.Code(err) != codes.NotFound {
		t.Errorf("ContainerStatus() after RemovePodSandbox = %v; want NotFound", err)
	}
}

// TestUnknownIDs: stopping and removing what is not there is done already, all else is NotFound.
func TestUnknownIDs(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	id := strings.Repeat("ab", 32)
	for name, tc := range map[string]struct {
		call func() error
		want codes.Code
	}{
		"StopPodSandbox": {func() error {
			_, err := n.StopPodSandbox(ctx(t), &pb.StopPodSandboxRequest{PodSandboxId: id})
			return err
		}, codes.OK},
		"RemovePodSandbox": {func() error {
			_, err := n.RemovePodSandbox(ctx(t), &pb.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		}, codes.OK},
		"StopContainer": {func() error {
			_, err := n.StopContainer(ctx(t), &pb.StopContainerRequest{ContainerId: id})
			return err
		}, codes.OK},
		"RemoveContainer": {func() error {
			_, err := n.RemoveContainer(ctx(t), &pb.RemoveContainerRequest{ContainerId: id})
			return err
		}, codes.OK},
		"StartContainer": {func() error {
			_, err := n.StartContainer(ctx(t), &pb.StartContainerRequest{ContainerId: id})
			return err
		}, codes.NotFound},
		"ContainerStatus": {func() error {
			_, err := n.ContainerStatus(ctx(t), &pb.ContainerStatusRequest{ContainerId: id})
			return err
		}, codes.NotFound},
		"PodSandboxStatus": {func() error {
			_, err := n.PodSandboxStatus(ctx(t), &pb.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		}, codes.NotFound},
		"ExecSync": {func() error {
			_, err := n.ExecSync(ctx(t), &pb.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		}, codes.NotFound},
		"ReopenContainerLog": {func() error {
			_, err := n.ReopenContainerLog(ctx(t), &pb.ReopenContainerLogRequest{ContainerId: id})
			return err
		}, codes.NotFound},
		"CreateContainer": {func() error {
			p := &pod{node: n, config: n.podConfig()}
			_, err := n.CreateContainer(ctx(t), &pb.CreateContainerRequest{PodSandboxId: id, Config: p.containerConfig("c", sh("true"))})
			return err
		}, codes.NotFound},
	} {
		if err := tc.call(); status.Code(err) != tc.want || err != nil && !strings.Contains(err.Error(), id) {
			t.Errorf("%s(unknown) = %v; want %s and the ID", name, err, tc.want)
		}
	}
}
