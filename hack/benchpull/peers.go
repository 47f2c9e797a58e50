package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/image"
)

// peer is a program that pulls.
type peer struct {
	name  string
	about string // its version, and what it was told
	// start makes it ready to pull into dir, whose folder run is on a tmpfs. It returns nil for what has no daemon.
	start func(ctx context.Context, dir string) (*daemon, error)
	// pull returns when the images could be used; a process may have something to finish after that.
	pull func(ctx context.Context, d *daemon, dir string, refs []string) (time.Time, error)
}

// newPeer returns nil for what is not installed.
func newPeer(ctx context.Context, name string) (*peer, error) {
	switch name {
	case "cri-shim":
		return criShim(ctx, name, "as configured by default", "")
	case "plain":
		return criShim(ctx, name, "layers as images that are not compressed", "layer_compression = \"none\"\n")
	case "directory":
		return criShim(ctx, name, "layers as directories", "layer_format = \"directory\"\n")
	case "store":
		return &peer{name, "the store of cri-shim, in a process of its own; CPU_PROFILE names a file for pprof", noDaemon, pullStore}, nil
	case "containerd":
		return containerd(ctx)
	case "podman":
		return command1(ctx, name, func(dir, ref string) []string {
			return []string{"--root", dir + "/root", "--runroot", dir + "/run", "--storage-driver", "overlay",
				"pull", "--quiet", "--tls-verify=false", ref}
		})
	case "skopeo":
		return command1(ctx, name, func(dir, ref string) []string {
			return []string{"--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "docker://" + ref,
				fmt.Sprintf("containers-storage:[overlay@%[1]s/root+%[1]s/run]%[2]s", dir, ref)}
		})
	}
	return nil, fmt.Errorf("%q is not known", name)
}

func noDaemon(context.Context, string) (*daemon, error) { return nil, nil }

// command1 is a program that is called once for each image.
func command1(ctx context.Context, name string, args func(dir, ref string) []string) (*peer, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, nil //nolint:nilerr // not installed
	}
	version, err := output(ctx, path, "--version")
	if err != nil {
		return nil, err
	}
	start := func(ctx context.Context, _ string) (*daemon, error) {
		_, err := output(ctx, path, "--version") // into the page cache, as a daemon is
		return nil, err
	}
	return &peer{name, strings.TrimSpace(version), start, func(ctx context.Context, _ *daemon, dir string, refs []string) (time.Time, error) {
		return each(refs, func(ref string) error {
			_, err := output(ctx, path, args(dir, ref)...)
			return err
		})
	}}, nil
}

// pullCRI is what the kubelet does.
func pullCRI(ctx context.Context, d *daemon, _ string, refs []string) (time.Time, error) {
	return each(refs, func(ref string) error {
		_, err := d.images.PullImage(ctx, &pb.PullImageRequest{Image: &pb.ImageSpec{Image: ref}})
		return err
	})
}

