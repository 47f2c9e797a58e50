package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// CreateContainer makes a container in a ready pod and returns its ID; nothing runs
// yet. A retry with the same metadata joins the call that still runs, or gets its result.
func (m *Manager) CreateContainer(ctx context.Context, podID string, cfg *workload.Container) (string, error) {
	p, err := m.pod(podID)
	if err != nil {
		return "", fmt.Errorf("create container: %w", err)
	}
	key := "container/" + p.ID + "/" + cfg.Metadata.Name + "/" + strconv.FormatUint(uint64(cfg.Metadata.Attempt), 10)
	id, err := m.operations.do(ctx, key, func(ctx context.Context, f *flight) (string, error) {
		return m.createContainer(ctx, f, p, cfg)
	})
	if err != nil {
		return "", fmt.Errorf("create container %s in pod sandbox %s: %w", cfg.Metadata.Name, p.ID, err)
	}
	return id, nil
}

func (m *Manager) createContainer(ctx context.Context, f *flight, p *pod, cfg *workload.Container) (string, error) {
	facts := m.snapshot(p)
	if facts.State() != PodReady {
		return "", fmt.Errorf("%w: the pod sandbox is %s", ErrState, facts.State())
	}
	for _, c := range m.Containers() {
		if c.PodID != p.ID || c.Config.Metadata != cfg.Metadata {
			continue
		}
		if reflect.DeepEqual(&c.Config, cfg) {
			return c.ID, nil
		}
		return "", fmt.Errorf("%w: container %s has the same name and attempt with another configuration", ErrExists, c.ID)
	}
	from, err := m.checkpointOf(ctx, cfg.Image.Image)
	if err != nil {
		return "", err
	}
	if from != nil {
		defer from.Close()
	}
	return m.makeContainer(ctx, f, p, cfg, from, false)
}

// makeContainer makes a container, of a checkpoint if from is not nil; see Checkpoint.Check for expected.
func (m *Manager) makeContainer(ctx context.Context, f *flight, p *pod, cfg *workload.Container, from Checkpoint, expected bool) (_ string, err error) {
	facts := m.snapshot(p)
	if u := cfg.Security.Namespaces.User; u != nil && !reflect.DeepEqual(podUser(u), userNamespace(facts)) {
		return "", invalid("config.linux.security_context.namespace_options.userns_options", "not those of the pod sandbox")
	}
	if pid := cfg.Security.Namespaces.PID; (pid == workload.ModePod || pid == "") && !m.sharesPID(facts) {
		return "", invalid("config.linux.security_context.namespace_options.pid",
			"POD, but the pod sandbox has no PID namespace of its own to share: its own option is %s", strings.ToUpper(string(facts.Config.Security.Namespaces.PID)))
	}
	img, err := m.imageOf(cfg, from)
	if err != nil {
		return "", err
	}
	logPath, err := logPath(&facts.Config, cfg)
	if err != nil {
		return "", err
	}
	c := &ctr{done: make(chan struct{}), Container: Container{
		ID: newID(), PodID: p.ID, Config: *cfg, ImageID: img.ID, ImageRef: img.Ref, LogPath: logPath,
		StopSignal: firstOf(cfg.StopSignal, img.StopSignal, "SIGTERM"),
	}}
	if err := m.checkContainer(facts, c, from, expected); err != nil {
		return "", err
	}
	free, err := m.locks.take(ctx, "container "+c.ID, "create")
	if err != nil {
		return "", err
	}
	defer free()
	if err := m.ctrFiles.create(c.ID, &c.Container); err != nil { // the record comes first
		return "", err
	}
	if err := m.enroll(p, c); err != nil {
		return "", errors.Join(err, m.ctrFiles.remove(c.ID))
	}
	defer m.rollBack(ctx, f, &err, func(ctx context.Context) error { return m.teardownContainer(ctx, c) })
	var timeline []Stage
	release := func() {}
	defer func() { release() }()
	for _, s := range []struct {
		name string
		do   func() error
	}{
		{"hold image", func() error { return m.cfg.Images.Hold(img.ID, c.ID) }},
		{"image volumes", func() error { return m.cfg.Images.HoldVolumes(ctx, &c.Container) }},
		{"layer", func() error { return m.makeLayer(facts, c, img) }},
		{stepCheckpoint, func() error { return from.Unpack(ctx, facts, &c.Container, m.layerDir(c.ID)) }},
		{"log", func() error { return makeLogDir(c.LogPath) }},
		{"plugins", func() error {
			release = m.holdPlugins()
			return m.adjust(ctx, facts, c)
		}},
	} {
		if s.name == "plugins" && m.cfg.Plugins == nil || s.name == "image volumes" && !hasImageVolume(cfg) ||
			s.name == stepCheckpoint && from == nil {
			continue
		}
		if err := m.step(f, &timeline, s.name, s.do); err != nil {
			return "", err
		}
	}
	// The creation time makes the container visible: a record without it is an interrupted creation.
	if err := m.updateContainer(c, func(c *ctr) { c.CreatedAt, c.Timeline = time.Now(), timeline }); err != nil {
		return "", err
	}
	m.tellContainer(EventCreated, c)
	m.tellPlugins(ctx, PluginCreated, facts, m.facts(c))
	return c.ID, nil
}

