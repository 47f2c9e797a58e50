package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// checkpointOf opens the checkpoint that an image's name stands for; nil is an ordinary image.
func (m *Manager) checkpointOf(ctx context.Context, image string) (Checkpoint, error) {
	if m.cfg.Checkpoints == nil {
		return nil, nil
	}
	from, err := m.cfg.Checkpoints.Find(ctx, image)
	if err != nil || from == nil {
		return nil, err
	}
	if err := m.cfg.Checkpoints.Ready(ctx); err != nil {
		return nil, errors.Join(err, from.Close())
	}
	return from, nil
}

// imageOf is the image of a container: the one that the client names, or that a checkpoint was made of.
func (m *Manager) imageOf(cfg *workload.Container, from Checkpoint) (*Image, error) {
	if from != nil {
		return from.Image()
	}
	img, err := m.cfg.Images.Resolve(cfg.Image.Image)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", cfg.Image.Image, err)
	}
	return img, nil
}

// RestoredContainer is a container that RestorePod has made.
type RestoredContainer struct{ Name, ID string }

// RestorePod makes a pod sandbox and containers of what CheckpointPod has written to a folder (CRI RestorePod). The
// containers are created: StartContainer brings their processes back. What an error leaves is nothing, so the caller's
// deadline is that of the operation.
func (m *Manager) RestorePod(ctx context.Context, dir string, cfg *workload.Pod, containers []*workload.Container) (string, []RestoredContainer, error) {
	md := cfg.Metadata
	id, err := m.restoreOnce(ctx, dir, cfg, containers)
	if err != nil {
		return "", nil, fmt.Errorf("restore pod sandbox %s/%s: %w", md.Namespace, md.Name, err)
	}
	made := map[workload.ContainerMetadata]string{}
	for _, c := range m.containersOf(id) {
		made[c.Config.Metadata] = c.ID
	}
	var out []RestoredContainer
	for _, c := range containers {
		if made[c.Metadata] == "" {
			return "", nil, fmt.Errorf("restore pod sandbox %s/%s: %w: %s has no container %s", md.Namespace, md.Name, ErrState, id, c.Metadata.Name)
		}
		out = append(out, RestoredContainer{c.Metadata.Name, made[c.Metadata]})
	}
	return id, out, nil
}

// restoreOnce has the pod's operations exclude each other, as RunPod has. It returns when what was made is gone again,
// should ctx end before. Who joins a call whose caller gives up begins anew.
func (m *Manager) restoreOnce(ctx context.Context, dir string, cfg *workload.Pod, containers []*workload.Container) (string, error) {
	for {
		own := false
		id, err := m.operations.do(context.WithoutCancel(ctx), podKey(cfg), func(inner context.Context, f *flight) (string, error) {
			own = true
			inner, cancel := context.WithCancelCause(inner)
			defer cancel(nil)
			defer context.AfterFunc(ctx, func() { cancel(ctx.Err()) })()
			id, err := m.restorePod(inner, f, dir, cfg, containers)
			if err != nil && ctx.Err() != nil {
				err = errors.Join(ctx.Err(), err)
			}
			return id, err
		})
		gaveUp := errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
		if own || !gaveUp || ctx.Err() != nil {
			return id, err
		}
	}
}

