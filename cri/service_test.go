package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func options(r *fakeRuntime) Options {
	return Options{
		Runtime: r, Images: &fakeImages{byName: map[string]*Image{}}, Archives: &fakeArchives{},
		Handlers: []Handler{{RecursiveReadOnly: true, UserNamespaces: true}, {Name: "kata"}},
		Features: Features{SupplementalGroupsPolicy: true, MountOptions: true},
		Name:     "cri-shim", Version: "1.2.3",
		Info: func() map[string]any { return map[string]any{"config": map[string]string{"root": "/r"}} },
	}
}

func runtimeClient(t testing.TB, r *fakeRuntime) pb.RuntimeServiceClient {
	return pb.NewRuntimeServiceClient(connect(t, options(r)))
}

func wantCode(t *testing.T, what string, err error, want codes.Code, text string) {
	t.Helper()
	if s := status.Convert(err); s.Code() != want || !strings.Contains(s.Message(), text) {
		t.Errorf("%s: %s %q; want %s with %q", what, s.Code(), s.Message(), want, text)
	}
}

// TestPodLife: one pod and container through all calls of their lives.
func TestPodLife(t *testing.T) {
	r := &fakeRuntime{}
	c, ctx := runtimeClient(t, r), t.Context()
	run, err := c.RunPodSandbox(ctx, &pb.RunPodSandboxRequest{Config: goodPod()})
	if err != nil {
		t.Fatal(err)
	}
	pod := run.PodSandboxId
	r.pods[0].IPs = []netip.Addr{netip.MustParseAddr("10.0.0.7"), netip.MustParseAddr("fd00::7")}
	st, err := c.PodSandboxStatus(ctx, &pb.PodSandboxStatusRequest{PodSandboxId: pod[:6], Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	want := &pb.PodSandboxStatus{
		Id: pod, Metadata: goodPod().Metadata, State: pb.PodSandboxState_SANDBOX_READY, CreatedAt: 1700000000_000000000,
		Network: &pb.PodSandboxNetworkStatus{Ip: "10.0.0.7", AdditionalIps: []*pb.PodIP{{Ip: "fd00::7"}}},
		Linux:   &pb.LinuxPodSandboxStatus{Namespaces: &pb.Namespace{Options: goodPod().Linux.SecurityContext.NamespaceOptions}},
		Labels:  goodPod().Labels, Annotations: goodPod().Annotations,
	}
	if d := cmp.Diff(want, st.Status, protocmp.Transform()); d != "" {
		t.Errorf("PodSandboxStatus (-want +got):\n%s", d)
	}
	if got := st.Info["info"]; got != `{"netns":"/run/netns/00a0"}` {
		t.Errorf("info = %s; want JSON", got)
	}

	made, err := c.CreateContainer(ctx, &pb.CreateContainerRequest{PodSandboxId: pod, Config: goodContainer()})
	if err != nil {
		t.Fatal(err)
	}
	id := made.ContainerId
	if _, err := c.StartContainer(ctx, &pb.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	r.containers[0].User = &workload.User{UID: 0, GID: 7, Groups: []uint32{7, 9}}
	r.containers[0].LogPath = "/var/log/pods/x/web/1.log"
	if _, err := c.ReopenContainerLog(ctx, &pb.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.StopContainer(ctx, &pb.StopContainerRequest{ContainerId: id, Timeout: 30}); err != nil || r.stopped[id] != 30*time.Second {
		t.Errorf("StopContainer = %v after %s; want nil after 30s", err, r.stopped[id])
	}
	cs, err := c.ContainerStatus(ctx, &pb.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	cfg := goodContainer()
	cfg.Mounts[2].Readonly = true
	wantStatus := &pb.ContainerStatus{
		Id: id, Metadata: cfg.Metadata, State: pb.ContainerState_CONTAINER_EXITED,
		CreatedAt: 1700000001e9, StartedAt: 1700000002e9, FinishedAt: 1700000003e9, ExitCode: 137, Reason: "Error",
		Image:    &pb.ImageSpec{Image: "example.org/web:1", UserSpecifiedImage: "example.org/web:1"},
		ImageRef: r.containers[0].ImageRef, ImageId: r.containers[0].ImageID, Mounts: cfg.Mounts, LogPath: "/var/log/pods/x/web/1.log",
		Resources:  &pb.ContainerResources{Linux: cfg.Linux.Resources},
		User:       &pb.ContainerUser{Linux: &pb.LinuxContainerUser{Uid: 0, Gid: 7, SupplementalGroups: []int64{7, 9}}},
		StopSignal: pb.Signal_SIGNAL_SIGTERM,
	}
	if d := cmp.Diff(wantStatus, cs.Status, protocmp.Transform()); d != "" {
		t.Errorf("ContainerStatus (-want +got):\n%s", d)
	}
	r.containers[0].OOMKilled = true
	if cs, _ := c.ContainerStatus(ctx, &pb.ContainerStatusRequest{ContainerId: id}); cs.GetStatus().GetReason() != "OOMKilled" || cs.GetInfo() != nil {
		t.Errorf("ContainerStatus = %v; want OOMKilled without info", cs)
	}

	if _, err := c.RemoveContainer(ctx, &pb.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
	if _, err := c.StopPodSandbox(ctx, &pb.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
	if _, err := c.RemovePodSandbox(ctx, &pb.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
	_, err = c.PodSandboxStatus(ctx, &pb.PodSandboxStatusRequest{PodSandboxId: pod})
	wantCode(t, "PodSandboxStatus of a removed pod", err, codes.NotFound, pod)
	_, err = c.ContainerStatus(ctx, &pb.ContainerStatusRequest{ContainerId: id})
	wantCode(t, "ContainerStatus of a removed container", err, codes.NotFound, id)
}

// TestUnknown: Stop and Remove of what is not there succeed, and an ID is always needed.
func TestUnknown(t *testing.T) {
	c, ctx := runtimeClient(t, &fakeRuntime{}), t.Context()
	for what, call := range map[string]func(id string) error{
		"StopPodSandbox": func(id string) error {
			_, err := c.StopPodSandbox(ctx, &pb.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"RemovePodSandbox": func(id string) error {
			_, err := c.RemovePodSandbox(ctx, &pb.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"StopContainer": func(id string) error {
			_, err := c.StopContainer(ctx, &pb.StopContainerRequest{ContainerId: id})
			return err
		},
		"RemoveContainer": func(id string) error {
			_, err := c.RemoveContainer(ctx, &pb.RemoveContainerRequest{ContainerId: id})
			return err
		},
	} {
		wantCode(t, what, call("abc"), codes.OK, "")
		wantCode(t, what+" without an ID", call(""), codes.InvalidArgument, "_id: empty")
	}
	for what, call := range map[string]func(id string) error{
		"PodSandboxStatus": func(id string) error {
			_, err := c.PodSandboxStatus(ctx, &pb.PodSandboxStatusRequest{PodSandboxId: id})
			return err
		},
		"ContainerStatus": func(id string) error {
			_, err := c.ContainerStatus(ctx, &pb.ContainerStatusRequest{ContainerId: id})
			return err
		},
		"StartContainer": func(id string) error {
			_, err := c.StartContainer(ctx, &pb.StartContainerRequest{ContainerId: id})
			return err
		},
		"ReopenLog": func(id string) error {
			_, err := c.ReopenContainerLog(ctx, &pb.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
		"CreateContainer": func(id string) error {
			_, err := c.CreateContainer(ctx, &pb.CreateContainerRequest{PodSandboxId: id, Config: goodContainer()})
			return err
		},
		"ExecSync": func(id string) error {
			_, err := c.ExecSync(ctx, &pb.ExecSyncRequest{ContainerId: id, Cmd: []string{"a"}})
			return err
		},
	} {
		wantCode(t, what, call("abc"), codes.NotFound, "abc")
		wantCode(t, what+" without an ID", call(""), codes.InvalidArgument, "_id: empty")
	}
}

func TestRefusals(t *testing.T) {
	r := &fakeRuntime{}
	c, ctx := runtimeClient(t, r), t.Context()
	_, err := c.RunPodSandbox(ctx, &pb.RunPodSandboxRequest{Config: goodPod(), RuntimeHandler: "gvisor"})
	wantCode(t, "unknown handler", err, codes.InvalidArgument, `runtime_handler: "gvisor"`)
	_, err = c.RunPodSandbox(ctx, &pb.RunPodSandboxRequest{Config: goodPod(), RuntimeHandler: "kata"})
	wantCode(t, "user namespace without the feature", err, codes.InvalidArgument, "userns_options")
	for range 2 {
		cfg := goodPod()
		cfg.Metadata.Attempt = uint32(len(r.pods))
		if _, err := c.RunPodSandbox(ctx, &pb.RunPodSandboxRequest{Config: cfg}); err != nil {
			t.Fatal(err)
		}
	}
	other, err := c.CreateContainer(ctx, &pb.CreateContainerRequest{PodSandboxId: r.pods[0].ID, Config: goodContainer()})
	if err != nil {
		t.Fatal(err)
	}
	cfg := goodContainer()
	cfg.Linux.SecurityContext.Privileged = true
	_, err = c.CreateContainer(ctx, &pb.CreateContainerRequest{PodSandboxId: r.pods[1].ID, Config: cfg})
	wantCode(t, "privileged", err, codes.InvalidArgument, "security_context.privileged")
	cfg = goodContainer()
	cfg.Linux.SecurityContext.NamespaceOptions = &pb.NamespaceOption{Pid: pb.NamespaceMode_TARGET, TargetId: other.ContainerId[:8]}
	_, err = c.CreateContainer(ctx, &pb.CreateContainerRequest{PodSandboxId: r.pods[1].ID, Config: cfg})
	wantCode(t, "target in another pod", err, codes.InvalidArgument, "target_id")
	if _, err = c.CreateContainer(ctx, &pb.CreateContainerRequest{PodSandboxId: r.pods[0].ID, Config: cfg}); err != nil {
		t.Errorf("CreateContainer with a target in the pod = %v; want nil", err)
	} else if got := r.containers[0].Config.Security.Namespaces.Target; got != other.ContainerId {
		t.Errorf("target = %q; want the whole ID %q", got, other.ContainerId)
	}
	_, err = c.StopContainer(ctx, &pb.StopContainerRequest{ContainerId: "a", Timeout: -1})
	wantCode(t, "negative timeout", err, codes.InvalidArgument, "timeout: -1")
	_, err = c.ExecSync(ctx, &pb.ExecSyncRequest{ContainerId: "a", Cmd: []string{"a"}, Timeout: -1})
	wantCode(t, "negative exec timeout", err, codes.InvalidArgument, "timeout: -1")
	_, err = c.ExecSync(ctx, &pb.ExecSyncRequest{ContainerId: "a"})
	wantCode(t, "exec of nothing", err, codes.InvalidArgument, "cmd: empty")
	_, err = c.StopContainer(ctx, &pb.StopContainerRequest{ContainerId: "a", Timeout: 1 << 62})
	wantCode(t, "timeout beyond time.Duration", err, codes.OK, "")
	if r.stopped["a"] <= 0 {
		t.Errorf("timeout 1<<62 s became %s", r.stopped["a"])
	}
}

func TestFilters(t *testing.T) {
	r := &fakeRuntime{}
	c, ctx := runtimeClient(t, r), t.Context()
	for i, app := range []string{"a", "b", "b"} {
		cfg := goodPod()
		cfg.Labels = map[string]string{"app": app, "n": fmt.Sprint(i)}
		run, err := c.RunPodSandbox(ctx, &pb.RunPodSandboxRequest{Config: cfg})
		if err != nil {
			t.Fatal(err)
		}
		ctr := goodContainer()
		ctr.Labels = cfg.Labels
		if _, err := c.CreateContainer(ctx, &pb.CreateContainerRequest{PodSandboxId: run.PodSandboxId, Config: ctr}); err != nil {
			t.Fatal(err)
		}
	}
	r.pods[0].StoppedAt, r.containers[0].StartedAt = time.Now(), time.Now() // n=2
	state := func(s pb.PodSandboxState) *pb.PodSandboxStateValue { return &pb.PodSandboxStateValue{State: s} }
	for _, tt := range []struct {
		filter *pb.PodSandboxFilter
		want   string
	}{
		{nil, "2 1 0"},
		{&pb.PodSandboxFilter{}, "2 1 0"},
		{&pb.PodSandboxFilter{Id: r.pods[1].ID}, "1"},
		{&pb.PodSandboxFilter{Id: "00a1"}, "1"}, // as people type it
		{&pb.PodSandboxFilter{Id: "00a"}, ""},   // the beginning of three
		{&pb.PodSandboxFilter{Id: "ffff"}, ""},
		{&pb.PodSandboxFilter{State: state(pb.PodSandboxState_SANDBOX_READY)}, "1 0"},
		{&pb.PodSandboxFilter{State: state(pb.PodSandboxState_SANDBOX_NOTREADY)}, "2"},
		{&pb.PodSandboxFilter{LabelSelector: map[string]string{"app": "b"}}, "2 1"},
		{&pb.PodSandboxFilter{LabelSelector: map[string]string{"app": "b", "n": "1"}}, "1"},
		{&pb.PodSandboxFilter{LabelSelector: map[string]string{"none": ""}}, ""},
		{&pb.PodSandboxFilter{Id: "00a2", State: state(pb.PodSandboxState_SANDBOX_READY)}, ""},
	} {
		resp, err := c.ListPodSandbox(ctx, &pb.ListPodSandboxRequest{Filter: tt.filter})
		var got []string
		for _, p := range resp.GetItems() {
			got = append(got, p.Labels["n"])
		}
		if s := strings.Join(got, " "); err != nil || s != tt.want {
			t.Errorf("ListPodSandbox(%v) = %q, %v; want %q", tt.filter, s, err, tt.want)
		}
	}
	running := &pb.ContainerStateValue{State: pb.ContainerState_CONTAINER_RUNNING}
	for _, tt := range []struct {
		filter *pb.ContainerFilter
		want   string
	}{
		{nil, "2 1 0"},
		{&pb.ContainerFilter{Id: "00c1"}, "1"},
		{&pb.ContainerFilter{Id: "00c"}, ""},
		{&pb.ContainerFilter{PodSandboxId: "00a0"}, "0"},
		{&pb.ContainerFilter{PodSandboxId: "ffff"}, ""},
		{&pb.ContainerFilter{State: running}, "2"},
		{&pb.ContainerFilter{State: running, PodSandboxId: "00a0"}, ""},
		{&pb.ContainerFilter{LabelSelector: map[string]string{"app": "b"}}, "2 1"},
	} {
		resp, err := c.ListContainers(ctx, &pb.ListContainersRequest{Filter: tt.filter})
		var got []string
		for _, p := range resp.GetContainers() {
			got = append(got, p.Labels["n"])
		}
		if s := strings.Join(got, " "); err != nil || s != tt.want {
			t.Errorf("ListContainers(%v) = %q, %v; want %q", tt.filter, s, err, tt.want)
		}
	}
}

func TestRuntimeInformation(t *testing.T) {
	c, ctx := runtimeClient(t, &fakeRuntime{}), t.Context()
	v, err := c.Version(ctx, &pb.VersionRequest{Version: "v1"})
	want := &pb.VersionResponse{Version: "0.1.0", RuntimeName: "cri-shim", RuntimeVersion: "1.2.3", RuntimeApiVersion: "v1"}
	if d := cmp.Diff(want, v, protocmp.Transform()); err != nil || d != "" {
		t.Errorf("Version: %v (-want +got):\n%s", err, d)
	}
	st, err := c.Status(ctx, &pb.StatusRequest{})
	wantStatus := &pb.StatusResponse{
		Status: &pb.RuntimeStatus{Conditions: []*pb.RuntimeCondition{{Type: "RuntimeReady", Status: true},
			{Type: "NetworkReady", Reason: "NoNetwork", Message: "no configuration in /etc/cni/net.d"}}},
		RuntimeHandlers: []*pb.RuntimeHandler{{Features: &pb.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true, UserNamespaces: true}},
			{Name: "kata", Features: &pb.RuntimeHandlerFeatures{}}},
		Features: &pb.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if d := cmp.Diff(wantStatus, st, protocmp.Transform()); err != nil || d != "" {
		t.Errorf("Status: %v (-want +got):\n%s", err, d)
	}
	st, err = c.Status(ctx, &pb.StatusRequest{Verbose: true})
	if err != nil || st.Info["config"] != `{"root":"/r"}` || !strings.HasPrefix(st.Info["golang"], `"go`) {
		t.Errorf("Status(verbose) info = %v, %v; want config and golang", st.GetInfo(), err)
	}
	rc, err := c.RuntimeConfig(ctx, &pb.RuntimeConfigRequest{})
	if err != nil || rc.GetLinux().GetCgroupDriver() != pb.CgroupDriver_CGROUPFS {
		t.Errorf("RuntimeConfig = %v, %v; want CGROUPFS", rc, err)
	}
}

// TestConfiguredServer: what the administrator decides of the services.
func TestConfiguredServer(t *testing.T) {
	o := options(&fakeRuntime{})
	o.CgroupDriver, o.MaxRequest = "systemd", 1<<10
	c, ctx := pb.NewRuntimeServiceClient(connect(t, o)), t.Context()
	rc, err := c.RuntimeConfig(ctx, &pb.RuntimeConfigRequest{})
	if err != nil || rc.GetLinux().GetCgroupDriver() != pb.CgroupDriver_SYSTEMD {
		t.Errorf("RuntimeConfig = %v, %v; want SYSTEMD", rc, err)
	}
	for size, want := range map[int]codes.Code{1 << 9: codes.NotFound, 1 << 11: codes.ResourceExhausted} {
		_, err := c.PodSandboxStatus(ctx, &pb.PodSandboxStatusRequest{PodSandboxId: strings.Repeat("a", size)})
		if status.Code(err) != want {
			t.Errorf("request of %d bytes = %v; want %s", size, err, want)
		}
	}
}

func TestExecSync(t *testing.T) {
	r := &fakeRuntime{containers: []*sandbox.Container{{ID: "c1"}}}
	c := runtimeClient(t, r)
	r.exec = func(ctx context.Context, timeout time.Duration) (*sandbox.ExecResult, error) {
		if timeout != 2*time.Second {
			t.Errorf("timeout = %s; want 2s", timeout)
		}
		return &sandbox.ExecResult{Stdout: []byte("out\xff"), Stderr: []byte("err"), ExitCode: 3}, nil
	}
	req := &pb.ExecSyncRequest{ContainerId: "c1", Cmd: []string{"x"}, Timeout: 2}
	resp, err := c.ExecSync(t.Context(), req)
	if err != nil || string(resp.Stdout) != "out\xff" || string(resp.Stderr) != "err" || resp.ExitCode != 3 {
		t.Errorf("ExecSync = %v, %v; want out, err, 3", resp, err)
	}
	r.exec = func(context.Context, time.Duration) (*sandbox.ExecResult, error) {
		return nil, fmt.Errorf("exec in c1: %w", context.DeadlineExceeded)
	}
	_, err = c.ExecSync(t.Context(), req)
	wantCode(t, "ExecSync past its timeout", err, codes.DeadlineExceeded, "exec in c1")
	r.exec = func(context.Context, time.Duration) (*sandbox.ExecResult, error) {
		return &sandbox.ExecResult{Stdout: make([]byte, 20<<20), Stderr: make([]byte, 20<<20)}, nil
	}
	resp, err = c.ExecSync(t.Context(), req)
	if n := len(resp.GetStdout()) + len(resp.GetStderr()); err != nil || n != maxExecOutput {
		t.Errorf("ExecSync of too much = %d bytes, %v; want %d", n, err, maxExecOutput)
	}
}

func TestCapOutput(t *testing.T) {
	const all = maxExecOutput
	for _, tt := range []struct{ out, err, wantOut, wantErr int }{
		{1, 2, 1, 2}, {all, 0, all, 0}, {all + 5, 0, all, 0}, {0, all + 1, 0, all},
		{all, 10, all - 10, 10}, {10, all, 10, all - 10}, {all, all, all / 2, all / 2},
	} {
		o, e := capOutput(make([]byte, tt.out), make([]byte, tt.err))
		if len(o) != tt.wantOut || len(e) != tt.wantErr {
			t.Errorf("capOutput(%d, %d) = %d, %d; want %d, %d", tt.out, tt.err, len(o), len(e), tt.wantOut, tt.wantErr)
		}
	}
}

func TestImages(t *testing.T) {
	o := options(&fakeRuntime{})
	images := o.Images.(*fakeImages)
	c, ctx := pb.NewImageServiceClient(connect(t, o)), t.Context()
	spec := &pb.ImageSpec{Image: "example.org/a:1"}
	st, err := c.ImageStatus(ctx, &pb.ImageStatusRequest{Image: spec, Verbose: true})
	if err != nil || st.Image != nil || st.Info != nil {
		t.Errorf("ImageStatus of no image = %v, %v; want an empty answer", st, err)
	}
	pull, err := c.PullImage(ctx, &pb.PullImageRequest{Image: spec, Auth: &pb.AuthConfig{Auth: "dXNlcjpwYTpzcw==", ServerAddress: "example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	if want := (Credentials{Username: "user", Password: "pa:ss", ServerAddress: "example.org"}); images.creds != want {
		t.Errorf("credentials = %+v; want %+v", images.creds, want)
	}
	st, err = c.ImageStatus(ctx, &pb.ImageStatusRequest{Image: spec, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	want := &pb.Image{Id: pull.ImageRef, RepoTags: []string{"example.org/a:1"}, Size: 10, Uid: &pb.Int64Value{Value: 1000}, Spec: &pb.ImageSpec{Image: pull.ImageRef}}
	if d := cmp.Diff(want, st.Image, protocmp.Transform()); d != "" || st.Info["info"] != `{"config":{"User":"1000"}}` {
		t.Errorf("ImageStatus info %v (-want +got):\n%s", st.Info, d)
	}
	for filter, n := range map[*pb.ImageFilter]int{nil: 1, {}: 1, {Image: &pb.ImageSpec{}}: 1, {Image: spec}: 1, {Image: &pb.ImageSpec{Image: "b"}}: 0} {
		if l, err := c.ListImages(ctx, &pb.ListImagesRequest{Filter: filter}); err != nil || len(l.Images) != n {
			t.Errorf("ListImages(%v) = %v, %v; want %d", filter, l, err, n)
		}
	}
	fs, err := c.ImageFsInfo(ctx, &pb.ImageFsInfoRequest{})
	if err != nil || len(fs.ImageFilesystems) != 1 || fs.ImageFilesystems[0].GetUsedBytes().GetValue() != 4096 || fs.ImageFilesystems[0].Timestamp <= 0 {
		t.Errorf("ImageFsInfo = %v, %v; want 4096 bytes", fs, err)
	}
	for range 2 {
		if _, err := c.RemoveImage(ctx, &pb.RemoveImageRequest{Image: spec}); err != nil {
			t.Errorf("RemoveImage = %v; want nil", err)
		}
	}
	_, err = c.PullImage(ctx, &pb.PullImageRequest{})
	wantCode(t, "PullImage of nothing", err, codes.InvalidArgument, "image.image: empty")
	_, err = c.ImageStatus(ctx, &pb.ImageStatusRequest{Image: &pb.ImageSpec{Image: "a", RuntimeHandler: "x"}})
	wantCode(t, "ImageStatus for an unknown handler", err, codes.InvalidArgument, "image.runtime_handler")
	_, err = c.PullImage(ctx, &pb.PullImageRequest{Image: spec, Auth: &pb.AuthConfig{Auth: "c2VjcmV0"}})
	wantCode(t, "PullImage with bad credentials", err, codes.InvalidArgument, "auth.auth")
	_, err = c.PullImage(t.Context(), &pb.PullImageRequest{Image: &pb.ImageSpec{Image: "a"}, Auth: &pb.AuthConfig{RegistryToken: "se\ncret"}})
	wantCode(t, "PullImage with a token that no header can have", err, codes.InvalidArgument, "auth.registry_token")
	if strings.Contains(err.Error(), "cret") {
		t.Errorf("PullImage tells the secret: %v", err)
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("error %q tells a secret", err)
	}
}

func TestImageUser(t *testing.T) {
	for user, want := range map[string]*pb.Image{
		"": {}, "1000": {Uid: &pb.Int64Value{Value: 1000}}, "0:0": {Uid: &pb.Int64Value{}},
		"www": {Username: "www"}, "www:data": {Username: "www"},
	} {
		got := imageToProto(&Image{User: user})
		if got.Username != want.Username || (got.Uid == nil) != (want.Uid == nil) || got.GetUid().GetValue() != want.GetUid().GetValue() {
			t.Errorf("user %q became %v, %q; want %v, %q", user, got.Uid, got.Username, want.Uid, want.Username)
		}
	}
}

// TestCodes: kinds of errors through the interceptor, with what joins and wraps them.
func TestCodes(t *testing.T) {
	r := &fakeRuntime{}
	c := runtimeClient(t, r)
	for _, tt := range []struct {
		err  error
		want codes.Code
	}{
		{sandbox.ErrNotFound, codes.NotFound},
		{sandbox.ErrInvalid, codes.InvalidArgument},
		{sandbox.ErrState, codes.FailedPrecondition},
		{sandbox.ErrExists, codes.AlreadyExists},
		{sandbox.ErrBusy, codes.Aborted},
		{sandbox.ErrUnavailable, codes.Unavailable},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{errors.ErrUnsupported, codes.Unimplemented},
		{syscall.ENOSPC, codes.ResourceExhausted},
		{errors.New("other"), codes.Unknown},
		{status.Error(codes.DataLoss, "as it is"), codes.DataLoss},
		{errors.Join(sandbox.ErrNotFound, sandbox.ErrUnavailable), codes.Unavailable},
		{fmt.Errorf("%w: %s", sandbox.ErrState, strings.Repeat("x", 20<<20)), codes.FailedPrecondition},
		{status.Error(codes.DataLoss, strings.Repeat("x", 20<<20)), codes.DataLoss},
	} {
		r.fail = fmt.Errorf("start pod x: %w", tt.err)
		_, err := c.RunPodSandbox(t.Context(), &pb.RunPodSandboxRequest{Config: goodPod()})
		wantCode(t, fmt.Sprintf("%.99v", tt.err), err, tt.want, "start pod x: ")
		if n := len(status.Convert(err).Message()); n > maxErrorText+64 {
			t.Errorf("an error of %d bytes; want at most %d and how much was left out", n, maxErrorText)
		}
	}
}

// TestPullErrors: the kubelet can tell a registry that is down from an image that is not there.
func TestPullErrors(t *testing.T) {
	o := options(&fakeRuntime{})
	images := o.Images.(*fakeImages)
	c := pb.NewImageServiceClient(connect(t, o))
	for _, tt := range []struct {
		err  error
		want codes.Code
		text string
	}{
		{image.ErrUnavailable, codes.Unknown, "RegistryUnavailable: pull: registry unavailable"},
		{image.ErrStalled, codes.Unknown, "RegistryUnavailable: pull: "},
		{context.Canceled, codes.Canceled, "pull: "},
		{image.ErrNotFound, codes.NotFound, "pull: image not found"},
		{image.ErrUnauthorized, codes.PermissionDenied, "pull: "},
		{image.ErrReference, codes.InvalidArgument, "pull: "},
		{image.ErrDigest, codes.DataLoss, "pull: "},
		{image.ErrPlatform, codes.FailedPrecondition, "pull: "},
	} {
		images.fail = fmt.Errorf("pull: %w", tt.err)
		_, err := c.PullImage(t.Context(), &pb.PullImageRequest{Image: &pb.ImageSpec{Image: "a"}})
		wantCode(t, tt.err.Error(), err, tt.want, tt.text)
		if !strings.HasPrefix(status.Convert(err).Message(), tt.text) {
			t.Errorf("message %q does not begin with %q", status.Convert(err).Message(), tt.text)
		}
	}
}

// TestCredentialsAreNotLogged: a pull is logged, what it is let in with is not.
func TestCredentialsAreNotLogged(t *testing.T) {
	var log bytes.Buffer
	images := &fakeImages{byName: map[string]*Image{}}
	o := options(&fakeRuntime{})
	o.Images, o.Log = images, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := pb.NewImageServiceClient(connect(t, o))
	for _, fail := range []error{nil, image.ErrUnauthorized} {
		images.fail = fail
		for _, auth := range []*pb.AuthConfig{
			{Username: "secret-user", Password: "secret-password"}, {Auth: "c2VjcmV0LXVzZXI6c2VjcmV0"}, {Auth: "c2VjcmV0"},
			{IdentityToken: "secret-identity"}, {RegistryToken: "secret-token"}, {Password: "secret\x00"},
		} {
			_, err := c.PullImage(t.Context(), &pb.PullImageRequest{Image: &pb.ImageSpec{Image: "example.org/a:1"}, Auth: auth})
			if text := fmt.Sprint(err); strings.Contains(text, "secret") || strings.Contains(text, "c2Vj") {
				t.Errorf("PullImage = %v; want no credentials in it", err)
			}
		}
	}
	if text := log.String(); strings.Contains(text, "secret") || strings.Contains(text, "c2Vj") || strings.Count(text, "op=PullImage image=example.org/a:1") != 12 {
		t.Errorf("log of 12 pulls:\n%s", text)
	}
}

// TestInterceptor: a panic costs one call, and each call has one line with its fields.
func TestInterceptor(t *testing.T) {
	var log bytes.Buffer
	r := &fakeRuntime{panics: true}
	o := options(r)
	o.Log = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := pb.NewRuntimeServiceClient(connect(t, o))
	_, err := c.RunPodSandbox(t.Context(), &pb.RunPodSandboxRequest{Config: goodPod()})
	wantCode(t, "panic", err, codes.Internal, "boom")
	if s := log.String(); !strings.Contains(s, "panic in a call") || !strings.Contains(s, "fake_test.go") {
		t.Errorf("log %s has no stack", s)
	}
	r.panics = false
	if _, err := c.RunPodSandbox(t.Context(), &pb.RunPodSandboxRequest{Config: goodPod()}); err != nil {
		t.Fatal(err)
	}
	r.fail = sandbox.ErrBusy
	for _, tt := range []struct {
		call func()
		want map[string]any
	}{
		{func() {}, map[string]any{"level": "INFO", "op": "RunPodSandbox", "name": "default/web-0", "pod": r.pods[0].ID}},
		{func() { c.StopPodSandbox(t.Context(), &pb.StopPodSandboxRequest{PodSandboxId: "p"}) },
			map[string]any{"level": "WARN", "op": "StopPodSandbox", "pod": "p", "code": "Aborted", "err": "stop pod sandbox: busy"}},
		{func() { c.ContainerStatus(t.Context(), &pb.ContainerStatusRequest{ContainerId: "x"}) },
			map[string]any{"level": "DEBUG", "op": "ContainerStatus", "ctr": "x", "code": "NotFound"}},
		{func() { c.ListPodSandbox(t.Context(), &pb.ListPodSandboxRequest{}) }, map[string]any{"level": "DEBUG", "op": "ListPodSandbox"}},
	} {
		tt.call()
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		var got map[string]any
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &got); err != nil {
			t.Fatal(err)
		}
		for k, want := range tt.want {
			if got[k] != want {
				t.Errorf("%s: %s = %v; want %v", tt.want["op"], k, got[k], want)
			}
		}
		if _, ok := got["took"]; !ok {
			t.Errorf("%s: no duration", tt.want["op"])
		}
	}
}

// implemented are the calls that this package answers.
var implemented = map[string]bool{
	"Version": true, "Status": true, "RuntimeConfig": true,
	"RunPodSandbox": true, "StopPodSandbox": true, "RemovePodSandbox": true, "PodSandboxStatus": true, "ListPodSandbox": true,
	"CreateContainer": true, "StartContainer": true, "StopContainer": true, "RemoveContainer": true, "ContainerStatus": true,
	"ListContainers": true, "ExecSync": true, "Exec": true, "Attach": true, "PortForward": true, "ReopenContainerLog": true,
	"CheckpointContainer": true, "CheckpointPod": true, "RestorePod": true, "UpdateContainerResources": true, "UpdatePodSandboxResources": true, "UpdateRuntimeConfig": true,
	"ListImages": true, "ImageStatus": true, "PullImage": true, "RemoveImage": true, "ImageFsInfo": true,
	"ContainerStats": true, "ListContainerStats": true, "PodSandboxStats": true, "ListPodSandboxStats": true,
	"ListMetricDescriptors": true, "ListPodSandboxMetrics": true, "GetContainerEvents": true,
	"StreamPodSandboxes": true, "StreamContainers": true, "StreamContainerStats": true, "StreamPodSandboxStats": true,
	"StreamPodSandboxMetrics": true, "StreamImages": true,
}

// TestUnimplemented calls every method of both services: one that is not in the list
// says so, by its name, and one that is does not.
func TestUnimplemented(t *testing.T) {
	o := options(&fakeRuntime{exec: func(context.Context, time.Duration) (*sandbox.ExecResult, error) { return nil, sandbox.ErrInvalid }})
	ending := make(chan struct{}) // else the events would go on
	close(ending)
	o.Ending = ending
	conn := connect(t, o)
	seen := 0
	for _, client := range []any{pb.NewRuntimeServiceClient(conn), pb.NewImageServiceClient(conn)} {
		v := reflect.ValueOf(client)
		for i := range v.NumMethod() {
			method := v.Type().Method(i)
			req := reflect.New(method.Type.In(2).Elem())
			out := v.Method(i).Call([]reflect.Value{reflect.ValueOf(t.Context()), req})
			err, _ := out[1].Interface().(error)
			if stream, ok := out[0].Interface().(grpc.ClientStream); ok && err == nil {
				err = stream.RecvMsg(reflect.New(out[0].MethodByName("Recv").Type().Out(0).Elem()).Interface())
			}
			switch {
			case implemented[method.Name]:
				seen++
				if status.Code(err) == codes.Unimplemented {
					t.Errorf("%s = %v; want it implemented", method.Name, err)
				}
			case status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), method.Name):
				t.Errorf("%s = %v; want Unimplemented with its name", method.Name, err)
			}
		}
	}
	if seen != len(implemented) {
		t.Errorf("saw %d implemented calls; want %d", seen, len(implemented))
	}
}

func TestAdmin(t *testing.T) {
	o := options(&fakeRuntime{
		pods: []*sandbox.Pod{
			{ID: "aa1", Config: workload.Pod{Metadata: workload.PodMetadata{Name: "n", Namespace: "ns"}}, Timeline: []sandbox.Stage{{Name: "netns", Took: time.Millisecond}}},
			{ID: "bb1"},
		},
		containers: []*sandbox.Container{
			{ID: "cc2", PodID: "aa1", CreatedAt: time.Unix(2, 0), Timeline: []sandbox.Stage{{Name: "launch", Took: 3}}},
			{ID: "cc1", PodID: "aa1", CreatedAt: time.Unix(1, 0)},
		},
	})
	conn := connect(t, o)
	c, ctx := NewAdminClient(conn), t.Context()
	all, err := c.Timelines(ctx, "")
	if err != nil || len(all) != 2 || len(all[0].Containers) != 2 || all[0].Containers[0].ID != "cc1" || all[0].Stages[0].Took != time.Millisecond {
		t.Errorf("Timelines() = %+v, %v", all, err)
	}
	one, err := c.Timelines(ctx, "cc2")
	if err != nil || len(one) != 1 || one[0].Name != "ns/n" || len(one[0].Containers) != 1 || one[0].Containers[0].ID != "cc2" {
		t.Errorf("Timelines(container) = %+v, %v", one, err)
	}
	_, err = c.Timelines(ctx, "zz")
	wantCode(t, "Timelines(unknown)", err, codes.NotFound, "zz")

	data := bytes.Repeat([]byte("0123456789abcdef"), 200_000) // over gRPC's usual 4 MiB in flight
	names, err := c.Import(ctx, bytes.NewReader(data), image.ImportOptions{})
	if err != nil || len(names) != 1 {
		t.Fatalf("Import = %v, %v; want one name", names, err)
	}
	var back bytes.Buffer
	if err := c.Export(ctx, &back, names, image.ExportOptions{}); err != nil || !bytes.Equal(back.Bytes(), data) {
		t.Errorf("Export = %d bytes, %v; want the %d that were imported", back.Len(), err, len(data))
	}
	wantCode(t, "Export(unknown)", c.Export(ctx, &back, []string{"x"}, image.ExportOptions{AllPlatforms: true}), codes.NotFound, "image x")
	wantCode(t, "Export()", c.Export(ctx, &back, nil, image.ExportOptions{}), codes.InvalidArgument, "images")
	_, err = c.Import(ctx, bytes.NewReader(nil), image.ImportOptions{})
	wantCode(t, "Import of nothing", err, codes.InvalidArgument, "archive: empty")

	o.Archives = nil
	c = NewAdminClient(connect(t, o))
	_, err = c.Import(ctx, bytes.NewReader(data), image.ImportOptions{})
	wantCode(t, "Import without a store", err, codes.Unimplemented, "import images")
}

// BenchmarkList lists 200 pods over a connection.
func BenchmarkList(b *testing.B) {
	r := &fakeRuntime{}
	cfg, err := podFromProto(goodPod(), "")
	if err != nil {
		b.Fatal(err)
	}
	for range 200 {
		r.RunPod(b.Context(), cfg)
	}
	c := runtimeClient(b, r)
	b.ReportAllocs()
	for b.Loop() {
		if resp, err := c.ListPodSandbox(b.Context(), &pb.ListPodSandboxRequest{}); err != nil || len(resp.Items) != 200 {
			b.Fatal(len(resp.GetItems()), err)
		}
	}
}

// BenchmarkListHandler is the server's part of it.
func BenchmarkListHandler(b *testing.B) {
	r := &fakeRuntime{}
	cfg, err := podFromProto(goodPod(), "")
	if err != nil {
		b.Fatal(err)
	}
	for range 200 {
		r.RunPod(b.Context(), cfg)
	}
	s := newRuntimeService(options(r))
	b.ReportAllocs()
	for b.Loop() {
		s.ListPodSandbox(b.Context(), nil)
	}
}

// BenchmarkConvert converts and checks a pod's and a container's configuration.
func BenchmarkConvert(b *testing.B) {
	p, c := goodPod(), goodContainer()
	for b.Loop() {
		podFromProto(p, "")
		containerFromProto(c)
	}
}
