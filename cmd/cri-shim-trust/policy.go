package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/directory"
	"go.podman.io/image/v5/docker/policyconfiguration"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

type policyQuestion struct {
	Policy     string `json:"policy"`     // containers-policy.json(5)
	Registries string `json:"registries"` // a folder as in containers-registries.d(5)
	// Reference is the name that the image is wanted by, in full; "" for an image without a name.
	Reference string `json:"reference"`
	// Images are what a signature may be for: what the name leads to and, if that is an index, the manifest of this
	// machine's platform in it. It is enough that one of them passes, for an index names its manifests by digest.
	Images []candidate `json:"images"`
}

type candidate struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Manifest  []byte        `json:"manifest"` // nil: fetch it
}

type verdict struct {
	Allowed bool   `json:"allowed"`
	Reason  string `json:"reason"`
	// Files are what the verdict depends on: it must be asked for again when one of them changes.
	Files []string `json:"files"`
}

// judge says whether the policy allows the image. An error is one that is nobody's verdict: it denies, too.
func judge(q *policyQuestion, d *daemon) (verdict, error) {
	files := []string{q.Policy}
	policy, err := signature.NewPolicyFromFile(q.Policy)
	if err != nil {
		return verdict{}, fmt.Errorf("policy %s: %w", q.Policy, err)
	}
	ref, err := parseReference(q.Reference)
	if err != nil {
		return verdict{}, err
	}
	scope, reqs := requirements(policy, ref)
	var described []requirement
	signed := false
	for _, r := range reqs {
		one, err := describe(r)
		if err != nil {
			return verdict{}, fmt.Errorf("policy %s, %s: %w", q.Policy, scope, err)
		}
		signed = signed || one.signed
		files = append(files, one.files...)
		described = append(described, one)
	}
	conf := &signatureSources{}
	if signed && ref != nil {
		// The folder too, for files that come.
		files = append(files, q.Registries)
		var read []string
		if conf, read, err = readSignatureSources(q.Registries, ref); err != nil {
			return verdict{}, err
		}
		files = append(files, read...)
	}
	slices.Sort(files)
	v := verdict{Files: slices.Compact(files)}
	var denied []string
	for _, c := range q.Images {
		err := q.judgeOne(c, ref, described, conf, d, signed)
		if err == nil {
			v.Allowed, v.Reason = true, fmt.Sprintf("%s allows %s", scope, c.Digest)
			return v, nil
		}
		denied = append(denied, fmt.Sprintf("%s: %s", c.Digest, oneLine(err)))
		if !signed {
			break // the others would get the same answer
		}
	}
	v.Reason = fmt.Sprintf("policy %s, %s: %s", q.Policy, scope, strings.Join(denied, "; "))
	return v, nil
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

func parseReference(text string) (reference.Named, error) {
	if text == "" {
		return nil, nil
	}
	ref, err := reference.ParseNormalizedNamed(text)
	if err != nil {
		return nil, fmt.Errorf("reference %q: %w", text, err)
	}
	if reference.IsNameOnly(ref) {
		return nil, fmt.Errorf("reference %q has neither a tag nor a digest", text)
	}
	return ref, nil
}

// scopes are the keys under which a policy may speak of the image, the most specific first.
func scopes(ref reference.Named) []string {
	identity, err := policyconfiguration.DockerReferenceIdentity(ref)
	if err != nil { // a name with tag and digest, which the daemon does not send
		return policyconfiguration.DockerReferenceNamespaces(ref)
	}
	return append([]string{identity}, policyconfiguration.DockerReferenceNamespaces(ref)...)
}

// requirements are those of the policy for the image, found as PolicyContext finds them; by themselves, so that an
// error can name the one that was not met.
func requirements(p *signature.Policy, ref reference.Named) (string, signature.PolicyRequirements) {
	if ref != nil {
		if byScope, ok := p.Transports["docker"]; ok {
			for _, s := range append(scopes(ref), "") {
				if reqs, ok := byScope[s]; ok {
					return fmt.Sprintf("scope docker %q", s), reqs
				}
			}
		}
	}
	return "scope \"default\"", p.Default
}

// requirement is one of a policy, with what errors say of it.
type requirement struct {
	what   string
	files  []string
	signed bool // it looks at signatures
	policy signature.PolicyRequirement
	// sigstore is its text if it is sigstoreSigned.
	sigstore *sigstoreSigned
}

func describe(r signature.PolicyRequirement) (requirement, error) {
	d := requirement{policy: r}
	raw, err := json.Marshal(r)
	if err != nil {
		return d, err
	}
	var f sigstoreSigned
	if err := json.Unmarshal(raw, &f); err != nil {
		return d, err
	}
	if f.Type == "sigstoreSigned" {
		d.sigstore = &f
	}
	d.signed = f.Type == "signedBy" || f.Type == "sigstoreSigned" || f.Type == "signedBaseLayer"
	add := func(label string, paths ...string) {
		for _, p := range paths {
			if p != "" {
				d.files = append(d.files, p)
				d.what += " " + label + " " + p
			}
		}
	}
	d.what = f.Type
	add("key", f.KeyPath)
	add("key", f.KeyPaths...)
	if len(f.KeyData) > 0 || len(f.KeyDatas) > 0 {
		d.what += " key of the policy itself"
	}
	if f.Fulcio != nil {
		add("CA", f.Fulcio.CAPath)
		d.what += fmt.Sprintf(" email %s of %s", f.Fulcio.SubjectEmail, f.Fulcio.OIDCIssuer)
	}
	if f.PKI != nil {
		add("CA", f.PKI.CARootsPath, f.PKI.CAIntermediatesPath)
		d.what += strings.TrimRight(" subject "+f.PKI.SubjectEmail+" "+f.PKI.SubjectHostname, " ")
	}
	add("Rekor key", f.RekorPublicKeyPath)
	add("Rekor key", f.RekorPublicKeyPaths...)
	return d, nil
}

// judgeOne asks the requirements about one manifest.
func (q *policyQuestion) judgeOne(c candidate, ref reference.Named, reqs []requirement, conf *signatureSources, d *daemon, signed bool) error {
	dir, err := os.MkdirTemp("", "cri-shim-trust-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var found signatures
	if signed {
		if found, err = collect(dir, &c, ref, conf, d); err != nil {
			return err
		}
	}
	img, done, err := open(dir, ref)
	if err != nil {
		return err
	}
	defer done()
	if len(reqs) == 0 {
		return errors.New("no requirement is configured")
	}
	for _, r := range reqs {
		if err := r.judge(img, &found, &c, ref, conf); err != nil {
			return fmt.Errorf("%s: %w", r.what, errors.Join(append([]error{err}, found.missing...)...))
		}
	}
	return nil
}

// judge asks one requirement: by go.podman.io/image about signatures that it knows, then about bundles.
func (r *requirement) judge(img types.UnparsedImage, found *signatures, c *candidate, ref reference.Named, conf *signatureSources) error {
	if r.sigstore == nil || ref == nil {
		return ask(r.policy, img)
	}
	trusted, err := r.sigstore.roots()
	if err != nil {
		return err
	}
	var refused []error
	switch {
	case trusted.pem:
		err := ask(r.policy, img)
		if err == nil {
			return nil
		}
		if len(found.files) > 0 || len(found.bundles) == 0 {
			refused = append(refused, err)
		}
	case len(found.files) > 0:
		refused = append(refused, fmt.Errorf("%d signatures that are no bundles: a trusted root judges bundles only", len(found.files)))
	case len(found.bundles) == 0:
		refused = append(refused, errors.New("no bundle exists, and a trusted root judges nothing else"))
	}
	if len(found.bundles) > 0 {
		j := &bundleJudge{r.sigstore, trusted, *c, ref, conf.byDigest}
		err := j.accept(found.bundles)
		if err == nil {
			return nil
		}
		refused = append(refused, err)
	}
	return errors.Join(refused...)
}

func ask(r signature.PolicyRequirement, img types.UnparsedImage) error {
	pc, err := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{r}})
	if err != nil {
		return err
	}
	ok, err := pc.IsRunningImageAllowed(context.Background(), img)
	err = errors.Join(err, pc.Destroy())
	if err == nil && !ok {
		err = errors.New("not allowed")
	}
	return err
}

