package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/sandbox"
)

// Explainer says from where an image would be pulled.
type Explainer interface {
	Why(ctx context.Context, ref string, creds Credentials) (*image.Explanation, error)
}

// whyRequest is the message of ImageWhy.
type whyRequest struct {
	Image       string      `json:"image"`
	Credentials Credentials `json:"credentials,omitzero"`
}

// imageWhy answers a whyRequest with an image.Explanation.
func (a *adminService) imageWhy(ctx context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
	if a.explainer == nil {
		return nil, fmt.Errorf("image why: %w", errors.ErrUnsupported)
	}
	var req whyRequest
	if json.Unmarshal(in.GetValue(), &req) != nil { // its text may have a secret in it
		return nil, fmt.Errorf("%w: image why: not a request in JSON", sandbox.ErrInvalid)
	}
	e, err := a.explainer.Why(ctx, req.Image, req.Credentials)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	return &wrapperspb.BytesValue{Value: text}, nil
}

// ImageWhy asks from where an image would be pulled, and what the hosts say.
func (c *AdminClient) ImageWhy(ctx context.Context, ref string, creds Credentials) (*image.Explanation, error) {
	text, err := json.Marshal(whyRequest{Image: ref, Credentials: creds})
	if err != nil {
		return nil, err
	}
	out := new(wrapperspb.BytesValue)
	if err := c.conn.Invoke(ctx, adminImageWhy, &wrapperspb.BytesValue{Value: text}, out); err != nil {
		return nil, err
	}
	e := &image.Explanation{}
	if err := json.Unmarshal(out.GetValue(), e); err != nil {
		return nil, fmt.Errorf("image why: %w", err)
	}
	return e, nil
}