// stepCheckpoint unpacks what a container is restored from.
const stepCheckpoint = "checkpoint"

// checkContainer refuses what could never be started.
func (m *Manager) checkContainer(p *Pod, c *ctr, from Checkpoint, expected bool) error {
	layer := m.cfg.Layers.Check(p, &c.Container)
	if from == nil {
		return errors.Join(m.cfg.Runtime.Check(p, &c.Container), layer)
	}
	c.Checkpoint = from.Name()
	return errors.Join(from.Check(p, &c.Container, expected), layer)
}

func hasImageVolume(cfg *workload.Container) bool {
	return slices.ContainsFunc(cfg.Mounts, func(m workload.Mount) bool { return m.Image != nil })
}

// enroll makes a container known. A pod that is being stopped or removed meanwhile either finds it
// or does not get it.
func (m *Manager) enroll(p *pod, c *ctr) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if state := p.State(); m.pods[p.ID] != p || state != PodReady {
		return fmt.Errorf("%w: the pod sandbox is being stopped", ErrState)
	}
	m.ctrs[c.ID] = c
	return nil
}

func firstOf(all ...string) string {
	for _, s := range all {
		if s != "" {
			return s
		}
	}
	return ""
}

// logPath joins the pod's log directory and the container's path in it, which must not leave it.
func logPath(p *workload.Pod, c *workload.Container) (string, error) {
	if p.LogDirectory == "" || c.LogPath == "" {
		return "", nil
	}
	if !filepath.IsAbs(p.LogDirectory) {
		return "", invalid("log_directory", "%q is not an absolute path", p.LogDirectory)
	}
	full := filepath.Join(p.LogDirectory, c.LogPath)
	if !strings.HasPrefix(full, filepath.Clean(p.LogDirectory)+"/") {
		return "", invalid("log_path", "%q leaves the log directory", c.LogPath)
	}
	return full, nil
}

func makeLogDir(path string) error {
	if path == "" {
		return nil
	}
	return os.MkdirAll(filepath.Dir(path), 0o755)
}

// makeLayer makes the container's own folder, with the image's volumes. The writable layer
// is made in it when the root file system is mounted.
func (m *Manager) makeLayer(p *Pod, c *ctr, img *Image) error {
	dir := m.layerDir(c.ID)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return err
	}
	if err := m.cfg.Layers.Prepare(p, &c.Container, dir); err != nil {
		return err
	}
	for i := range img.Volumes {
		volume := filepath.Join(dir, "volumes", strconv.Itoa(i))
		if err := os.MkdirAll(volume, 0o755); err != nil {
			return err
		}
		if err := chownPodRoot(p, volume); err != nil {
			return err
		}
	}
	return nil
}

// volumes maps the image's VOLUME paths to their folders.
func (m *Manager) volumes(c *Container, img *Image) map[string]string {
	if len(img.Volumes) == 0 {
		return nil
	}
	v := make(map[string]string, len(img.Volumes))
	for i, path := range img.Volumes {
		v[path] = filepath.Join(m.layerDir(c.ID), "volumes", strconv.Itoa(i))
	}
	return v
}
