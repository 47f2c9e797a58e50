package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/blockcipher"
	encconfig "github.com/containers/ocicrypt/config"
	encutils "github.com/containers/ocicrypt/utils"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type unwrapQuestion struct {
	Keys   []string             `json:"keys"` // files, and folders of files
	Layers []ocispec.Descriptor `json:"layers"`
}

type unwrapAnswer struct {
	Layers []unwrapped `json:"layers"` // as many as were asked for
	Files  []string    `json:"files"`  // what the answer depends on
}

// unwrapped is what deciphers a layer: AES-256 in counter mode, and an HMAC-SHA256 of the ciphertext.
type unwrapped struct {
	Key   []byte `json:"key,omitempty"`
	Nonce []byte `json:"nonce,omitempty"`
	HMAC  []byte `json:"hmac,omitempty"`
	Error string `json:"error,omitempty"`
}

const (
	keysAnnotation = "org.opencontainers.image.enc.keys."
	pubOpts        = "org.opencontainers.image.enc.pubopts"
	maxKeyFile     = 1 << 20
)

func unwrap(q *unwrapQuestion) unwrapAnswer {
	ring := readKeys(q.Keys)
	a := unwrapAnswer{Files: ring.files}
	for _, l := range q.Layers {
		u, err := ring.open(l)
		if err != nil {
			u = unwrapped{Error: oneLine(err)}
		}
		a.Layers = append(a.Layers, u)
	}
	return a
}

// keyring is the private keys of the node.
type keyring struct {
	dc       encconfig.DecryptConfig
	files    []string
	keys     int
	problems []error // files that could not be used
}

// readKeys reads what is there. A file that cannot be used costs the images that need it.
func readKeys(paths []string) *keyring {
	r := &keyring{}
	var private, passwords, gpg, gpgPasswords, certs [][]byte
	for _, path := range r.list(paths) {
		b, password, err := readKey(path)
		if err != nil {
			r.problems = append(r.problems, err)
			continue
		}
		isPrivate, err := encutils.IsPrivateKey(b, password)
		switch {
		case encutils.IsPasswordError(err):
			r.problems = append(r.problems, fmt.Errorf("%s: wrong or missing password (a file %s.password): %w", path, filepath.Base(path), err))
		case isPrivate:
			private, passwords = append(private, b), append(passwords, password)
		case encutils.IsGPGPrivateKeyRing(b):
			gpg, gpgPasswords = append(gpg, b), append(gpgPasswords, password)
		case encutils.IsCertificate(b):
			certs = append(certs, b)
		}
	}
	r.keys = len(private) + len(gpg)
	var all []encconfig.CryptoConfig
	add := func(cc encconfig.CryptoConfig, err error) {
		if err != nil {
			r.problems = append(r.problems, err)
			return
		}
		all = append(all, cc)
	}
	if len(private) > 0 {
		add(encconfig.DecryptWithPrivKeys(private, passwords))
	}
	if len(gpg) > 0 {
		add(encconfig.DecryptWithGpgPrivKeys(gpg, gpgPasswords))
	}
	if len(certs) > 0 {
		add(encconfig.DecryptWithX509s(certs))
	}
	if cc := encconfig.CombineCryptoConfigs(all); cc.DecryptConfig != nil {
		r.dc = *cc.DecryptConfig
	}
	return r
}

// list is the files that paths lead to; folders are not followed further.
func (r *keyring) list(paths []string) (all []string) {
	for _, p := range paths {
		r.files = append(r.files, p)
		entries, err := os.ReadDir(p)
		if err != nil {
			if fi, serr := os.Stat(p); serr == nil && !fi.IsDir() {
				all = append(all, p)
			} else if !errors.Is(serr, fs.ErrNotExist) {
				r.problems = append(r.problems, err)
			}
			continue
		}
		for _, e := range entries {
			path := filepath.Join(p, e.Name())
			if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
				r.files = append(r.files, path)
				if filepath.Ext(path) != ".password" {
					all = append(all, path)
				}
			}
		}
	}
	slices.Sort(r.files)
	r.files = slices.Compact(r.files)
	return all
}

func readKey(path string) (key, password []byte, err error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if fi.Size() > maxKeyFile {
		return nil, nil, fmt.Errorf("%s: more than %d bytes", path, maxKeyFile)
	}
	if key, err = os.ReadFile(path); err != nil {
		return nil, nil, err
	}
	password, err = os.ReadFile(path + ".password")
	if errors.Is(err, fs.ErrNotExist) {
		return key, nil, nil
	}
	return key, []byte(strings.TrimRight(string(password), "\r\n")), err
}

// open finds the key of a layer among those that it was encrypted for.
func (r *keyring) open(l ocispec.Descriptor) (u unwrapped, err error) {
	var protocols []string
	for a := range l.Annotations {
		if p, ok := strings.CutPrefix(a, keysAnnotation); ok {
			protocols = append(protocols, p)
		}
	}
	slices.Sort(protocols)
	if len(protocols) == 0 {
		return u, fmt.Errorf("it is encrypted, and its annotations name no recipient (%s…)", keysAnnotation)
	}
	var errs []error
	wrapped := ocicrypt.GetWrappedKeysMap(l)
	for scheme, annotation := range wrapped {
		wrapper := ocicrypt.GetKeyWrapper(scheme)
		if wrapper.NoPossibleKeys(r.dc.Parameters) {
			continue
		}
		for i, one := range strings.Split(annotation, ",") {
			packet, err := base64.StdEncoding.DecodeString(one)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s recipient %d: not base64", scheme, i+1))
				continue
			}
			private, err := wrapper.UnwrapKey(&r.dc, packet)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s recipient %d: %w", scheme, i+1, err))
				continue
			}
			return options(private, l.Annotations[pubOpts])
		}
	}
	errs = append(errs, r.problems...)
	why := fmt.Errorf("it is encrypted for %s, and none of the %d private keys here opens it", strings.Join(protocols, ", "), r.keys)
	if len(errs) == 0 {
		return u, why
	}
	return u, fmt.Errorf("%w: %w", why, errors.Join(errs...))
}

// options reads what the layer was encrypted with. The private part was in the packet, the public part is an annotation.
func options(private []byte, public string) (u unwrapped, err error) {
	var priv blockcipher.PrivateLayerBlockCipherOptions
	if err := json.Unmarshal(private, &priv); err != nil {
		return u, fmt.Errorf("the layer's key is no options object: %w", err)
	}
	raw, err := base64.StdEncoding.DecodeString(public)
	if err != nil {
		return u, fmt.Errorf("annotation %s: not base64", pubOpts)
	}
	var pub blockcipher.PublicLayerBlockCipherOptions
	if err := json.Unmarshal(raw, &pub); err != nil {
		return u, fmt.Errorf("annotation %s: %w", pubOpts, err)
	}
	if pub.CipherType != blockcipher.AES256CTR {
		return u, fmt.Errorf("annotation %s: cipher %q is not supported", pubOpts, pub.CipherType)
	}
	nonce, ok := (blockcipher.LayerBlockCipherOptions{Public: pub, Private: priv}).GetOpt("nonce")
	u = unwrapped{Key: priv.SymmetricKey, Nonce: nonce, HMAC: pub.Hmac}
	if !ok || len(u.Key) != 32 || len(u.Nonce) != 16 || len(u.HMAC) != 32 {
		return u, fmt.Errorf("a key of %d, a nonce of %d and an HMAC of %d bytes; want 32, 16, 32", len(u.Key), len(u.Nonce), len(u.HMAC))
	}
	return u, nil
}
