package e2e

import (
	"testing"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestVersion(t *testing.T) {
	n := sharedNode(t)
	v, err := n.Version(ctx(t), &pb.VersionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if v.RuntimeName != "cri-shim" || v.RuntimeApiVersion != "v1" || v.RuntimeVersion == "" {
		t.Errorf("Version() = %v; want cri-shim, v1 and a version", v)
	}
}

func TestHello(t *testing.T) {
	p := sharedNode(t).runPod(t)
	if got, want := p.output(t, "echo hello"), "hello\n"; got != want {
		t.Errorf("output = %q; want %q", got, want)
	}
}
