package image

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/cri-shim/cri-shim/image/layer"
)

// Kinds of errors. Every error of this package that has a cause a caller can act on matches one of them.
var (
	ErrNotFound     = errors.New("image not found")
	ErrUnauthorized = errors.New("registry denies access")
	ErrUnavailable  = errors.New("registry unavailable")
	ErrReference    = errors.New("invalid image reference")
	ErrDigest       = errors.New("content does not match its digest")
	ErrPlatform     = errors.New("image has no match for the platform")
	ErrAmbiguous    = errors.New("image reference is ambiguous")
	ErrStalled      = errors.New("no progress")
	ErrStoreInUse   = errors.New("image store is in use by another process")
	ErrClosed       = errors.New("image store is closed")
	ErrExists       = errors.New("image exists already")
	ErrDenied       = errors.New("image is denied by policy")
	ErrSealed       = errors.New("image is encrypted and cannot be opened")
	ErrArtifact     = errors.New("an artifact is no image of a container")
	ErrInvalid      = layer.ErrInvalid
	ErrTooLarge     = layer.ErrTooLarge
)

// errWrongBlob marks the ErrDigest for which whoever sent the blob is to blame: another host may have the right one.
var errWrongBlob = errors.New("wrong blob")

func wrongBlob(format string, args ...any) error {
	return &kindError{fmt.Sprintf(format, args...) + ": " + ErrDigest.Error(), []error{ErrDigest, errWrongBlob}}
}

// errRefused: a registry asks for what would give something away.
var errRefused = errors.New("refused")

// registryError names the host and what it said, and gives the error its kind.
func registryError(host string, err error) error {
	var status remoteserrors.ErrUnexpectedStatus
	switch {
	case err == nil:
		return nil
	case errors.As(err, &status):
		return &kindError{
			text:  fmt.Sprintf("registry %s: %s%s", host, withoutQueries(err.Error()), registrySaid(status.Body)),
			kinds: []error{statusKind(status.StatusCode), err},
		}
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return fmt.Errorf("registry %s: %w: %w", host, ErrUnauthorized, err)
	case errdefs.IsNotFound(err) && !errors.Is(err, ErrNotFound):
		return fmt.Errorf("registry %s: %w: %w", host, ErrNotFound, err)
	case errdefs.IsFailedPrecondition(err) && !errors.Is(err, ErrDigest):
		// The client stops reading after the size that the manifest says.
		return &kindError{fmt.Sprintf("registry %s: %v: %v", host, ErrDigest, err), []error{ErrDigest, errWrongBlob, err}}
	case errors.Is(err, errNotForThis):
		return &kindError{fmt.Sprintf("registry %s: %v", host, err), []error{ErrUnavailable, err}}
	case noAnswer(err):
		return &kindError{
			text:  fmt.Sprintf("registry %s: %s", host, withoutQueries(err.Error())),
			kinds: []error{ErrUnavailable, err},
		}
	}
	return fmt.Errorf("registry %s: %w", host, err)
}

// noAnswer tells that there was no answer, or not the whole of one: no route, no name, nobody listening, a
// connection that broke. A call that was given up is none of these.
func noAnswer(err error) bool {
	var request *url.Error
	var connection *net.OpError
	return !errors.Is(err, context.Canceled) &&
		(errors.As(err, &request) || errors.As(err, &connection) || errors.Is(err, io.ErrUnexpectedEOF))
}

// kindError is an error whose text says all, with the kinds that it matches.
type kindError struct {
	text  string
	kinds []error
}

func (e *kindError) Error() string   { return e.text }
func (e *kindError) Unwrap() []error { return e.kinds }

var urlQuery = regexp.MustCompile(`(https?://[^\s"?]+)\?[^\s"]*`)

// withoutQueries shortens the URLs in a text: registries redirect to storage with signatures in the query.
func withoutQueries(text string) string { return urlQuery.ReplaceAllString(text, "$1") }

func statusKind(code int) error {
	switch code {
	case http.StatusNotFound:
		return ErrNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return ErrUnauthorized
	}
	return ErrUnavailable
}

// registrySaid gives the messages of an error body (distribution-spec, "Error Codes").
func registrySaid(body []byte) string {
	var e struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &e) != nil {
		return ""
	}
	var said []string
	for _, m := range e.Errors[:min(len(e.Errors), 4)] {
		said = append(said, fmt.Sprintf("%.64s: %.200s", m.Code, m.Message))
	}
	if len(said) == 0 {
		return ""
	}
	return " (" + strings.Join(said, "; ") + ")"
}

// permanent tells errors that asking again cannot mend.
func permanent(err error) bool {
	var status remoteserrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		c := status.StatusCode
		return c >= 400 && c < 500 && c != http.StatusRequestTimeout && c != http.StatusTooManyRequests
	}
	var certificate *tls.CertificateVerificationError
	if errors.As(err, &certificate) || errors.Is(err, errRefused) {
		return true
	}
	return errdefs.IsNotFound(err) || errors.Is(err, docker.ErrInvalidAuthorization) || errdefs.IsFailedPrecondition(err)
}
