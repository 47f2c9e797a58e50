package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/hack/registry"
)

// putAside makes a store put everything aside, as if the network was slow.
func putAside(s *Store) *Store {
	s.partialMinSize, s.partialWorth = 1, 0
	return s
}

// interrupt pulls until 600 KiB of the layer have come and ends the daemon then, or the client's patience.
func interrupt(t *testing.T, r *registry.Server, root, ref string, layer digest.Digest, end func(s *Store, cancel func())) {
	t.Helper()
	r.SetFault(func(req *http.Request) *registry.Fault {
		if strings.Contains(req.URL.Path, layer.String()) {
			return &registry.Fault{StallAfter: 600 << 10}
		}
		return nil
	})
	defer r.SetFault(nil)
	s := putAside(openStore(t, root))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(ctx, ref, nil, PullOptions{})
		done <- err
	}()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if fi, err := os.Stat(s.partialPath(layer)); err == nil && fi.Size() >= 600<<10 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing was put aside")
		}
	}
	end(s, cancel)
	if err := <-done; err == nil {
		t.Fatal("the pull came to its end")
	}
	if err := s.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

func closeStore(t *testing.T) func(*Store, func()) {
	return func(s *Store, _ func()) {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

// rangesOf are the ranges that were asked for of a blob, "" for the whole.
func rangesOf(r *registry.Server, layer digest.Digest) []string {
	var all []string
	for _, q := range r.Requests() {
		if q.Method == http.MethodGet && strings.Contains(q.Path, layer.String()) {
			all = append(all, q.Range)
		}
	}
	return all
}

// TestResumeAfterRestart: a download that the daemon did not live to see goes on where it was, whatever has become of
// what was put aside.
func TestResumeAfterRestart(t *testing.T) {
	needRoot(t)
	for name, tc := range map[string]struct {
		damage func(path string) error
		ranges []string
	}{
		"as it was":   {nil, []string{"", "bytes=614400-"}},
		"cut":         {func(p string) error { return os.Truncate(p, 1000) }, []string{"", "bytes=1000-"}},
		"empty":       {func(p string) error { return os.Truncate(p, 0) }, []string{"", ""}},
		"lost blocks": {func(p string) error { return zero(p, 4096, 8192) }, []string{"", "bytes=614400-", ""}},
		"gone":        {os.Remove, []string{"", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, registry.Options{})
			p := add(t, r, "app", "v1", simple(incompressible(2<<20, 3)))
			root, ref := t.TempDir(), r.Host()+"/app:v1"
			interrupt(t, r, root, ref, p.Layers[0].Digest, closeStore(t))
			s := putAside(openStore(t, root))
			if tc.damage != nil {
				if err := tc.damage(s.partialPath(p.Layers[0].Digest)); err != nil {
					t.Fatal(err)
				}
			}
			mustPull(t, s, ref)
			if got := rangesOf(r, p.Layers[0].Digest); fmt.Sprint(got) != fmt.Sprint(tc.ranges) {
				t.Errorf("ranges = %q; want %q", got, tc.ranges)
			}
			if left := names(t, s.path("partial", "sha256")); len(left) != 0 {
				t.Errorf("left in partial: %v", left)
			}
		})
	}
}

func zero(path string, off, n int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, n), off)
	return errors.Join(err, f.Close())
}

// TestResumeCancelled: a pull that its client has given up leaves only what was verified; one that failed for want
// of a registry leaves its part to the collection.
func TestResumeCancelled(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", simple(incompressible(2<<20, 3)))
	root, ref := t.TempDir(), r.Host()+"/app:v1"
	interrupt(t, r, root, ref, p.Layers[0].Digest, func(s *Store, cancel func()) {
		cancel()
		s.pulls.wait()
		if left := names(t, s.path("partial", "sha256")); len(left) != 0 {
			t.Errorf("left in partial: %v", left)
		}
	})
	interrupt(t, r, root, ref, p.Layers[0].Digest, closeStore(t))
	s := openStore(t, root)
	for _, tc := range []struct {
		age  time.Duration
		want int
	}{{time.Hour, 1}, {-time.Second, 0}} {
		if err := s.Collect(t.Context(), tc.age); err != nil {
			t.Error(err)
		}
		if left := names(t, s.path("partial", "sha256")); len(left) != tc.want {
			t.Errorf("after Collect(%v) in partial: %v; want %d", tc.age, left, tc.want)
		}
	}
}

// TestResumeNotWorth: what comes fast is not put aside.
func TestResumeNotWorth(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	add(t, r, "app", "v1", simple(incompressible(2<<20, 3)))
	s := openStore(t, t.TempDir())
	s.partialMinSize, s.partialWorth = 1, time.Hour
	mustPull(t, s, r.Host()+"/app:v1")
	if left := names(t, s.path("partial", "sha256")); len(left) != 0 {
		t.Errorf("left in partial: %v", left)
	}
}

