package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"google.golang.org/grpc"
)

// TestMain: with FAKE_DAEMON the test is a daemon that listens there and serves nothing.
func TestMain(m *testing.M) {
	if path := os.Getenv("FAKE_DAEMON"); path != "" {
		l, err := net.Listen("unix", path)
		if err != nil {
			panic(err)
		}
		_ = grpc.NewServer().Serve(l) // until it is killed
		return
	}
	os.Exit(m.Run())
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-rounds", "5", "-cases", "zstd,shared", "-programs", "store"})
	if err != nil || o.rounds != 5 || len(o.cases) != 2 || o.programs[0] != "store" || !o.cold || !o.fresh {
		t.Errorf("parse = %+v, %v", o, err)
	}
	for _, args := range [][]string{{"x"}, {"-rounds", "0"}, {"-size", "0"}, {"-limit", "0s"}, {"-budget", "-1s"}, {"-cases", "gzip,lz4"}, {"-programs", "docker"}} {
		if _, err := parse(args); err == nil {
			t.Errorf("parse(%q): no error", args)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, tc := range []struct {
		of   []float64
		want float64
	}{{[]float64{7}, 7}, {[]float64{3, 1, 2}, 2}, {[]float64{4, 1, 2, 3}, 2.5}} {
		if got := median(tc.of); got != tc.want {
			t.Errorf("median(%v) = %v; want %v", tc.of, got, tc.want)
		}
	}
}

// TestReport: ratios are to the first program in the same round, and what was not measured is seen to be missing.
func TestReport(t *testing.T) {
	var b strings.Builder
	sec := func(n int) result {
		return result{wall: time.Duration(n) * time.Second, synced: time.Minute, cpu: time.Second, written: 1e6, disk: int64(n) * 1e6}
	}
	report(&b, []benchCase{{name: "gzip"}}, []peer{{name: "a"}, {name: "b"}, {name: "c"}, {name: "d"}},
		map[string][]result{"gzip/a": {sec(2), sec(4), sec(1)}, "gzip/b": {sec(5)}, "gzip/d": {sec(6), sec(4), sec(4)}})
	fields := map[string]string{}
	for line := range strings.Lines(b.String()) {
		if f := strings.Fields(line); len(f) > 1 {
			fields[f[0]] = strings.Join(f[1:], " ")
		}
	}
	for name, want := range map[string]string{
		"a": "3 2.00 1.00 60.00 1.00 1.00 1.00 1 1.00 2 1.00",
		"b": "1 5.00 2.50 60.00 1.00 1.00 1.00 1 1.00 5 2.50",
		"c": "0 - - - - - - - - - -",
		"d": "3 4.00 3.00 60.00 1.00 1.00 1.00 1 1.00 4 3.00",
	} {
		if fields[name] != want {
			t.Errorf("report of %s = %q; want %q in\n%s", name, fields[name], want, b.String())
		}
	}
}

// TestContainerdConfig: it is TOML that keeps the transfer service, with parallel unpacks, and takes away what keeps it
// from being loaded.
func TestContainerdConfig(t *testing.T) {
	var c struct {
		Root, State string
		Disabled    []string `toml:"disabled_plugins"`
		GRPC        struct{ Address string }
		Plugins     struct {
			Transfer struct {
				Downloads int                 `toml:"max_concurrent_downloads"`
				Unpacks   int                 `toml:"max_concurrent_unpacks"`
				Unpack    []map[string]string `toml:"unpack_config"`
			} `toml:"io.containerd.transfer.v1.local"`
		}
	}
	if err := toml.Unmarshal([]byte(containerdConfig(`/a "b"`)), &c); err != nil {
		t.Fatal(err)
	}
	tr := c.Plugins.Transfer
	if c.Root != `/a "b"/root` || c.GRPC.Address != `/a "b"/run/sock` || tr.Downloads != 3 || tr.Unpacks < 2 || len(tr.Unpack) != 1 || tr.Unpack[0]["differ"] != "walking" {
		t.Errorf("configuration: %+v", c)
	}
	off := strings.Join(c.Disabled, " ")
	if !strings.Contains(off, "io.containerd.differ.v1.erofs") || strings.Contains(off, "transfer") || strings.Contains(off, "overlayfs") {
		t.Errorf("disabled: %s", off)
	}
}

// TestStartDaemon: what is wrong with a daemon is told, with its log, and at once.
func TestStartDaemon(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), daemonStart)
	defer cancel()
	_, err := startDaemon(ctx, "d", []string{"sh", "-c", "echo level=error the reason; for i in $(seq 40); do echo line $i; done; exit 3"}, dir)
	for _, want := range []string{"exit status 3", "the reason", "line 40"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("startDaemon = %v; want %q in it", err, want)
		}
	}
	if err != nil && strings.Contains(err.Error(), "line 9\n") {
		t.Errorf("startDaemon = %v; want the end of the log only", err)
	}
	t.Setenv("FAKE_DAEMON", filepath.Join(dir, "run", "sock"))
	if _, err = startDaemon(ctx, "d", []string{"/proc/self/exe"}, dir); err == nil || !strings.Contains(err.Error(), "no CRI image service") {
		t.Errorf("startDaemon without the service = %v", err)
	}
	if ctx.Err() != nil {
		t.Error("that took too long")
	}
}
