package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/sandbox"
)

// ImageAdmin is what the administrator does with images beyond the CRI; image.Store has it.
type ImageAdmin interface {
	// Tag returns the new name as it is normalised.
	Tag(ctx context.Context, refOrID, name string, force bool) (string, error)
	Pin(ctx context.Context, refOrID string, pinned bool) error
	// Remove takes a name from an image, and removes it with its last one.
	Remove(ctx context.Context, refOrID string) error
	// Pulls are those that go on: all, or those of one reference.
	Pulls(ctx context.Context, ref string) ([]image.PullProgress, error)
	DiskUse(ctx context.Context) (*image.DiskUse, error)
	Free(ctx context.Context, o image.FreeOptions) (*image.Freed, error)
	Verify(ctx context.Context, o image.VerifyOptions) (*image.VerifyReport, error)
	// ListAll are the images of all platforms; Inspect those of one name.
	ListAll(ctx context.Context) ([]*image.Image, error)
	Inspect(ctx context.Context, refOrID string) ([]*image.Image, error)
	// PullPlatforms returns the images that were asked for, this machine's first.
	PullPlatforms(ctx context.Context, ref string, auth *image.Auth, o image.PullOptions) ([]*image.Image, error)
}

// Names of calls, and their requests.
const (
	adminImageTag    = "ImageTag"
	adminImagePin    = "ImagePin"
	adminImageRemove = "ImageRemove"
	adminImagePulls  = "ImagePulls"
	adminImageUse    = "ImageDiskUse"
	adminImageFree   = "ImageFree"
	adminImageVerify = "ImageVerify"
	adminImageList   = "ImageList"
	adminImageShow   = "ImageInspect"
	adminImagePull   = "ImagePull"
)

type (
	tagRequest struct {
		Image string `json:"image"`
		Name  string `json:"name"`
		Force bool   `json:"force,omitempty"`
	}
	pinRequest struct {
		Image  string `json:"image"`
		Pinned bool   `json:"pinned"`
	}
	nameRequest struct {
		Image string `json:"image"`
	}
	pullRequest struct {
		Image   string            `json:"image"`
		Auth    *image.Auth       `json:"auth,omitempty"`
		Options image.PullOptions `json:"options"`
	}
)

var imageMethods = []grpc.MethodDesc{
	imageMethod(adminImageTag, func(ctx context.Context, i ImageAdmin, r tagRequest) (string, error) {
		return i.Tag(ctx, r.Image, r.Name, r.Force)
	}),
	imageMethod(adminImagePin, func(ctx context.Context, i ImageAdmin, r pinRequest) (struct{}, error) {
		return struct{}{}, i.Pin(ctx, r.Image, r.Pinned)
	}),
	imageMethod(adminImageRemove, func(ctx context.Context, i ImageAdmin, r nameRequest) (struct{}, error) {
		return struct{}{}, i.Remove(ctx, r.Image)
	}),
	imageMethod(adminImagePulls, func(ctx context.Context, i ImageAdmin, r nameRequest) ([]image.PullProgress, error) {
		return i.Pulls(ctx, r.Image)
	}),
	imageMethod(adminImageUse, func(ctx context.Context, i ImageAdmin, _ struct{}) (*image.DiskUse, error) {
		return i.DiskUse(ctx)
	}),
	imageMethod(adminImageFree, func(ctx context.Context, i ImageAdmin, o image.FreeOptions) (*image.Freed, error) {
		return i.Free(ctx, o)
	}),
	imageMethod(adminImageVerify, func(ctx context.Context, i ImageAdmin, o image.VerifyOptions) (*image.VerifyReport, error) {
		return i.Verify(ctx, o)
	}),
	imageMethod(adminImageList, func(ctx context.Context, i ImageAdmin, _ struct{}) ([]image.Summary, error) {
		return summaries(i.ListAll(ctx))
	}),
	imageMethod(adminImageShow, func(ctx context.Context, i ImageAdmin, r nameRequest) ([]image.Summary, error) {
		return summaries(i.Inspect(ctx, r.Image))
	}),
	imageMethod(adminImagePull, func(ctx context.Context, i ImageAdmin, r pullRequest) ([]image.Summary, error) {
		return summaries(i.PullPlatforms(ctx, r.Image, r.Auth, r.Options))
	}),
}

func summaries(all []*image.Image, err error) ([]image.Summary, error) {
	out := make([]image.Summary, 0, len(all))
	for _, i := range all {
		out = append(out, i.Summary())
	}
	return out, err
}

