package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
)

func TestReadConf(t *testing.T) {
	good := conflist("1.0.0", "good", "p")
	tests := []struct {
		name     string
		files    map[string]string
		want     string   // the network; "" none
		plugins  []string // of it
		problems []string // files and reasons, each "file: part of the reason"
	}{
		{name: "empty"},
		{name: "first by name", files: map[string]string{
			"20-b.conflist": good, "10-a.conf": `{"cniVersion":"0.4.0","name":"single","type":"q"}`, "00.txt": "x",
		}, want: "single", plugins: []string{"q"}},
		{name: "json", files: map[string]string{"x.json": `{"name":"old","type":"q"}`}, want: "old", plugins: []string{"q"}},
		{name: "invalid first is passed over", files: map[string]string{"00.conflist": `{"name":`, "10.conflist": good},
			want: "good", plugins: []string{"p"}, problems: []string{"00.conflist: unexpected end of JSON"}},
		{name: "list named conf", files: map[string]string{"00.conf": good}, problems: []string{"00.conf: needs the file name ending .conflist"}},
		{name: "no plugins", files: map[string]string{"00.conflist": `{"name":"a","cniVersion":"1.0.0"}`}, problems: []string{"00.conflist: no plugins"}},
		{name: "empty plugins", files: map[string]string{"00.conflist": `{"name":"a","plugins":[]}`}, problems: []string{"00.conflist: no plugins"}},
		{name: "null plugin", files: map[string]string{"00.conflist": `{"name":"a","plugins":[null]}`}, problems: []string{"00.conflist: missing 'type'"}},
		{name: "no name", files: map[string]string{"00.conflist": `{"plugins":[{"type":"p"}]}`}, problems: []string{"00.conflist: no name"}},
		{name: "bad name", files: map[string]string{"00.conflist": conflist("1.0.0", "../x", "p")}, problems: []string{"00.conflist: name: invalid characters"}},
		{name: "type is a path", files: map[string]string{"00.conflist": conflist("1.0.0", "a", "../sh")}, problems: []string{"00.conflist: plugins[0].type"}},
		{name: "future", files: map[string]string{"00.conflist": conflist("9.0.0", "a", "p")}, problems: []string{"00.conflist: cniVersion 9.0.0 is newer"}},
		{name: "not a version", files: map[string]string{"00.conflist": conflist("one", "a", "p")}, problems: []string{"00.conflist: cniVersion: "}},
		{name: "too large", files: map[string]string{"00.conflist": strings.Repeat(" ", maxConfSize) + good}, problems: []string{"00.conflist: larger than"}},
		{name: "plugins in a folder", files: map[string]string{"00.conflist": good, "good/1.conf": `{"type":"q"}`},
			want: "good", plugins: []string{"p", "q"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			nd := newNode(t)
			for name, content := range tt.files {
				path := filepath.Join(nd.conf, name)
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				write(t, path, content)
			}
			n := nd.start(t)
			file, name, plugins := n.Loaded()
			if name != tt.want || !slices.Equal(plugins, tt.plugins) {
				t.Errorf("Loaded() = %q, %q, %q; want %q, %q", file, name, plugins, tt.want, tt.plugins)
			}
			if got := n.Problems(); len(got) != len(tt.problems) {
				t.Errorf("Problems() = %v; want %v", got, tt.problems)
			}
			for i, p := range n.Problems() {
				base, reason, _ := strings.Cut(tt.problems[i], ": ")
				if p.File != filepath.Join(nd.conf, base) || !strings.Contains(p.Error(), reason) {
					t.Errorf("Problems()[%d] = %v; want %s", i, p, tt.problems[i])
				}
			}
			if tt.want != "" {
				return
			}
			err := n.Status(t.Context())
			wantErr(t, "Status()", err, nd.conf)
			if !errors.Is(err, ErrNotReady) {
				t.Errorf("Status() = %v; want ErrNotReady", err)
			}
			for _, p := range tt.problems {
				base, reason, _ := strings.Cut(p, ": ")
				wantErr(t, "Status()", err, base, reason)
			}
			_, err = n.Setup(t.Context(), pod("a"))
			if !errors.Is(err, ErrNotReady) && os.Geteuid() == 0 {
				t.Errorf("Setup() = %v; want ErrNotReady", err)
			}
		})
	}
}

