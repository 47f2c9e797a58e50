package main

import (
	"context"
	"fmt"
	"os"
	"path"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// volumes mounts the images that a container has as volumes: detached mounts by destination.
// The images are held for the container until it is removed.
func (i *podImages) volumes(ctx context.Context, c *sandbox.Container, userns string) (map[string]*os.File, error) {
	var files map[string]*os.File
	for n := range c.Config.Mounts {
		m := &c.Config.Mounts[n]
		if m.Image == nil {
			continue
		}
		f, err := i.volume(ctx, c, m, userns)
		if err != nil {
			return files, fmt.Errorf("%w: config.mounts[%d].image: %w", sandbox.ErrImageVolume, n, err)
		}
		if files == nil {
			files = map[string]*os.File{}
		}
		files[path.Clean(m.ContainerPath)] = f
	}
	return files, nil
}

// HoldVolumes implements sandbox.Images: it mounts them for a moment, without the pod's users, as that tells of a missing
// image, of a sub-path and of a policy at the creation, where the kubelet looks for it.
func (i *podImages) HoldVolumes(ctx context.Context, c *sandbox.Container) error {
	files, err := i.volumes(ctx, c, "")
	closeVolumes(files)
	return err
}

func (i *podImages) volume(ctx context.Context, c *sandbox.Container, m *workload.Mount, userns string) (*os.File, error) {
	img, err := i.get(m.Image.Image)
	if err == nil {
		err = i.store.OfThisMachine(img.ID)
	}
	if err == nil {
		err = i.store.Admit(ctx, img.ID)
	}
	if err != nil {
		return nil, err
	}
	if err := i.Hold(img.ID, c.ID); err != nil {
		return nil, err
	}
	root, err := i.rootfs(ctx, img.ID, "", userns, image.RootfsOptions{Readonly: true})
	if err != nil || m.ImageSubPath == "" {
		return root, err
	}
	defer root.Close()
	fd, err := sys.OpenInRoot(int(root.Fd()), m.ImageSubPath, os.O_RDONLY|sys.OpenDirectory, 0)
	if err != nil {
		return nil, fmt.Errorf("image_sub_path %q: %w", m.ImageSubPath, err)
	}
	dir := os.NewFile(uintptr(fd), m.ImageSubPath)
	defer dir.Close()
	f, err := sys.CloneSubtree(root, dir, true)
	if err != nil {
		return nil, fmt.Errorf("image_sub_path %q: %w", m.ImageSubPath, err)
	}
	return f, nil
}

func closeVolumes(files map[string]*os.File) {
	for _, f := range files {
		f.Close()
	}
}
