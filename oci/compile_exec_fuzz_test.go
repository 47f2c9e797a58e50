package oci

import (
	"encoding/json"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// FuzzCompileExec is a process.json, as exec --process takes it.
func FuzzCompileExec(f *testing.F) {
	f.Add([]byte(`{"args":["sh"],"cwd":"/","user":{"uid":1,"additionalGids":[2]},"capabilities":{"bounding":["CAP_KILL"]},"rlimits":[{"type":"RLIMIT_NOFILE","soft":1,"hard":2}]}`))
	f.Add([]byte(`{"args":[""],"cwd":"..","terminal":true,"consoleSize":{"height":70000},"ioPriority":{"class":"x"},"execCPUAffinity":{"initial":"9-1"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := new(specs.Process)
		if json.Unmarshal(data, p) != nil {
			return
		}
		spec := minimalSpec()
		spec.Linux.Namespaces = nil // their files are the caller's
		l, err := CompileExec(spec, p, ExecState{PID: 1, Seccomp: noCompiler, ID: "c"})
		if err != nil {
			return
		}
		defer l.Close()
		b, err := initmsg.Encode(l.Message)
		if err != nil {
			t.Fatalf("Encode: %v", err)
		}
		m, err := initmsg.Decode(b)
		if err != nil {
			t.Fatalf("Decode: %v", err)
		}
		if len(m.Process.Args) == 0 || !filepath.IsAbs(m.Process.Cwd) || m.Root != nil {
			t.Errorf("compiled %q to %+v", data, m)
		}
	})
}
