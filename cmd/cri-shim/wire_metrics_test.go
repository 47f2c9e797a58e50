package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cri-shim/cri-shim/image"
)

// TestMetricsAreDocumented: the page lists every metric with its kind, and no other.
func TestMetricsAreDocumented(t *testing.T) {
	m := newNodeMetrics()
	m.watch(&parts{}) // what it finds out is not asked for here
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, l := range regexp.MustCompile("(?m)^\\| `(cri_shim_\\w+)` \\| (\\w+) \\| ([a-z, ]*)").FindAllStringSubmatch(string(page), -1) {
		listed = append(listed, fmt.Sprintf("%s %s %s", l[1], l[2], strings.TrimSpace(l[3])))
	}
	var all []string
	for _, d := range m.set.Describe() {
		all = append(all, fmt.Sprintf("%s %s %s", d.Name, d.Kind, strings.Join(d.Labels, ", ")))
	}
	slices.Sort(listed)
	slices.Sort(all)
	if diff := cmp.Diff(all, listed); diff != "" {
		t.Errorf("docs/metrics.md (-there +listed):\n%s", diff)
	}
}

func TestPullsAreCounted(t *testing.T) {
	m := newNodeMetrics()
	m.pulled(image.PullResult{Took: 2 * time.Second, Resolve: time.Second, Fetch: time.Second / 2})
	for _, err := range []error{
		fmt.Errorf("pull: %w", image.ErrNotFound), image.ErrDenied, syscall.ENOSPC, context.Canceled, image.ErrAbandoned, io.ErrUnexpectedEOF,
	} {
		m.pulled(image.PullResult{Err: err})
	}
	m.called("Version", "OK", false, time.Millisecond)
	m.called("GetContainerEvents", "Unavailable", true, time.Hour)
	m.network("setup", time.Now().Add(-time.Second), nil)
	m.network("setup", time.Now(), io.EOF)
	(*nodeMetrics)(nil).network("gc", time.Now(), nil)
	var b strings.Builder
	if err := m.set.Write(&b); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`cri_shim_image_pulls_total{result="ok"} 1`, `cri_shim_image_pulls_total{result="not_found"} 1`,
		`cri_shim_image_pulls_total{result="denied"} 1`, `cri_shim_image_pulls_total{result="disk_full"} 1`,
		`cri_shim_image_pulls_total{result="canceled"} 2`, `cri_shim_image_pulls_total{result="error"} 1`,
		`cri_shim_image_pull_phase_seconds_total{phase="resolve"} 1`, `cri_shim_image_pull_phase_seconds_total{phase="fetch"} 0.5`,
		`cri_shim_image_pull_duration_seconds_count 1`,
		`cri_shim_calls_total{op="GetContainerEvents",code="Unavailable"} 1`, `cri_shim_call_duration_seconds_count{op="Version"} 1`,
		`cri_shim_cni_operations_total{op="setup",result="error"} 1`, `cri_shim_cni_operation_duration_seconds_count{op="setup"} 2`,
	} {
		if !strings.Contains(b.String(), "\n"+line+"\n") {
			t.Errorf("no line %q in\n%s", line, &b)
		}
	}
	if strings.Contains(b.String(), `duration_seconds_count{op="GetContainerEvents"}`) {
		t.Error("a stream's length counts as a call's")
	}
}

// TestServeMetrics: over a unix socket and over loopback; nothing else is served, and after the end nothing is left.
func TestServeMetrics(t *testing.T) {
	m := newNodeMetrics()
	log := slog.New(slog.DiscardHandler)
	socket := filepath.Join(t.TempDir(), "m.sock")
	for _, at := range []string{socket, "127.0.0.1:0"} {
		stop, err := serveMetrics(t.Context(), at, &m.set, log)
		if err != nil {
			t.Fatal(err)
		}
		if at == socket {
			client := &http.Client{Transport: &http.Transport{
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, "unix", socket)
				},
				DisableKeepAlives: true,
			}}
			for path, want := range map[string]int{"/metrics": 200, "/": 404, "/debug/pprof/": 404} {
				r, err := client.Get("http://localhost" + path)
				if err != nil {
					t.Fatal(err)
				}
				text, err := io.ReadAll(r.Body)
				if r.Body.Close(); err != nil || r.StatusCode != want || want == 200 && !strings.Contains(string(text), "cri_shim_build_info{") {
					t.Errorf("GET %s = %d, %v, %d bytes; want %d", path, r.StatusCode, err, len(text), want)
				}
			}
			if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o660 {
				t.Errorf("the socket has mode %v, %v; want 0660", st.Mode(), err)
			}
		}
		stop()
	}
	if _, err := os.Lstat(socket); err == nil {
		t.Error("the socket is there after the end")
	}
	if stop, err := serveMetrics(t.Context(), "", &m.set, log); err != nil {
		t.Error(err)
	} else {
		stop()
	}
	if _, err := serveMetrics(t.Context(), filepath.Dir(socket), &m.set, log); err == nil {
		t.Error("serveMetrics on a folder = nil; want an error")
	}
}