// A record must hold the plugins of a network's folder as well, or a later DEL would miss them.
func TestFolderPluginsAreInlined(t *testing.T) {
	nd := newNode(t)
	write(t, filepath.Join(nd.conf, "1.conflist"), conflist("1.1.0", "net", "p"))
	if err := os.Mkdir(filepath.Join(nd.conf, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(nd.conf, "net", "1.conf"), `{"type":"q"}`)
	list, err := libcni.NetworkConfFromBytes(readConf(nd.conf).net.list.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Plugins) != 2 || list.CNIVersion != "1.1.0" || !list.LoadOnlyInlinedPlugins {
		t.Errorf("list = %+v; want both plugins", list)
	}
}

func TestConfNotAFile(t *testing.T) {
	nd := newNode(t)
	if err := syscall.Mkfifo(filepath.Join(nd.conf, "1.conflist"), 0o644); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Status", nd.start(t).Status(t.Context()), "1.conflist", "not a regular file")
}

func TestNewRefuses(t *testing.T) {
	for _, cfg := range []Config{{ConfDir: "x"}, {BinDirs: []string{"x"}}, {CacheDir: "x"}, {Timeout: -1}} {
		if n, err := New(cfg); err == nil {
			n.Close()
			t.Errorf("New(%+v) = nil error", cfg)
		}
	}
}

// Each step changes the folder in a way that an installer or an administrator may; the watcher alone
// has to notice.
func TestWatch(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "etc", "cni", "net.d")
	n := startWith(t, Config{ConfDir: conf, CacheDir: dir, Log: node{}.config().Log})
	do := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	put := func(folder, name string) {
		t.Helper()
		tmp := filepath.Join(dir, "tmp")
		write(t, tmp, conflist("1.0.0", name, "p"))
		do(os.Rename(tmp, filepath.Join(folder, "1.conflist")))
	}
	want := func(step, name string) {
		t.Helper()
		began := time.Now()
		eventually(t, fmt.Sprintf("%s: network %q", step, name), func() bool {
			_, got, _ := n.Loaded()
			return got == name
		})
		if d := time.Since(began); d > 2*time.Second {
			t.Errorf("%s was noticed after %s", step, d)
		}
	}
	want("start", "")
	do(os.MkdirAll(conf, 0o755))
	put(conf, "one")
	want("folder appears", "one")
	put(conf, "two")
	want("file replaced", "two")
	do(os.Remove(filepath.Join(conf, "1.conflist")))
	want("file removed", "")
	put(conf, "three")
	want("file made", "three")
	do(os.Rename(conf, conf+".old"), os.Mkdir(conf, 0o755))
	want("folder replaced by an empty one", "")
	put(conf+".old", "elsewhere")
	put(conf, "four")
	want("new folder", "four")
	do(os.RemoveAll(filepath.Join(dir, "etc")))
	want("parent removed", "")
	do(os.MkdirAll(conf, 0o755))
	put(conf, "five")
	want("parent made again", "five")

	for _, v := range []string{"six", "seven"} {
		do(os.Mkdir(filepath.Join(dir, v), 0o755))
		put(filepath.Join(dir, v), v)
	}
	do(os.RemoveAll(conf), os.Symlink("../../six", conf))
	want("link", "six")
	put(filepath.Join(dir, "six"), "six-b")
	want("file behind the link", "six-b")
	do(os.Symlink("../../seven", conf+".new"), os.Rename(conf+".new", conf))
	want("link swapped", "seven")
	write(t, filepath.Join(dir, "seven", "0.conf"), "{")
	eventually(t, "the problem", func() bool { return len(n.Problems()) == 1 })
	want("invalid file in front", "seven")
	do(os.Rename(filepath.Join(dir, "etc"), filepath.Join(dir, "etc.old")))
	want("grandparent renamed", "")
}

func TestResolveChainLoop(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	if c := resolveChain(filepath.Join(dir, "loop", "x")); len(c.leaves) != 0 {
		t.Errorf("leaves = %v; want none", c.leaves)
	}
}

func FuzzParseConf(f *testing.F) {
	f.Add(true, []byte(conflist("1.0.0", "good", "p")))
	f.Add(true, []byte(`{"name":"a","cniVersions":["0.4.0","1.1.0"],"plugins":[{"type":"x"}],"disableGC":"true"}`))
	f.Add(false, []byte(`{"name":"a","type":"b","cniVersion":"0.3.1","ipam":{"type":"host-local"}}`))
	f.Add(false, []byte(`{"plugins":null}`))
	f.Add(true, []byte(`{"name":"a","plugins":[null]}`))
	f.Fuzz(func(t *testing.T, isList bool, data []byte) {
		ext := ".conf"
		if isList {
			ext = ".conflist"
		}
		list, err := parseConf(ext, data)
		if err != nil {
			return
		}
		again, err := parseConf(".conflist", list.Bytes)
		if err != nil || again.Name != list.Name || len(again.Plugins) != len(list.Plugins) {
			t.Errorf("parseConf(%q) does not survive a record: %+v, %v", data, again, err)
		}
		if strings.Contains(list.Name, "/") {
			t.Errorf("name %q", list.Name)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"pod_id":"a","if_name":"eth0","config":"eyJuYW1lIjoiYSIsInBsdWdpbnMiOlt7InR5cGUiOiJ4In1dfQ==","capabilities":{"bandwidth":{"ingressRate":18446744073709551615}}}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, net, err := parseRecord(data)
		if err == nil && (r.PodID == "" || net.list.Name == "") {
			t.Errorf("parseRecord(%q) = %+v", data, r)
		}
	})
}
