package cgroup

import "testing"

func TestForeign(t *testing.T) {
	for name, want := range map[string]string{
		"/kubepods/podX/ctr":              "/kubepods/podX/ctr",
		"kubepods-podX.slice:cri-shim:id": "/kubepods.slice/kubepods-podX.slice/cri-shim-id.scope",
		"kubepods-podX.slice":             "kubepods-podX.slice",
		"a:b":                             "a:b",
	} {
		if got := Foreign(name); got != want {
			t.Errorf("Foreign(%s) = %s; want %s", name, got, want)
		}
	}
}

func TestExpect(t *testing.T) {
	memory := &hierarchy{controllers: []string{"memory"}, mount: "/cg/memory"}
	v1 := &Host{mode: V1, hierarchies: []*hierarchy{memory}, byName: map[string]*hierarchy{"memory": memory}, primary: memory}
	got, err := v1.Expect("/pods/p/c")
	if want := (Expected{OOMFile: "/cg/memory/pods/p/c/memory.oom_control", Dir: "/cg/memory/pods/p/c"}); err != nil || got != want {
		t.Errorf("Expect on v1 = %+v, %v; want %+v", got, err, want)
	}
	all := &hierarchy{controllers: []string{"memory"}, mount: "/cg"}
	v2 := &Host{mode: V2, hierarchies: []*hierarchy{all}, byName: map[string]*hierarchy{"memory": all}, primary: all}
	got, err = v2.Expect("pod.slice:cri-shim:c")
	want := Expected{OOMFile: "/cg/pod.slice/cri-shim-c.scope/memory.events", OOMParent: "/cg/pod.slice/memory.events", Dir: "/cg/pod.slice/cri-shim-c.scope"}
	if err != nil || got != want {
		t.Errorf("Expect of a scope = %+v, %v; want %+v", got, err, want)
	}
	if _, err := v1.Expect("pod.slice:cri-shim:c"); err == nil {
		t.Error("Expect of a scope on v1: no error")
	}
	if _, err := v2.Expect("relative"); err == nil {
		t.Error("Expect of a relative path: no error")
	}
}