// criShim is $CRI_SHIM, or what make build has made, with more in its configuration, which is about what.
func criShim(ctx context.Context, name, what, more string) (*peer, error) {
	path := os.Getenv("CRI_SHIM")
	if path == "" {
		path = "bin/cri-shim"
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	version, err := output(ctx, path, "version")
	if err != nil {
		return nil, fmt.Errorf("%w (make build makes it; CRI_SHIM names another)", err)
	}
	first, _, _ := strings.Cut(version, "\n")
	start := func(ctx context.Context, dir string) (*daemon, error) {
		config := filepath.Join(dir, "run", "config.toml")
		text := fmt.Sprintf("root = %q\nstate = %q\nlisten = %q\nnetns_dir = %q\ncni_conf_dir = %q\nsupervisor_cgroup = %q\n%s",
			dir+"/root", dir+"/run/state", dir+"/run/sock", dir+"/run/netns", dir+"/run/net.d", "/benchpull", more)
		if err := errors.Join(os.WriteFile(config, []byte(text), 0o600), os.Mkdir(dir+"/run/net.d", 0o700)); err != nil {
			return nil, err
		}
		return startDaemon(ctx, name, []string{path, "serve", "--config", config}, dir)
	}
	return &peer{name, first + "; CRI, " + what, start, pullCRI}, nil
}

// containerd is that of $CONTAINERD_BIN, a folder, or of the PATH.
func containerd(ctx context.Context) (*peer, error) {
	path, err := exec.LookPath(filepath.Join(os.Getenv("CONTAINERD_BIN"), "containerd"))
	if err != nil && os.Getenv("CONTAINERD_BIN") != "" {
		return nil, fmt.Errorf("CONTAINERD_BIN: %w", err)
	}
	if err != nil {
		return nil, nil //nolint:nilerr // not installed
	}
	version, err := output(ctx, path, "--version")
	if err != nil {
		return nil, err
	}
	start := func(ctx context.Context, dir string) (*daemon, error) {
		config := filepath.Join(dir, "run", "config.toml")
		if err := os.WriteFile(config, []byte(containerdConfig(dir)), 0o600); err != nil {
			return nil, err
		}
		return startDaemon(ctx, "containerd", []string{path, "--config", config}, dir)
	}
	about := fmt.Sprintf("%s; CRI, transfer service, overlayfs, %d downloads and %d unpacks at a time, igzip where it is installed",
		strings.TrimSpace(version), containerdDownloads, containerdUnpacks)
	return &peer{"containerd", about, start, pullCRI}, nil
}

// As many at a time as cri-shim has; its own default for unpacks is one. concurrent_layer_fetch_buffer stays off, which
// is its default: several connections for a layer do not make a loopback faster.
const (
	containerdDownloads = 3
	containerdUnpacks   = 3
)

// containerdConfig is a daemon's with folders of its own that pulls as fast as it can. What it does not need is left out:
// some of these plugins take away those that depend on them where they cannot be loaded, as the EROFS differ does with
// the transfer service if mkfs.erofs is too old.
func containerdConfig(dir string) string {
	return fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
imports = []
disabled_plugins = [
  "io.containerd.differ.v1.erofs", "io.containerd.mount-handler.v1.erofs", "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.native", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
address = %[3]q

[ttrpc]
address = %[4]q

[plugins.'io.containerd.cri.v1.images']
snapshotter = 'overlayfs'
use_local_image_pull = false

[plugins.'io.containerd.transfer.v1.local']
max_concurrent_downloads = %[5]d
max_concurrent_unpacks = %[6]d

[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
platform = 'linux'
snapshotter = 'overlayfs'
differ = 'walking'
`, dir+"/root", dir+"/run/state", dir+"/run/sock", dir+"/run/sock.ttrpc", containerdDownloads, containerdUnpacks)
}

// pullStore runs this program again, which says a line when it has pulled.
func pullStore(ctx context.Context, _ *daemon, dir string, refs []string) (time.Time, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"pull-into", filepath.Join(dir, "images")}, refs...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var text bytes.Buffer
	cmd.Stderr = &text
	out, err := cmd.StdoutPipe()
	if err != nil {
		return time.Time{}, err
	}
	if err := cmd.Start(); err != nil {
		return time.Time{}, err
	}
	_, err = out.Read(make([]byte, 1))
	at := time.Now()
	if err = errors.Join(err, cmd.Wait()); err != nil {
		return at, fmt.Errorf("%w: %s", err, text.String())
	}
	return at, nil
}

// pullInto is the process in which the store is measured.
func pullInto(ctx context.Context, root string, refs []string) error {
	if name := os.Getenv("CPU_PROFILE"); name != "" {
		f, err := os.Create(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	s, err := image.Open(ctx, image.Config{Root: root, RegistryConfigDir: []string{}, GzipProgram: os.Getenv("GZIP_PROGRAM")})
	if err != nil {
		return err
	}
	for _, ref := range refs {
		if _, err := s.Pull(ctx, ref, nil, image.PullOptions{}); err != nil {
			return err
		}
	}
	fmt.Println("pulled")
	return s.Close()
}

func each(refs []string, f func(string) error) (time.Time, error) {
	for _, ref := range refs {
		if err := f(ref); err != nil {
			return time.Time{}, err
		}
	}
	return time.Now(), nil
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interruption is ours to handle
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(name), err, out.String())
	}
	return out.String(), nil
}
