package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// The signature policy is a file as podman, skopeo and CRI-O have it (containers-policy.json(5)). cri-shim-trust
// evaluates it and asks for the signatures, which are fetched here: as the image itself, from the same hosts with the
// same credentials. It is asked when an image comes, by whatever way, when it gets a name, and before a container is
// made if a file that the answer rests on has changed since.

type trustCandidate struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Manifest  []byte        `json:"manifest,omitempty"`
}

type trustPiece struct {
	Kind      string `json:"kind"`
	Reference string `json:"reference"`
	Size      int64  `json:"size"`
	MediaType string `json:"mediaType"`
}

type trustFetched struct {
	Data      []byte `json:"data,omitempty"`
	MediaType string `json:"mediaType,omitempty"`
	NotFound  bool   `json:"notFound,omitempty"`
	Error     string `json:"error,omitempty"`
}

type trustMessage struct {
	Fetch   *trustPiece `json:"fetch"`
	Verdict *struct {
		Allowed bool     `json:"allowed"`
		Reason  string   `json:"reason"`
		Files   []string `json:"files"`
	} `json:"verdict"`
}

// judgeSignatures asks the policy about the image that ref leads to: top, and in it the manifest m. ErrDenied.
func (s *Store) judgeSignatures(ctx context.Context, ref string, top, m ocispec.Descriptor, raw []byte, from *pieces) (stamps, error) {
	if s.cfg.SignaturePolicy == "" {
		return nil, nil
	}
	start := time.Now()
	images := []trustCandidate{{m.Digest, m.MediaType, raw}}
	if top.Digest != m.Digest {
		images = append([]trustCandidate{{top.Digest, top.MediaType, nil}}, images...)
	}
	var files []string
	err := s.askTrust(ctx, "policy", map[string]any{
		"policy": s.cfg.SignaturePolicy, "registries": s.cfg.SignatureSources, "reference": ref, "images": images,
	}, func(dec *json.Decoder, enc *json.Encoder) error {
		for {
			var msg trustMessage
			if err := dec.Decode(&msg); err != nil {
				return fmt.Errorf("no verdict: %w", err)
			}
			switch {
			case msg.Fetch != nil:
				if err := enc.Encode(from.fetch(ctx, *msg.Fetch)); err != nil {
					return err
				}
			case msg.Verdict == nil:
				return errors.New("an answer that is none")
			case !msg.Verdict.Allowed:
				return &deniedError{msg.Verdict.Reason}
			default:
				files = msg.Verdict.Files
				return nil
			}
		}
	})
	name := ref
	if name == "" {
		name = top.Digest.String()
	}
	took := time.Since(start).Round(10 * time.Microsecond)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var denied *deniedError
		if errors.As(err, &denied) {
			err = denied
		}
		s.log.Warn("image is denied", "image", name, "digest", top.Digest, "policy", s.cfg.SignaturePolicy, "took", took, "err", err)
		return nil, fmt.Errorf("%w: %s: %w", ErrDenied, name, err)
	}
	s.log.Info("image is approved", "image", name, "digest", top.Digest, "policy", s.cfg.SignaturePolicy, "took", took)
	return stampsOf(files, start), nil
}

// deniedError is the policy's reason.
type deniedError struct{ reason string }

func (e *deniedError) Error() string { return e.reason }

