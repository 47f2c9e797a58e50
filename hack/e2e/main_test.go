package e2e

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/cri-shim/cri-shim/hack/registry"
	"github.com/cri-shim/cri-shim/internal/testtools"
)

func TestMain(m *testing.M) {
	os.Exit(testtools.RunPrivate(suite{m}))
}

// suite runs the tests and then looks at what the node that they share has left behind.
type suite struct{ m *testing.M }

func (s suite) Run() int {
	code := s.m.Run()
	for what, err := range map[string]error{
		"what the tests left behind": errors.Join(closeShared(), images.close()), "calls": calls.check(),
	} {
		if err != nil {
			fmt.Fprintf(os.Stderr, "--- FAIL: %s\n%v\n", what, err)
			code = max(code, 1)
		}
	}
	return code
}

// images is the registry of all tests, in this process.
var images imageServer

type imageServer struct {
	once sync.Once
	err  error
	*registry.Server
}

// Names of the images at images.Host().
const (
	busyboxRepo = "e2e/busybox"
	webRepo     = "e2e/web"
)

func (s *imageServer) start() error {
	s.once.Do(func() {
		if s.Server, s.err = registry.New(registry.Options{}); s.err != nil {
			return
		}
		_, s.err = s.Listen("127.0.0.1:0")
		for _, add := range []func() (registry.Pushed, error){
			func() (registry.Pushed, error) { return s.AddBusybox(busyboxRepo, "1") },
			func() (registry.Pushed, error) { return s.AddWeb(webRepo, "1") },
		} {
			_, err := add()
			s.err = errors.Join(s.err, err)
		}
	})
	return s.err
}

func (s *imageServer) close() error {
	if s.Server == nil {
		return nil
	}
	return s.Close()
}

func busybox() string { return images.Host() + "/" + busyboxRepo + ":1" }
func web() string     { return images.Host() + "/" + webRepo + ":1" }

var shared struct {
	once sync.Once
	node *node
	err  error
}

// sharedNode is a daemon for all tests that do not harm it. It ends after the last test.
func sharedNode(t *testing.T) *node {
	t.Helper()
	needNode(t)
	shared.once.Do(func() {
		shared.node, shared.err = startNode(t, nil)
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.node
}

func closeShared() error {
	if shared.node == nil {
		return nil
	}
	return shared.node.close()
}