// TestNoRanges: a registry that says 416, or ignores ranges, costs time only.
func TestNoRanges(t *testing.T) {
	needRoot(t)
	for _, name := range []string{"416", "ignored"} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t, registry.Options{})
			p := add(t, r, "app", "v1", simple(incompressible(1<<20, 3)))
			var n atomic.Int32
			r.SetFault(func(req *http.Request) *registry.Fault {
				if !strings.Contains(req.URL.Path, p.Layers[0].Digest.String()) {
					return nil
				}
				if req.Header.Get("Range") != "" {
					if name == "416" {
						return &registry.Fault{Status: http.StatusRequestedRangeNotSatisfiable}
					}
					req.Header.Del("Range")
				}
				if n.Add(1) == 1 {
					return &registry.Fault{CutAfter: 300 << 10}
				}
				return nil
			})
			mustPull(t, openStore(t, t.TempDir()), r.Host()+"/app:v1")
			if n.Load() < 2 {
				t.Error("nothing was interrupted")
			}
		})
	}
}

// TestKeepBlobs: with the blob kept, a layer that is lost is made again without the registry.
func TestKeepBlobs(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	p := add(t, r, "app", "v1", simple(incompressible(200<<10, 3)))
	root, ref := t.TempDir(), r.Host()+"/app:v1"
	keep := func(c *Config) { c.KeepBlobs = true }
	s := openStore(t, root, keep)
	mustPull(t, s, ref)
	blob := s.blobPath(p.Layers[0].Digest)
	if b, err := os.ReadFile(blob); err != nil || digest.FromBytes(b) != p.Layers[0].Digest {
		t.Fatalf("the kept blob: %v, digest %s; want %s", err, digest.FromBytes(b), p.Layers[0].Digest)
	}
	lose := func() {
		t.Helper()
		if err := errors.Join(s.Close(), os.RemoveAll(s.layerDir(p.DiffIDs[0]))); err != nil {
			t.Fatal(err)
		}
		s = openStore(t, root, keep)
		mustPull(t, s, ref)
	}
	lose()
	if got := rangesOf(r, p.Layers[0].Digest); len(got) != 1 {
		t.Errorf("the registry was asked for the blob %d times; want once", len(got))
	}
	if err := zero(blob, 1000, 100); err != nil { // the kept one is damaged too
		t.Fatal(err)
	}
	lose()
	if b, err := os.ReadFile(blob); err != nil || digest.FromBytes(b) != p.Layers[0].Digest {
		t.Errorf("the kept blob: %v, digest %s; want %s", err, digest.FromBytes(b), p.Layers[0].Digest)
	}
	if err := errors.Join(s.Collect(t.Context(), -time.Second), s.Remove(t.Context(), ref)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(blob); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the blob stays when its image goes: %v", err)
	}
}

func TestGate(t *testing.T) {
	g := &gate{max: 1, enough: 1}
	if err := g.enter(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	order := make(chan int64, 8)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	for i, size := range []int64{50 << 20, 900, 60 << 20, 10, 900 << 20} {
		go func() {
			c := t.Context()
			if size == 10 {
				c = ctx
			}
			if err := g.enter(c, size); err != nil {
				if !errors.Is(err, gone) {
					t.Errorf("enter = %v; want the cause", err)
				}
				order <- -size
				return
			}
			order <- size
			g.leave()
		}()
		for waiting := 0; waiting != i+1; time.Sleep(time.Millisecond) {
			g.mu.Lock()
			waiting = len(g.queue)
			g.mu.Unlock()
		}
	}
	cancel(gone)
	if got := <-order; got != -10 {
		t.Errorf("first = %d; want the one that was cancelled", got)
	}
	g.leave()
	for _, want := range []int64{900, 50 << 20, 60 << 20, 900 << 20} {
		if got := <-order; got != want {
			t.Errorf("next = %d; want %d", got, want)
		}
	}
	if err := g.enter(ctx, 1); !errors.Is(err, gone) {
		t.Errorf("enter with an ended context = %v; want its cause", err)
	}
}

// TestGateProcessors: more than enough are only let in while processors are not busy, and as many as there are places.
func TestGateProcessors(t *testing.T) {
	var spare atomic.Bool
	g := &gate{max: 3, enough: 1, spare: spare.Load}
	entered := make(chan struct{}, 5)
	for range 5 {
		go func() {
			if err := g.enter(t.Context(), 1); err == nil {
				entered <- struct{}{}
			}
		}()
	}
	inside := func(want int) {
		t.Helper()
		for range want {
			select {
			case <-entered:
			case <-time.After(10 * time.Second):
				t.Fatalf("%d are inside; want %d more", g.inside(), want)
			}
		}
		select {
		case <-entered:
			t.Fatalf("%d are inside; want one less", g.inside())
		case <-time.After(5 * gateWatch):
		}
	}
	inside(1)
	spare.Store(true)
	inside(2)
	spare.Store(false)
	for range 5 {
		g.leave()
	}
	inside(2)
	if n := g.inside(); n != 0 {
		t.Errorf("in the end %d are inside; want none, and 3 places free", n)
	}
}

// TestSparer: a process that waits leaves processors, one that counts does not.
func TestSparer(t *testing.T) {
	spare := sparer()
	spare()
	time.Sleep(50 * time.Millisecond)
	if !spare() {
		t.Error("nothing was done, and no processor is spare")
	}
	var done atomic.Bool
	var work sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		work.Go(func() {
			for n := 0; !done.Load(); n++ {
			}
		})
	}
	defer work.Wait()
	defer done.Store(true)
	for end := time.Now().Add(10 * time.Second); spare(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Skip("other processes have the processors")
		}
	}
}

