package e2e

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// answers is what one call answers to three requests: one without any field, one with a value that makes no sense, and one
// for something that is not there. A text is what the error must say beside the operation.
type answers struct {
	operation string // what every error begins with
	empty     answer
	malformed []malformed
	unknown   *unknown // nil: it is not about one object
}

type answer struct {
	code codes.Code
	text string
}

type malformed struct {
	request proto.Message
	text    string // InvalidArgument
}

type unknown struct {
	request proto.Message
	answer
}

const nowhere = "nosuchid"

func emptyField(name string) answer { return answer{codes.InvalidArgument, name + ": empty"} }

func missing(request proto.Message) *unknown {
	return &unknown{request, answer{codes.NotFound, nowhere}}
}

// gone is for calls that have done their work where there is nothing.
func gone(request proto.Message) *unknown { return &unknown{request, answer{code: codes.OK}} }

func badID(request proto.Message) []malformed { return []malformed{{request, "more than any ID has"}} }

var longID = strings.Repeat("x", 1<<20)

var (
	podID       = emptyField("pod_sandbox_id")
	containerID = emptyField("container_id")
	ok          = answer{code: codes.OK}
	goodPod     = &pb.PodSandboxConfig{Metadata: &pb.PodSandboxMetadata{Name: "p", Uid: "u", Namespace: "n"}}
)

