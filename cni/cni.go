// Package cni attaches pods to the node's network through CNI plugins: it finds the
// configuration and follows its changes, runs ADD, DEL, CHECK, STATUS and GC within time limits, and
// keeps a record of each attachment, so that it can be undone after a crash and when the configuration
// that made it is gone.
package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// ErrNotReady is matched by errors that say why pods cannot be attached now: there is no usable
// network configuration, or its plugins are not there or not ready.
var ErrNotReady = errors.New("network is not ready")

// Config says where the network's parts are. The zero value of a field is its default.
type Config struct {
	ConfDir  string        // configuration files; /etc/cni/net.d
	BinDirs  []string      // plugins, the first match counts; /opt/cni/bin, /usr/lib/cni
	CacheDir string        // our attachment records and libcni's results, kept over reboots as IPAM's own are; /var/lib/cri-shim/cni
	Timeout  time.Duration // for one ADD, DEL or CHECK of all plugins together; 60s

	// OtherCaches are libcni cache folders of other runtimes (containerd, CRI-O, podman). A plugin's GC
	// frees all that is not named to it, so what is recorded here for the same network name is named
	// as well; /var/lib/cni. Non-nil and empty: none.
	OtherCaches []string

	Log *slog.Logger // slog.Default()
}

func (c Config) withDefaults() Config {
	if c.ConfDir == "" {
		c.ConfDir = "/etc/cni/net.d"
	}
	if len(c.BinDirs) == 0 {
		c.BinDirs = []string{"/opt/cni/bin", "/usr/lib/cni"}
	}
	if c.CacheDir == "" {
		c.CacheDir = "/var/lib/cri-shim/cni"
	}
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	if c.OtherCaches == nil {
		c.OtherCaches = []string{"/var/lib/cni"}
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return c
}

func (c Config) validate() error {
	for _, dir := range slices.Concat([]string{c.ConfDir, c.CacheDir}, c.BinDirs, c.OtherCaches) {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("cni configuration: folder %q is not an absolute path", dir)
		}
	}
	if c.Timeout < 0 {
		return fmt.Errorf("cni configuration: timeout %s is negative", c.Timeout)
	}
	return nil
}

// PortMapping publishes a container port on the host.
type PortMapping = workload.PortMapping

// DNS is the content of a pod's resolv.conf.
type DNS = workload.DNS

// Attachment is one interface of one pod, and what its plugins are to know.
type Attachment struct {
	PodID     string // the sandbox ID; CNI's container ID
	Namespace string
	Name      string
	UID       string
	Netns     string // path of the network namespace
	IfName    string // "" is eth0

	PortMappings []PortMapping
	Bandwidth    *Bandwidth
	Aliases      []string // further names of the pod in the network
	DNS          *DNS
	CgroupParent string
	Annotations  map[string]string
}

// AttachmentID names an attachment.
type AttachmentID struct {
	PodID  string
	IfName string // "" is eth0
}

const defaultIfName = "eth0"

// Networks attaches pods to the node's network. Its methods may be called concurrently; operations on
// one pod wait for each other, those on different pods run in parallel.
type Networks struct {
	cfg Config
	cni *libcni.CNIConfig
	log *slog.Logger

	loading sync.Mutex // held while configuration is read
	conf    atomic.Pointer[snapshot]

	pods   podLocks
	gate   gate
	gone   goneSet
	status statusCache

	life context.Context // until Close
	stop context.CancelFunc
	wg   sync.WaitGroup // what ends with life
}

// New reads the configuration and starts to follow its changes until Close. A configuration
// that is missing or broken is no error here: Status reports it.
func New(cfg Config) (*Networks, error) {
	return newNetworks(cfg, nil)
}

func newNetworks(cfg Config, exec invoke.Exec) (*Networks, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if exec == nil {
		exec = &pluginExec{log: cfg.Log}
	}
	life, stop := context.WithCancel(context.Background())
	n := &Networks{
		cfg:  cfg,
		cni:  libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, exec),
		log:  cfg.Log,
		life: life,
		stop: stop,
	}
	n.reload()
	n.wg.Go(func() { n.watch(life) })
	return n, nil
}

// Close stops following the configuration and asking plugins for their STATUS. Other operations that run go on.
func (n *Networks) Close() {
	n.status.mu.Lock() // Status looks under it, and starts nothing more
	n.stop()
	n.status.mu.Unlock()
	n.wg.Wait()
}