// judgeSignaturesAgain asks about an image that is here, under each of its names until one is allowed.
func (s *Store) judgeSignaturesAgain(ctx context.Context, r *record) (stamps, error) {
	all := r.asked()
	if len(all) == 0 {
		return s.judgeSignaturesAs(ctx, "", r)
	}
	var errs []error
	for _, n := range all {
		st, err := s.judgeSignaturesAs(ctx, n.Ref, r)
		if err == nil {
			return st, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func (s *Store) judgeSignaturesAs(ctx context.Context, ref string, r *record) (stamps, error) {
	if s.cfg.SignaturePolicy == "" {
		return nil, nil
	}
	p, err := s.piecesOf(ref, nil)
	if err != nil {
		return nil, err
	}
	defer p.close()
	top := r.Manifest
	if ref != "" {
		top = r.top(ref)
	}
	return s.judgeSignatures(ctx, ref, top, r.Manifest, r.ManifestRaw, p)
}

// pieces are the parts of a repository that signatures are made of.
type pieces struct {
	s     *Store
	named reference.Named // nil: an image without a name, which comes from nowhere
	reg   *remote         // nil until it is needed
	ours  bool            // reg was opened here
	local *fetcher        // an archive, which has things by digest; or nil
	// attached are the referrers in the archive.
	attached referrers
}

// piecesOf are those of the repository in ref, with the node's credentials.
func (s *Store) piecesOf(ref string, local *fetcher) (*pieces, error) {
	p := &pieces{s: s, local: local}
	if ref == "" {
		return p, nil
	}
	var err error
	p.named, err = parseReference(ref)
	return p, err
}

func (p *pieces) close() {
	if p.ours {
		p.reg.close()
	}
}

const maxSignature = 4 << 20

func (p *pieces) fetch(ctx context.Context, w trustPiece) trustFetched {
	f, err := p.get(ctx, w)
	switch {
	case errors.Is(err, ErrNotFound):
		return trustFetched{NotFound: true}
	case err != nil:
		return trustFetched{Error: err.Error()}
	}
	return f
}

func (p *pieces) get(ctx context.Context, w trustPiece) (trustFetched, error) {
	id := digest.Digest(w.Reference)
	if p.local != nil && id.Validate() == nil {
		if f, err := p.fromArchive(ctx, w.Kind, id); err == nil {
			return f, nil
		}
	}
	if p.named == nil {
		return trustFetched{}, fmt.Errorf("%w: the image has no name that says from where", ErrNotFound)
	}
	if p.reg == nil {
		reg, err := p.s.openRegistry(ctx, p.named, nil)
		if err != nil {
			return trustFetched{}, err
		}
		p.reg, p.ours = reg, true
	}
	stall := p.s.cfg.ProgressTimeout
	switch w.Kind {
	case "manifest":
		ref, err := parseReference(p.named.Name() + separator(w.Reference) + w.Reference)
		if err != nil {
			return trustFetched{}, err
		}
		reg := p.reg.as(ref)
		desc, err := reg.top(ctx, stall)
		if err != nil {
			return trustFetched{}, err
		}
		b, err := readBlob(ctx, fetcher{source: reg, stall: stall}, desc, maxManifestSize)
		return trustFetched{Data: b, MediaType: desc.MediaType}, err
	case "blob":
		desc := ocispec.Descriptor{MediaType: w.MediaType, Digest: id, Size: w.Size}
		if err := checkDescriptor(desc); err != nil {
			return trustFetched{}, err
		}
		b, err := readBlob(ctx, fetcher{source: p.reg, stall: stall}, desc, maxSignature)
		return trustFetched{Data: b, MediaType: w.MediaType}, err
	case "referrers":
		refs, err := p.reg.referrers(ctx, id, 2*stall)
		if err != nil {
			return trustFetched{}, err
		}
		b, err := json.Marshal(refs)
		return trustFetched{Data: b}, err
	}
	return trustFetched{}, fmt.Errorf("%.20q is nothing that can be fetched: %w", w.Kind, ErrInvalid)
}

func separator(ref string) string {
	if strings.Contains(ref, ":") {
		return "@"
	}
	return ":"
}

// fromArchive reads from what is imported; the size of a thing is known there only.
func (p *pieces) fromArchive(ctx context.Context, kind string, id digest.Digest) (trustFetched, error) {
	limit := int64(maxManifestSize)
	switch kind {
	case "blob":
		limit = maxSignature
	case "referrers":
		if len(p.attached[id]) == 0 {
			return trustFetched{}, ErrNotFound
		}
		b, err := json.Marshal(p.attached[id])
		return trustFetched{Data: b}, err
	}
	src, ok := p.local.source.(*blobSource)
	if !ok {
		return trustFetched{}, ErrNotFound
	}
	ra, err := src.store.ReaderAt(ctx, ocispec.Descriptor{Digest: id})
	if err != nil {
		return trustFetched{}, err
	}
	size := ra.Size()
	if err := ra.Close(); err != nil {
		return trustFetched{}, err
	}
	b, err := readBlob(ctx, *p.local, ocispec.Descriptor{Digest: id, Size: size}, limit)
	return trustFetched{Data: b}, err
}

// as is the same registry, asked for another reference of the repository.
func (r *remote) as(ref reference.Named) *remote {
	return &remote{ref: ref, hosts: r.hosts, conns: r.conns, blamed: map[int]int{}}
}

// referrers are the manifests that name id as their subject (OCI distribution 1.1), of the first host that has any.
func (r *remote) referrers(ctx context.Context, id digest.Digest, limit time.Duration) ([]ocispec.Descriptor, error) {
	var t tried
	answered := false
	for _, h := range r.hosts {
		f, ok := h.fetcher.(remotes.ReferrersFetcher)
		if !ok {
			continue
		}
		refs, err := func() ([]ocispec.Descriptor, error) {
			ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w for %v", ErrStalled, limit))
			defer cancel()
			return f.FetchReferrers(ctx, id)
		}()
		if err != nil {
			t.add(registryError(h.Host, err))
			continue
		}
		if answered = true; len(refs) > 0 {
			return refs, nil
		}
	}
	if answered || len(t) == 0 {
		return nil, nil
	}
	return nil, t.err(r.registry())
}
