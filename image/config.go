package image

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
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
	// RegistryAuth are files in the format of docker's config.json, and directories of such files (*.json), with
	// credentials for registries and mirrors. A client's own come first. Default /etc/cri-shim/auth.d.
	RegistryAuth []string
	// MaxConcurrentDownloads bounds the layers that are fetched and unpacked at once, over all pulls. Default: the
	// number of CPUs, at least 3. While the CPUs are busy with it, there are as many as CPUs, at least 2.
	MaxConcurrentDownloads int
	// Platform is what images are chosen for. Default: this machine's.
	Platform *ocispec.Platform
	// ProgressTimeout is how long a registry may send nothing before the connection counts as stalled and is made
	// anew, to the next mirror if there is one (three times in a row, then the pull fails). Default 30 s.
	ProgressTimeout time.Duration
	// MaxLayerSize bounds the uncompressed size of a layer in bytes. Default 256 GiB.
	MaxLayerSize int64
	// MaxLayerEntries bounds the number of files in a layer. Default 8 Mi.
	MaxLayerEntries int64
	// KeepBlobs keeps the compressed blobs of pulled layers too.
	KeepBlobs bool
	// GzipProgram decompresses gzip from standard input to standard output when called with -dc. "auto", the default,
	// is igzip where it is installed; "none" is the built-in decompressor.
	GzipProgram string
	// Pinned are references, or with a "*" at the end prefixes of them, of images that List reports as pinned: the
	// kubelet does not collect those. They are normalised as those of Get are.
	Pinned []string
	// Verifiers is a folder of programs that approve images; "" is none. See trust.go.
	Verifiers string
	// VerifierTimeout bounds one call of one program. Default 10 s.
	VerifierTimeout time.Duration
	// Snapshotter is SnapshotAuto, the default, SnapshotOverlay or SnapshotNative.
	Snapshotter string
	// LayerFormat is LayerAuto, the default, LayerDirectory or LayerErofs.
	LayerFormat string
	// LayerCompression is CompressAuto, the default, CompressLZ4 or CompressNone: of what EROFS images hold.
	LayerCompression string
	// ContainersDir is a directory on the file system of those that Rootfs is given. Default Root.
	ContainersDir string
	// Pulled, if set, is told of each pull from a registry that has ended.
	Pulled func(PullResult)
	// SignaturePolicy is a file as in containers-policy.json(5) that says whose signatures images need; "" is none. See
	// signatures.go.
	SignaturePolicy string
	// SignatureSources is a folder as in containers-registries.d(5). Default /etc/containers/registries.d.
	SignatureSources string
	// DecryptionKeys are files with private keys, and folders of such files, for encrypted layers. Default
	// /etc/cri-shim/keys.
	DecryptionKeys []string
	// TrustProgram is cri-shim-trust. Default: the one beside this program.
	TrustProgram string
	Log          *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if !filepath.IsAbs(c.Root) {
		return c, fmt.Errorf("image store: root: %q is not an absolute path", c.Root)
	}
	c.Root = filepath.Clean(c.Root)
	if c.RegistryConfigDir == nil {
		c.RegistryConfigDir = []string{"/etc/cri-shim/certs.d", "/etc/containerd/certs.d"}
	}
	if c.RegistryAuth == nil {
		c.RegistryAuth = []string{"/etc/cri-shim/auth.d"}
	}
	if c.MaxConcurrentDownloads <= 0 {
		c.MaxConcurrentDownloads = max(3, runtime.NumCPU())
	}
	if c.ContainersDir == "" {
		c.ContainersDir = c.Root
	}
	c.LayerFormat, c.LayerCompression = cmp.Or(c.LayerFormat, LayerAuto), cmp.Or(c.LayerCompression, CompressAuto)
	if !slices.Contains([]string{LayerAuto, LayerDirectory, LayerErofs}, c.LayerFormat) {
		return c, fmt.Errorf("image store: layer format: %q is not %s, %s or %s", c.LayerFormat, LayerAuto, LayerDirectory, LayerErofs)
	}
	if !slices.Contains([]string{CompressAuto, CompressLZ4, CompressNone}, c.LayerCompression) {
		return c, fmt.Errorf("image store: layer compression: %q is not %s, %s or %s", c.LayerCompression, CompressAuto, CompressLZ4, CompressNone)
	}
	if c.Platform == nil {
		p := platforms.DefaultSpec()
		c.Platform = &p
	}
	if c.ProgressTimeout <= 0 {
		c.ProgressTimeout = 30 * time.Second
	}
	if c.VerifierTimeout <= 0 {
		c.VerifierTimeout = 10 * time.Second
	}
	if c.SignatureSources == "" {
		c.SignatureSources = "/etc/containers/registries.d"
	}
	if c.DecryptionKeys == nil {
		c.DecryptionKeys = []string{"/etc/cri-shim/keys"}
	}
	if c.TrustProgram == "" {
		exe, err := os.Executable()
		if err != nil {
			return c, fmt.Errorf("image store: trust program: %w", err)
		}
		c.TrustProgram = filepath.Join(filepath.Dir(exe), "cri-shim-trust")
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
	if p := c.GzipProgram; p != "" && p != "auto" && p != "none" {
		if !filepath.IsAbs(p) {
			return c, fmt.Errorf("image store: gzip program: %q is not an absolute path, auto or none", p)
		}
		if _, err := exec.LookPath(p); err != nil {
			return c, fmt.Errorf("image store: gzip program: %w", err)
		}
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

// gzipProgram is the path of the program to use, or "".
func (c *Config) gzipProgram() string {
	switch c.GzipProgram {
	case "", "auto":
		path, err := exec.LookPath("igzip")
		if err != nil {
			return ""
		}
		return path
	case "none":
		return ""
	}
	return c.GzipProgram
}
