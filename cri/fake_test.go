package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/usage"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// fakeRuntime keeps records in memory, as sandbox.Manager does on disk.
type fakeRuntime struct {
	mu           sync.Mutex
	pods         []*sandbox.Pod // newest first
	containers   []*sandbox.Container
	fail         error // returned by calls that change something
	checkpointed []string
	exec         func(ctx context.Context, timeout time.Duration) (*sandbox.ExecResult, error)
	stream       func(ctx context.Context, cmd []string, s sandbox.Streams) (int, error)
	stopped      map[string]time.Duration
	panics       bool
	usage        *usage.Stats
	unmeasured   string
	events       sandbox.Manager // its subscriptions alone
	cidrs        []netip.Prefix
}

func (r *fakeRuntime) RunPod(_ context.Context, cfg *workload.Pod) (string, error) {
	if r.panics {
		panic("boom")
	}
	if r.fail != nil {
		return "", r.fail
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Unix(1700000000, int64(len(r.pods)))
	p := &sandbox.Pod{ID: fmt.Sprintf("%04x%060d", len(r.pods)+0xa0, 0), Config: *cfg, CreatedAt: now, ReadyAt: now}
	r.pods = append([]*sandbox.Pod{p}, r.pods...)
	return p.ID, nil
}

func (r *fakeRuntime) StopPod(_ context.Context, id string) error {
	if p, err := r.Pod(id); err == nil && r.fail == nil {
		p.StoppedAt = time.Unix(1700000100, 0)
	}
	return r.fail
}

func (r *fakeRuntime) RemovePod(_ context.Context, id string) error {
	r.pods = slices.DeleteFunc(r.pods, func(p *sandbox.Pod) bool { return p.ID == id })
	return r.fail
}

func (r *fakeRuntime) UpdateContainer(_ context.Context, id string, change *workload.Resources) error {
	c, err := r.Container(id)
	if err == nil && r.fail == nil {
		c.Resources = change
	}
	return errors.Join(err, r.fail)
}

func (r *fakeRuntime) UpdatePod(_ context.Context, id string, overhead, resources *workload.Resources) error {
	p, err := r.Pod(id)
	if err == nil && r.fail == nil {
		p.Overhead, p.Resources = overhead, resources
	}
	return errors.Join(err, r.fail)
}

func (r *fakeRuntime) SetPodCIDRs(cidrs []netip.Prefix) error {
	r.cidrs = cidrs
	return r.fail
}

func find[T any](all []T, id string, of func(T) string) (T, error) {
	var found []T
	for _, v := range all {
		if strings.HasPrefix(of(v), id) {
			found = append(found, v)
		}
	}
	if len(found) != 1 {
		var none T
		return none, fmt.Errorf("%s: %w", id, sandbox.ErrNotFound)
	}
	return found[0], nil
}

func (r *fakeRuntime) Pod(id string) (*sandbox.Pod, error) {
	return find(r.pods, id, func(p *sandbox.Pod) string { return p.ID })
}
func (r *fakeRuntime) Pods() []*sandbox.Pod { return slices.Clone(r.pods) }
func (r *fakeRuntime) PodVerbose(id string) (map[string]any, error) {
	return map[string]any{"netns": "/run/netns/" + id[:4]}, nil
}

func (r *fakeRuntime) CreateContainer(_ context.Context, pod string, cfg *workload.Container) (string, error) {
	if r.fail != nil {
		return "", r.fail
	}
	c := &sandbox.Container{
		ID: fmt.Sprintf("%04x%060d", len(r.containers)+0xc0, 0), PodID: pod, Config: *cfg,
		ImageID: "sha256:" + strings.Repeat("ab", 32), ImageRef: "example.org/a@sha256:" + strings.Repeat("cd", 32),
		CreatedAt: time.Unix(1700000001, 0), StopSignal: "SIGTERM",
	}
	r.containers = append([]*sandbox.Container{c}, r.containers...)
	return c.ID, nil
}

func (r *fakeRuntime) StartContainer(_ context.Context, id string) error {
	c, err := r.Container(id)
	if err != nil || r.fail != nil {
		return fmt.Errorf("start container: %w", cmpErr(r.fail, err))
	}
	c.StartedAt = time.Unix(1700000002, 0)
	return nil
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (r *fakeRuntime) StopContainer(_ context.Context, id string, timeout time.Duration) error {
	if r.stopped == nil {
		r.stopped = map[string]time.Duration{}
	}
	r.stopped[id] = timeout
	if c, err := r.Container(id); err == nil {
		c.FinishedAt, c.ExitCode, c.Reason = time.Unix(1700000003, 0), 137, "Error"
	}
	return r.fail
}

func (r *fakeRuntime) RemoveContainer(_ context.Context, id string) error {
	r.containers = slices.DeleteFunc(r.containers, func(c *sandbox.Container) bool { return c.ID == id })
	return r.fail
}

func (r *fakeRuntime) Container(id string) (*sandbox.Container, error) {
	return find(r.containers, id, func(c *sandbox.Container) string { return c.ID })
}
func (r *fakeRuntime) Containers() []*sandbox.Container { return slices.Clone(r.containers) }
func (r *fakeRuntime) ContainerVerbose(string) (map[string]any, error) {
	return map[string]any{"pid": 42}, nil
}

func (r *fakeRuntime) ExecSync(ctx context.Context, id string, _ []string, timeout time.Duration) (*sandbox.ExecResult, error) {
	if _, err := r.Container(id); err != nil {
		return nil, err
	}
	return r.exec(ctx, timeout)
}

func (r *fakeRuntime) ReopenLog(_ context.Context, id string) error {
	_, err := r.Container(id)
	return err
}

func (r *fakeRuntime) MeasureContainer(_ context.Context, id string) (*sandbox.ContainerStats, error) {
	c, err := r.Container(id)
	if err != nil {
		return nil, fmt.Errorf("stats of container: %w", err)
	}
	s := &sandbox.ContainerStats{Container: c, At: time.Unix(1700000010, 5), Layer: sandbox.LayerStats{Dir: "/"}}
	if c.State() == sandbox.ContainerRunning {
		s.Usage, s.NanoCores = r.usage, 250_000_000
		s.Layer = sandbox.LayerStats{Dir: "/", At: time.Unix(1700000009, 0), Bytes: 8192, Inodes: 4, Known: true}
	}
	return s, nil
}

func (r *fakeRuntime) MeasurePod(ctx context.Context, id string) (*sandbox.PodStats, error) {
	p, err := r.Pod(id)
	if err != nil {
		return nil, fmt.Errorf("stats of pod sandbox: %w", err)
	}
	s := &sandbox.PodStats{Pod: p, At: time.Unix(1700000010, 5), Usage: *r.usage, NanoCores: 5, Processes: 3,
		OwnNetwork: p.Config.Security.Namespaces.Network != workload.ModeNode}
	if s.OwnNetwork {
		s.Network = []usage.Interface{{Name: "net1", RxBytes: 5}, {Name: "eth0", RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 5, TxErrors: 7}}
	}
	for _, c := range r.containers {
		if c.PodID == p.ID && c.State() == sandbox.ContainerRunning {
			cs, _ := r.MeasureContainer(ctx, c.ID)
			cs.Processes = usage.Processes{Count: 2, Files: 9, Sockets: 3, MaxFiles: 1024, Tasks: usage.TaskStates{Sleeping: 5}}
			s.Containers = append(s.Containers, cs)
		}
	}
	return s, nil
}

func (r *fakeRuntime) MeasureContainers(ctx context.Context, all []*sandbox.Container, each func(*sandbox.ContainerStats) error) error {
	for _, c := range all {
		if s, err := r.MeasureContainer(ctx, c.ID); err != nil || s.Usage != nil {
			if err := cmpErr(err, each(s)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *fakeRuntime) MeasurePods(ctx context.Context, all []*sandbox.Pod, _ bool, each func(*sandbox.PodStats) error) error {
	for _, p := range all {
		s, err := r.MeasurePod(ctx, p.ID)
		if r.unmeasured == p.ID {
			s = &sandbox.PodStats{Pod: p, Err: errors.New("broken")}
		}
		if err := cmpErr(err, each(s)); err != nil {
			return err
		}
	}
	return nil
}

func (r *fakeRuntime) Subscribe() *sandbox.Subscription { return r.events.Subscribe() }

func (r *fakeRuntime) Exec(ctx context.Context, _ string, cmd []string, s sandbox.Streams) (int, error) {
	return r.stream(ctx, cmd, s)
}

func (r *fakeRuntime) Attach(ctx context.Context, _ string, s sandbox.Streams) error {
	_, err := r.stream(ctx, nil, s)
	return err
}

func (r *fakeRuntime) DialPod(ctx context.Context, _ string, port uint16) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

func (r *fakeRuntime) Conditions(context.Context) []sandbox.Condition {
	return []sandbox.Condition{
		{Type: "RuntimeReady", Ready: true},
		{Type: "NetworkReady", Reason: "NoNetwork", Message: "no configuration in /etc/cni/net.d"},
	}
}

// fakeImages keeps images by name.
type fakeImages struct {
	byName map[string]*Image
	creds  Credentials
	fail   error
}

func (s *fakeImages) List(context.Context) ([]*Image, error) {
	var out []*Image
	for _, img := range s.byName {
		out = append(out, img)
	}
	return out, s.fail
}
func (s *fakeImages) Get(_ context.Context, ref string) (*Image, error) { return s.byName[ref], s.fail }
func (s *fakeImages) Pull(_ context.Context, ref string, c Credentials) (string, error) {
	s.creds = c
	if s.fail != nil {
		return "", s.fail
	}
	img := &Image{ID: "sha256:" + strings.Repeat("ab", 32), RepoTags: []string{ref}, Size: 10, User: "1000:100"}
	s.byName[ref] = img
	return img.ID, nil
}
func (s *fakeImages) Remove(_ context.Context, ref string) error {
	delete(s.byName, ref)
	return s.fail
}
func (s *fakeImages) Usage(context.Context) ([]FilesystemUsage, error) {
	return []FilesystemUsage{{Mountpoint: "/var/lib/cri-shim/images", UsedBytes: 4096, Inodes: 3}}, s.fail
}
func (s *fakeImages) Verbose(ctx context.Context, ref string) (map[string]any, error) {
	if img, err := s.Get(ctx, ref); img == nil {
		return nil, err
	}
	return map[string]any{"config": map[string]string{"User": "1000"}}, nil
}

// fakeArchives holds one archive.
type fakeArchives struct{ data []byte }

func (a *fakeArchives) Import(_ context.Context, r io.Reader, _ image.ImportOptions) ([]string, error) {
	var err error
	if a.data, err = io.ReadAll(r); err != nil {
		return nil, err
	}
	if len(a.data) == 0 {
		return nil, fmt.Errorf("%w: archive: empty", sandbox.ErrInvalid)
	}
	return []string{"example.org/a:1"}, nil
}

func (a *fakeArchives) Export(_ context.Context, w io.Writer, refs []string, _ image.ExportOptions) error {
	if refs[0] != "example.org/a:1" {
		return fmt.Errorf("image %s: %w", refs[0], sandbox.ErrNotFound)
	}
	_, err := w.Write(a.data)
	return err
}

// connect serves o in memory and returns a connection to it.
func connect(t testing.TB, o Options) *grpc.ClientConn {
	t.Helper()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s, l := NewServer(o), bufconn.Listen(1<<20)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	conn, err := grpc.NewClient("passthrough:cri",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))) // as the kubelet
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (r *fakeRuntime) CheckpointContainer(_ context.Context, id, archive string, timeout time.Duration) error {
	r.checkpointed = append(r.checkpointed, fmt.Sprint(id, " ", archive, " ", timeout))
	return nil
}

func (r *fakeRuntime) CheckpointPod(_ context.Context, id, dir string, containers []string) error {
	r.checkpointed = append(r.checkpointed, fmt.Sprint(id, " ", dir, " ", containers))
	return nil
}

func (r *fakeRuntime) RestorePod(_ context.Context, dir string, cfg *workload.Pod, containers []*workload.Container) (string, []sandbox.RestoredContainer, error) {
	var out []sandbox.RestoredContainer
	for i, c := range containers {
		out = append(out, sandbox.RestoredContainer{Name: c.Metadata.Name, ID: fmt.Sprint("c", i)})
	}
	r.checkpointed = append(r.checkpointed, fmt.Sprint(dir, " ", cfg.Metadata.Name, " ", out))
	return "p1", out, nil
}
