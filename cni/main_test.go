package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

func TestMain(m *testing.M) {
	os.Exit(testtools.RunPrivate(m))
}

// node is the folders of one test.
type node struct {
	conf, bin, cache string
}

func newNode(t testing.TB) node {
	t.Helper()
	dir := t.TempDir()
	nd := node{filepath.Join(dir, "net.d"), filepath.Join(dir, "bin"), filepath.Join(dir, "cache")}
	for _, d := range []string{nd.conf, nd.bin} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return nd
}

func (nd node) config() Config {
	return Config{
		ConfDir: nd.conf, BinDirs: []string{nd.bin}, CacheDir: nd.cache, OtherCaches: []string{},
		Timeout: 3 * time.Minute, Log: slog.New(slog.DiscardHandler),
	}
}

func (nd node) start(t testing.TB) *Networks { return startWith(t, nd.config()) }

func startWith(t testing.TB, cfg Config) *Networks {
	t.Helper()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

// plugin installs a shell script as a plugin. Its log gets a line per call.
func (nd node) plugin(t testing.TB, name, script string) {
	t.Helper()
	write(t, filepath.Join(nd.bin, name), "#!/bin/sh\nlog="+nd.logPath()+"\n"+script)
}

func (nd node) logPath() string { return filepath.Join(filepath.Dir(nd.bin), "log") }

func (nd node) calls(t testing.TB) []string {
	t.Helper()
	b, err := os.ReadFile(nd.logPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// goodPlugin notes its calls and answers ADD.
const goodPlugin = `
conf=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME netns=${CNI_NETNS:+set}" >>$log
printf '%s' "$conf" >$log.$CNI_COMMAND
printf '%s' "$CNI_ARGS" >$log.args
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'$CNI_IFNAME'","sandbox":"'$CNI_NETNS'"}],"ips":[{"interface":0,"address":"10.1.0.2/24"}]}'
`

func conflist(version, name, typ string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":%q,"plugins":[{"type":%q,"capabilities":{"portMappings":true,"bandwidth":true,"aliases":true,"dns":true,"cgroupPath":true,"io.kubernetes.cri.pod-annotations":true}}]}`, version, name, typ)
}

// ownNetns is a namespace for tests whose plugins do nothing to it.
const ownNetns = "/proc/self/ns/net"

func pod(id string) Attachment {
	return Attachment{PodID: id, Namespace: "default", Name: "name-" + id, UID: "uid-" + id, Netns: ownNetns}
}

func wantErr(t testing.TB, what string, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("%s = nil; want an error", what)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%s = %v; want %q in it", what, err, p)
		}
	}
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 10s: %s", what)
}

func short(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
