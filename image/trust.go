package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Verifiers are the administrator's programs that say whether an image may be used. They are called as containerd
// calls its image verifiers, with -name REF -digest DIGEST -stdin-media-type TYPE and the descriptor on standard input;
// each has to end with 0, and what it writes to standard output is the reason. All in Config.Verifiers are asked, in
// the order of their names, before a layer is fetched or imported, when an image gets another name, and when a
// container is created of an image that these very programs have not approved.
//
// It fails closed: a folder that cannot be read or is empty, a program that cannot be started, takes too long or that
// others than root can change, deny.

const (
	maxVerdict     = 32 << 10 // bytes of a program's output that are read
	maxVerdictText = 1 << 10  // of them, in an error
)

// approval is that an image may be used.
type approval struct {
	// Policy is the fingerprint of the verifiers that were asked.
	Policy string    `json:"policy,omitempty"`
	At     time.Time `json:"at"`
	// Signatures are the files on which the answer of the signature policy rests, Keys those of the decryption keys.
	Signatures stamps `json:"signatures,omitempty"`
	Keys       stamps `json:"keys,omitempty"`
}

func (a *approval) none() bool { return a.Policy == "" && a.Signatures == nil && a.Keys == nil }

// verifiers lists the programs, and gives what changes when they do.
func (s *Store) verifiers() (programs []string, policy string, err error) {
	dir := s.cfg.Verifiers
	entries, err := os.ReadDir(dir) // sorted by name
	if err != nil {
		return nil, "", fmt.Errorf("image verifiers: %w", err)
	}
	if len(entries) == 0 {
		return nil, "", fmt.Errorf("image verifiers: %s has no program", dir)
	}
	h := sha256.New()
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		fi, err := os.Stat(path)
		if err != nil {
			return nil, "", fmt.Errorf("image verifiers: %w", err)
		}
		if err := isOurProgram(path, fi); err != nil {
			return nil, "", fmt.Errorf("image verifiers: %w", err)
		}
		fmt.Fprintf(h, "%s\x00%s\x00", path, stampOf(fi))
		programs = append(programs, path)
	}
	return programs, hex.EncodeToString(h.Sum(nil)), nil
}

// isOurProgram is nil if path can be executed and only root, or who runs the daemon, can change it.
func isOurProgram(path string, fi os.FileInfo) error {
	st, _ := fi.Sys().(*syscall.Stat_t)
	switch {
	case !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0:
		return fmt.Errorf("%s is not a program", path)
	case fi.Mode()&0o022 != 0 || st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Errorf("%s can be changed by others than root", path)
	}
	return nil
}

// judge asks the verifiers about an image, as ref if it has a name, and returns their policy; "" where none are
// configured.
func (s *Store) judge(ctx context.Context, ref string, desc ocispec.Descriptor) (string, error) {
	if s.cfg.Verifiers == "" {
		return "", nil
	}
	programs, policy, err := s.verifiers()
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrDenied, err)
	}
	if ref == "" {
		ref = desc.Digest.String()
	}
	for _, p := range programs {
		start := time.Now()
		reason, err := s.askVerifier(ctx, p, ref, desc)
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		took := time.Since(start).Round(10 * time.Microsecond)
		if err != nil {
			s.log.Warn("image is denied", "image", ref, "digest", desc.Digest, "verifier", p, "took", took, "err", err)
			return "", fmt.Errorf("%w: verifier %s on %s: %w", ErrDenied, p, ref, err)
		}
		s.log.Info("image is approved", "image", ref, "digest", desc.Digest, "verifier", p, "took", took, "reason", reason)
	}
	return policy, nil
}

// askVerifier runs one program. Its process group ends with it.
func (s *Store) askVerifier(ctx context.Context, program, ref string, desc ocispec.Descriptor) (string, error) {
	limit := s.cfg.VerifierTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %v", limit))
	defer cancel()
	in, err := json.Marshal(desc)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, program, "-name", ref, "-digest", desc.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor)
	cmd.Dir = "/"
	cmd.Env = verifierEnv()
	cmd.Stdin = bytes.NewReader(in)
	out, said := &bounded{max: maxVerdict}, &bounded{max: maxVerdict}
	cmd.Stdout, cmd.Stderr = out, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left behind; fails if there is nothing
	}
	for _, line := range strings.Split(strings.TrimSpace(said.String()), "\n") {
		if line != "" {
			s.log.Debug("image verifier says", "verifier", program, "text", line)
		}
	}
	reason := strings.TrimSpace(out.String())
	var exit *exec.ExitError
	switch {
	case err == nil:
		return reason, nil
	case context.Cause(ctx) != nil:
		return "", context.Cause(ctx)
	case errors.As(err, &exit) && reason != "":
		return "", fmt.Errorf("%s (%w)", reason[:min(len(reason), maxVerdictText)], err)
	}
	return "", err
}

// verifierEnv is the daemon's environment as far as it says how to reach others.
func verifierEnv() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	for _, key := range []string{"HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v, ok := os.LookupEnv(key); ok {
			env = append(env, key+"="+v)
		}
	}
	return env
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	bytes.Buffer
	max int
}

