package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

// crictlCommands are tests with the commands of crictl that each is of.
var crictlCommands = []struct {
	commands string
	test     func(*crictlTest)
}{
	{"attach", testCrictlAttach},
	{"checkpoint", testCrictlCheckpoint},
	{"completion", testCrictlCompletion},
	{"config", testCrictlConfig},
	{"create start ps stop rm", testCrictlContainer},
	{"events", testCrictlEvents},
	{"exec", testCrictlExec},
	{"help", testCrictlHelp},
	{"imagefsinfo", func(c *crictlTest) { c.wants(c.node.path("root"), "imagefsinfo") }},
	{"info", testCrictlInfo},
	{"inspect", testCrictlInspect},
	{"logs", testCrictlLogs},
	{"metricdescs metricsp", testCrictlMetrics},
	{"port-forward", testCrictlPortForward},
	{"pull images inspecti rmi", testCrictlImages},
	{"run", testCrictlRun},
	{"runp pods inspectp stopp rmp", testCrictlPod},
	{"runtime-config", func(c *crictlTest) { c.wants("CGROUPFS", "runtime-config") }},
	{"stats statsp", testCrictlStats},
	{"update", testCrictlUpdate},
	{"update-runtime-config", testCrictlRuntimeConfig},
	{"version", func(c *crictlTest) { c.wants("RuntimeName:  cri-shim", "version") }},
}

// commandLine is a line of crictl's help: a command with its other names.
var commandLine = regexp.MustCompile(`^   ([a-z][a-z-]*)(, [a-z]+)*  +\S`)

// TestCrictlCommands: every command that this crictl has. One that is new to it has no test, and fails.
func TestCrictlCommands(t *testing.T) {
	t.Parallel()
	n := newNode(t, nil)
	has := (&crictlTest{t, n}).commands()
	var tested []string
	// One after another: some look at all that the node has.
	for _, c := range crictlCommands {
		tested = append(tested, strings.Fields(c.commands)...)
		t.Run(c.commands, func(t *testing.T) { c.test(&crictlTest{t, n}) })
	}
	t.Run("output formats", func(t *testing.T) { testCrictlOutputs(&crictlTest{t, n}) })
	t.Run("debug", func(t *testing.T) { testCrictlDebug(&crictlTest{t, n}) })
	slices.Sort(has)
	slices.Sort(tested)
	if d := cmp.Diff(has, tested); d != "" {
		t.Errorf("the commands of crictl --help and those that are tested (-help +tested):\n%s", d)
	}
}

// crictlTest is the test of one command.
type crictlTest struct {
	*testing.T
	node *node
}

// commands are those of crictl's own list.
func (c *crictlTest) commands() (all []string) {
	c.Helper()
	_, help, ok := strings.Cut(c.node.crictl(c.T, "--help"), "COMMANDS:\n")
	help, _, found := strings.Cut(help, "GLOBAL OPTIONS:")
	if !ok || !found {
		c.Fatal("crictl --help has no list of commands")
	}
	for line := range strings.Lines(help) {
		if m := commandLine.FindStringSubmatch(line); m != nil {
			all = append(all, m[1])
		}
	}
	return all
}

// wants runs crictl and looks for text in what it prints.
func (c *crictlTest) wants(text string, args ...string) string {
	c.Helper()
	got := c.node.crictl(c.T, args...)
	if !strings.Contains(got, text) {
		c.Errorf("crictl %s = %q; want %q in it", strings.Join(args, " "), got, text)
	}
	return got
}

func (c *crictlTest) wantsNothing(args ...string) {
	c.Helper()
	if got := c.node.crictl(c.T, args...); got != "" {
		c.Errorf("crictl %s = %q; want nothing", strings.Join(args, " "), got)
	}
}

// json decodes what crictl prints.
func (c *crictlTest) json(into any, args ...string) {
	c.Helper()
	if err := json.Unmarshal([]byte(c.node.crictl(c.T, args...)), into); err != nil {
		c.Fatalf("crictl %s: %v", strings.Join(args, " "), err)
	}
}

// start starts a command that goes on until the test's end, and returns its input and output.
func (c *crictlTest) start(args ...string) (io.WriteCloser, *bufio.Scanner) {
	c.Helper()
	ctx, cancel := context.WithCancel(ctx(c.T))
	cmd := c.node.streamCommand(ctx, c.T, args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		c.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		c.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() {
		cancel()
		cmd.Wait()
	})
	return stdin, bufio.NewScanner(stdout)
}

