package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/sandbox"
)

// podImages is sandbox.Images over the image store.
type podImages struct {
	store *image.Store
	log   *slog.Logger
	// copied, if set, is told when a container's root file system is there as a copy.
	copied func(c *sandbox.Container, dir string) error
}

func newPodImages(s *image.Store, log *slog.Logger) *podImages { return &podImages{store: s, log: log} }

// get finds an image that the store lists or that a container holds: it is needed as long as the
// container is, whatever a client has removed.
func (i *podImages) get(ref string) (*image.Image, error) { return i.store.Held(ref) }

// Resolve implements sandbox.Images. Whatever a container is made of comes through here, so policy is enforced here; the
// verifiers' own timeout bounds it.
func (i *podImages) Resolve(ref string) (*sandbox.Image, error) {
	img, err := i.get(ref)
	if err == nil {
		err = i.store.Runnable(img.ID)
	}
	if err == nil {
		err = i.store.Admit(context.Background(), img.ID)
	}
	if err != nil {
		return nil, err
	}
	out := &sandbox.Image{
		ID: img.ID, Ref: img.ID, StopSignal: img.Config.Config.StopSignal,
		Volumes: slices.Sorted(maps.Keys(img.Config.Config.Volumes)),
	}
	if len(img.RepoDigests) > 0 {
		out.Ref = img.RepoDigests[0]
	} else if len(img.RepoTags) > 0 {
		out.Ref = img.RepoTags[0]
	}
	return out, nil
}

// Hold implements sandbox.Images.
func (i *podImages) Hold(id, owner string) error { return i.store.Hold(id, owner) }

// Release implements sandbox.Images.
func (i *podImages) Release(owner string) {
	if err := i.store.Release(owner); err != nil {
		i.log.Warn("release image", "ctr", owner, "err", err)
	}
}

// Rootfs implements sandbox.Images.
func (i *podImages) Rootfs(ctx context.Context, c *sandbox.Container, dir, userns string) (*os.File, error) {
	o := image.RootfsOptions{SELinuxLabel: mountLabel(&c.Config)}
	o.UIDs, o.GIDs = mappings(c)
	f, err := i.rootfs(ctx, c.ImageID, dir, userns, o)
	if err == nil && i.copied != nil {
		if err = i.copied(c, dir); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, err
}

func (i *podImages) rootfs(ctx context.Context, id, dir, userns string, o image.RootfsOptions) (_ *os.File, err error) {
	if userns != "" {
		if o.UserNS, err = os.Open(userns); err != nil {
			return nil, fmt.Errorf("user namespace: %w", err)
		}
		defer o.UserNS.Close()
	}
	return i.store.Rootfs(ctx, id, dir, o)
}

// config is what an image says of its containers.
func (i *podImages) config(id string) (ocispec.ImageConfig, error) {
	img, err := i.get(id)
	if err != nil {
		return ocispec.ImageConfig{}, err
	}
	return img.Config.Config, nil
}

// holdVolumes holds anew, after a restart, the images that containers have as volumes.
func (i *podImages) holdVolumes(containers []*sandbox.Container) {
	for _, c := range containers {
		for _, m := range c.Config.Mounts {
			if m.Image == nil || c.State() == sandbox.ContainerExited {
				continue
			}
			if err := i.Hold(m.Image.Image, c.ID); err != nil {
				i.log.Warn("hold image volume", "ctr", c.ID, "image", m.Image.Image, "err", err)
			}
		}
	}
}

// criImages is cri.Images over the image store.
type criImages struct{ store *image.Store }

// annotationArtifact is in the answers about an artifact, with its type.
const annotationArtifact = "cri-shim.io/artifact-type"

func toCRI(img *image.Image) *cri.Image {
	out := &cri.Image{
		ID: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: img.Size,
		User: img.Config.Config.User, Pinned: img.Pinned,
	}
	if img.Artifact != nil {
		out.Annotations = map[string]string{annotationArtifact: img.Artifact.Type}
	}
	return out
}

// List implements cri.Images.
func (i criImages) List(context.Context) ([]*cri.Image, error) {
	all := i.store.List()
	out := make([]*cri.Image, 0, len(all))
	for _, img := range all {
		out = append(out, toCRI(img))
	}
	return out, nil
}

// Get implements cri.Images.
func (i criImages) Get(_ context.Context, ref string) (*cri.Image, error) {
	img, err := i.find(ref)
	if err != nil || img == nil {
		return nil, err
	}
	return toCRI(img), nil
}

func (i criImages) find(ref string) (*image.Image, error) {
	img, err := i.store.Get(ref)
	if isNotFound(err) {
		return nil, nil
	}
	return img, err
}

func toAuth(c cri.Credentials) *image.Auth {
	if c == (cri.Credentials{}) {
		return nil
	}
	return &image.Auth{
		Username: c.Username, Password: c.Password, ServerAddress: c.ServerAddress,
		IdentityToken: c.IdentityToken, RegistryToken: c.RegistryToken,
	}
}

// Why implements cri.Explainer.
func (i criImages) Why(ctx context.Context, ref string, c cri.Credentials) (*image.Explanation, error) {
	return i.store.Why(ctx, ref, toAuth(c))
}

// Pull implements cri.Images.
func (i criImages) Pull(ctx context.Context, ref string, c cri.Credentials) (string, error) {
	img, err := i.store.Pull(ctx, ref, toAuth(c), image.PullOptions{})
	if err != nil {
		return "", err
	}
	return img.ID, nil
}

// Remove implements cri.Images. "Removing the image by a single tag will remove all of its
// tags" (CRI RemoveImage), so it is removed by its ID.
func (i criImages) Remove(ctx context.Context, ref string) error {
	img, err := i.find(ref)
	if err != nil || img == nil {
		return err
	}
	return i.store.Remove(ctx, img.ID)
}

// Usage implements cri.Images.
func (i criImages) Usage(ctx context.Context) ([]cri.FilesystemUsage, error) {
	u, err := i.store.FSInfo(ctx)
	if err != nil {
		return nil, err
	}
	return []cri.FilesystemUsage{{Mountpoint: u.Mountpoint, UsedBytes: u.Bytes, Inodes: u.Inodes}}, nil
}

// Verbose implements cri.Images.
func (i criImages) Verbose(ctx context.Context, ref string) (map[string]any, error) {
	out := map[string]any{}
	img, err := i.find(ref)
	if err != nil {
		return nil, err
	}
	if img != nil {
		out = imageVerbose(img)
	}
	// What is no reference, such as an ID, is not being pulled.
	if pulls, err := i.store.Pulls(ctx, ref); err == nil && len(pulls) > 0 {
		out["pull"] = pulls[0]
	}
	return out, nil
}

func isNotFound(err error) bool { return errors.Is(err, image.ErrNotFound) }
