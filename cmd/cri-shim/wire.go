package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/platforms"

	"github.com/cri-shim/cri-shim/cni"
	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/internal/payload"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/version"
	"github.com/cri-shim/cri-shim/nri"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/oci/cgroup"
	"github.com/cri-shim/cri-shim/oci/selinux"
	"github.com/cri-shim/cri-shim/sandbox"
)

// Limits that no client gives. An operation includes a pull of nothing, so two minutes is
// what the kubelet's own runtime-request-timeout allows it.
const (
	operationTimeout = 2 * time.Minute
	cleanupTimeout   = 2 * time.Minute
)

// parts are what a node is assembled from.
type parts struct {
	store       *image.Store
	networks    *cni.Networks
	groups      *cgroup.Host
	manager     *sandbox.Manager
	streams     *cri.StreamServer
	checkpoints podCheckpoints
	plugins     *nri.Plugins // nil: NRI is off
	layers      *podLayers
	metrics     *nodeMetrics
	stopMetrics func()

	stop       context.CancelFunc
	background sync.WaitGroup
}

// leftoverAge is how long layers of a pull that failed are kept for the next try.
const leftoverAge = 24 * time.Hour

// collectImages frees, now and then, images and layers that nobody needs. It begins once
// every container holds its images again.
func (p *parts) collectImages(ctx context.Context, interval time.Duration, log *slog.Logger) {
	p.background.Go(func() {
		for {
			if err := p.store.Collect(ctx, leftoverAge); err != nil && ctx.Err() == nil {
				log.Warn("collect images", "err", err)
			}
			if interval <= 0 {
				return
			}
			select {
			case <-time.After(interval):
			case <-ctx.Done():
				return
			}
		}
	})
}

// assemble makes the node from the packages that do the work, each behind its port.
func assemble(ctx context.Context, cfg *config.Config, log *slog.Logger) (_ *node, err error) {
	p := &parts{metrics: newNodeMetrics()}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.store, err = openStore(ctx, cfg, p.metrics, log); err != nil {
		return nil, err
	}
	p.networks, err = cni.New(cni.Config{
		ConfDir: cfg.CNIConfDir, BinDirs: cfg.CNIBinDirs, CacheDir: filepath.Join(cfg.Root, "cni"),
		Timeout: cfg.CNITimeout.Duration, Log: log,
	})
	if err != nil {
		return nil, err
	}
	if p.groups, err = cgroup.Detect(); err != nil {
		return nil, err
	}
	images := newPodImages(p.store, log)
	copies := p.store.Snapshotter().Name == image.SnapshotNative
	if p.layers, err = newPodLayers(cfg, copies, log); err != nil {
		return nil, err
	}
	runtime, err := newPodRuntime(ctx, cfg, p.groups, images, log)
	if err != nil {
		return nil, err
	}
	p.checkpoints = newPodCheckpoints(runtime, cfg)
	if p.plugins, err = newPlugins(cfg, runtime, log); err != nil {
		return nil, err
	}
	if p.manager, err = newManager(ctx, cfg, p, images, runtime, log); err != nil {
		return nil, err
	}
	if copies {
		images.copied = func(c *sandbox.Container, dir string) error {
			pod, err := p.manager.Pod(c.PodID)
			if err != nil {
				return err
			}
			return p.layers.copied(pod, c, dir)
		}
	}
	if p.plugins != nil {
		if err := p.plugins.Start(p.manager); err != nil {
			return nil, err
		}
	}
	cri.LogStreams(log)
	p.streams, err = cri.NewStreamServer(cri.StreamOptions{
		Listen: cfg.StreamListen, TLSCert: cfg.StreamTLSCert, TLSKey: cfg.StreamTLSKey,
		IdleTimeout: cfg.StreamIdleTimeout.Duration, Runtime: p.manager, Log: log,
	})
	if err != nil {
		return nil, err
	}
	p.metrics.watch(p)
	if p.stopMetrics, err = serveMetrics(context.WithoutCancel(ctx), cfg.MetricsListen, &p.metrics.set, log); err != nil {
		return nil, err
	}
	images.holdVolumes(p.manager.Containers())
	background, stop := context.WithCancel(context.Background())
	p.stop = stop
	p.collectImages(background, cfg.ReconcileInterval.Duration, log)
	p.background.Go(func() { runtime.watchDevices(background, p.manager) })
	return &node{close: p.close, services: cri.Options{
		Runtime:    podDefaults{p.manager, runtime.oci, runtime.foreign, runtime.specs, defaultSysctls(cfg), newPodLevels(selinux.Enabled(), p.manager.Pods())},
		Images:     criImages{p.store},
		Archives:   archives{p.store},
		ImageAdmin: p.store,
		WritableLayers: func(ctx context.Context) ([]cri.FilesystemUsage, error) {
			return writableLayers(ctx, p.store, p.manager)
		},
		Devices:      func() ([]cri.DeviceUse, error) { return runtime.devicesInUse(p.manager) },
		Streams:      p.streams,
		Metrics:      p.metrics.set.Write,
		Observe:      p.metrics.called,
		Explain:      criImages{p.store},
		Handlers:     handlers(cfg, handler(p.store, log), runtime.foreign),
		Features:     cri.Features{SupplementalGroupsPolicy: true, MountOptions: true},
		CgroupDriver: cfg.CgroupDriver, MaxRequest: int(cfg.MaxCRIMessageSize),
		Name:    "cri-shim",
		Version: semantic(version.Version()),
		Info:    p.info(cfg, runtime),
	}}, nil
}