// line reads up to one that has text.
func (c *crictlTest) line(s *bufio.Scanner, text string) string {
	c.Helper()
	var seen []string
	for s.Scan() {
		if strings.Contains(s.Text(), text) {
			return s.Text()
		}
		seen = append(seen, s.Text())
	}
	c.Fatalf("%q, %v; want %q", seen, s.Err(), text)
	return ""
}

func testCrictlImages(c *crictlTest) {
	c.wants("up to date", "pull", web())
	c.wants(webRepo, "images")
	var inspected struct {
		Status struct {
			ID          string
			RepoTags    []string
			RepoDigests []string
		}
		Info map[string]any
	}
	c.json(&inspected, "inspecti", web())
	if s := inspected.Status; !strings.HasPrefix(s.ID, "sha256:") || !slices.Contains(s.RepoTags, web()) || len(s.RepoDigests) != 1 || inspected.Info == nil {
		c.Errorf("crictl inspecti = %+v; want the ID, %s, a digest and more", inspected, web())
	}
	c.wants(inspected.Status.ID, "images", "-q", web())
	c.wants("Deleted", "rmi", web())
	c.wantsNothing("images", "-q", web())
	c.wants("up to date", "pull", web())
}

func testCrictlPod(c *crictlTest) {
	config := c.node.podConfig()
	id := strings.TrimSpace(c.node.crictl(c.T, "runp", writeConfig(c.T, "pod.json", config)))
	c.node.remember(id, config)
	c.wants(config.Metadata.Name, "pods", "--name", config.Metadata.Name, "--state", "ready")
	c.wants(id, "pods", "-q", "--namespace", "e2e", "--no-trunc")
	var inspected struct {
		Status struct {
			ID, State string
			Network   struct{ IP string }
		}
		Info struct {
			RuntimeSpec map[string]any
		}
	}
	c.json(&inspected, "inspectp", id)
	if s := inspected.Status; s.ID != id || s.State != "SANDBOX_READY" || !strings.HasPrefix(s.Network.IP, "10.77.") || inspected.Info.RuntimeSpec == nil {
		c.Errorf("crictl inspectp = %+v; want %s, ready, with an address and a specification", inspected, id)
	}
	c.wants(id, "stopp", id)
	c.wants("NotReady", "pods", "--id", id)
	c.wants(id, "rmp", id)
	c.wantsNothing("pods", "-q", "--id", id)
}

func testCrictlContainer(c *crictlTest) {
	p := c.node.runPod(c.T)
	config := writeConfig(c.T, "c.json", p.containerConfig("counter", sh("exec sleep 100000")))
	id := strings.TrimSpace(c.node.crictl(c.T, "create", p.id, config, writeConfig(c.T, "pod.json", p.config)))
	c.wants("Created", "ps", "-a", "--pod", p.id)
	c.wants(id, "start", id)
	c.wants("counter", "ps", "--state", "running", "--name", "counter", "--pod", p.id)
	c.wants("counter", "ps", "--image", busybox(), "--pod", p.id)
	c.wantsNothing("ps", "-q", "--state", "exited", "--pod", p.id)
	c.wants(id, "stop", "--timeout", "0", id)
	c.wants("Exited", "ps", "-a", "--pod", p.id)
	c.wants(id, "rm", id)
	c.wantsNothing("ps", "-a", "-q", "--pod", p.id)
}

func testCrictlRun(c *crictlTest) {
	config := c.node.podConfig()
	p := &pod{node: c.node, config: config}
	file := writeConfig(c.T, "c.json", p.containerConfig("main", sh("echo ran; exec sleep 100000")))
	id := strings.TrimSpace(c.node.crictl(c.T, "run", file, writeConfig(c.T, "pod.json", config)))
	c.wants(id, "ps", "-q", "--no-trunc", "--state", "running")
	var inspected struct{ Info struct{ SandboxID string } }
	c.json(&inspected, "inspect", id)
	c.node.remember(inspected.Info.SandboxID, config)
	c.wants(inspected.Info.SandboxID, "rmp", "--force", inspected.Info.SandboxID)
}

