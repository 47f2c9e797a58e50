package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tree writes files below a new folder and returns the path of config.toml in it.
func tree(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "config.toml")
}

func TestDefaultIsValid(t *testing.T) {
	if p := Validate(Default()); len(p) > 0 {
		t.Errorf("Validate(Default()) = %v; want nothing", p)
	}
}

func TestEveryKeyIsDocumented(t *testing.T) {
	fields := reflect.TypeFor[Config]()
	for i := range fields.NumField() {
		f := fields.Field(i)
		if key := f.Tag.Get("toml"); key == "" || key != strings.ToLower(key) {
			t.Errorf("%s: toml tag %q; want a lower-case key", f.Name, key)
		}
		if doc := f.Tag.Get("doc"); !strings.HasSuffix(doc, ".") {
			t.Errorf("%s: doc tag %q; want sentences", f.Name, doc)
		}
	}
}

func TestRenderLoadsBack(t *testing.T) {
	changed := Default()
	changed.Root = `/data/with "quotes" and \`
	changed.LogLevel = "debug"
	changed.PodsPerSupervisor = 1
	changed.RegistryConfigDirs = nil
	changed.DefaultUlimits = []Ulimit{{"core", 0, Unlimited}, {"nofile", 5, 5}}
	changed.KillTimeout = Duration{90*time.Second + 500*time.Millisecond}
	changed.LogLineMax = 16385
	changed.PinnedImages = []string{"example.org/base*"}
	changed.Runtimes = map[string]Runtime{
		"runc": {Path: "/usr/sbin/runc", Options: []string{"--debug"}, Timeout: Seconds(30)},
		"crun": {Path: "/usr/bin/crun", Timeout: Duration{DefaultRuntimeTimeout}},
	}
	for name, want := range map[string]Config{"default": Default(), "changed": changed} {
		text := Render(want)
		got, err := Load(tree(t, map[string]string{"config.toml": string(text)}))
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
		// Nil and empty lists mean the same.
		if diff := cmp.Diff(want, *got, cmp.Transformer("empty", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
			t.Errorf("%s: loaded back (-want +got):\n%s", name, diff)
		}
		for _, key := range keys {
			if lineOf(text, key) == 0 && (key != "runtimes" || !strings.Contains(string(text), "# [runtimes.")) {
				t.Errorf("%s: Render has no line for %s", name, key)
			}
		}
		for line := range strings.Lines(string(text)) {
			if len(line) > 101 && strings.HasPrefix(line, "#") {
				t.Errorf("%s: comment of %d bytes: %s", name, len(line), line)
			}
		}
	}
}

func TestLoadMerges(t *testing.T) {
	path := tree(t, map[string]string{
		"config.toml":         "log_level = 'debug'\ncni_bin_dirs = ['/a', '/b', '/c']\nenable_unprivileged_icmp = false\n",
		"conf.d/20.toml":      "log_level = 'warn'\n",
		"conf.d/10.toml":      "log_level = 'error'\ncni_bin_dirs = ['/d']\n",
		"conf.d/30.toml.orig": "not toml at all",
	})
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.LogLevel, want.CNIBinDirs, want.EnableUnprivilegedICMP = "warn", []string{"/d"}, false
	if diff := cmp.Diff(want, *got); diff != "" {
		t.Errorf("Load (-want +got):\n%s", diff)
	}
	// A file that replaced a list must not have written into the defaults.
	if diff := cmp.Diff([]string{"/opt/cni/bin", "/usr/lib/cni"}, Default().CNIBinDirs); diff != "" {
		t.Errorf("Default().CNIBinDirs (-want +got):\n%s", diff)
	}
}

func TestLoadAbsent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	_, err := Load(path)
	var problems Problems
	if !errors.As(err, &problems) || !strings.HasPrefix(err.Error(), path+": open: no such file") {
		t.Errorf("Load(%s) = %v; want an error that names the file", path, err)
	}
	if _, err := os.Stat(filepath.Dir(DefaultPath)); err == nil {
		t.Skipf("this machine has %s", filepath.Dir(DefaultPath))
	}
	got, err := Load("")
	if err != nil {
		t.Fatalf("Load(\"\") = %v; want the defaults", err)
	}
	if diff := cmp.Diff(Default(), *got); diff != "" {
		t.Errorf("Load(\"\") (-want +got):\n%s", diff)
	}
}

func TestLoadProblems(t *testing.T) {
	tests := []struct{ name, file, want string }{
		{"misspelt", "\nlog_levle = 'info'", "DIR/config.toml:2: log_levle: unknown key; did you mean log_level?"},
		{"far from any", "colour = 'red'", "DIR/config.toml:1: colour: unknown key"},
		{"table", "[cni]\nbin = 1", "DIR/config.toml:1: cni: unknown key"},
		{"two", "roots = '/x'\nlistens = true", "DIR/config.toml:1: roots: unknown key; did you mean root?\nDIR/config.toml:2: listens: unknown key; did you mean listen?"},
		{"syntax", "root = ", "DIR/config.toml:1:"},
		{"type", "# one\npods_per_supervisor = 'many'", "DIR/config.toml:2: pods_per_supervisor: "},
		{"duration", "cni_timeout = 'soon'", `DIR/config.toml:1: cni_timeout: "soon" is no duration such as "90s" or "5m"`},
		{"duration as a number", "cni_timeout = 5", "DIR/config.toml:1: cni_timeout: "},
		{"size", "log_line_max = '16kb'", `DIR/config.toml:1: log_line_max: "16kb" is no size such as "16384", "512KiB", "16MiB" or "1GiB"`},
		{"huge size", "log_line_max = '99999999999GiB'", `DIR/config.toml:1: log_line_max: "99999999999GiB" is no size`},
		{"ulimit", "default_ulimits = ['files=1']", `DIR/config.toml:1: default_ulimits: "files": unknown limit; want one of as, `},
		{"ulimit order", "default_ulimits = ['nofile=2:1']", `DIR/config.toml:1: default_ulimits: "nofile=2:1": the soft limit is above the hard limit`},
		{"ulimit twice", "default_ulimits = ['nofile=1', 'nofile=2']", `DIR/config.toml:1: default_ulimits: "nofile" is there twice`},
		{"relative", "root = 'var'", `DIR/config.toml:1: root: "var" is not an absolute path`},
		{"unclean", "root = '/var/../x'", `DIR/config.toml:1: root: "/var/../x" is not in its shortest form, "/x"`},
		{"range", "pods_per_supervisor = 0", "DIR/config.toml:1: pods_per_supervisor: 0 is not between 1 and 1024"},
		{"too few inodes", "writable_layer_inodes = 10", "DIR/config.toml:1: writable_layer_inodes: 10 is not between 64 and 4294967296"},
		{"short interval", "reconcile_interval = '1ms'", "DIR/config.toml:1: reconcile_interval: 1ms is not between 1s and 24h0m0s"},
		{"enum", "log_format = 'xml'", `DIR/config.toml:1: log_format: "xml" is not known; want text or json`},
		{"layer format", "layer_format = 'squashfs'", `DIR/config.toml:1: layer_format: "squashfs" is not known; want auto or directory or erofs`},
		{"layer compression", "layer_compression = 'zstd'", `DIR/config.toml:1: layer_compression: "zstd" is not known; want auto or lz4 or none`},
		{"layers of copies", "snapshotter = 'native'\nlayer_format = 'erofs'", `DIR/config.toml:2: layer_format: erofs does not go with snapshotter = "native": copies are made of directories`},
		{"driver", "cgroup_driver = 'other'", `DIR/config.toml:1: cgroup_driver: "other" is not known; want cgroupfs or systemd`},
		{"socket", "listen = '/" + strings.Repeat("x", 107) + "'", "DIR/config.toml:1: listen: is 108 bytes long; a socket's path has at most 107"},
		{"state in root", "state = '/var/lib/cri-shim/run'", "DIR/config.toml:1: state: \"/var/lib/cri-shim/run\" and root \"/var/lib/cri-shim\" lie in one another"},
		{"stream", "stream_listen = '10.0.0.1:0'", `DIR/config.toml:1: stream_listen: "10.0.0.1" is not loopback: `},
		{"stream port", "stream_listen = '127.0.0.1'", `DIR/config.toml:1: stream_listen: "127.0.0.1" is not host:port`},
		{"stream key", "stream_tls_key = '/k'", `DIR/config.toml:1: stream_tls_key: stream_tls_cert and stream_tls_key go together; one is empty`},
		{"platform", "image_platform = 'windows/amd64'", `DIR/config.toml:1: image_platform: "windows/amd64" does not run on this system; want linux/...`},
		{"image", "pinned_images = ['a b']", `DIR/config.toml:1: pinned_images: "a b": invalid reference format`},
		{"short image prefix", "pinned_images = ['*', 'localhost/*', 'r:5000/*', 'busybox*']", `DIR/config.toml:1: pinned_images: "busybox*" does not begin with a registry`},
		{"runtime without a path", "root = '/r'\n\n[runtimes.runc]\noptions = []", `DIR/config.toml:3: runtimes.runc.path: "" is not an absolute path`},
		{"runtime's name", "[runtimes.Run_C]\npath = '/x'", `DIR/config.toml:1: runtimes.Run_C: "Run_C" is not a RuntimeClass handler`},
		{"runtime's option", "[runtimes.runc]\npath = '/x'\noptions = ['--root', '/y']", `DIR/config.toml:1: runtimes.runc.options: "/y" does not begin with a dash`},
		{"runtime's timeout", "[runtimes.runc]\npath = '/x'\ntimeout = '1ms'", `DIR/config.toml:1: runtimes.runc.timeout: 1ms is not between 1s and 1h0m0s`},
		{"runtime's key", "[runtimes.runc]\npth = '/x'", `DIR/config.toml:2: runtimes.runc.pth: unknown key`},
		{"runtime and built-in", "builtin_handlers = ['gpu']\n[runtimes.gpu]\npath = '/x'", `DIR/config.toml:2: runtimes.gpu: "gpu" is in builtin_handlers too`},
		{"runtime's type", "runtimes = 'runc'", `DIR/config.toml:1: runtimes: `},
		{"no plugins", "cni_bin_dirs = []", "DIR/config.toml:1: cni_bin_dirs: is empty; no plugin would be found"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := tree(t, map[string]string{"config.toml": tt.file})
			_, err := Load(path)
			if err == nil {
				t.Fatalf("Load = nil; want %s", tt.want)
			}
			if got := strings.ReplaceAll(err.Error(), filepath.Dir(path), "DIR"); !strings.HasPrefix(got, tt.want) {
				t.Errorf("Load = %s\nwant %s", got, tt.want)
			}
		})
	}
}

// A runtime of a later file comes beside those of earlier ones, and changes the one of its name key by key.
func TestLoadRuntimes(t *testing.T) {
	path := tree(t, map[string]string{
		"config.toml":   "[runtimes.runc]\npath = '/a'\noptions = ['--debug']\n[runtimes.crun]\npath = '/b'",
		"conf.d/1.toml": "[runtimes.runc]\npath = '/c'\n[runtimes.kata]\npath = '/d'\ntimeout = '2m'",
	})
	got, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Runtime{"runc": {Path: "/c", Options: []string{"--debug"}}, "crun": {Path: "/b"}, "kata": {Path: "/d", Timeout: Seconds(120)}}
	if diff := cmp.Diff(want, got.Runtimes); diff != "" {
		t.Errorf("Load (-want +got):\n%s", diff)
	}
}

// The line that is blamed is in the file that set the value last.
func TestLoadBlamesTheRightFile(t *testing.T) {
	path := tree(t, map[string]string{
		"config.toml":   "root = 'relative'\nlog_level = 'info'",
		"conf.d/1.toml": "# more\n\nlog_level = 'loud'",
		"conf.d/2.toml": "mistake = 1",
	})
	_, err := Load(path)
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatalf("Load = %v; want Problems", err)
	}
	dir := filepath.Dir(path)
	want := []place{{dir + "/conf.d/2.toml", 1}, {path, 1}, {dir + "/conf.d/1.toml", 3}}
	var got []place
	for _, p := range problems {
		got = append(got, place{p.File, p.Line})
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(place{})); diff != "" {
		t.Errorf("places (-want +got):\n%s\n%v", diff, err)
	}
}

func TestValuesWritten(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"5m": 5 * time.Minute, "4h": 4 * time.Hour, "1h0m1s": time.Hour + time.Second, "10s": 10 * time.Second,
		"1m30s": 90 * time.Second, "0s": 0, "20m": 20 * time.Minute, "10h": 10 * time.Hour,
	} {
		if got, _ := (Duration{d}).MarshalText(); string(got) != want {
			t.Errorf("Duration(%d) = %s; want %s", d, got, want)
		}
	}
	for want, s := range map[string]Size{"16MiB": 16 * MiB, "0": 0, "1025": 1025, "3GiB": 3 * GiB, "1KiB": KiB} {
		if got, _ := s.MarshalText(); string(got) != want {
			t.Errorf("Size(%d) = %s; want %s", int64(s), got, want)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(Render(Default()))
	f.Add([]byte("log_levle = 1"))
	f.Add([]byte("default_ulimits = ['nofile=1:unlimited']\nlog_line_max = '2KiB'"))
	f.Add([]byte("[runtimes.runc]\npath = '/x'\n[runtimes.'a.b']\npath = '/y'"))
	f.Add([]byte("[root]\nx = 1\n[[state]]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		l := loader{config: Default(), setAt: map[string]place{}}
		l.decode("fuzz.toml", data)
		if len(l.problems) > 0 || len(Validate(l.config)) > 0 {
			return
		}
		again := loader{config: Default(), setAt: map[string]place{}}
		again.decode("again.toml", Render(l.config))
		if len(again.problems) > 0 {
			t.Fatalf("Render's own output: %v", again.problems)
		}
		if diff := cmp.Diff(string(Render(l.config)), string(Render(again.config))); diff != "" {
			t.Errorf("loaded back (-want +got):\n%s", diff)
		}
	})
}

// TestLoadTellsAll: a mistake hides no other, neither in its file nor among the values that are right in form.
func TestLoadTellsAll(t *testing.T) {
	path := tree(t, map[string]string{
		"config.toml": `log_level = "loud"
log_levle = "info"
cni_timeout = "soon"
pods_per_supervisor = "many"
pids_limit = -1
default_ulimits = ["nofile=5:3"]
[runtimes.crun]
path = "/usr/bin/crun"
timeout = "later"
optoins = ["--debug"]
`,
		"conf.d/10.toml": "kill_timeout = 5\nroot = 'relative'\n",
	})
	_, err := Load(path)
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatalf("Load = %v; want Problems", err)
	}
	got := map[string]int{}
	for _, p := range problems {
		got[strings.TrimPrefix(p.File, filepath.Dir(path)+"/")+" "+p.Key] = p.Line
	}
	want := map[string]int{
		"config.toml log_level": 1, "config.toml log_levle": 2, "config.toml cni_timeout": 3, "config.toml pods_per_supervisor": 4,
		"config.toml pids_limit": 5, "config.toml default_ulimits": 6, "config.toml runtimes.crun.timeout": 7, "config.toml runtimes.crun.optoins": 7,
		"conf.d/10.toml kill_timeout": 1, "conf.d/10.toml root": 2,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("the lines of the problems (-want +got):\n%s%v", d, err)
	}
	if len(problems) != len(want) {
		t.Errorf("%d problems; want %d, each once:\n%v", len(problems), len(want), err)
	}
}

// TestLoadOddFiles: neither a FIFO that nobody writes to nor a device without an end holds the daemon up.
func TestLoadOddFiles(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "config.toml")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	large := tree(t, map[string]string{"config.toml": "#" + strings.Repeat("x", 8<<20)})
	for path, want := range map[string]string{fifo: "not a regular file", "/dev/zero": "not a regular file", large: "bytes, more than"} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Load(%s) = %v; want %q", path, err, want)
		}
	}
}