// errorTable has a line for each call of both services; a call without one fails the test.
var errorTable = map[string]answers{
	"Version":       {empty: ok},
	"Status":        {empty: ok},
	"RuntimeConfig": {empty: ok},
	"UpdateRuntimeConfig": {operation: "update runtime config", empty: ok, malformed: []malformed{
		{&pb.UpdateRuntimeConfigRequest{RuntimeConfig: &pb.RuntimeConfig{NetworkConfig: &pb.NetworkConfig{PodCidr: "x"}}}, "pod_cidr"}}},

	"RunPodSandbox": {operation: "run pod sandbox", empty: answer{codes.InvalidArgument, "config: missing"}, malformed: []malformed{
		{&pb.RunPodSandboxRequest{Config: &pb.PodSandboxConfig{}}, "config.metadata"},
		{&pb.RunPodSandboxRequest{Config: goodPod, RuntimeHandler: nowhere}, "runtime_handler"}}},
	"StopPodSandbox": {operation: "stop pod sandbox", empty: podID, unknown: gone(&pb.StopPodSandboxRequest{PodSandboxId: nowhere}),
		malformed: badID(&pb.StopPodSandboxRequest{PodSandboxId: longID})},
	"RemovePodSandbox": {operation: "remove pod sandbox", empty: podID, unknown: gone(&pb.RemovePodSandboxRequest{PodSandboxId: nowhere}),
		malformed: badID(&pb.RemovePodSandboxRequest{PodSandboxId: longID})},
	"PodSandboxStatus": {operation: "pod sandbox status", empty: podID, unknown: missing(&pb.PodSandboxStatusRequest{PodSandboxId: nowhere}),
		malformed: badID(&pb.PodSandboxStatusRequest{PodSandboxId: longID})},
	"UpdatePodSandboxResources": {operation: "update pod sandbox", empty: podID,
		unknown: missing(&pb.UpdatePodSandboxResourcesRequest{PodSandboxId: nowhere, Resources: &pb.LinuxContainerResources{}}),
		malformed: []malformed{{&pb.UpdatePodSandboxResourcesRequest{
			PodSandboxId: nowhere, Resources: &pb.LinuxContainerResources{CpuPeriod: -1}}, "resources.cpu_period"}}},

	"CreateContainer": {operation: "create container", empty: podID,
		unknown: missing(&pb.CreateContainerRequest{PodSandboxId: nowhere, Config: &pb.ContainerConfig{
			Metadata: &pb.ContainerMetadata{Name: "c"}, Image: &pb.ImageSpec{Image: "x"}}}),
		malformed: []malformed{{&pb.CreateContainerRequest{PodSandboxId: nowhere, Config: &pb.ContainerConfig{
			Metadata: &pb.ContainerMetadata{Name: "c"}, Image: &pb.ImageSpec{Image: "x"}, WorkingDir: "relative"}}, "config.working_dir"}}},
	"StartContainer": {operation: "start container", empty: containerID, unknown: missing(&pb.StartContainerRequest{ContainerId: nowhere}),
		malformed: badID(&pb.StartContainerRequest{ContainerId: longID})},
	"StopContainer": {operation: "stop container", empty: containerID, unknown: gone(&pb.StopContainerRequest{ContainerId: nowhere}),
		malformed: []malformed{{&pb.StopContainerRequest{ContainerId: nowhere, Timeout: -1}, "timeout"}}},
	"RemoveContainer": {operation: "remove container", empty: containerID, unknown: gone(&pb.RemoveContainerRequest{ContainerId: nowhere}),
		malformed: badID(&pb.RemoveContainerRequest{ContainerId: longID})},
	"ContainerStatus": {operation: "container status", empty: containerID, unknown: missing(&pb.ContainerStatusRequest{ContainerId: nowhere}),
		malformed: badID(&pb.ContainerStatusRequest{ContainerId: longID})},
	"UpdateContainerResources": {operation: "update container", empty: containerID,
		unknown: missing(&pb.UpdateContainerResourcesRequest{ContainerId: nowhere, Linux: &pb.LinuxContainerResources{CpuShares: 2}}),
		malformed: []malformed{{&pb.UpdateContainerResourcesRequest{
			ContainerId: nowhere, Linux: &pb.LinuxContainerResources{OomScoreAdj: 5000}}, "linux.oom_score_adj"}}},
	"ReopenContainerLog": {operation: "reopen", empty: containerID, unknown: missing(&pb.ReopenContainerLogRequest{ContainerId: nowhere}),
		malformed: badID(&pb.ReopenContainerLogRequest{ContainerId: longID})},
	"CheckpointContainer": {operation: "checkpoint container", empty: answer{codes.InvalidArgument, "container_id: empty"},
		malformed: badID(&pb.CheckpointContainerRequest{ContainerId: longID, Location: "/x"})},
	"CheckpointPod": {operation: "checkpoint pod", empty: answer{codes.InvalidArgument, "pod_sandbox_id: empty"},
		malformed: badID(&pb.CheckpointPodRequest{PodSandboxId: longID, OutputPath: "/x"})},
	"RestorePod": {operation: "restore pod", empty: answer{codes.InvalidArgument, "checkpoint_path: empty"},
		malformed: []malformed{{&pb.RestorePodRequest{CheckpointPath: "x"}, "checkpoint_path"},
			{&pb.RestorePodRequest{CheckpointPath: "/x", Options: map[string]string{"a": "b"}}, "options[a]"}}},

	"ExecSync": {operation: "exec", empty: containerID, unknown: missing(&pb.ExecSyncRequest{ContainerId: nowhere, Cmd: []string{"x"}}),
		malformed: []malformed{{&pb.ExecSyncRequest{ContainerId: nowhere}, "cmd"},
			{&pb.ExecSyncRequest{ContainerId: nowhere, Cmd: []string{"x"}, Timeout: -1}, "timeout"}}},
	"Exec": {operation: "exec", empty: containerID, unknown: missing(&pb.ExecRequest{ContainerId: nowhere, Cmd: []string{"x"}, Stdout: true}),
		malformed: []malformed{{&pb.ExecRequest{ContainerId: nowhere, Stdout: true}, "cmd"},
			{&pb.ExecRequest{ContainerId: nowhere, Cmd: []string{"x"}, Tty: true, Stdout: true, Stderr: true}, "stderr"}}},
	"Attach": {operation: "attach", empty: containerID, unknown: missing(&pb.AttachRequest{ContainerId: nowhere, Stdout: true}),
		malformed: []malformed{{&pb.AttachRequest{ContainerId: nowhere}, "stdin: at least one"}}},
	"PortForward": {operation: "port forward", empty: podID, unknown: missing(&pb.PortForwardRequest{PodSandboxId: nowhere}),
		malformed: []malformed{{&pb.PortForwardRequest{PodSandboxId: nowhere, Port: []int32{70000}}, "port"}}},

	"ListPodSandbox":          {empty: ok},
	"ListContainers":          {empty: ok},
	"ListContainerStats":      {empty: ok},
	"ListPodSandboxStats":     {empty: ok},
	"ListMetricDescriptors":   {empty: ok},
	"ListPodSandboxMetrics":   {empty: ok},
	"StreamPodSandboxes":      {empty: ok},
	"StreamContainers":        {empty: ok},
	"StreamContainerStats":    {empty: ok},
	"StreamPodSandboxStats":   {empty: ok},
	"StreamPodSandboxMetrics": {empty: ok},
	"StreamImages":            {empty: ok},
	"GetContainerEvents":      {empty: ok},
	"ContainerStats": {operation: "container stats", empty: containerID, unknown: missing(&pb.ContainerStatsRequest{ContainerId: nowhere}),
		malformed: badID(&pb.ContainerStatsRequest{ContainerId: longID})},
	"PodSandboxStats": {operation: "pod sandbox stats", empty: podID, unknown: missing(&pb.PodSandboxStatsRequest{PodSandboxId: nowhere}),
		malformed: badID(&pb.PodSandboxStatsRequest{PodSandboxId: longID})},

	"ListImages":  {empty: ok},
	"ImageFsInfo": {empty: ok},
	"ImageStatus": {operation: "image status", empty: emptyField("image.image"), unknown: gone(&pb.ImageStatusRequest{Image: &pb.ImageSpec{Image: nowhere}}),
		malformed: []malformed{{&pb.ImageStatusRequest{Image: &pb.ImageSpec{Image: "UPPER CASE"}}, "UPPER CASE"}}},
	"PullImage": {operation: "pull", empty: emptyField("image.image"), malformed: []malformed{
		{&pb.PullImageRequest{Image: &pb.ImageSpec{Image: "UPPER CASE"}}, "UPPER CASE"},
		{&pb.PullImageRequest{Image: &pb.ImageSpec{Image: "a"}, Auth: &pb.AuthConfig{Auth: "%%"}}, "auth.auth"}}},
	"RemoveImage": {operation: "remove image", empty: emptyField("image.image"), unknown: gone(&pb.RemoveImageRequest{Image: &pb.ImageSpec{Image: nowhere}}),
		malformed: []malformed{{&pb.RemoveImageRequest{Image: &pb.ImageSpec{Image: "UPPER CASE"}}, "UPPER CASE"}}},
}