func testCrictlInspect(c *crictlTest) {
	ctr := c.node.runPod(c.T).sleeping(c.T)
	var inspected struct {
		Status struct{ State, ID string }
		Info   struct {
			PID       int
			SandboxID string
		}
	}
	c.json(&inspected, "inspect", ctr.id)
	if s := inspected.Status; s.ID != ctr.id || s.State != "CONTAINER_RUNNING" || inspected.Info.SandboxID != ctr.pod.id {
		c.Errorf("crictl inspect = %+v; want %s of %s, running", inspected, ctr.id, ctr.pod.id)
	}
	// What every script asks for.
	pid := strings.TrimSpace(c.node.crictl(c.T, "inspect", "--output", "go-template", "--template", "{{.info.pid}}", ctr.id))
	if text, err := os.ReadFile("/proc/" + pid + "/cmdline"); err != nil || !strings.Contains(string(text), "sleep") {
		c.Errorf("process %s of the container: %q, %v; want the sleep", pid, text, err)
	}
}

func testCrictlExec(c *crictlTest) {
	ctr := c.node.runPod(c.T).sleeping(c.T)
	c.wants("in there\n", "exec", "-s", ctr.id, "echo", "in there")
	for _, transport := range transports {
		c.wants("in there\n", "exec", "-r", transport, ctr.id, "echo", "in there")
	}
	c.wants("by name\n", "exec", "--pod", ctr.pod.id, "echo", "by name")
}

func testCrictlAttach(c *crictlTest) {
	ctr := c.node.runPod(c.T).run(c.T, sh("while read line; do echo got $line; done; exec sleep 100000"), func(c *pb.ContainerConfig) { c.Stdin = true })
	for _, transport := range transports {
		stdin, out := c.start("attach", "-i", "-r", transport, ctr.id)
		fmt.Fprintln(stdin, transport)
		c.line(out, "got "+transport)
	}
}

func testCrictlPortForward(c *crictlTest) {
	p := c.node.runPod(c.T)
	p.run(c.T, []string{"httpd", "-f", "-p", "8080", "-h", "/etc"})
	for _, transport := range transports {
		_, out := c.start("port-forward", "-r", transport, p.id, ":8080")
		address := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(c.line(out, "Forwarding from 127.0.0.1"))
		eventually(c.T, "the server answers", func() bool {
			r, err := http.Get("http://" + address + "/hostname")
			if err != nil {
				return false
			}
			defer r.Body.Close()
			body, err := io.ReadAll(r.Body)
			return err == nil && strings.TrimSpace(string(body)) == p.config.Hostname
		})
	}
}

func testCrictlLogs(c *crictlTest) {
	ctr := c.node.runPod(c.T).run(c.T, sh("echo out; echo err >&2; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done"))
	eventually(c.T, "lines in the log", func() bool { return strings.Contains(c.node.crictl(c.T, "logs", ctr.id), "line 3\n") })
	c.wants("out\n", "logs", "--stream", "stdout", ctr.id)
	if got := c.node.crictl(c.T, "logs", "--tail", "1", ctr.id); strings.Count(got, "\n") != 1 {
		c.Errorf("crictl logs --tail 1 = %q", got)
	}
	_, out := c.start("logs", "-f", "--tail", "1", ctr.id)
	var first int
	if _, err := fmt.Sscanf(c.line(out, "line "), "line %d", &first); err != nil {
		c.Fatal(err)
	}
	c.line(out, fmt.Sprintf("line %d", first+5))
	if err := os.Rename(ctr.logPath, ctr.logPath+".1"); err != nil {
		c.Fatal(err)
	}
	c.node.crictl(c.T, "logs", "--reopen", ctr.id)
	eventually(c.T, "lines in the new log", func() bool {
		text, err := os.ReadFile(ctr.logPath)
		return err == nil && strings.Contains(string(text), "line ")
	})
}

func testCrictlUpdate(c *crictlTest) {
	ctr := c.node.runPod(c.T).sleeping(c.T)
	c.wants(ctr.id, "update", "--memory", "67108864", "--cpu-quota", "30000", "--cpu-period", "100000", ctr.id)
	var inspected struct {
		Status struct {
			Resources struct {
				Linux struct {
					CPUQuota           string `json:"cpuQuota"`
					MemoryLimitInBytes string `json:"memoryLimitInBytes"`
				}
			}
		}
	}
	c.json(&inspected, "inspect", ctr.id)
	if got := inspected.Status.Resources.Linux; got.MemoryLimitInBytes != "67108864" || got.CPUQuota != "30000" {
		c.Errorf("crictl inspect after update: %+v; want 64 MiB and 30000", got)
	}
}