// collect writes the manifest and its signatures into dir, as the transport "dir:" has them, and completes c. What
// could not be had of the signatures may not be needed.
func collect(dir string, c *candidate, ref reference.Named, conf *signatureSources, d *daemon) (found signatures, err error) {
	if err := c.Digest.Validate(); err != nil {
		return found, fmt.Errorf("digest: %w", err)
	}
	if c.Manifest == nil {
		p, err := d.fetch(wanted{Kind: "manifest", Reference: c.Digest.String(), MediaType: c.MediaType})
		if err != nil {
			return found, fmt.Errorf("manifest: %w", err)
		}
		c.Manifest = p.Data
	}
	if got := c.Digest.Algorithm().FromBytes(c.Manifest); got != c.Digest {
		return found, fmt.Errorf("manifest has digest %s", got)
	}
	if ref != nil {
		found = conf.signatures(ref, c.Digest, d)
	}
	return found, writeDir(dir, c.Manifest, found.files)
}

func writeDir(dir string, manifest []byte, files [][]byte) error {
	err := errors.Join(
		os.WriteFile(filepath.Join(dir, "version"), []byte("Directory Transport Version: 1.1\n"), 0o600),
		os.WriteFile(filepath.Join(dir, "manifest.json"), manifest, 0o600))
	for i, s := range files {
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, fmt.Sprintf("signature-%d", i+1)), s, 0o600))
	}
	return err
}

func open(dir string, ref reference.Named) (types.UnparsedImage, func(), error) {
	at, err := directory.NewReference(dir)
	if err != nil {
		return nil, nil, err
	}
	src, err := at.NewImageSource(context.Background(), nil)
	if err != nil {
		return nil, nil, err
	}
	var img types.UnparsedImage = image.UnparsedInstance(src, nil)
	if ref != nil {
		img = image.UnparsedInstanceWithReference(img, named{at, ref})
	}
	return img, func() { _ = src.Close() }, nil
}

// named is the folder under the image's own name, by which requirements compare identities.
type named struct {
	types.ImageReference
	ref reference.Named
}

// DockerReference implements types.ImageReference.
func (n named) DockerReference() reference.Named { return n.ref }
