package e2e

import (
	"errors"
	"io"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestVersion(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	v, err := n.Version(ctx(t), &pb.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if v.RuntimeName != "cri-shim" || v.RuntimeApiVersion != "v1" || v.RuntimeVersion == "" {
		t.Errorf("Version() = %v; want cri-shim, v1 and a version", v)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	n.becomes(t, "RuntimeReady")
	n.becomes(t, "NetworkReady")
	resp, err := n.RuntimeServiceClient.Status(ctx(t), &pb.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(resp.Info["config"], n.dir) || !strings.Contains(resp.Info["network"], n.name) {
		t.Errorf("verbose Status() = %v; want the configuration and the network %s", resp.Info, n.name)
	}
	config, err := n.RuntimeConfig(ctx(t), &pb.RuntimeConfigRequest{})
	if err != nil || config.Linux.CgroupDriver != pb.CgroupDriver_CGROUPFS {
		t.Errorf("RuntimeConfig() = %v, %v; want CGROUPFS", config, err)
	}
}

// becomes waits for a condition; the plugins' first answers may take longer than a call of Status.
func (n *node) becomes(t *testing.T, name string) {
	t.Helper()
	var last *pb.RuntimeCondition
	defer func() {
		if !last.GetStatus() {
			t.Logf("%s: %v", name, last)
		}
	}()
	eventually(t, name, func() bool {
		last = n.condition(t, name)
		return last.Status
	})
}

// condition is one of the runtime's conditions.
func (n *node) condition(t *testing.T, name string) *pb.RuntimeCondition {
	t.Helper()
	resp, err := n.RuntimeServiceClient.Status(ctx(t), &pb.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.Status.Conditions {
		if c.Type == name {
			return c
		}
	}
	t.Fatalf("Status() = %v; want a condition %s", resp, name)
	return nil
}

// implemented is what this version answers; all else says that it does not.
const implemented = ` Version Status RuntimeConfig RunPodSandbox StopPodSandbox RemovePodSandbox PodSandboxStatus
ListPodSandbox CreateContainer StartContainer StopContainer RemoveContainer ListContainers ContainerStatus
ReopenContainerLog UpdateContainerResources UpdatePodSandboxResources UpdateRuntimeConfig ExecSync Exec Attach
PortForward CheckpointContainer CheckpointPod RestorePod ListImages ImageStatus PullImage RemoveImage ImageFsInfo
ContainerStats ListContainerStats PodSandboxStats ListPodSandboxStats ListMetricDescriptors ListPodSandboxMetrics
GetContainerEvents StreamPodSandboxes StreamContainers StreamContainerStats StreamPodSandboxStats StreamPodSandboxMetrics
StreamImages `

func TestUnimplemented(t *testing.T) {
	t.Parallel()
	n := sharedNode(t)
	known := " " + strings.Join(strings.Fields(implemented), " ") + " "
	check := func(t *testing.T, method string, err error) {
		if strings.Contains(known, " "+method+" ") {
			if status.Code(err) == codes.Unimplemented {
				t.Errorf("%s: %v; want it to be implemented", method, err)
			}
			return
		}
		if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), method) {
			t.Errorf("%s: %v; want Unimplemented with the method's name", method, err)
		}
	}
	for _, service := range []grpc.ServiceDesc{pb.RuntimeService_ServiceDesc, pb.ImageService_ServiceDesc} {
		for _, m := range service.Methods {
			method := "/" + service.ServiceName + "/" + m.MethodName
			check(t, m.MethodName, n.conn.Invoke(ctx(t), method, &emptypb.Empty{}, &emptypb.Empty{}))
		}
		for _, s := range service.Streams {
			stream, err := n.conn.NewStream(ctx(t), &s, "/"+service.ServiceName+"/"+s.StreamName)
			if err == nil {
				_ = stream.SendMsg(&emptypb.Empty{}) // what is wrong is told by RecvMsg
				_ = stream.CloseSend()
				if s.StreamName == "GetContainerEvents" { // goes on for ever
					_, err = stream.Header()
				} else if err = stream.RecvMsg(&emptypb.Empty{}); errors.Is(err, io.EOF) {
					err = nil
				}
			}
			check(t, s.StreamName, err)
		}
	}
}