func testCrictlRuntimeConfig(c *crictlTest) {
	c.node.crictl(c.T, "update-runtime-config", "--pod-cidr", "10.201.0.0/24")
	c.wants("10.201.0.0/24", "info")
}

func testCrictlInfo(c *crictlTest) {
	c.node.becomes(c.T, "NetworkReady")
	var info struct {
		Status struct {
			Conditions []struct {
				Type   string
				Status bool
			}
		}
		Config map[string]any
	}
	c.json(&info, "info")
	have := map[string]bool{}
	for _, condition := range info.Status.Conditions {
		have[condition.Type] = condition.Status
	}
	if !have["RuntimeReady"] || !have["NetworkReady"] || info.Config == nil {
		c.Errorf("crictl info = %+v; want both conditions, and the configuration", info)
	}
}

// testCrictlConfig: of crictl's own file, without the daemon.
func testCrictlConfig(c *crictlTest) {
	file := filepath.Join(c.TempDir(), "crictl.yaml")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		c.Fatal(err)
	}
	config := func(args ...string) string {
		c.Helper()
		out, err := exec.CommandContext(ctx(c.T), testtools.Crictl(c.T), append([]string{"--config", file, "config"}, args...)...).CombinedOutput()
		if err != nil {
			c.Fatalf("crictl config %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	config("--set", "runtime-endpoint=unix://"+c.node.socket())
	if got := strings.TrimSpace(config("--get", "runtime-endpoint")); got != "unix://"+c.node.socket() {
		c.Errorf("crictl config --get runtime-endpoint = %q", got)
	}
	out, err := exec.CommandContext(ctx(c.T), testtools.Crictl(c.T), "--config", file, "version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "cri-shim") {
		c.Errorf("crictl version by that configuration: %v\n%s", err, out)
	}
}

func testCrictlEvents(c *crictlTest) {
	_, out := c.start("events")
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for out.Scan() {
			lines <- out.Text()
		}
	}()
	// The stream begins at no known time: pods are made until one is told of.
	var seen strings.Builder
	eventually(c.T, "events of a container", func() bool {
		ctr := c.node.runPod(c.T).sleeping(c.T)
		c.wants(ctr.id, "stop", "--timeout", "0", ctr.id)
		for len(lines) > 0 {
			seen.WriteString(<-lines)
		}
		for _, want := range []string{ctr.id, "CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT"} {
			if !strings.Contains(seen.String(), want) {
				return false
			}
		}
		return true
	})
}

func testCrictlStats(c *crictlTest) {
	ctr := c.node.runPod(c.T).run(c.T, sh("sleep 100000 & while :; do :; done"))
	var stats struct {
		Stats []struct {
			Attributes struct{ ID string }
			CPU        struct {
				UsageCoreNanoSeconds struct{ Value string } `json:"usageCoreNanoSeconds"`
			}
			Memory struct {
				WorkingSetBytes struct{ Value string } `json:"workingSetBytes"`
			}
		}
	}
	c.json(&stats, "stats", "-o", "json", ctr.id)
	if len(stats.Stats) != 1 || stats.Stats[0].Attributes.ID != ctr.id || len(stats.Stats[0].CPU.UsageCoreNanoSeconds.Value) < 3 || stats.Stats[0].Memory.WorkingSetBytes.Value == "" {
		c.Errorf("crictl stats = %+v; want CPU and memory of %s", stats, ctr.id)
	}
	c.wants(ctr.id[:13], "stats", ctr.id)
	c.wants(ctr.pod.id[:13], "statsp", ctr.pod.id)
	c.wants(`"defaultInterface"`, "statsp", "-o", "json", ctr.pod.id)
}

func testCrictlMetrics(c *crictlTest) {
	p := c.node.runPod(c.T)
	p.sleeping(c.T)
	var descriptions struct {
		Descriptors []struct{ Name, Help string }
	}
	c.json(&descriptions, "metricdescs")
	if len(descriptions.Descriptors) < 20 {
		c.Fatalf("crictl metricdescs = %+v; want those that the kubelet documents", descriptions)
	}
	c.wants(p.id, "metricsp")
	c.wants("container_memory_working_set_bytes", "metricsp")
}

// testCrictlCheckpoint: without a CRIU that works here the command says what is missing; TestCheckpointContainer has one.
func testCrictlCheckpoint(c *crictlTest) {
	ctr := c.node.runPod(c.T).sleeping(c.T)
	archive := filepath.Join(c.TempDir(), "archive.tar")
	out, err := c.node.streamCommand(ctx(c.T), c.T, "checkpoint", "--export", archive, ctr.id).CombinedOutput()
	if _, stat := os.Stat(archive); err == nil && stat != nil || err != nil && !strings.Contains(string(out), "criu") {
		c.Errorf("crictl checkpoint = %s, %v; want an archive, or what is missing of criu", out, err)
	}
}

func testCrictlCompletion(c *crictlTest) {
	for shell, text := range map[string]string{"bash": "complete -", "zsh": "compdef", "fish": "fish shell completion"} {
		c.wants(text, "completion", shell)
	}
}

// testCrictlHelp: each command has its own.
func testCrictlHelp(c *crictlTest) {
	c.wants("client for CRI", "help")
	for _, command := range c.commands() {
		if command != "help" {
			c.wants("crictl "+command, command, "--help")
		}
	}
}

// outputFormats are the commands that print objects, with the formats that each takes.
var outputFormats = []struct{ command, formats string }{
	{"ps -a", "json yaml table"}, {"pods", "json yaml table"}, {"images", "json yaml table"},
	{"inspect CONTAINER", "json yaml go-template table"}, {"inspectp POD", "json yaml go-template table"},
	{"inspecti IMAGE", "json yaml go-template table"}, {"info", "json yaml go-template"}, {"imagefsinfo", "json yaml go-template table"},
	{"stats CONTAINER", "json yaml table"}, {"statsp POD", "json yaml table"}, {"metricsp", "json yaml"}, {"metricdescs", "json yaml"},
}

var yamlLine = regexp.MustCompile(`(?m)^[- ]*[A-Za-z]\w*:( |$)`)

// testCrictlOutputs: all of these formats. What crictl does not get for a format, it cannot print.
func testCrictlOutputs(c *crictlTest) {
	ctr := c.node.runPod(c.T).sleeping(c.T)
	for _, tc := range outputFormats {
		args := strings.Fields(strings.NewReplacer("CONTAINER", ctr.id, "POD", ctr.pod.id, "IMAGE", busybox()).Replace(tc.command))
		for _, format := range strings.Fields(tc.formats) {
			with := append([]string{args[0], "--output", format}, args[1:]...)
			if format == "go-template" {
				with = append([]string{args[0], "--output", format, "--template", "{{ printf \"%T\" . }}"}, args[1:]...)
			}
			got := c.node.crictl(c.T, with...)
			var tree any
			switch format {
			case "json":
				if err := json.Unmarshal([]byte(got), &tree); err != nil {
					c.Errorf("crictl %s: %v\n%s", strings.Join(with, " "), err, got)
				}
			case "yaml":
				if json.Unmarshal([]byte(got), &tree) == nil || !yamlLine.MatchString(got) {
					c.Errorf("crictl %s = %q; want YAML", strings.Join(with, " "), got)
				}
			case "go-template":
				if !strings.Contains(got, "map[") {
					c.Errorf("crictl %s = %q; want a map", strings.Join(with, " "), got)
				}
			default:
				if strings.Count(got, "\n") < 2 {
					c.Errorf("crictl %s = %q; want a heading and more", strings.Join(with, " "), got)
				}
			}
		}
	}
	_, out := c.start("events", "--output", "yaml")
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for out.Scan() {
			lines <- out.Text()
		}
	}()
	eventually(c.T, "events in YAML", func() bool {
		c.node.runPod(c.T)
		for len(lines) > 0 {
			if strings.HasPrefix(<-lines, "containerEventType:") {
				return true
			}
		}
		return false
	})
}

// testCrictlDebug: crictl shows the requests and answers.
func testCrictlDebug(c *crictlTest) {
	out, err := c.node.streamCommand(ctx(c.T), c.T, "--debug", "pods").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "ListPodSandboxRe") {
		c.Errorf("crictl --debug pods = %q, %v; want the request", out, err)
	}
}
