package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// withGood is a node whose network "net" has the one plugin "p".
func withGood(t testing.TB, version, script string) node {
	t.Helper()
	nd := newNode(t)
	write(t, filepath.Join(nd.conf, "1.conflist"), conflist(version, "net", "p"))
	nd.plugin(t, "p", script)
	return nd
}

func leftovers(t testing.TB, nd node) []string {
	t.Helper()
	var left []string
	for _, dir := range []string{"attachments", "results"} {
		entries, err := os.ReadDir(filepath.Join(nd.cache, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, dir+"/"+e.Name())
		}
	}
	return left
}

func TestArguments(t *testing.T) {
	nd := withGood(t, "1.0.0", goodPlugin)
	n := nd.start(t)
	a := pod("id1")
	a.PortMappings = []PortMapping{
		{Protocol: "TCP", ContainerPort: 80, HostPort: 8080, HostIP: "127.0.0.1"},
		{Protocol: "udp", ContainerPort: 53}, // not published
		{ContainerPort: 81, HostPort: 8081},
	}
	a.Bandwidth = &Bandwidth{IngressRate: 1e6, IngressBurst: 18446744073709551615}
	a.Aliases = []string{"db"}
	a.DNS = &DNS{Servers: []string{"10.0.0.10"}, Searches: []string{"svc"}, Options: []string{"ndots:5"}}
	a.CgroupParent = "/kubepods/pod1"
	a.Annotations = map[string]string{"k": "v"}
	r, err := n.Setup(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.IPs) != 1 || r.IPs[0].String() != "10.1.0.2" {
		t.Errorf("IPs = %v; want [10.1.0.2]", r.IPs)
	}
	args, _ := os.ReadFile(nd.logPath() + ".args")
	wantArgs := "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=name-id1;K8S_POD_INFRA_CONTAINER_ID=id1;K8S_POD_UID=uid-id1"
	if string(args) != wantArgs {
		t.Errorf("CNI_ARGS = %s; want %s", args, wantArgs)
	}
	if err := n.Check(t.Context(), a); err != nil {
		t.Errorf("Check = %v; want nil", err)
	}
	// DEL and CHECK get what ADD got, out of the record: also after a restart.
	if err := nd.start(t).Teardown(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	wantRC := `{"aliases":["db"],"bandwidth":{"ingressBurst":18446744073709551615,"ingressRate":1000000},"cgroupPath":"/kubepods/pod1",` +
		`"dns":{"options":["ndots:5"],"searches":["svc"],"servers":["10.0.0.10"]},"io.kubernetes.cri.pod-annotations":{"k":"v"},` +
		`"portMappings":[{"containerPort":80,"hostIP":"127.0.0.1","hostPort":8080,"protocol":"tcp"},{"containerPort":81,"hostPort":8081,"protocol":"tcp"}]}`
	for _, cmd := range []string{"ADD", "CHECK", "DEL"} {
		var conf struct {
			RuntimeConfig json.RawMessage `json:"runtimeConfig"`
			PrevResult    json.RawMessage `json:"prevResult"`
		}
		b, err := os.ReadFile(nd.logPath() + "." + cmd)
		if err == nil {
			err = json.Unmarshal(b, &conf)
		}
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(normal(t, []byte(wantRC)), normal(t, conf.RuntimeConfig)); diff != "" {
			t.Errorf("%s runtimeConfig (-want +got):\n%s", cmd, diff)
		}
		if (conf.PrevResult != nil) != (cmd != "ADD") {
			t.Errorf("%s prevResult = %s", cmd, conf.PrevResult)
		}
	}
}

func normal(t *testing.T, data []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	return v
}

func TestSetupRefuses(t *testing.T) {
	n := withGood(t, "1.0.0", goodPlugin).start(t)
	file := filepath.Join(t.TempDir(), "f")
	write(t, file, "")
	for want, change := range map[string]func(a *Attachment){
		"pod ID: missing":                    func(a *Attachment) { a.PodID = "" },
		"pod ID: invalid":                    func(a *Attachment) { a.PodID = "../x" },
		"interface name":                     func(a *Attachment) { a.IfName = "a/b" },
		`pod name "a;b=c"`:                   func(a *Attachment) { a.Name = "a;b=c" },
		"/no/such: no namespace is there":    func(a *Attachment) { a.Netns = "/no/such" },
		file + ": no namespace":              func(a *Attachment) { a.Netns = file },
		"a rate without a burst":             func(a *Attachment) { a.Bandwidth = &Bandwidth{EgressRate: 1000} },
		"not an absolute path":               func(a *Attachment) { a.Netns = "" },
		"port mapping 0: host port 70000":    func(a *Attachment) { a.PortMappings = []PortMapping{{HostPort: 70000, ContainerPort: 1}} },
		"port mapping 0: container port 0":   func(a *Attachment) { a.PortMappings = []PortMapping{{HostPort: 1}} },
		`port mapping 0: protocol "icmp"`:    func(a *Attachment) { a.PortMappings = []PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}} },
		"port mapping 0: host IP: ParseAddr": func(a *Attachment) { a.PortMappings = []PortMapping{{HostPort: 1, ContainerPort: 1, HostIP: "x"}} },
	} {
		a := pod("a")
		change(&a)
		_, err := n.Setup(t.Context(), a)
		wantErr(t, "Setup", err, want)
	}
}