// imageMethod is a call of the image store: JSON for JSON.
func imageMethod[Req, Resp any](name string, call func(context.Context, ImageAdmin, Req) (Resp, error)) grpc.MethodDesc {
	return adminMethod(imagePath(name), func(s adminServer, ctx context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
		images := s.imageAdmin()
		if images == nil {
			return nil, fmt.Errorf("%s: %w", name, errors.ErrUnsupported)
		}
		var req Req
		if json.Unmarshal(in.GetValue(), &req) != nil { // its text may have a secret in it
			return nil, fmt.Errorf("%w: %s: not a request in JSON", sandbox.ErrInvalid, name)
		}
		resp, err := call(ctx, images, req)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(resp)
		if err != nil {
			return nil, err
		}
		return &wrapperspb.BytesValue{Value: text}, nil
	})
}

func imagePath(name string) string { return "/" + adminName + "/" + name }

func (a *adminService) imageAdmin() ImageAdmin { return a.images }

// imageCall is the client's side of imageMethod.
func imageCall[Resp any](ctx context.Context, c *AdminClient, name string, req any) (resp Resp, err error) {
	text, err := json.Marshal(req)
	if err != nil {
		return resp, err
	}
	out := new(wrapperspb.BytesValue)
	if err := c.conn.Invoke(ctx, imagePath(name), &wrapperspb.BytesValue{Value: text}, out); err != nil {
		return resp, err
	}
	if err := json.Unmarshal(out.GetValue(), &resp); err != nil {
		return resp, fmt.Errorf("%s: %w", name, err)
	}
	return resp, nil
}

// ImageTag gives an image another name, which it returns as it is normalised; with force, a name of another image too.
func (c *AdminClient) ImageTag(ctx context.Context, refOrID, name string, force bool) (string, error) {
	return imageCall[string](ctx, c, adminImageTag, tagRequest{refOrID, name, force})
}

// ImagePin pins an image, or no longer does.
func (c *AdminClient) ImagePin(ctx context.Context, refOrID string, pinned bool) error {
	_, err := imageCall[struct{}](ctx, c, adminImagePin, pinRequest{refOrID, pinned})
	return err
}

// ImageRemove takes a name from an image, and removes it with its last one; by ID, with all of them.
func (c *AdminClient) ImageRemove(ctx context.Context, refOrID string) error {
	_, err := imageCall[struct{}](ctx, c, adminImageRemove, nameRequest{refOrID})
	return err
}

// ImageDiskUse tells what takes the image store's disk.
func (c *AdminClient) ImageDiskUse(ctx context.Context) (*image.DiskUse, error) {
	return imageCall[*image.DiskUse](ctx, c, adminImageUse, struct{}{})
}

// ImageFree frees what nobody needs, or tells what it would free.
func (c *AdminClient) ImageFree(ctx context.Context, o image.FreeOptions) (*image.Freed, error) {
	return imageCall[*image.Freed](ctx, c, adminImageFree, o)
}

// ImageVerify compares layers with their digests.
func (c *AdminClient) ImageVerify(ctx context.Context, o image.VerifyOptions) (*image.VerifyReport, error) {
	return imageCall[*image.VerifyReport](ctx, c, adminImageVerify, o)
}

// ImageList tells of all images, of all platforms.
func (c *AdminClient) ImageList(ctx context.Context) ([]image.Summary, error) {
	return imageCall[[]image.Summary](ctx, c, adminImageList, struct{}{})
}

// ImageInspect tells of the images that a name has, for all platforms, or of the one with an ID.
func (c *AdminClient) ImageInspect(ctx context.Context, refOrID string) ([]image.Summary, error) {
	return imageCall[[]image.Summary](ctx, c, adminImageShow, nameRequest{refOrID})
}

// ImagePull pulls an image for the platforms that o names, and returns those, this machine's first.
func (c *AdminClient) ImagePull(ctx context.Context, ref string, auth *image.Auth, o image.PullOptions) ([]image.Summary, error) {
	return imageCall[[]image.Summary](ctx, c, adminImagePull, pullRequest{ref, auth, o})
}

// ImagePulls tells how far pulls are: all, or those of one reference.
func (c *AdminClient) ImagePulls(ctx context.Context, ref string) ([]image.PullProgress, error) {
	return imageCall[[]image.PullProgress](ctx, c, adminImagePulls, nameRequest{ref})
}
