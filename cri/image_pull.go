package cri

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox"
)

// PullImage answers with the image ID, which is what names the image in every other answer.
func (s *imageService) PullImage(ctx context.Context, req *pb.PullImageRequest) (*pb.PullImageResponse, error) {
	spec, err := s.imageFromProto(req.GetImage())
	if err != nil {
		return nil, err
	}
	creds, err := credentialsFromProto(req.GetAuth())
	if err != nil {
		return nil, err
	}
	id, err := s.images.Pull(ctx, spec.Image, creds)
	if err != nil {
		return nil, pullError(err)
	}
	return &pb.PullImageResponse{ImageRef: id}, nil
}

// pullError tells the kubelet of a registry that does not answer as it wants to hear it: it
// strips codes.Unknown, and then looks for this word at the beginning (pkg/errors of cri-api).
func pullError(err error) error {
	if errors.Is(err, image.ErrDenied) {
		return status.Errorf(codes.Unknown, "%s: %v", crierrors.ErrSignatureValidationFailed, err)
	}
	if errors.Is(err, image.ErrUnavailable) || errors.Is(err, image.ErrStalled) {
		return status.Errorf(codes.Unknown, "%s: %v", crierrors.ErrRegistryUnavailable, err)
	}
	return err
}

// imageFromProto converts a spec that must name an image and may name a known handler.
func (s *imageService) imageFromProto(in *pb.ImageSpec) (workload.ImageSpec, error) {
	var f fields
	f.scan("image", in)
	spec := f.imageSpec("image", in)
	if !s.handlers[spec.Handler] {
		f.add("image.runtime_handler", "%q is not configured", spec.Handler)
	}
	return spec, f.err()
}

// credentialsFromProto never puts a secret in its error. AuthConfig.auth is
// base64("user:password"), as in docker's configuration.
func credentialsFromProto(a *pb.AuthConfig) (Credentials, error) {
	var f fields
	f.scan("auth", a)
	c := Credentials{
		Username:      a.GetUsername(),
		Password:      a.GetPassword(),
		IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(),
		ServerAddress: a.GetServerAddress(),
	}
	if hasControl(c.RegistryToken) { // it is sent as it is, in a header
		f.add("auth.registry_token", "contains a control character")
	}
	if a.GetAuth() != "" && c.Username == "" && c.Password == "" {
		text, err := base64.StdEncoding.DecodeString(a.GetAuth())
		user, password, ok := strings.Cut(strings.TrimRight(string(text), "\x00"), ":")
		if err != nil || !ok {
			return Credentials{}, fmt.Errorf("%w: auth.auth: not the base64 form of user:password", sandbox.ErrInvalid)
		}
		c.Username, c.Password = user, password
	}
	return c, f.err()
}
