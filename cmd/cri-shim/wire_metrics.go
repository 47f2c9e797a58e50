package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/metrics"
	"strings"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/image"
	metric "github.com/cri-shim/cri-shim/internal/metrics"
	"github.com/cri-shim/cri-shim/internal/version"
	"github.com/cri-shim/cri-shim/sandbox"
)

// nodeMetrics is what the daemon counts. docs/metrics.md lists it; a test holds both together.
type nodeMetrics struct {
	set       metric.Set
	calls     *metric.Counts
	callTime  *metric.Histogram
	pulls     *metric.Counts
	pullTime  *metric.Histogram
	pullPhase *metric.Counts
	cni       *metric.Counts
	cniTime   *metric.Histogram
}

var (
	callBounds = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 120}
	pullBounds = []float64{0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800}
	cniBounds  = []float64{0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60}
)

func newNodeMetrics() *nodeMetrics {
	m := &nodeMetrics{}
	s, started := &m.set, float64(time.Now().UnixMilli())/1000
	s.Func("cri_shim_build_info", metric.Gauge, "The build, as labels; always 1.", []string{"version", "commit", "goversion"}, func() []metric.Sample {
		return []metric.Sample{{Labels: []string{version.Version(), version.Commit(), runtime.Version()}, Value: 1}}
	})
	s.Value("cri_shim_start_time_seconds", metric.Gauge, "When the daemon started, in seconds since 1970.", func() float64 { return started })
	m.calls = s.Counts("cri_shim_calls_total", "Calls that have ended, by name and gRPC code.", "op", "code")
	m.callTime = s.Histogram("cri_shim_call_duration_seconds", "How long calls took, but for streams.", callBounds, "op")
	m.pulls = s.Counts("cri_shim_image_pulls_total", "Pulls from registries that have ended, by result.", "result")
	m.pullTime = s.Histogram("cri_shim_image_pull_duration_seconds", "How long pulls took that ended well.", pullBounds)
	m.pullPhase = s.Counts("cri_shim_image_pull_phase_seconds_total", "Where the time of pulls went, failed ones included.", "phase")
	m.cni = s.Counts("cri_shim_cni_operations_total", "Operations of the pod network, by name and result.", "op", "result")
	m.cniTime = s.Histogram("cri_shim_cni_operation_duration_seconds", "How long operations of the pod network took.", cniBounds, "op")
	return m
}

// called is cri.Observer.
func (m *nodeMetrics) called(op, code string, stream bool, took time.Duration) {
	m.calls.Add(1, op, code)
	if !stream {
		m.callTime.Observe(took.Seconds(), op)
	}
}

// pulled is image.Config.Pulled.
func (m *nodeMetrics) pulled(r image.PullResult) {
	m.pulls.Add(1, pullResult(r.Err))
	if r.Err == nil {
		m.pullTime.Observe(r.Took.Seconds())
	}
	for phase, took := range map[string]time.Duration{"resolve": r.Resolve, "fetch": r.Fetch, "unpack": r.Unpack, "commit": r.Commit} {
		m.pullPhase.Add(took.Seconds(), phase)
	}
}

// pullResult is a word for how a pull ended.
func pullResult(err error) string {
	if err == nil {
		return "ok"
	}
	for _, k := range []struct {
		is   error
		word string
	}{
		{image.ErrDenied, "denied"}, {image.ErrUnauthorized, "unauthorized"}, {image.ErrNotFound, "not_found"},
		{image.ErrPlatform, "no_platform"}, {image.ErrTooLarge, "too_large"}, {image.ErrStalled, "stalled"},
		{image.ErrDigest, "wrong_digest"}, {image.ErrInvalid, "invalid"}, {syscall.ENOSPC, "disk_full"},
		{image.ErrUnavailable, "unavailable"}, {image.ErrAbandoned, "canceled"}, {image.ErrClosed, "canceled"}, {context.Canceled, "canceled"}, {context.DeadlineExceeded, "canceled"},
	} {
		if errors.Is(err, k.is) {
			return k.word
		}
	}
	return "error"
}

func (m *nodeMetrics) network(op string, start time.Time, err error) {
	if m == nil {
		return
	}
	result := "ok"
	if err != nil {
		result = "error"
	}
	m.cni.Add(1, op, result)
	m.cniTime.Observe(time.Since(start).Seconds(), op)
}