// handlers are the built-in runtime's names, and the other runtimes.
func handlers(cfg *config.Config, builtin cri.Handler, others *foreignRuntimes) []cri.Handler {
	userns := builtin.UserNamespaces
	out := []cri.Handler{builtin}
	for _, name := range cfg.BuiltinHandlers {
		builtin.Name = name
		out = append(out, builtin)
	}
	return append(out, others.handlers(userns)...)
}

// handler is the built-in runtime, with what this kernel and the file system of the images allow.
func handler(images *image.Store, log *slog.Logger) cri.Handler {
	h := cri.Handler{RecursiveReadOnly: sys.HasMountSetattr()}
	if err := images.UserNamespaces(); err != nil {
		log.Info("no pods with user namespaces", "err", err)
		return h
	}
	h.UserNamespaces = true
	return h
}

func newManager(ctx context.Context, cfg *config.Config, p *parts, images *podImages, runtime *podRuntime, log *slog.Logger) (*sandbox.Manager, error) {
	supervisor, err := payload.Supervisor(cfg.State)
	if err != nil {
		return nil, err
	}
	initProgram, err := payload.Init(cfg.State)
	if err != nil {
		return nil, err
	}
	initID, err := payload.ID(initProgram)
	if err != nil {
		return nil, err
	}
	procs, err := supervisorGroup(ctx, p.groups, cfg.SupervisorCgroup)
	if err != nil {
		return nil, err
	}
	c := sandbox.Config{
		Root:              cfg.Root,
		State:             cfg.State,
		NetnsDir:          cfg.NetnsDir,
		Programs:          sandbox.Programs{Supervisor: supervisor, Init: initProgram, InitID: initID},
		SupervisorProcs:   procs,
		PodsPerSupervisor: cfg.PodsPerSupervisor,
		OperationTimeout:  operationTimeout,
		CleanupTimeout:    cleanupTimeout,
		KillTimeout:       cfg.KillTimeout.Duration,
		ReconcileInterval: cfg.ReconcileInterval.Duration,
		LogLineMax:        int(cfg.LogLineMax),
		ExecOutputMax:     int(cfg.ExecSyncOutputLimit),
		Network:           podNetwork{p.networks, p.metrics},
		Images:            images,
		Layers:            p.layers,
		Snapshotter:       map[string]string{image.SnapshotOverlay: "overlayfs", image.SnapshotNative: "native"}[p.store.Snapshotter().Name],
		Runtime:           runtime,
		Meter:             podMeter{runtime.oci, runtime.foreign, p.layers},
		Limits:            podLimits{runtime.oci, runtime.foreign},
		Checkpoints:       p.checkpoints,
		Log:               log,
	}
	if p.plugins != nil { // else the interface would not be nil
		c.Plugins = p.plugins
	}
	return sandbox.New(ctx, c)
}

