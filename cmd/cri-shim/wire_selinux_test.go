package main

import (
	"testing"

	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

func TestPodLevels(t *testing.T) {
	var none *podLevels
	cfg := &workload.Pod{Metadata: workload.PodMetadata{Name: "a"}}
	if got, err := none.pod(cfg); got != cfg || err != nil {
		t.Errorf("without SELinux: %v, %v; want the pod as it was", got, err)
	}
	none.released(cfg, nil)

	recorded := &sandbox.Pod{Config: workload.Pod{
		Metadata: workload.PodMetadata{Name: "old"}, Security: workload.PodSecurity{SELinux: &workload.SELinux{Level: "s0:c1,c2"}},
	}}
	l := newPodLevels(true, []*sandbox.Pod{recorded})
	level := func(cfg *workload.Pod) string {
		t.Helper()
		got, err := l.pod(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if got.Security.SELinux == nil {
			return ""
		}
		return got.Security.SELinux.Level
	}
	if got := level(&workload.Pod{Metadata: recorded.Config.Metadata}); got != "s0:c1,c2" {
		t.Errorf("a retry after a restart: level %q; want the recorded one", got)
	}
	first := level(cfg)
	if first == "" || cfg.Security.SELinux != nil {
		t.Errorf("level %q, and the client's configuration %v; want one, and that unchanged", first, cfg.Security.SELinux)
	}
	if again := level(cfg); again != first {
		t.Errorf("a retry: level %q; want %q", again, first)
	}
	if other := level(&workload.Pod{Metadata: workload.PodMetadata{Name: "b"}}); other == first {
		t.Errorf("two pods have level %q", other)
	}
	typed := &workload.Pod{Metadata: workload.PodMetadata{Name: "c"}, Security: workload.PodSecurity{SELinux: &workload.SELinux{Type: "t_t"}}}
	if got, _ := l.pod(typed); got.Security.SELinux.Type != "t_t" || got.Security.SELinux.Level == "" {
		t.Errorf("options without a level: %v; want the type, and a level", got.Security.SELinux)
	}
	if got := level(&workload.Pod{Security: workload.PodSecurity{Privileged: true}}); got != "" {
		t.Errorf("privileged: level %q; want none", got)
	}
	l.released(cfg, []*sandbox.Pod{{Config: *cfg}})
	if again := level(cfg); again != first {
		t.Errorf("while the pod is there: level %q; want %q", again, first)
	}
	l.released(cfg, nil)
}
