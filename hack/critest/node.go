package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// The suite asserts that a container without CAP_NET_RAW cannot ping, which enable_unprivileged_icmp allows.
const configText = `root = '%[1]s/root'
state = '%[1]s/state'
listen = '%[1]s/sock'
netns_dir = '%[1]s/netns'
cni_conf_dir = '%[1]s/net.d'
cni_bin_dirs = ['%[2]s']
registry_config_dirs = ['%[1]s/certs.d']
enable_unprivileged_icmp = false
log_level = 'debug'
`

const networkText = `{
  "cniVersion": "1.1.0", "name": "critest", "plugins": [
    {"type": "bridge", "bridge": "critest0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": "%s/ipam", "ranges": [[{"subnet": "10.88.0.0/16"}]],
              "routes": [{"dst": "0.0.0.0/0"}]}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}
`

// node is the daemon under test.
type node struct {
	dir  string
	cmd  *exec.Cmd
	done chan error
}

// startNode starts the daemon with everything of it below the working folder, and a runtime beside the built-in one if it is
// named, and waits until it listens.
func startNode(o *options) (*node, error) {
	dir := o.work
	config := fmt.Appendf(nil, configText, dir, o.plugins)
	if o.driver != "" {
		config = fmt.Appendf(config, "cgroup_driver = '%s'\n", o.driver)
	}
	if o.handler != "" {
		config = fmt.Appendf(config, "[runtimes.%s]\npath = '%s'\n", filepath.Base(o.handler), o.handler)
	}
	if err := os.MkdirAll(filepath.Join(dir, "net.d"), 0o755); err != nil {
		return nil, err
	}
	err := errors.Join(
		os.WriteFile(filepath.Join(dir, "net.d", "10-critest.conflist"), fmt.Appendf(nil, networkText, dir), 0o644),
		os.WriteFile(filepath.Join(dir, "config.toml"), config, 0o644))
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(dir, "daemon.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	n := &node{dir: dir, done: make(chan error, 1), cmd: exec.Command(o.daemon, "serve", "--config", filepath.Join(dir, "config.toml"))}
	n.cmd.Stdout, n.cmd.Stderr, n.cmd.Dir = log, log, "/"
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { n.done <- n.cmd.Wait() }()
	for range 300 {
		if c, err := net.Dial("unix", n.socket()); err == nil {
			return n, c.Close()
		}
		select {
		case err := <-n.done:
			text, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("the daemon ended: %w\n%s", err, text[max(0, len(text)-2000):])
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil, errors.Join(fmt.Errorf("the daemon does not listen; see its log"), n.stop())
}

func (n *node) socket() string { return filepath.Join(n.dir, "sock") }

// stop asks the daemon to end; it must do so in time and without a complaint.
func (n *node) stop() error {
	select {
	case err := <-n.done:
		return fmt.Errorf("the daemon ended by itself: %v", err)
	default:
	}
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-n.done:
		return err
	case <-time.After(time.Minute):
		return errors.Join(errors.New("the daemon does not end"), n.cmd.Process.Kill())
	}
}

// suite are the options of a run of critest.
type suite struct {
	program, focus, skip, seed, report, handler string
	parallel                                    int
	excluded                                    list
	timeout                                     time.Duration
}

// run runs critest; its exit status counts for nothing, its report does.
func (s suite) run(ctx context.Context, socket string) error {
	args := []string{
		"-runtime-endpoint=unix://" + socket, "-image-endpoint=unix://" + socket,
		"-ginkgo.json-report=" + s.report, "-ginkgo.no-color", "-ginkgo.timeout=" + s.timeout.String(),
	}
	if s.handler != "" {
		args = append(args, "-runtime-handler="+s.handler)
	}
	if s.parallel > 1 {
		args = append(args, fmt.Sprintf("-parallel=%d", s.parallel))
	}
	if s.seed != "" {
		args = append(args, "-ginkgo.seed="+s.seed)
	}
	if s.focus != "" {
		args = append(args, "-ginkgo.focus="+s.focus)
	}
	if s.skip != "" {
		args = append(args, "-ginkgo.skip="+s.skip)
	}
	for _, pattern := range s.excluded.patterns() {
		args = append(args, "-ginkgo.skip="+pattern)
	}
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}
