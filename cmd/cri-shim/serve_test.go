package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/sandbox"
)

// fakeNode is a node with one pod; what is not defined here is not called.
type fakeNode struct {
	cri.Runtime
	cri.Images
	stopPod func(ctx context.Context) error
	archive []byte
	closed  bool
}

func (n *fakeNode) Pods() []*sandbox.Pod             { return []*sandbox.Pod{n.pod()} }
func (n *fakeNode) Containers() []*sandbox.Container { return nil }
func (n *fakeNode) pod() *sandbox.Pod {
	p := &sandbox.Pod{ID: "0123456789abcdef", Timeline: []sandbox.Stage{
		{Name: "namespaces", Took: 500 * time.Microsecond}, {Name: "network", Took: 1500 * time.Microsecond},
	}}
	p.Config.Metadata.Name, p.Config.Metadata.Namespace = "web", "default"
	return p
}
func (n *fakeNode) Pod(id string) (*sandbox.Pod, error) {
	if strings.HasPrefix(n.pod().ID, id) {
		return n.pod(), nil
	}
	return nil, fmt.Errorf("pod sandbox %s: %w", id, sandbox.ErrNotFound)
}
func (n *fakeNode) Container(id string) (*sandbox.Container, error) { return nil, sandbox.ErrNotFound }
func (n *fakeNode) Conditions(context.Context) []sandbox.Condition  { return nil }
func (n *fakeNode) StopPod(ctx context.Context, _ string) error     { return n.stopPod(ctx) }
func (n *fakeNode) List(context.Context) ([]*cri.Image, error) {
	return []*cri.Image{{ID: "sha256:" + strings.Repeat("ab", 32), RepoTags: []string{"example.org/a:1"}, Size: 4_321_000}}, nil
}
func (n *fakeNode) Pull(_ context.Context, ref string, c cri.Credentials) (string, error) {
	return "sha256:" + ref + c.Username + c.Password, nil
}
func (n *fakeNode) Remove(_ context.Context, ref string) error {
	if ref == "busy" {
		return fmt.Errorf("remove image busy: %w", sandbox.ErrBusy)
	}
	return nil
}

// fakeAdmin has an image for two platforms.
type fakeAdmin struct{ cri.ImageAdmin }

func (fakeAdmin) ListAll(context.Context) ([]*image.Image, error) {
	tags := []string{"example.org/a:1"}
	return []*image.Image{
		{ID: "sha256:" + strings.Repeat("ab", 32), RepoTags: tags, Platform: "linux/amd64", Size: 4300000},
		{ID: "sha256:" + strings.Repeat("cd", 32), RepoTags: tags, Platform: "linux/arm64/v8", Foreign: true, Size: 4200000},
		{ID: "sha256:" + strings.Repeat("ef", 32), Size: 5, Artifact: &image.Artifact{Type: "a/b"}},
	}, nil
}
func (a fakeAdmin) Inspect(ctx context.Context, _ string) ([]*image.Image, error) {
	return a.ListAll(ctx)
}
func (fakeAdmin) Pulls(context.Context, string) ([]image.PullProgress, error) { return nil, nil }
func (fakeAdmin) PullPlatforms(_ context.Context, ref string, auth *image.Auth, o image.PullOptions) ([]*image.Image, error) {
	return []*image.Image{{ID: fmt.Sprint("sha256:", ref, auth.Username, auth.Password, o.AllPlatforms), Platform: strings.Join(o.Platforms, "+")}}, nil
}

// fakeArchives keeps what was imported.
type fakeArchives struct{ *fakeNode }

func (a fakeArchives) Import(_ context.Context, r io.Reader, _ image.ImportOptions) ([]string, error) {
	var b bytes.Buffer
	_, err := b.ReadFrom(r)
	a.archive = b.Bytes()
	return []string{"example.org/a:1"}, err
}
func (a fakeArchives) Export(_ context.Context, w io.Writer, _ []string, o image.ExportOptions) error {
	if o.AllPlatforms || len(o.Platforms) > 0 {
		_, err := fmt.Fprint(w, o)
		return err
	}
	_, err := w.Write(a.archive)
	return err
}