// TestErrors: every call, as the services describe themselves, says what is wrong with a request, and goes on.
func TestErrors(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	seen := map[string]bool{}
	for _, service := range []grpc.ServiceDesc{pb.RuntimeService_ServiceDesc, pb.ImageService_ServiceDesc} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service.ServiceName))
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			m := methods.Get(i)
			name := string(m.Name())
			want, known := errorTable[name]
			if !known {
				t.Errorf("%s has no line in errorTable", name)
				continue
			}
			seen[name] = true
			t.Run(name, func(t *testing.T) { n.checkErrors(t, m, want) })
		}
	}
	for name := range errorTable {
		if !seen[name] {
			t.Errorf("errorTable has %s, which is no call", name)
		}
	}
}

func (n *node) checkErrors(t *testing.T, m protoreflect.MethodDescriptor, want answers) {
	check := func(what string, request proto.Message, wants answer) {
		t.Helper()
		err := n.call(ctx(t), m, request)
		s := status.Convert(err)
		if s.Code() != wants.code || !strings.Contains(s.Message(), wants.text) {
			t.Errorf("%s: %v; want %s with %q", what, err, wants.code, wants.text)
		}
		if wants.code != codes.OK && wants.code != codes.Unimplemented && !strings.HasPrefix(s.Message(), want.operation) {
			t.Errorf("%s: message %q; want it to begin with %q", what, s.Message(), want.operation)
		}
	}
	check("empty", dynamicpb.NewMessage(m.Input()), want.empty)
	for _, bad := range want.malformed {
		check("malformed", bad.request, answer{codes.InvalidArgument, bad.text})
	}
	if want.unknown != nil {
		check("unknown", want.unknown.request, want.unknown.answer)
	}
	if want.empty.code == codes.InvalidArgument && want.malformed == nil {
		t.Error("no malformed request in the table")
	}
	// A tag whose length is beyond the message's end.
	err := n.call(ctx(t), m, garbage{})
	if code := status.Code(err); code != codes.Internal && (want.empty.code != codes.Unimplemented || code != codes.Unimplemented) {
		t.Errorf("bytes that are no message: %v; want Internal", err)
	}
}

// garbage is sent as bytes that are not a message.
type garbage struct{ proto.Message }

type garbageCodec struct{}

func (garbageCodec) Marshal(any) ([]byte, error)     { return []byte("\x0a\xff\x01x"), nil }
func (garbageCodec) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }
func (garbageCodec) Name() string                    { return "proto" }

// call makes a call of any kind; of a stream the first answer counts.
func (n *node) call(ctx context.Context, m protoreflect.MethodDescriptor, request proto.Message) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var options []grpc.CallOption
	if _, is := request.(garbage); is {
		options = append(options, grpc.ForceCodec(garbageCodec{}))
	}
	method := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	response := dynamicpb.NewMessage(m.Output())
	if !m.IsStreamingServer() {
		return n.conn.Invoke(ctx, method, request, response, options...)
	}
	stream, err := n.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method, options...)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(request); err != nil && !errors.Is(err, io.EOF) { // what is wrong is told by RecvMsg
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if m.Name() == "GetContainerEvents" { // goes on for ever
		headers, err := stream.Header()
		if err != nil || headers != nil {
			return err
		}
	}
	if err := stream.RecvMsg(response); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}
