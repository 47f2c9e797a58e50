package cri

import (
	"context"
	"errors"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cri-shim/cri-shim/image"
	"github.com/cri-shim/cri-shim/sandbox"
)

// kinds maps kinds of errors to codes; the first that matches counts. NotFound comes
// last: a client takes it for proof that the object is gone, so where an error holds
// other causes too, those decide.
var kinds = []struct {
	is   error
	code codes.Code
}{
	{sandbox.ErrInvalid, codes.InvalidArgument},
	{image.ErrReference, codes.InvalidArgument},
	{image.ErrAmbiguous, codes.InvalidArgument},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{sandbox.ErrBusy, codes.Aborted},
	{sandbox.ErrState, codes.FailedPrecondition},
	{sandbox.ErrExists, codes.AlreadyExists},
	{image.ErrExists, codes.AlreadyExists},
	{sandbox.ErrUnavailable, codes.Unavailable},
	{image.ErrUnauthorized, codes.PermissionDenied},
	{image.ErrDenied, codes.PermissionDenied},
	{image.ErrUnavailable, codes.Unavailable},
	{image.ErrStalled, codes.Unavailable},
	{image.ErrClosed, codes.Unavailable},
	{image.ErrDigest, codes.DataLoss},
	{image.ErrInvalid, codes.FailedPrecondition},
	{image.ErrPlatform, codes.FailedPrecondition},
	{image.ErrTooLarge, codes.ResourceExhausted},
	{sandbox.ErrMissed, codes.ResourceExhausted},
	{syscall.ENOSPC, codes.ResourceExhausted},
	{syscall.EDQUOT, codes.ResourceExhausted},
	{errors.ErrUnsupported, codes.Unimplemented},
	{sandbox.ErrNotFound, codes.NotFound},
	{image.ErrNotFound, codes.NotFound},
}

// statusOf gives an error its status. An error that is one keeps its code; one
// of no known kind is codes.Unknown.
func statusOf(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		return err
	}
	return status.Error(codeOf(err), err.Error())
}

func codeOf(err error) codes.Code {
	for _, k := range kinds {
		if errors.Is(err, k.is) {
			return k.code
		}
	}
	if s, ok := status.FromError(err); ok {
		return s.Code()
	}
	return codes.Unknown
}