func (n *fakeNode) assemble(context.Context, *config.Config, *slog.Logger) (*node, error) {
	return &node{
		services: cri.Options{Runtime: n, Images: n, Archives: fakeArchives{n}, ImageAdmin: fakeAdmin{}, Name: "cri-shim", Version: "0.0.1"},
		close:    func() error { n.closed = true; return nil },
	}, nil
}

func testConfig(t *testing.T) *config.Config {
	dir := t.TempDir()
	cfg := config.Default()
	cfg.Root, cfg.State = filepath.Join(dir, "root"), filepath.Join(dir, "state")
	cfg.Listen = filepath.Join(dir, "sock", "cri.sock")
	cfg.DrainTimeout = config.Seconds(5)
	return &cfg
}

// daemonProcess is a daemon in this process.
type daemonProcess struct {
	stop func()
	done chan error
}

// startDaemon serves until the test ends.
func startDaemon(t *testing.T, cfg *config.Config, n *fakeNode) *daemonProcess {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	d := &daemonProcess{stop: cancel, done: make(chan error, 1)}
	go func() { d.done <- serve(ctx, cfg, slog.New(slog.DiscardHandler), n.assemble) }()
	t.Cleanup(func() {
		cancel()
		<-d.done
	})
	for range 500 {
		if conn, err := net.Dial("unix", cfg.Listen); err == nil {
			conn.Close()
			return d
		}
		select {
		case err := <-d.done:
			d.done <- err
			t.Fatalf("serve ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatal("nobody listens")
	return nil
}

func (d *daemonProcess) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-d.done:
		d.done <- err
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("serve does not end")
		return nil
	}
}

func client(t *testing.T, socket string) pb.RuntimeServiceClient {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return pb.NewRuntimeServiceClient(conn)
}

func TestServe(t *testing.T) {
	cfg, n := testConfig(t), &fakeNode{}
	d := startDaemon(t, cfg, n)
	for path, want := range map[string]os.FileMode{cfg.Listen: 0o660 | os.ModeSocket, cfg.Root: 0o700 | os.ModeDir, filepath.Dir(cfg.Listen): 0o711 | os.ModeDir} {
		if st, err := os.Stat(path); err != nil || st.Mode() != want {
			t.Errorf("mode of %s = %v, %v; want %v", path, st.Mode(), err, want)
		}
	}
	v, err := client(t, cfg.Listen).Version(t.Context(), &pb.VersionRequest{})
	if err != nil || v.RuntimeVersion != "0.0.1" {
		t.Errorf("Version = %v, %v; want 0.0.1", v, err)
	}
	d.stop()
	if err := d.wait(t); err != nil || !n.closed {
		t.Errorf("serve = %v, closed %t; want nil, true", err, n.closed)
	}
	if _, err := os.Stat(cfg.Listen); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after the end: %v; want not exist", err)
	}
}

// TestTwoDaemons: the second is told who is in its way, and the first does not notice.
func TestTwoDaemons(t *testing.T) {
	cfg := testConfig(t)
	startDaemon(t, cfg, &fakeNode{})
	log := slog.New(slog.DiscardHandler)
	for name, change := range map[string]func(c *config.Config) string{
		"all": func(c *config.Config) string {
			return fmt.Sprintf("another cri-shim (process %d) uses %s", os.Getpid(), c.Root)
		},
		"state": func(c *config.Config) string { c.Root += "2"; return "uses " + c.State },
		"socket": func(c *config.Config) string {
			c.Root, c.State = c.Root+"3", c.State+"3"
			return "another process listens on " + c.Listen
		},
	} {
		t.Run(name, func(t *testing.T) {
			second, n := *cfg, &fakeNode{}
			want := change(&second)
			err := serve(t.Context(), &second, log, n.assemble)
			if err == nil || !strings.Contains(err.Error(), want) || n.closed {
				t.Errorf("second daemon = %v; want an error with %q", err, want)
			}
			if _, err := client(t, cfg.Listen).Version(t.Context(), &pb.VersionRequest{}); err != nil {
				t.Errorf("first daemon: %v", err)
			}
		})
	}
}

