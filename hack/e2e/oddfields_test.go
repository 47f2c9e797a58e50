package e2e

import (
	"context"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestOddFields sends each call with one field after another of its request, however deep, set to what no client
// sends: long, binary and hostile text, the ends of the numbers, enum values that are not there, empty messages. The
// daemon answers in time, without a panic, names the field where it refuses, and nothing is left behind.
func TestOddFields(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	p := n.runPod(t, hostNetwork)
	c := p.sleeping(t)
	odd := &oddTest{T: t, pod: p, ctr: c}
	for _, service := range []grpc.ServiceDesc{pb.RuntimeService_ServiceDesc, pb.ImageService_ServiceDesc} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service.ServiceName))
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			odd.method(methods.Get(i))
		}
	}
	t.Logf("%d requests", odd.sent)
	log, err := os.ReadFile(n.path("daemon.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, "panic in a call") || len(line) > 40<<10 {
			t.Errorf("a line of the daemon's log with %d bytes: %.1000s", len(line), line)
		}
	}
	if got := c.exec(t, "echo alive"); got != "alive\n" {
		t.Errorf("the container that was there before says %q; want alive", got)
	}
}

type oddTest struct {
	*testing.T
	pod  *pod
	ctr  *container
	sent int
}

// base is a request that is answered as it should be, with messages in it that the fields of others lead to.
func (o *oddTest) base(m protoreflect.MethodDescriptor) proto.Message {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		o.Fatal(err)
	}
	request := mt.New().Interface()
	switch r := request.(type) {
	case *pb.RunPodSandboxRequest:
		r.Config = o.pod.podConfig(hostNetwork)
	case *pb.CreateContainerRequest:
		r.PodSandboxId, r.SandboxConfig = o.pod.id, o.pod.config
		r.Config = o.pod.containerConfig("odd", sh("true"))
	case *pb.PullImageRequest:
		r.Image = &pb.ImageSpec{Image: busybox()}
	case *pb.ImageStatusRequest:
		r.Image = &pb.ImageSpec{Image: busybox()}
	case *pb.RemoveImageRequest:
		r.Image = &pb.ImageSpec{Image: "127.0.0.1:1/none"}
	case *pb.ExecSyncRequest:
		r.Cmd = []string{"true"}
	case *pb.ExecRequest:
		r.Cmd, r.Stdout = []string{"true"}, true
	case *pb.AttachRequest:
		r.Stdout = true
	case *pb.UpdateContainerResourcesRequest:
		r.Linux = &pb.LinuxContainerResources{}
	case *pb.UpdatePodSandboxResourcesRequest:
		r.Resources = &pb.LinuxContainerResources{}
	}
	fields := request.ProtoReflect()
	for name, id := range map[protoreflect.Name]string{"pod_sandbox_id": o.pod.id, "container_id": o.ctr.id} {
		if f := m.Input().Fields().ByName(name); f != nil && f.Kind() == protoreflect.StringKind {
			switch m.Name() {
			case "StopPodSandbox", "RemovePodSandbox", "StopContainer", "RemoveContainer":
				id = nowhere
			}
			fields.Set(f, protoreflect.ValueOfString(id))
		}
	}
	return proto.Clone(request) // what is shared with the pod is not to be changed
}

func (o *oddTest) method(m protoreflect.MethodDescriptor) {
	o.walk(m, nil, m.Input())
}

// walk goes over the fields of a message that path leads to.
func (o *oddTest) walk(m protoreflect.MethodDescriptor, path []protoreflect.FieldDescriptor, d protoreflect.MessageDescriptor) {
	if len(path) > 6 || strings.HasPrefix(string(d.Name()), "Windows") { // those are refused whole
		return
	}
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		to := append(path[:len(path):len(path)], f)
		for _, value := range oddValues(f) {
			o.send(m, to, value)
		}
		if f.Kind() == protoreflect.MessageKind && !f.IsMap() {
			o.walk(m, to, f.Message())
		}
	}
}

// odd is a value with the words that a failure is reported in.
type odd struct {
	what string
	set  func(in protoreflect.Message, f protoreflect.FieldDescriptor)
}

func oddValues(f protoreflect.FieldDescriptor) (values []odd) {
	if f.IsMap() {
		for _, key := range oddTexts {
			values = append(values, odd{"map " + short(key), func(in protoreflect.Message, f protoreflect.FieldDescriptor) {
				text := protoreflect.ValueOfString(key)
				if f.MapValue().Kind() != protoreflect.StringKind {
					text = in.Mutable(f).Map().NewValue()
				}
				in.Mutable(f).Map().Set(protoreflect.ValueOfString(key).MapKey(), text)
			}})
		}
		return values
	}
	for _, scalar := range oddScalars(f) {
		values = append(values, odd{scalar.what, func(in protoreflect.Message, f protoreflect.FieldDescriptor) {
			if !f.IsList() {
				in.Set(f, scalar.value)
				return
			}
			list := in.Mutable(f).List()
			list.Append(scalar.value)
			list.Append(scalar.value)
		}})
	}
	if f.Kind() == protoreflect.MessageKind {
		values = append(values, odd{"empty message", func(in protoreflect.Message, f protoreflect.FieldDescriptor) {
			if f.IsList() {
				in.Mutable(f).List().AppendMutable()
				return
			}
			in.Set(f, in.NewField(f))
		}}, odd{"cleared", func(in protoreflect.Message, f protoreflect.FieldDescriptor) { in.Clear(f) }})
	}
	return values
}

type scalar struct {
	what  string
	value protoreflect.Value
}

