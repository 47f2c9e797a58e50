package workload

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestEnvVarJSON: what a client sent is what a container gets after a restart of the daemon.
func TestEnvVarJSON(t *testing.T) {
	want := Container{Env: []EnvVar{{"A", "text"}, {"EMPTY", ""}, {"BYTES", "caf\xe9\xff"}, {"UTF8", "café <&>"}}}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Container
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want.Env, got.Env); d != "" {
		t.Errorf("stored as %s (-want +got):\n%s", text, d)
	}
	var old EnvVar // as records had it
	if err := json.Unmarshal([]byte(`{"key":"A","value":"b"}`), &old); err != nil || old != (EnvVar{"A", "b"}) {
		t.Errorf("old record = %v, %v; want A=b", old, err)
	}
}
