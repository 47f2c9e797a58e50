package cri

import (
	"context"
	"errors"
	"path"
	"strings"
	"syscall"
	"unicode"

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
	{image.ErrSealed, codes.PermissionDenied},
	{image.ErrUnavailable, codes.Unavailable},
	{image.ErrStalled, codes.Unavailable},
	{image.ErrClosed, codes.Unavailable},
	{image.ErrDigest, codes.DataLoss},
	{image.ErrInvalid, codes.FailedPrecondition},
	{image.ErrPlatform, codes.FailedPrecondition},
	{image.ErrArtifact, codes.FailedPrecondition},
	{image.ErrTooLarge, codes.ResourceExhausted},
	{sandbox.ErrMissed, codes.ResourceExhausted},
	{syscall.ENOSPC, codes.ResourceExhausted},
	{syscall.EDQUOT, codes.ResourceExhausted},
	{errors.ErrUnsupported, codes.Unimplemented},
	{sandbox.ErrNotFound, codes.NotFound},
	{image.ErrNotFound, codes.NotFound},
}

// maxErrorText bounds the text of an error, which goes into a header of the answer and a line of the log: a client refuses
// larger headers, and sees none of it then.
const maxErrorText = 16 << 10

// statusOf gives an error of a method its status and sees to it that the text begins with the operation. An error that
// is a status keeps its text's beginning: the kubelet looks for what some begin with. One of no known kind is codes.Unknown.
func statusOf(method string, err error) error {
	if err == nil {
		return nil
	}
	if s, ok := err.(interface{ GRPCStatus() *status.Status }); ok {
		if text := s.GRPCStatus().Message(); len(text) > maxErrorText {
			return status.Error(s.GRPCStatus().Code(), shorten(text, maxErrorText))
		}
		return err
	}
	return status.Error(codeOf(err), shorten(withOperation(operation(method), err.Error()), maxErrorText))
}

// operation is a method's name in words: "/runtime.v1.RuntimeService/ExecSync" is "exec sync".
func operation(method string) string {
	var b strings.Builder
	for i, r := range path.Base(method) {
		if unicode.IsUpper(r) && i > 0 {
			b.WriteByte(' ')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// withOperation puts the operation before a text that does not say it. Most begin with its verb and the object:
// "stop container ID: ..." is "stop container" enough.
func withOperation(op, text string) string {
	verb, _, _ := strings.Cut(op, " ")
	switch verb {
	case "container", "pod", "image": // ContainerStatus and the like have no verb
		verb = op
	}
	if strings.HasPrefix(text, verb+" ") || strings.HasPrefix(text, verb+":") {
		return text
	}
	return op + ": " + text
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
