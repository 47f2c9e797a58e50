package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cri-shim/cri-shim/internal/checkpoint"
	"github.com/cri-shim/cri-shim/internal/config"
	"github.com/cri-shim/cri-shim/oci/criu"
	"github.com/cri-shim/cri-shim/sandbox"
)

// podCheckpoints is sandbox.Checkpoints by criu. Nothing is looked for before a checkpoint is asked for.
type podCheckpoints struct {
	runtime *podRuntime
	tool    *criu.Tool
	policy  restorePolicy
}

func newPodCheckpoints(r *podRuntime, cfg *config.Config) podCheckpoints {
	return podCheckpoints{r, &criu.Tool{Program: cfg.CRIUProgram}, newRestorePolicy(cfg)}
}

// Ready implements sandbox.Checkpoints.
func (c podCheckpoints) Ready(ctx context.Context) error {
	_, err := c.tool.Check(ctx)
	return err
}

// status is for the verbose status.
func (c podCheckpoints) status() map[string]any {
	out := map[string]any{"restoreFromImages": c.policy.images, "restoreArchiveDirs": c.policy.archives}
	version, err := c.tool.Check(context.Background())
	if err != nil {
		out["available"], out["missing"] = false, err.Error()
		return out
	}
	out["available"], out["criu"] = true, criu.Version(version)
	return out
}

func (c podCheckpoints) group(p *sandbox.Pod, ctr *sandbox.Container) string {
	return c.runtime.foreign.group(p, ctr)
}

// Freeze implements sandbox.Checkpoints.
func (c podCheckpoints) Freeze(ctx context.Context, p *sandbox.Pod, ctr *sandbox.Container) error {
	if h, err := c.runtime.foreign.of(p); err != nil {
		return err
	} else if h != nil {
		return fmt.Errorf("a checkpoint with the handler %s: %w", p.Config.Handler, errors.ErrUnsupported)
	}
	return c.runtime.oci.Freeze(ctx, c.group(p, ctr))
}

// Thaw implements sandbox.Checkpoints.
func (c podCheckpoints) Thaw(p *sandbox.Pod, ctr *sandbox.Container) error {
	return c.runtime.oci.Thaw(c.group(p, ctr))
}

// Save implements sandbox.Checkpoints.
func (c podCheckpoints) Save(ctx context.Context, p *sandbox.Pod, ctr *sandbox.Container, layer, work, archive string) error {
	if !filepath.IsAbs(archive) {
		return fmt.Errorf("%w: location: %q is not an absolute path", sandbox.ErrInvalid, archive)
	}
	spec, err := c.runtime.specs.load(ctr.ID)
	if err != nil {
		return err
	}
	freezer, err := c.runtime.oci.FreezerDir(c.group(p, ctr))
	if err != nil {
		return err
	}
	images := filepath.Join(work, checkpoint.ImagesDir)
	if err := c.tool.Dump(ctx, criu.DumpOptions{
		Options: criu.Options{Spec: spec, Images: images, Work: work, FileLocks: true, TCPEstablished: true},
		PID:     ctr.PID, LeaveRunning: true, Freezer: freezer,
	}); err != nil {
		return err
	}
	content := checkpoint.Content{
		JSON: map[string]any{
			checkpoint.ConfigFile: c.config(ctr), checkpoint.SpecFile: spec,
			checkpoint.StatusFile:  checkpoint.Status{CreatedAt: ctr.CreatedAt.UnixNano(), StartedAt: ctr.StartedAt.UnixNano(), Pid: uint32(ctr.PID)},
			checkpoint.NetworkFile: network(p),
		},
		Dirs: map[string]string{checkpoint.ImagesDir: images},
		Files: map[string]string{
			criu.DumpLog: filepath.Join(work, criu.DumpLog), checkpoint.StatsFile: filepath.Join(work, checkpoint.StatsFile),
		},
	}
	if upper := filepath.Join(layer, "upper"); exists(upper) {
		content.Upper = upper
	}
	return checkpoint.Write(archive, work, content)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (c podCheckpoints) config(ctr *sandbox.Container) checkpoint.Config {
	name := ctr.Config.Image.UserSpecified
	if name == "" {
		name = ctr.Config.Image.Image
	}
	return checkpoint.Config{
		ID: ctr.ID, Name: ctr.Config.Metadata.Name, RootfsImage: ctr.ImageRef, RootfsImageRef: ctr.ImageID, RootfsName: name,
		Runtime: "cri-shim", CreatedTime: ctr.CreatedAt, CheckpointedAt: time.Now(),
	}
}

// network tells the pod's addresses under the name that the CRI's users know its interface by.
func network(p *sandbox.Pod) map[string]checkpoint.Network {
	if len(p.IPs) == 0 {
		return map[string]checkpoint.Network{}
	}
	var i checkpoint.Interface
	for _, ip := range p.IPs {
		i.Subnets = append(i.Subnets, checkpoint.Subnet{IPNet: fmt.Sprintf("%s/%d", ip, ip.BitLen())})
	}
	return map[string]checkpoint.Network{"pod": {Interfaces: map[string]checkpoint.Interface{"eth0": i}}}
}
