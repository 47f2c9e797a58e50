package nri

import (
	"slices"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/cri-shim/cri-shim/internal/workload"
)

func TestApply(t *testing.T) {
	shared := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	spec := &specs.Spec{
		Process: &specs.Process{Env: []string{"A=1", "B=2"}, Rlimits: shared},
		Linux:   &specs.Linux{Seccomp: profile, Resources: &specs.LinuxResources{}},
	}
	a := &api.ContainerAdjustment{}
	a.AddEnv("A", "changed")
	a.RemoveEnv("B")
	a.AddEnv("C", "3")
	a.AddRlimit("RLIMIT_NOFILE", 20, 10)
	a.AddCDIDevice(&api.CDIDevice{Name: "vendor/class=dev"})
	a.SetLinuxOomScoreAdj(ptr(17))
	a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: string(specs.ActErrno)})
	data, err := proto.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	err = Apply(spec, data, Resolvers{CDI: func(_ *specs.Spec, n []string) error {
		names = n
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(spec.Process.Env)
	if diff := cmp.Diff([]string{"A=changed", "C=3"}, spec.Process.Env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}}, spec.Process.Rlimits); diff != "" {
		t.Errorf("rlimits (-want +got):\n%s", diff)
	}
	if shared[0].Soft != 1 || profile.DefaultAction != specs.ActAllow {
		t.Errorf("what other containers share is now %v and %v", shared, profile.DefaultAction)
	}
	if spec.Linux.Seccomp.DefaultAction != specs.ActErrno || spec.Process.OOMScoreAdj == nil || *spec.Process.OOMScoreAdj != 17 {
		t.Errorf("seccomp %v, OOM score %v; want the plugin's", spec.Linux.Seccomp.DefaultAction, spec.Process.OOMScoreAdj)
	}
	if diff := cmp.Diff([]string{"vendor/class=dev"}, names); diff != "" {
		t.Errorf("CDI devices (-want +got):\n%s", diff)
	}
	if err := Apply(spec, []byte("\xff"), Resolvers{}); err == nil {
		t.Error("a damaged adjustment is applied")
	}
}

func ptr[T any](v T) *T { return &v }

func TestTakeLimits(t *testing.T) {
	r := &api.LinuxResources{
		Cpu:    &api.LinuxCPU{Shares: api.UInt64(uint64(5)), Cpus: "0-1", RealtimePeriod: api.UInt64(uint64(9))},
		Memory: &api.LinuxMemory{Limit: api.Int64(int64(7))}, Pids: &api.LinuxPids{Limit: 3},
		Unified: map[string]string{"a.b": "c"},
	}
	want := &workload.Resources{CPUShares: 5, CPUSetCPUs: "0-1", MemoryLimit: 7, Unified: map[string]string{"a.b": "c"}}
	if diff := cmp.Diff(want, takeLimits(r)); diff != "" {
		t.Errorf("takeLimits (-want +got):\n%s", diff)
	}
	if r.Memory != nil || r.Unified != nil || r.Pids.GetLimit() != 3 || r.Cpu.GetCpus() != "" || r.Cpu.GetRealtimePeriod().GetValue() != 9 {
		t.Errorf("left in the adjustment: %v; want what the CRI has not", r)
	}
	if got := takeLimits(&api.LinuxResources{Pids: &api.LinuxPids{Limit: 3}}); got != nil {
		t.Errorf("takeLimits without any = %v; want nil", got)
	}
}

// TestRefuse: what nobody would do is an error that names it.
func TestRefuse(t *testing.T) {
	for want, l := range map[string]*api.LinuxContainerAdjustment{
		"linux.cgroups_path":            {CgroupsPath: "/elsewhere"},
		"linux.resources.rdt_class":     {Resources: &api.LinuxResources{RdtClass: api.String("gold")}},
		"linux.resources.blockio_class": {Resources: &api.LinuxResources{BlockioClass: api.String("slow")}},
	} {
		if err := refuse(l); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("refuse(%v) = %v; want an error with %s", l, err, want)
		}
	}
	if err := refuse(&api.LinuxContainerAdjustment{Resources: &api.LinuxResources{}}); err != nil {
		t.Errorf("refuse(nothing) = %v; want nil", err)
	}
}
