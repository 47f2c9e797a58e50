package nri

import (
	"testing"

	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
)

// FuzzApply: an adjustment, which plugins write and a record keeps, is an error or a specification; what other containers
// share stays as it is.
func FuzzApply(f *testing.F) {
	all := &api.ContainerAdjustment{
		Annotations: map[string]string{"a": "b", "-c": ""},
		Mounts:      []*api.Mount{{Destination: "/d", Type: "bind", Source: "/s", Options: []string{"rprivate"}}, {Destination: "-/e"}},
		Env:         []*api.KeyValue{{Key: "A", Value: "1"}, {Key: "-B"}},
		Hooks:       &api.Hooks{Prestart: []*api.Hook{{Path: "/h", Args: []string{"h"}}}},
		Linux: &api.LinuxContainerAdjustment{
			Devices:   []*api.LinuxDevice{{Path: "/dev/d", Type: "c", Major: 1, Minor: 2}, {Path: "-/dev/e"}},
			Resources: &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{Cpus: "0-1"}, Unified: map[string]string{"a": "b"}},
			Sysctl:    map[string]string{"net.a": "1", "-net.b": ""},
		},
		Rlimits:    []*api.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1, Soft: 1}, nil},
		CDIDevices: []*api.CDIDevice{{Name: "v/c=d"}},
		Args:       []string{"", "a"},
	}
	for _, a := range []*api.ContainerAdjustment{{}, all, {Linux: &api.LinuxContainerAdjustment{SeccompPolicy: &api.LinuxSeccomp{}}}} {
		b, err := proto.Marshal(a)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, adjustment []byte) {
		limits := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}
		devices := []specs.LinuxDevice{{Path: "/dev/x", Type: "c"}}
		shared := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		spec := &specs.Spec{
			Process: &specs.Process{Args: []string{"x"}, Env: []string{"A=1", "B=2"}, Rlimits: limits},
			Linux:   &specs.Linux{Seccomp: shared, Devices: devices, Resources: &specs.LinuxResources{}},
		}
		err := Apply(spec, adjustment, Resolvers{CDI: func(*specs.Spec, []string) error { return nil }})
		if err == nil && (spec.Process == nil || spec.Linux == nil) {
			t.Error("the specification lost a part")
		}
		if limits[0].Soft != 1 || devices[0].Path != "/dev/x" || shared.DefaultAction != specs.ActErrno {
			t.Errorf("what others share is now %v, %v, %v", limits, devices, shared)
		}
	})
}