func TestTeardownTwiceAndNever(t *testing.T) {
	nd := withGood(t, "1.0.0", goodPlugin)
	n := nd.start(t)
	if err := n.Teardown(t.Context(), pod("never")); err != nil {
		t.Errorf("Teardown of a stranger = %v; want nil", err)
	}
	if _, err := n.Setup(t.Context(), pod("a")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := n.Teardown(t.Context(), pod("a")); err != nil {
			t.Errorf("Teardown = %v; want nil", err)
		}
	}
	want := []string{"DEL never eth0 netns=set", "ADD a eth0 netns=set", "DEL a eth0 netns=set"}
	if diff := cmp.Diff(want, nd.calls(t)); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	if _, err := n.Setup(t.Context(), pod("a")); err != nil {
		t.Fatal(err)
	}
	if err := n.Teardown(t.Context(), pod("a")); err != nil || len(nd.calls(t)) != 5 {
		t.Errorf("after another Setup: Teardown = %v, calls %q; want one DEL more", err, nd.calls(t))
	}
	if left := leftovers(t, nd); left != nil {
		t.Errorf("left: %v", left)
	}
}

func TestTeardownWithoutConfiguration(t *testing.T) {
	for name, change := range map[string]func(nd node){
		"gone":      func(nd node) { os.Remove(filepath.Join(nd.conf, "1.conflist")) },
		"no folder": func(nd node) { os.RemoveAll(nd.conf) },
		"another": func(nd node) {
			os.WriteFile(filepath.Join(nd.conf, "1.conflist"), []byte(conflist("1.0.0", "other", "none")), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			nd := withGood(t, "1.0.0", goodPlugin)
			if _, err := nd.start(t).Setup(t.Context(), pod("a")); err != nil {
				t.Fatal(err)
			}
			change(nd)
			a := pod("a")
			a.Netns = filepath.Join(t.TempDir(), "gone")
			rec := nd.start(t)
			// The namespace that the record names is gone too.
			r, _, err := rec.readRecord(a.id())
			if err != nil {
				t.Fatal(err)
			}
			r.Netns = a.Netns
			if err := rec.writeRecord(r); err != nil {
				t.Fatal(err)
			}
			// as is libcni's copy of its path, which del does not trust either
			if err := rec.Teardown(t.Context(), a); err != nil {
				t.Errorf("Teardown = %v; want nil", err)
			}
			if got, want := nd.calls(t)[1], "DEL a eth0 netns="; got != want {
				t.Errorf("call %q; want %q", got, want)
			}
			if left := leftovers(t, nd); left != nil {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// What a crash may leave: each must end with a DEL and nothing left.
func TestTeardownAfterCrash(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, n *Networks, nd node){
		"before ADD had a result": func(t *testing.T, n *Networks, nd node) {
			os.RemoveAll(filepath.Join(nd.cache, "results"))
		},
		"result cut short": func(t *testing.T, n *Networks, nd node) {
			write(t, filepath.Join(nd.cache, "results", "net-a-eth0"), `{"kind":"cniC`)
		},
		"record cut short": func(t *testing.T, n *Networks, nd node) {
			write(t, n.recordPath(pod("a").id()), "")
		},
		"record lost": func(t *testing.T, n *Networks, nd node) {
			os.RemoveAll(filepath.Join(nd.cache, "attachments"))
		},
		"all lost": func(t *testing.T, n *Networks, nd node) { os.RemoveAll(nd.cache) },
	} {
		t.Run(name, func(t *testing.T) {
			nd := withGood(t, "1.0.0", goodPlugin)
			if _, err := nd.start(t).Setup(t.Context(), pod("a")); err != nil {
				t.Fatal(err)
			}
			n := nd.start(t)
			damage(t, n, nd)
			if err := n.Teardown(t.Context(), pod("a")); err != nil {
				t.Errorf("Teardown = %v; want nil", err)
			}
			if calls := nd.calls(t); len(calls) < 2 || calls[1] != "DEL a eth0 netns=set" {
				t.Errorf("calls = %q; want a DEL", calls)
			}
			if left := leftovers(t, nd); left != nil {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestSetupFails(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/none") // must not reach plugins
	tests := []struct {
		name, script string
		want         []string
	}{
		{"message", `echo "$CNI_COMMAND" >>$log; [ "$CNI_COMMAND" = DEL ] || { echo '{"code":100,"msg":"no addresses left"}'; exit 1; }`,
			[]string{`cni network "net": pod a eth0: plugin "p": ADD: no addresses left (code 100)`}},
		{"stderr", `echo "$CNI_COMMAND" >>$log; [ "$CNI_COMMAND" = DEL ] || { echo oops >&2; exit 3; }`, []string{`plugin "p": ADD: exit status 3: oops`}},
		{"not JSON", `echo "$CNI_COMMAND" >>$log; echo hello`, []string{`plugin "p": ADD: result: invalid character`}},
		{"null address", `echo "$CNI_COMMAND" >>$log; echo '{"ips":[null]}'`, []string{"ips[0] is null"}},
		{"no address", `echo "$CNI_COMMAND" >>$log; echo '{}'`, []string{"no address for eth0"}},
		{"endless output", `echo "$CNI_COMMAND" >>$log; [ "$CNI_COMMAND" = DEL ] || head -c 5000000 /dev/zero`, []string{"more than 4194304 bytes"}},
		{"later", `echo "$CNI_COMMAND" >>$log; [ "$CNI_COMMAND" = DEL ] || { echo '{"code":11,"msg":"try again"}'; exit 1; }`, []string{"try again (code 11)"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			nd := withGood(t, "1.0.0", `[ -z "$NOTIFY_SOCKET" ] || exit 9; cat >/dev/null; `+tt.script)
			n := nd.start(t)
			_, err := n.Setup(t.Context(), pod("a"))
			wantErr(t, "Setup", err, tt.want...)
			if got := errors.Is(err, ErrNotReady); got != (tt.name == "later") {
				t.Errorf("errors.Is(%v, ErrNotReady) = %v", err, got)
			}
			if got := nd.calls(t); !slices.Equal(got, []string{"ADD", "DEL"}) {
				t.Errorf("calls = %q; want ADD, DEL", got)
			}
			if left := leftovers(t, nd); left != nil {
				t.Errorf("left: %v", left)
			}
			nd.plugin(t, "p", goodPlugin)
			if _, err := n.Setup(t.Context(), pod("a")); err != nil {
				t.Errorf("Setup again = %v; want nil", err)
			}
		})
	}
}

// An undo that fails keeps the record, and the next Setup begins with another.
func TestUndoFails(t *testing.T) {
	nd := withGood(t, "1.0.0", `cat >/dev/null; echo '{"code":1,"msg":"broken '$CNI_COMMAND'"}'; exit 1`)
	n := nd.start(t)
	_, err := n.Setup(t.Context(), pod("a"))
	wantErr(t, "Setup", err, "ADD: broken ADD", "DEL: broken DEL")
	if left := leftovers(t, nd); len(left) != 1 {
		t.Errorf("left: %v; want the record", left)
	}
	_, err = n.Setup(t.Context(), pod("a"))
	wantErr(t, "Setup", err, "undo the earlier try", "broken DEL")
	wantErr(t, "Teardown", n.Teardown(t.Context(), pod("a")), "broken DEL")
	nd.plugin(t, "p", goodPlugin)
	if _, err := n.Setup(t.Context(), pod("a")); err != nil {
		t.Fatal(err)
	}
	if got := nd.calls(t); len(got) != 2 || got[0] != "DEL a eth0 netns=set" || got[1] != "ADD a eth0 netns=set" {
		t.Errorf("calls = %q; want DEL, ADD", got)
	}
}

func TestMissingPlugin(t *testing.T) {
	nd := withGood(t, "1.0.0", goodPlugin)
	n := nd.start(t)
	if err := n.Status(t.Context()); err != nil {
		t.Errorf("Status = %v; want nil", err)
	}
	if err := os.Chmod(filepath.Join(nd.bin, "p"), 0o644); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Status", n.Status(t.Context()), `plugin "p"`, nd.bin, "not an executable file", "1.conflist")
	if err := os.Remove(filepath.Join(nd.bin, "p")); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "Status", n.Status(t.Context()), `plugin "p"`, nd.bin, "no such plugin")
	_, err := n.Setup(t.Context(), pod("a"))
	wantErr(t, "Setup", err, `plugin "p": ADD: no such plugin in `+nd.bin)
}

func alive(t testing.TB, pidFile string) bool {
	t.Helper()
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(b)) + "/stat")
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// A plugin that hangs is killed with what it has started, and the message says for how long it was waited for.
func TestHangingPlugin(t *testing.T) {
	const hang = `cat >/dev/null; echo "$CNI_COMMAND" >>$log
[ "$CNI_COMMAND" = DEL ] && exit 0
sleep 1000 & echo $! >$log.child; echo $$ >$log.pid; wait`
	const limit = 3 * time.Second // in which the plugin has started, on a slow machine too
	for name, tt := range map[string]struct {
		timeout time.Duration
		ctx     time.Duration
		want    string
	}{
		"time limit": {limit, time.Hour, "the time limit of 3s for all plugins"},
		"caller":     {time.Hour, limit, "context deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			nd := withGood(t, "1.0.0", hang)
			cfg := nd.config()
			cfg.Timeout = tt.timeout
			n := startWith(t, cfg)
			began := time.Now()
			_, err := n.Setup(short(t, tt.ctx), pod("a"))
			wantErr(t, "Setup", err, `plugin "p": ADD: killed after `, "s without an answer", tt.want)
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Setup = %v; want DeadlineExceeded", err)
			}
			if d := time.Since(began); d > limit+20*time.Second {
				t.Errorf("Setup took %s", d)
			}
			for _, f := range []string{".pid", ".child"} {
				eventually(t, "the processes end", func() bool { return !alive(t, nd.logPath()+f) })
			}
			if got := nd.calls(t); !slices.Equal(got, []string{"ADD", "DEL"}) {
				t.Errorf("calls = %q; want ADD, DEL", got)
			}
			if left := leftovers(t, nd); left != nil {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// A daemon that a plugin leaves behind holds its stdout, which must not keep anybody waiting.
func TestPluginLeavesDaemon(t *testing.T) {
	nd := withGood(t, "1.0.0", goodPlugin+"\n[ $CNI_COMMAND = DEL ] || { sleep 100 & echo $! >$log.child; }")
	n := nd.start(t)
	began := time.Now()
	if _, err := n.Setup(t.Context(), pod("a")); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("Setup took %s", d)
	}
	b, err := os.ReadFile(nd.logPath() + ".child")
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	fmt.Sscan(string(b), &pid)
	if p, err := os.FindProcess(pid); err == nil && pid > 1 {
		p.Kill()
	}
}

// Pods do not wait for each other, operations on one pod do.
func TestConcurrency(t *testing.T) {
	nd := withGood(t, "1.0.0", goodPlugin+`
echo "begin $CNI_CONTAINERID" >>$log.order
until [ -e $log.go ]; do sleep 0.02; done
echo "end $CNI_CONTAINERID" >>$log.order`)
	n := nd.start(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			if _, err := n.Setup(t.Context(), pod(fmt.Sprintf("p%d", i))); err != nil {
				t.Error(err)
			}
		})
	}
	order := func() string { b, _ := os.ReadFile(nd.logPath() + ".order"); return string(b) }
	eventually(t, "four plugins run at once", func() bool { return strings.Count(order(), "begin") == 4 })
	err := n.Teardown(short(t, 200*time.Millisecond), pod("p1"))
	wantErr(t, "Teardown", err, "wait for ADD of the same pod, which has run for", "deadline exceeded")
	wg.Go(func() {
		if err := n.Teardown(t.Context(), pod("p0")); err != nil {
			t.Error(err)
		}
	})
	time.Sleep(50 * time.Millisecond)
	if strings.Contains(order(), "end") || strings.Count(order(), "begin") != 4 {
		t.Errorf("order = %q; want only begun ADDs", order())
	}
	write(t, nd.logPath()+".go", "")
	wg.Wait()
	if len(n.pods.held) != 0 || n.gate.running != 0 {
		t.Errorf("locks held: %v, running %d", n.pods.held, n.gate.running)
	}
}

func TestStatusOfPlugins(t *testing.T) {
	nd := withGood(t, "1.1.0", `cat >/dev/null; echo $CNI_COMMAND >>$log
[ ! -e $log.hang ] || { echo $$ >$log.pid; exec sleep 1000; }
[ ! -e $log.bad ] || { echo '{"code":50,"msg":"agent is down"}'; exit 1; }`)
	n := nd.start(t)
	for range 20 {
		if err := n.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := nd.calls(t); !slices.Equal(got, []string{"STATUS"}) {
		t.Errorf("calls = %q; want one STATUS", got)
	}
	write(t, nd.logPath()+".bad", "")
	age := func() { n.status.mu.Lock(); n.status.at = time.Time{}; n.status.mu.Unlock() }
	age()
	err := n.Status(t.Context())
	wantErr(t, "Status", err, `plugin "p": STATUS: agent is down (code 50)`, "1.conflist")
	if !errors.Is(err, ErrNotReady) {
		t.Errorf("Status = %v; want ErrNotReady", err)
	}
	write(t, nd.logPath()+".hang", "")
	age()
	began := time.Now()
	wantErr(t, "Status", n.Status(t.Context()), "agent is down") // the last answer
	// A new configuration has no last answer.
	write(t, filepath.Join(nd.conf, "1.conflist"), conflist("1.1.0", "net2", "p"))
	n.reload()
	wantErr(t, "Status", n.Status(t.Context()), "has not answered for")
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("Status held its caller for %s", d)
	}
	n.Close()
	if alive(t, nd.logPath()+".pid") {
		t.Error("a plugin outlives Close")
	}
	wantErr(t, "Status after Close", n.Status(t.Context()), "closed")
	os.Remove(nd.logPath() + ".hang")
	os.Remove(nd.logPath() + ".bad")
	n = nd.start(t)
	write(t, filepath.Join(nd.conf, "1.conflist"), conflist("1.1.0", "net3", "p"))
	n.reload()
	eventually(t, "the plugins are ready", func() bool { return n.Status(t.Context()) == nil }) // slow ones are asked on
}

func ids(pods ...string) func() ([]AttachmentID, error) {
	return func() ([]AttachmentID, error) {
		var out []AttachmentID
		for _, p := range pods {
			out = append(out, AttachmentID{PodID: p})
		}
		return out, nil
	}
}

func TestGC(t *testing.T) {
	nd := withGood(t, "1.1.0", goodPlugin)
	other := filepath.Join(t.TempDir(), "other")
	cfg := nd.config()
	cfg.OtherCaches = []string{other}
	n := startWith(t, cfg)
	for _, p := range []string{"a", "b", "c"} {
		if _, err := n.Setup(t.Context(), pod(p)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(other, "results"), 0o755); err != nil {
		t.Fatal(err)
	}
	for file, network := range map[string]string{"net-foreign-eth0": "net", "x-else-eth0": "x"} {
		id := strings.Split(file, "-")[1]
		write(t, filepath.Join(other, "results", file),
			fmt.Sprintf(`{"kind":"cniCacheV1","containerId":%q,"ifName":"eth0","networkName":%q}`, id, network))
	}
	if err := n.GC(t.Context(), ids("a")); err != nil {
		t.Fatal(err)
	}
	calls := nd.calls(t)[3:]
	slices.Sort(calls)
	if want := []string{"DEL b eth0 netns=set", "DEL c eth0 netns=set", "GC   netns="}; !slices.Equal(calls, want) {
		t.Errorf("calls = %q; want %q", calls, want)
	}
	var conf struct {
		Valid []struct{ ContainerID string } `json:"cni.dev/valid-attachments"`
	}
	b, err := os.ReadFile(nd.logPath() + ".GC")
	if err == nil {
		err = json.Unmarshal(b, &conf)
	}
	if err != nil {
		t.Fatal(err)
	}
	var valid []string
	for _, v := range conf.Valid {
		valid = append(valid, v.ContainerID)
	}
	slices.Sort(valid)
	if !slices.Equal(valid, []string{"a", "foreign"}) {
		t.Errorf("valid attachments = %q; want ours and the other runtime's of that network", valid)
	}
	if left := leftovers(t, nd); len(left) != 2 || !strings.Contains(left[0], "a@eth0") {
		t.Errorf("left: %v; want those of pod a", left)
	}
	boom := errors.New("boom")
	if err := n.GC(t.Context(), func() ([]AttachmentID, error) { return nil, boom }); !errors.Is(err, boom) {
		t.Errorf("GC = %v; want boom", err)
	}
	if len(leftovers(t, nd)) != 2 {
		t.Error("GC without a valid list has freed something")
	}
}

// A pod whose ADD runs while the valid list is made up must never be collected, and a plugin's GC must never
// run beside an ADD.
func TestGCRace(t *testing.T) {
	nd := withGood(t, "1.1.0", goodPlugin+`
[ ! -e $log.$CNI_CONTAINERID.wait ] || { until [ -e $log.go ]; do sleep 0.02; done; }
[ $CNI_COMMAND != GC ] || { sleep 0.3; echo "GC end" >>$log; }`)
	n := nd.start(t)
	write(t, nd.logPath()+".slow.wait", "")
	done := make(chan error, 1)
	go func() { _, err := n.Setup(t.Context(), pod("slow")); done <- err }()
	eventually(t, "ADD runs", func() bool { return len(nd.calls(t)) == 1 })
	// The records list the pod, as they do from before Setup. GC gives up on the plugins, and holds up no other pod.
	gc := make(chan error, 1)
	go func() { gc <- n.GC(short(t, time.Second), ids("slow", "quick")) }()
	time.Sleep(100 * time.Millisecond)
	if _, err := n.Setup(short(t, 5*time.Second), pod("quick")); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "GC", <-gc, "wait for a moment without ADD and DEL")
	write(t, nd.logPath()+".go", "")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	go func() { gc <- n.GC(t.Context(), ids("slow", "quick")) }()
	eventually(t, "GC runs", func() bool { c := nd.calls(t); return strings.HasPrefix(c[len(c)-1], "GC ") })
	if _, err := n.Setup(t.Context(), pod("late")); err != nil {
		t.Fatal(err)
	}
	if err := <-gc; err != nil {
		t.Fatal(err)
	}
	c := nd.calls(t)
	if want := []string{"GC   netns=", "GC end", "ADD late eth0 netns=set"}; !slices.Equal(c[len(c)-3:], want) {
		t.Errorf("calls = %q; want at the end %q", c, want)
	}
	for _, call := range c {
		if strings.HasPrefix(call, "DEL") {
			t.Errorf("%s: a pod was collected", call)
		}
	}
}

func TestPluginExecBusyFile(t *testing.T) {
	testtools.NeedPrivate(t)
	nd := withGood(t, "1.0.0", goodPlugin)
	bin, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(nd.bin, "q"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(bin); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(200*time.Millisecond, func() { f.Close() })
	e := &pluginExec{log: nd.config().Log}
	if _, err := e.ExecPlugin(t.Context(), filepath.Join(nd.bin, "q"), nil, []string{"CNI_COMMAND=DEL"}); err != nil {
		t.Errorf("ExecPlugin of a file that is being written = %v; want nil", err)
	}
}

// fakeExec answers at once: what is left is our own cost and libcni's.
type fakeExec struct{ pluginExec }

func (*fakeExec) FindInPath(plugin string, _ []string) (string, error) { return plugin, nil }

func (*fakeExec) ExecPlugin(context.Context, string, []byte, []string) ([]byte, error) {
	return []byte(`{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/24"}]}`), nil
}

func BenchmarkOwnCost(b *testing.B) {
	nd := newNode(b)
	write(b, filepath.Join(nd.conf, "1.conflist"), conflist("1.0.0", "net", "p"))
	n, err := newNetworks(nd.config(), &fakeExec{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(n.Close)
	b.Run("setup and teardown", func(b *testing.B) {
		for b.Loop() {
			if _, err := n.Setup(b.Context(), pod("a")); err != nil {
				b.Fatal(err)
			}
			if err := n.Teardown(b.Context(), pod("a")); err != nil {
				b.Fatal(err)
			}
		}
	})
	nd.plugin(b, "p", goodPlugin)
	b.Run("status", func(b *testing.B) {
		for b.Loop() {
			if err := n.Status(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