func (b *bounded) Write(p []byte) (int, error) {
	if room := b.max - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// ReadFrom keeps io.Copy from the buffer's own, which has no bound.
func (b *bounded) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{b}, r)
}

// Admit tells whether containers may be made of an image: nil, if the verifiers and the policies that are there now have
// approved it, or do so now, under any of its names. ErrDenied; for an encrypted image whose keys are gone, ErrSealed.
func (s *Store) Admit(ctx context.Context, refOrID string) error {
	id, err := s.findHeld(refOrID)
	if err != nil {
		return err
	}
	r := s.record(id)
	if r == nil {
		return fmt.Errorf("%w: %.300q", ErrNotFound, refOrID)
	}
	if s.cfg.Verifiers == "" && s.cfg.SignaturePolicy == "" && !r.Encrypted {
		return nil
	}
	old := approval{}
	if r.Approved != nil {
		old = *r.Approved
	}
	now, err := s.admit(ctx, r, old)
	if err != nil {
		return fmt.Errorf("image %s: %w", refOrID, err)
	}
	if now == nil {
		return nil
	}
	return s.approve(id, *now)
}

// admit asks about r what is not answered by an approval from before; nil is that there was nothing to ask.
func (s *Store) admit(ctx context.Context, r *record, old approval) (*approval, error) {
	now, asked := old, false
	if s.cfg.Verifiers != "" {
		_, policy, err := s.verifiers()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDenied, err)
		}
		if old.Policy != policy {
			if now.Policy, err = s.judgeAgain(ctx, r); err != nil {
				return nil, err
			}
			asked = true
		}
	}
	if s.cfg.SignaturePolicy != "" && !old.Signatures.hold(s.cfg.SignaturePolicy) {
		var err error
		if now.Signatures, err = s.judgeSignaturesAgain(ctx, r); err != nil {
			return nil, err
		}
		asked = true
	}
	if r.Encrypted && !old.Keys.hold(s.cfg.DecryptionKeys...) {
		_, m, err := parseManifest(r.ManifestRaw, r.Manifest.MediaType, *s.cfg.Platform)
		if err != nil || m == nil {
			return nil, fmt.Errorf("%w: its manifest cannot be read: %w", ErrSealed, err)
		}
		if _, now.Keys, err = s.unwrapKeys(ctx, m.layers); err != nil {
			return nil, err
		}
		asked = true
	}
	if !asked {
		return nil, nil
	}
	return &now, nil
}

// judgeAgain asks about an image that is here, under each of its tags, or its digests if it has none.
func (s *Store) judgeAgain(ctx context.Context, r *record) (string, error) {
	all := r.asked()
	if len(all) == 0 {
		return s.judge(ctx, "", r.Manifest)
	}
	var errs []error
	for _, n := range all {
		policy, err := s.judge(ctx, n.Ref, r.top(n.Ref))
		if err == nil {
			return policy, nil
		}
		errs = append(errs, err)
	}
	return "", errors.Join(errs...)
}

// asked are the names under which the image is judged: its tags, or its digests if it has none.
func (r *record) asked() []name {
	var asTags, asDigests []name
	for _, n := range r.Names {
		if n.isDigest() {
			asDigests = append(asDigests, n)
		} else {
			asTags = append(asTags, n)
		}
	}
	if len(asTags) == 0 {
		return asDigests
	}
	return asTags
}

// top is what a name led to: the descriptor that the repository's digest names, which may be an index's.
func (r *record) top(ref string) ocispec.Descriptor {
	repo := repository(ref)
	for _, n := range r.Names {
		if n.isDigest() && repository(n.Ref) == repo {
			d := digest.Digest(n.Ref[len(repo)+1:])
			if d == r.Manifest.Digest {
				break
			}
			return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: d}
		}
	}
	return r.Manifest
}

// approve records the approval, so that the next container need not wait for it.
func (s *Store) approve(id digest.Digest, a approval) error {
	s.change.Lock()
	defer s.change.Unlock()
	r := s.record(id)
	if r == nil {
		return fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	r = r.clone()
	a.At = time.Now().UTC()
	r.Approved = &a
	if err := writeRecord(s.imageDir(id), r); err != nil {
		return fmt.Errorf("approve image %s: %w", id, err)
	}
	s.publish(r)
	return nil
}

// admitAs asks whether the image may have another name.
func (s *Store) admitAs(ctx context.Context, refOrID, name string) error {
	if s.cfg.Verifiers == "" && s.cfg.SignaturePolicy == "" {
		return nil
	}
	id, err := s.find(refOrID)
	if err != nil {
		return err
	}
	r := s.record(id)
	if r == nil {
		return fmt.Errorf("%w: %.300q", ErrNotFound, refOrID)
	}
	if _, err = s.judge(ctx, name, r.Manifest); err != nil {
		return err
	}
	_, err = s.judgeSignaturesAs(ctx, name, r)
	return err
}