func openStore(ctx context.Context, cfg *config.Config, m *nodeMetrics, log *slog.Logger) (*image.Store, error) {
	c := image.Config{
		Root:                   filepath.Join(cfg.Root, "images"),
		RegistryConfigDir:      cfg.RegistryConfigDirs,
		RegistryAuth:           cfg.RegistryAuthFiles,
		KeepBlobs:              cfg.KeepBlobs,
		GzipProgram:            cfg.GzipProgram,
		MaxLayerSize:           int64(cfg.MaxLayerSize),
		MaxLayerEntries:        cfg.MaxLayerEntries,
		MaxConcurrentDownloads: cfg.MaxConcurrentDownloads,
		ProgressTimeout:        cfg.PullProgressTimeout.Duration,
		Pinned:                 cfg.PinnedImages,
		Verifiers:              cfg.ImageVerifierDir,
		VerifierTimeout:        cfg.ImageVerifierTimeout.Duration,
		Snapshotter:            cfg.Snapshotter,
		LayerFormat:            cfg.LayerFormat,
		LayerCompression:       cfg.LayerCompression,
		ContainersDir:          filepath.Join(cfg.Root, "layers"),
		Pulled:                 m.pulled,
		SignaturePolicy:        cfg.SignaturePolicy,
		SignatureSources:       cfg.SignatureSourcesDir,
		DecryptionKeys:         cfg.DecryptionKeys,
		TrustProgram:           cfg.TrustProgram,
		Log:                    log,
	}
	if cfg.ImagePlatform != "" {
		p, err := platforms.Parse(cfg.ImagePlatform)
		if err != nil {
			return nil, fmt.Errorf("image_platform: %w", err)
		}
		c.Platform = &p
	}
	return image.Open(ctx, c)
}

// supervisorGroup makes the supervisors' control group and returns the files by which a
// process enters it.
func supervisorGroup(ctx context.Context, groups *cgroup.Host, at string) ([]string, error) {
	g, err := groups.Create(ctx, at, nil)
	if err != nil {
		return nil, fmt.Errorf("supervisor_cgroup: %w", err)
	}
	var procs []string
	for _, tasks := range g.TaskFiles() { // cgroup v1
		procs = append(procs, path.Join(path.Dir(tasks), "cgroup.procs"))
	}
	if len(procs) > 0 {
		return procs, nil
	}
	dir, err := g.Dir()
	if err != nil {
		return nil, fmt.Errorf("supervisor_cgroup: %w", err)
	}
	defer dir.Close()
	return []string{path.Join(dir.Name(), "cgroup.procs")}, nil
}

// close lets go of everything in the opposite order; pods go on running.
func (p *parts) close() error {
	var errs []error
	if p.stop != nil {
		p.stop()
		p.background.Wait()
	}
	if p.stopMetrics != nil {
		p.stopMetrics()
	}
	if p.streams != nil {
		p.streams.Close()
	}
	if p.manager != nil {
		p.manager.Close()
	}
	if p.plugins != nil {
		p.plugins.Close()
	}
	errs = append(errs, p.layers.close())
	if p.groups != nil {
		errs = append(errs, p.groups.Close())
	}
	if p.networks != nil {
		p.networks.Close()
	}
	if p.store != nil {
		errs = append(errs, p.store.Close())
	}
	return errors.Join(errs...)
}

func texts[T any](in []T) []string {
	out := make([]string, 0, len(in))
	for _, v := range in {
		out = append(out, fmt.Sprint(v))
	}
	return out
}

func badRecords(in []sandbox.BadRecord) []string {
	out := make([]string, 0, len(in))
	for _, b := range in {
		out = append(out, b.Path+": "+b.Err.Error())
	}
	return out
}

// podDefaults adds to a pod what the administrator wants every pod to have.
type podDefaults struct {
	*sandbox.Manager
	oci     *oci.Runtime
	foreign *foreignRuntimes
	specs   *specStore
	sysctls map[string]string
	levels  *podLevels
}

// defaultSysctls are for pods with a network of their own. One that the client sets wins.
func defaultSysctls(cfg *config.Config) map[string]string {
	sysctls := map[string]string{}
	if cfg.EnableUnprivilegedPorts {
		sysctls["net.ipv4.ip_unprivileged_port_start"] = "0"
	}
	if cfg.EnableUnprivilegedICMP {
		sysctls["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	return sysctls
}