// TestSocketPath: what a dead daemon left is removed, and nothing else is.
func TestSocketPath(t *testing.T) {
	cfg := testConfig(t)
	if err := os.MkdirAll(filepath.Dir(cfg.Listen), 0o755); err != nil {
		t.Fatal(err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: cfg.Listen})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	startDaemon(t, cfg, &fakeNode{})

	cfg = testConfig(t)
	if err := os.MkdirAll(filepath.Dir(cfg.Listen), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.Listen, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	err = serve(t.Context(), cfg, slog.New(slog.DiscardHandler), (&fakeNode{}).assemble)
	if err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("serve over a file = %v; want not a socket", err)
	}
	if b, _ := os.ReadFile(cfg.Listen); string(b) != "precious" {
		t.Errorf("the file is now %q", b)
	}
}

// TestDrain: a running call ends by itself, until the drain's time is over.
func TestDrain(t *testing.T) {
	for _, tt := range []struct {
		name  string
		drain int // seconds
		takes time.Duration
		want  codes.Code
	}{{"in time", 5, 200 * time.Millisecond, codes.OK}, {"cut off", 1, time.Minute, codes.Unavailable}} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.DrainTimeout = config.Seconds(tt.drain)
			began := make(chan bool)
			n := &fakeNode{stopPod: func(ctx context.Context) error {
				close(began)
				select {
				case <-time.After(tt.takes):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}}
			d := startDaemon(t, cfg, n)
			var call sync.WaitGroup
			call.Go(func() {
				_, err := client(t, cfg.Listen).StopPodSandbox(t.Context(), &pb.StopPodSandboxRequest{PodSandboxId: "a"})
				if got := status.Code(err); got != tt.want {
					t.Errorf("StopPodSandbox = %v; want %s", err, tt.want)
				}
			})
			<-began
			d.stop()
			if err := d.wait(t); err != nil {
				t.Errorf("serve = %v; want nil", err)
			}
			call.Wait()
		})
	}
}

// TestNotify: systemd hears READY, WATCHDOG and STOPPING, in this order.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "100000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	d := startDaemon(t, testConfig(t), &fakeNode{})
	buf := make([]byte, 64)
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	for i, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		n, err := conn.Read(buf)
		if got := string(buf[:n]); err != nil || got != want {
			t.Errorf("notification %d = %q, %v; want %q", i, got, err, want)
		}
	}
	d.stop()
	d.wait(t)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("no STOPPING=1: %v", err)
		}
		if string(buf[:n]) == "STOPPING=1" {
			return
		}
	}
}

func TestAssembleFails(t *testing.T) {
	cfg := testConfig(t)
	broken := errors.New("broken")
	err := serve(t.Context(), cfg, slog.New(slog.DiscardHandler), func(context.Context, *config.Config, *slog.Logger) (*node, error) { return nil, broken })
	if !errors.Is(err, broken) {
		t.Errorf("serve = %v; want broken", err)
	}
	startDaemon(t, cfg, &fakeNode{}) // nothing is locked any more
}

// TestFoldersOfOthers: who can rename what is in the daemon's folders decides what runs as root.
func TestFoldersOfOthers(t *testing.T) {
	for what, change := range map[string]func(dir string) error{
		"can be written to by others (mode 0777)": func(dir string) error { return os.Chmod(dir, 0o777) },
		"belongs to user 65533":                   func(dir string) error { return os.Chown(dir, 65533, -1) },
	} {
		for _, which := range []string{"root", "state"} {
			dirs := map[string]string{"root": t.TempDir(), "state": t.TempDir()}
			for _, dir := range dirs { // whatever the umask
				if err := os.Chmod(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := change(dirs[which]); errors.Is(err, fs.ErrPermission) {
				t.Logf("needs root to give a folder away")
				continue
			} else if err != nil {
				t.Fatal(err)
			}
			locks, err := lockFolders(dirs["root"], dirs["state"])
			closeFiles(locks)
			if err == nil || !strings.Contains(err.Error(), dirs[which]+" "+what) {
				t.Errorf("with a %s that %s: %v; want that it is said", which, what, err)
			}
		}
	}
}