// watch adds what is found out when it is asked for.
func (m *nodeMetrics) watch(p *parts) {
	s := &m.set
	s.Value("cri_shim_image_pulls_in_progress", metric.Gauge, "Pulls that go on.", func() float64 {
		all, err := p.store.Pulls(context.Background(), "")
		if err != nil {
			return 0
		}
		return float64(len(all))
	})
	s.Value("cri_shim_image_pull_bytes_total", metric.Counter, "Bytes of layers that have come from registries.", func() float64 {
		return float64(p.store.Fetched())
	})
	s.Value("cri_shim_images", metric.Gauge, "Images.", func() float64 { return float64(len(p.store.List())) })
	store := func() image.FSInfo {
		i, _ := p.store.FSInfo(context.Background()) // it fails with its context only
		return i
	}
	s.Value("cri_shim_image_store_bytes", metric.Gauge, "What images take on the disk.", func() float64 { return float64(store().Bytes) })
	s.Value("cri_shim_image_store_inodes", metric.Gauge, "Files, directories and links of images.", func() float64 { return float64(store().Inodes) })
	count := func(all map[string]int, known ...string) []metric.Sample {
		var out []metric.Sample
		for _, state := range known {
			out = append(out, metric.Sample{Labels: []string{state}, Value: float64(all[state])})
		}
		return out
	}
	s.Func("cri_shim_pods", metric.Gauge, "Pod sandboxes by state.", []string{"state"}, func() []metric.Sample {
		all := map[string]int{}
		for _, pod := range p.manager.Pods() {
			all[string(pod.State())]++
		}
		return count(all, string(sandbox.PodReady), string(sandbox.PodNotReady))
	})
	s.Func("cri_shim_containers", metric.Gauge, "Containers by state.", []string{"state"}, func() []metric.Sample {
		all := map[string]int{}
		for _, c := range p.manager.Containers() {
			all[string(c.State())]++
		}
		return count(all, string(sandbox.ContainerCreated), string(sandbox.ContainerRunning), string(sandbox.ContainerExited))
	})
	s.Func("cri_shim_supervisors", metric.Gauge, "Supervisor processes by state.", []string{"state"}, func() []metric.Sample {
		all := map[string]int{}
		for _, v := range p.manager.Supervisors() {
			all[v.State]++
		}
		return count(all, sandbox.SupervisorConnected, sandbox.SupervisorUnreachable, sandbox.SupervisorGone)
	})
	s.Value("cri_shim_event_clients", metric.Gauge, "Clients of GetContainerEvents.", func() float64 { n, _, _ := p.manager.EventCounts(); return float64(n) })
	s.Value("cri_shim_events_sent_total", metric.Counter, "Events queued for a client.", func() float64 { _, n, _ := p.manager.EventCounts(); return float64(n) })
	s.Value("cri_shim_events_dropped_total", metric.Counter, "Events that a client was too slow for.", func() float64 { _, _, n := p.manager.EventCounts(); return float64(n) })
	s.Value("cri_shim_go_goroutines", metric.Gauge, "Goroutines of the daemon.", func() float64 { return float64(runtime.NumGoroutine()) })
	s.Value("cri_shim_go_memory_bytes", metric.Gauge, "Memory that the Go runtime has from the kernel, less what it gave back.", func() float64 {
		read := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
		metrics.Read(read)
		return float64(read[0].Value.Uint64() - read[1].Value.Uint64())
	})
}

// serveMetrics serves them over HTTP until ctx ends; nothing where nobody configured it.
func serveMetrics(ctx context.Context, at string, set *metric.Set, log *slog.Logger) (stop func(), err error) {
	if at == "" {
		return func() {}, nil
	}
	var l net.Listener
	if strings.HasPrefix(at, "/") {
		l, err = listen(at)
	} else if _, err = netip.ParseAddrPort(at); err == nil {
		l, err = net.Listen("tcp", at)
	}
	if err != nil {
		return nil, fmt.Errorf("metrics_listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		if err := set.Write(w); err != nil {
			log.Debug("write metrics", "err", err)
		}
	})
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), BaseContext: func(net.Listener) context.Context { return ctx },
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("serve metrics", "err", err)
		}
	}()
	log.Info("serving metrics", "listen", l.Addr().String())
	return func() {
		server.Close()
		<-done
	}, nil
}
