package image

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Config directs a Store. The zero value of each field but Root is its default.
type Config struct {
	// Root is the directory of the store, absolute. It should be on a file system that overlayfs can use as a lower
	// layer with trusted.* attributes (ext4, xfs, btrfs, tmpfs since Linux 6.6).
	Root string
	// RegistryConfigDir are the directories with HOST/hosts.toml files, in the order in which they are asked.
	// Default /etc/cri-shim/certs.d, /etc/containerd/certs.d.
	RegistryConfigDir []string
	// MaxConcurrentDownloads bounds the layers that are fetched and unpacked at once, over all pulls. Default: the
	// number of CPUs, at least 3.
	MaxConcurrentDownloads int
	// Platform is what images are chosen for. Default: this machine's.
	Platform *ocispec.Platform
	// ProgressTimeout is how long a registry may send nothing before the connection counts as stalled and is made
	// anew (three times in a row, then the pull fails). Default 30 s.
	ProgressTimeout time.Duration
	// MaxLayerSize bounds the uncompressed size of a layer in bytes. Default 256 GiB.
	MaxLayerSize int64
	// MaxLayerEntries bounds the number of files in a layer. Default 8 Mi.
	MaxLayerEntries int64
	// Pinned are references, or with a "*" at the end prefixes of them, of images that List reports as pinned: the
	// kubelet does not collect those. They are normalised as those of Get are.
	Pinned []string
	Log    *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if !filepath.IsAbs(c.Root) {
		return c, fmt.Errorf("image store: root: %q is not an absolute path", c.Root)
	}
	c.Root = filepath.Clean(c.Root)
	if c.RegistryConfigDir == nil {
		c.RegistryConfigDir = []string{"/etc/cri-shim/certs.d", "/etc/containerd/certs.d"}
	}
	if c.MaxConcurrentDownloads <= 0 {
		c.MaxConcurrentDownloads = max(3, runtime.NumCPU())
	}
	if c.Platform == nil {
		p := platforms.DefaultSpec()
		c.Platform = &p
	}
	if c.ProgressTimeout <= 0 {
		c.ProgressTimeout = 30 * time.Second
	}
	if c.MaxLayerSize <= 0 {
		c.MaxLayerSize = 256 << 30
	}
	if c.MaxLayerEntries <= 0 {
		c.MaxLayerEntries = 8 << 20
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	pinned := make([]string, 0, len(c.Pinned))
	for _, p := range c.Pinned {
		base, glob := strings.CutSuffix(p, "*")
		if !glob {
			n, err := parseReference(p)
			if err != nil {
				return c, fmt.Errorf("image store: pinned: %w", err)
			}
			base = n.String()
		}
		if glob {
			base += "*"
		}
		pinned = append(pinned, base)
	}
	c.Pinned = pinned
	return c, nil
}