// script writes a program that everybody may run.
func script(t *testing.T, text string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "program-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "unzip")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestGzipProgram: whatever the program does, the layer is what its digest says, or the pull fails.
func TestGzipProgram(t *testing.T) {
	needRoot(t)
	r := newRegistry(t, registry.Options{})
	l := registry.Files(map[string]string{"f": incompressible(3<<20, 5)})
	add(t, r, "app", "v1", registry.Image{Layers: []registry.Layer{l}})
	addMembers(t, r, "members", l)
	for name, program := range map[string]string{
		"igzip":     "auto",
		"built-in":  "none",
		"fails":     script(t, "exit 3"),
		"is silent": script(t, "exec cat >/dev/null"),
		"lies":      script(t, "echo something else; exec cat >/dev/null"),
		"stops":     script(t, "gzip -dc | head -c 100000"),
		"root":      script(t, "test $(id -u) != 0 && exec gzip -dc"),
		"does":      script(t, "exec gzip -dc"),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir(), func(c *Config) { c.GzipProgram = program })
			if name == "igzip" && s.gzip == "" {
				t.Skip("igzip is not installed")
			}
			mustPull(t, s, r.Host()+"/app:v1")
			mustPull(t, s, r.Host()+"/members:v1")
			if left := names(t, s.path("ingest")); len(left) != 0 {
				t.Errorf("left in ingest: %v", left)
			}
		})
	}
	t.Run("hangs", func(t *testing.T) {
		s := openStore(t, t.TempDir(), func(c *Config) { c.GzipProgram = script(t, "exec sleep 1000") })
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if _, err := s.Pull(ctx, r.Host()+"/app:v1", nil, PullOptions{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Pull() = %v; want DeadlineExceeded", err)
		}
		s.pulls.wait()
		isClean(t, s)
	})
	if _, err := Open(t.Context(), Config{Root: t.TempDir(), GzipProgram: "/no/such/program"}); err == nil {
		t.Error("Open with a program that is not there = nil; want an error")
	}
}

// addMembers stores an image whose layer is several gzip members, as parallel compressors write them.
func addMembers(t *testing.T, r *registry.Server, repo string, l registry.Layer) {
	t.Helper()
	// Another diff ID than the plain one has, so that the layer is not there yet.
	stream := append(bytes.Clone(l.Tar), make([]byte, 10240)...)
	var b bytes.Buffer
	for rest := stream; len(rest) > 0; {
		n := min(len(rest), 700_000)
		w := gzip.NewWriter(&b)
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	d, err := r.AddBlob(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	d.MediaType = ocispec.MediaTypeImageLayerGzip
	addRaw(t, r, repo, digest.FromBytes(stream), d)
}

// addRaw stores an image of one layer as it is described.
func addRaw(t *testing.T, r *registry.Server, repo string, diffID digest.Digest, l ocispec.Descriptor) {
	t.Helper()
	cfg := ocispec.Image{Platform: *platform(t)}
	cfg.RootFS.DiffIDs = []digest.Digest{diffID}
	c, err := r.AddBlob(mustJSON(t, cfg))
	if err != nil {
		t.Fatal(err)
	}
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: c, Layers: []ocispec.Descriptor{l}}
	m.SchemaVersion = 2
	if _, err := r.AddManifest(repo, "v1", mustJSON(t, m)); err != nil {
		t.Fatal(err)
	}
}

func platform(t *testing.T) *ocispec.Platform {
	t.Helper()
	c, err := Config{Root: "/"}.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return c.Platform
}
