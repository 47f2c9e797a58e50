package image

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// parseReference normalises a reference: busybox is docker.io/library/busybox:latest. Of name:tag@digest the tag is
// dropped, since nobody checks that it names the digest.
func parseReference(ref string) (reference.Named, error) {
	n, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("%w %.300q: %w", ErrReference, ref, err)
	}
	return n, nil
}

// asID gives the image ID that s is, in full: an algorithm and digest, or the bare 64 hex digits.
func asID(s string) (digest.Digest, bool) {
	if len(s) == 64 && isHex(s) {
		return digest.NewDigestFromEncoded(digest.SHA256, s), true
	}
	d, err := digest.Parse(s)
	return d, err == nil
}

const minPrefix = 4

// asIDPrefix gives the hex digits with which an ID may begin.
func asIDPrefix(s string) (string, bool) {
	s = strings.TrimPrefix(s, "sha256:")
	return s, len(s) >= minPrefix && len(s) < 64 && isHex(s)
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdef") == ""
}
