package oci

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
)

func TestRunHook(t *testing.T) {
	t.Setenv("SECRET", "ours")
	second := 1
	sh := func(script string) *specs.Hook {
		return &specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}}
	}
	slow := sh("sleep 60 & wait")
	slow.Timeout = &second
	for name, tt := range map[string]struct {
		hook *specs.Hook
		want string
	}{
		"ok":          {sh("true"), ""},
		"stdin":       {sh(`read -r s; case $s in *'"id":"c1"'*) ;; *) exit 1;; esac`), ""},
		"environment": {sh(`test -z "$SECRET"`), ""},
		"fails":       {sh("echo why; exit 3"), "exit status 3: why"},
		"killed":      {sh("kill -9 $$"), "signal: killed"},
		"timeout":     {slow, "no end after 1 s"},
		"missing":     {&specs.Hook{Path: "/no/such"}, "no such file"},
		"endless":     {sh("yes | head -c 1000000; exit 1"), "exit status 1: y"},
		"background":  {sh("sleep 5 &"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			err := RunHook(t.Context(), tt.hook, &specs.State{ID: "c1"})
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("RunHook = %v; want %q", err, tt.want)
			}
			if err != nil && len(err.Error()) > 2*maxHookOutput {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if d := time.Since(start); d > 30*time.Second {
				t.Errorf("it took %v", d)
			}
		})
	}
}

// TestHookGate plays the init.
func TestHookGate(t *testing.T) {
	if g, err := NewHookGate(&specs.Spec{Hooks: &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}}}); g != nil || err != nil {
		t.Errorf("NewHookGate without hooks for it = %v, %v", g, err)
	}
	for _, tt := range []struct{ script, say, want string }{
		{`grep -q '"status":"creating","pid":`, initmsg.HooksDue, initmsg.HooksDone},
		{"exit 3;", initmsg.HooksDue, "createRuntime hook /bin/sh: exit status 3"},
		{"true;", "nonsense", "it asks for what is unknown"},
	} {
		script := tt.script + strconv.Itoa(os.Getpid()) + `'`
		if strings.HasSuffix(tt.script, ";") {
			script = tt.script
		}
		g, err := NewHookGate(&specs.Spec{Hooks: &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin"}}}}})
		if err != nil {
			t.Fatal(err)
		}
		end, err := sys.Dup(g.Socket())
		if err != nil {
			t.Fatal(err)
		}
		g.Socket().Close()
		served := make(chan struct{})
		go func() { g.Serve(t.Context(), specs.State{ID: "c1"}); close(served) }()
		conn, err := sys.FileConn(end)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.Send([]byte(tt.say)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		if n, _, err := conn.Recv(buf, 0); err != nil || string(buf[:n]) != tt.want {
			t.Errorf("%s: %q, %v; want %q", script, buf[:n], err, tt.want)
		}
		<-served
		if _, _, err := conn.Recv(buf, 0); !errors.Is(err, io.EOF) {
			t.Errorf("after it: %v; want the end", err)
		}
		conn.Close()
		g.Close()
	}
	g, err := NewHookGate(&specs.Spec{Hooks: &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true"}}}})
	if err != nil {
		t.Fatal(err)
	}
	g.Socket().Close()
	g.Serve(t.Context(), specs.State{}) // returns: there is no init
	g.Close()
}