func (m *Manager) restorePod(ctx context.Context, f *flight, dir string, cfg *workload.Pod, containers []*workload.Container) (_ string, err error) {
	if old := m.same(cfg); old != nil {
		return old.ID, m.restoredBefore(old, cfg, containers)
	}
	if m.cfg.Checkpoints == nil {
		return "", fmt.Errorf("checkpoints: %w", errors.ErrUnsupported)
	}
	if err := m.cfg.Checkpoints.Ready(ctx); err != nil {
		return "", err
	}
	f.enter("checkpoint")
	archives, err := readPodCheckpoint(dir, cfg, containers)
	if err != nil {
		return "", err
	}
	from := make([]Checkpoint, len(containers))
	defer func() {
		for _, c := range from {
			if c != nil {
				err = errors.Join(err, c.Close())
			}
		}
	}()
	for i, c := range containers {
		at := fmt.Sprintf("container_configs[%d]", i)
		if from[i], err = m.cfg.Checkpoints.Open(ctx, archives[i]); err != nil {
			return "", fmt.Errorf("checkpoint_path: %w", err)
		}
		if err := m.suits(cfg, c, from[i]); err != nil { // before anything is made
			return "", fmt.Errorf("%s: %w", at, err)
		}
	}
	id, err := m.runPod(ctx, f, cfg)
	if err != nil {
		return "", err
	}
	defer m.rollBack(ctx, f, &err, func(ctx context.Context) error { return m.RemovePod(ctx, id) })
	p, err := m.pod(id)
	if err != nil {
		return "", err
	}
	for i, c := range containers {
		if _, err := m.makeContainer(ctx, f, p, c, from[i], true); err != nil {
			return "", fmt.Errorf("container_configs[%d]: container %s: %w", i, c.Metadata.Name, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	return id, nil
}

// restoredBefore is nil where a pod is what an earlier call with the same request has made: its answer was lost.
func (m *Manager) restoredBefore(old *Pod, cfg *workload.Pod, containers []*workload.Container) error {
	have := map[workload.ContainerMetadata]*workload.Container{}
	for _, c := range m.containersOf(old.ID) {
		if c.Checkpoint != "" {
			have[c.Config.Metadata] = &c.Config
		}
	}
	same := reflect.DeepEqual(&old.Config, cfg)
	for _, c := range containers {
		same = same && reflect.DeepEqual(have[c.Metadata], c)
	}
	if !same {
		return fmt.Errorf("%w: pod sandbox %s is ready under the same metadata", ErrExists, old.ID)
	}
	return nil
}

// suits refuses a configuration that names another image than the container was made of, or does not fit it otherwise.
func (m *Manager) suits(pod *workload.Pod, cfg *workload.Container, from Checkpoint) error {
	img, err := from.Image()
	if err != nil {
		return err
	}
	named, err := m.cfg.Images.Resolve(cfg.Image.Image)
	if err != nil {
		return fmt.Errorf("image %q: %w", cfg.Image.Image, err)
	}
	if named.ID != img.ID {
		return invalid("image", "%q is %s, the checkpoint was made of %s", cfg.Image.Image, named.ID, img.ID)
	}
	return from.Check(&Pod{Config: *pod}, &Container{Config: *cfg, ImageID: img.ID}, true)
}

// maxPodDump bounds a file of a pod's checkpoint that is read into memory, in bytes.
const maxPodDump = 4 << 20

// podOptions is podOptionsFile, in the form that checkpointctl shows.
type podOptions struct {
	Version    int               `json:"version"`
	Containers map[string]string `json:"containers"` // the archives by the containers' names
}

// podDump is podDumpFile.
type podDump struct {
	ID     string       `json:"id"`
	Config workload.Pod `json:"config"`
}

// readPodCheckpoint returns the archive of each container, if the folder has exactly these.
func readPodCheckpoint(dir string, cfg *workload.Pod, containers []*workload.Container) ([]string, error) {
	const at = "checkpoint_path"
	var options podOptions
	var dump podDump
	if err := readDump(filepath.Join(dir, podOptionsFile), &options); err != nil {
		return nil, invalid(at, "%w", err)
	}
	if err := readDump(filepath.Join(dir, podDumpFile), &dump); err != nil {
		return nil, invalid(at, "%w", err)
	}
	if options.Version != podFormat {
		return nil, invalid(at, "%s: format %d; this version reads %d", podOptionsFile, options.Version, podFormat)
	}
	if dump.Config.Handler != cfg.Handler {
		return nil, invalid("runtime_handler", "%q; the pod was checkpointed with %q", cfg.Handler, dump.Config.Handler)
	}
	var missing []string
	out := make([]string, len(containers))
	rest := maps.Clone(options.Containers)
	for i, c := range containers {
		name := c.Metadata.Name
		file, ok := rest[name]
		switch {
		case !ok:
			missing = append(missing, name)
		case file == "" || file != filepath.Base(file) || file == "." || file == "..":
			return nil, invalid(at, "%s: %q is not the name of a file in it", podOptionsFile, file)
		}
		delete(rest, name)
		out[i] = filepath.Join(dir, file)
	}
	if len(missing) > 0 {
		return nil, invalid("container_configs", "not in the checkpoint: %s", strings.Join(missing, ", "))
	}
	if len(rest) > 0 {
		return nil, invalid("container_configs", "without those of the checkpoint: %s", strings.Join(slices.Sorted(maps.Keys(rest)), ", "))
	}
	return out, nil
}

func readDump(path string, into any) error {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPodDump+1))
	if err != nil {
		return err
	}
	if len(text) > maxPodDump {
		return fmt.Errorf("%s: more than %d bytes", path, maxPodDump)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// podKey names the operation that makes a pod.
func podKey(cfg *workload.Pod) string {
	md := cfg.Metadata
	return "pod/" + md.Namespace + "/" + md.Name + "/" + md.UID + "/" + strconv.FormatUint(uint64(md.Attempt), 10)
}