var oddTexts = []string{"", " ", "a\x00b", "../../../x", "/proc/self/fd/3", "%s\n\u202e", strings.Repeat("x", 1<<16), "a=b,c:d"}

func oddScalars(f protoreflect.FieldDescriptor) (list []scalar) {
	add := func(what string, v protoreflect.Value) { list = append(list, scalar{what, v}) }
	switch f.Kind() {
	case protoreflect.StringKind:
		for _, text := range oddTexts {
			add(short(text), protoreflect.ValueOfString(text))
		}
	case protoreflect.BytesKind:
		add("bytes", protoreflect.ValueOfBytes([]byte("\xff\x00")))
	case protoreflect.Int64Kind:
		for _, v := range []int64{-1, 1, math.MinInt64, math.MaxInt64} {
			add(fmt.Sprint(v), protoreflect.ValueOfInt64(v))
		}
	case protoreflect.Int32Kind:
		for _, v := range []int32{-1, 1, math.MinInt32, math.MaxInt32} {
			add(fmt.Sprint(v), protoreflect.ValueOfInt32(v))
		}
	case protoreflect.Uint64Kind:
		add("max", protoreflect.ValueOfUint64(math.MaxUint64))
	case protoreflect.Uint32Kind:
		add("max", protoreflect.ValueOfUint32(math.MaxUint32))
	case protoreflect.EnumKind:
		for _, v := range []protoreflect.EnumNumber{-1, 7777, math.MaxInt32} {
			add(fmt.Sprint("enum ", v), protoreflect.ValueOfEnum(v))
		}
	case protoreflect.BoolKind:
		add("true", protoreflect.ValueOfBool(true))
	}
	return list
}

func short(text string) string {
	if len(text) > 20 {
		return fmt.Sprintf("%.5q... of %d bytes", text, len(text))
	}
	return fmt.Sprintf("%q", text)
}

func (o *oddTest) send(m protoreflect.MethodDescriptor, path []protoreflect.FieldDescriptor, value odd) {
	request := o.base(m)
	in := request.ProtoReflect()
	var names []string
	for _, f := range path[:len(path)-1] {
		names = append(names, string(f.Name()))
		if f.IsList() {
			list := in.Mutable(f).List()
			if list.Len() == 0 {
				list.AppendMutable()
			}
			in = list.Get(0).Message()
			continue
		}
		in = in.Mutable(f).Message()
	}
	last := path[len(path)-1]
	names = append(names, string(last.Name()))
	value.set(in, last)
	what := fmt.Sprintf("%s with %s = %s", m.Name(), strings.Join(names, "."), value.what)
	o.sent++
	ctx, cancel := context.WithTimeout(o.Context(), callTimeout)
	defer cancel()
	response, err := o.pod.invoke(ctx, m, request)
	s := status.Convert(err)
	switch text := s.Message(); {
	case s.Code() == codes.Internal, s.Code() == codes.DeadlineExceeded, s.Code() == codes.Unknown:
		o.Errorf("%s: %.300v", what, err)
	case len(text) > 20<<10:
		o.Errorf("%s: an error of %d bytes", what, len(text))
	case s.Code() == codes.InvalidArgument && !namesField(strings.ReplaceAll(text, ".", "_"), m.Input(), 0): // the kernel's cpu.quota
		o.Errorf("%s: %.300v; want a field's name in it", what, err)
	}
	if err == nil {
		o.undo(ctx, what, request, response)
	}
}

// undo removes what a request has made; however odd, that must be possible.
func (o *oddTest) undo(ctx context.Context, what string, request, response proto.Message) {
	must := func(_ any, err error) {
		if err != nil {
			o.Errorf("%s, then: %.300v", what, err)
		}
	}
	switch r := response.(type) {
	case *pb.RunPodSandboxResponse:
		if config := request.(*pb.RunPodSandboxRequest).Config; config.Linux != nil {
			o.pod.remember(r.PodSandboxId, config)
		}
		must(o.pod.StopPodSandbox(ctx, &pb.StopPodSandboxRequest{PodSandboxId: r.PodSandboxId}))
		must(o.pod.RemovePodSandbox(ctx, &pb.RemovePodSandboxRequest{PodSandboxId: r.PodSandboxId}))
	case *pb.CreateContainerResponse:
		_, err := o.pod.StartContainer(ctx, &pb.StartContainerRequest{ContainerId: r.ContainerId})
		if code := status.Code(err); code == codes.Internal || code == codes.DeadlineExceeded {
			o.Errorf("%s, then StartContainer: %.300v", what, err)
		}
		must(o.pod.RemoveContainer(ctx, &pb.RemoveContainerRequest{ContainerId: r.ContainerId}))
	}
}

// namesField says whether a text has the name of a field of a message, or of those in it.
func namesField(text string, d protoreflect.MessageDescriptor, depth int) bool {
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		if strings.Contains(text, string(f.Name())) {
			return true
		}
		if f.Kind() == protoreflect.MessageKind && !f.IsMap() && depth < 6 && namesField(text, f.Message(), depth+1) {
			return true
		}
	}
	return false
}

func (n *node) invoke(ctx context.Context, m protoreflect.MethodDescriptor, request proto.Message) (proto.Message, error) {
	mt, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return nil, err
	}
	response := mt.New().Interface()
	if m.IsStreamingServer() {
		return response, n.call(ctx, m, request)
	}
	return response, n.conn.Invoke(ctx, "/"+string(m.Parent().FullName())+"/"+string(m.Name()), request, response)
}
