package node

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// WriteDaemonConfig writes dir/config.toml: all that the daemon has is below dir, and its socket is dir/sock.
func WriteDaemonConfig(dir string) error {
	text := fmt.Sprintf(`root = '%[1]s/root'
state = '%[1]s/state'
listen = '%[1]s/sock'
netns_dir = '%[1]s/netns'
cni_conf_dir = '%[1]s/net.d'
cni_bin_dirs = ['%[2]s']
registry_config_dirs = ['%[1]s/certs.d']
log_level = 'debug'
`, dir, Env("CNI_PLUGINS"))
	if criu := os.Getenv("CRIU"); criu != "" {
		text += fmt.Sprintf("criu_program = '%s'\n", criu)
	}
	return os.WriteFile(filepath.Join(dir, "config.toml"), []byte(text), 0o644)
}

// StartDaemon starts cri-shim with the configuration of WriteDaemonConfig, and waits until it listens.
func StartDaemon(dir string) (*Program, error) {
	socket := filepath.Join(dir, "sock")
	old, _ := os.Stat(socket) // one that was killed leaves it
	p, err := Start(dir, "daemon", Env("CRI_SHIM"), "serve", "--config", filepath.Join(dir, "config.toml"))
	if err != nil {
		return nil, err
	}
	return p, Until("the daemon listens", time.Minute, []*Program{p}, func() error {
		s, err := os.Stat(socket)
		if err == nil && old != nil && os.SameFile(s, old) && s.Sys().(*syscall.Stat_t).Ctim == old.Sys().(*syscall.Stat_t).Ctim {
			err = fmt.Errorf("%s is the last daemon's", socket)
		}
		return err
	})
}

// Crictl runs crictl against the daemon of dir and returns its standard output.
func Crictl(dir string, args ...string) (string, error) {
	socket := "unix://" + filepath.Join(dir, "sock")
	cmd := exec.CommandContext(context.Background(), Env("CRICTL"), append([]string{
		"--config", "/dev/null", "--runtime-endpoint", socket, "--image-endpoint", socket, "--timeout", "30s",
	}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("crictl %s: %w: %s", strings.Join(args, " "), err, &stderr)
	}
	return string(out), nil
}
