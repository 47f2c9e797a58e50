package image

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/image/layer"
)

// Encrypted layers are those of ocicrypt: AES-256 in counter mode with an HMAC-SHA256 over the ciphertext, whose key is
// in the descriptor's annotations, encrypted for each recipient. cri-shim-trust opens that with the node's private keys;
// the layer itself is deciphered here, on its way from the network to the disk.
//
// The keys are the node's, as for containerd's and CRI-O's "node" key model: who may run pods on it may use the images
// that it can open. What they protect is enforced at each pull and import, also of layers that are here already, and
// when a container is made: an image whose keys were taken away cannot be used any more. Nor can a layer that was
// decrypted once be had by an image that merely names its diff ID, which encryption does not hide: see proveLayer.

// layerKey deciphers a layer.
type layerKey struct {
	Key   []byte `json:"key"`
	Nonce []byte `json:"nonce"`
	HMAC  []byte `json:"hmac"`
	Error string `json:"error"`
}

func isEncrypted(mediaType string) bool { return strings.HasSuffix(mediaType, "+encrypted") }

func (m *manifest) encrypted() bool {
	for _, l := range m.layers {
		if isEncrypted(l.MediaType) {
			return true
		}
	}
	return false
}

// unwrapKeys finds the keys of the layers that are encrypted, and what the answer rests on. ErrSealed.
func (s *Store) unwrapKeys(ctx context.Context, layers []ocispec.Descriptor) ([]*layerKey, stamps, error) {
	keys := make([]*layerKey, len(layers))
	var ask []ocispec.Descriptor
	var at []int
	for i, l := range layers {
		if isEncrypted(l.MediaType) {
			ask, at = append(ask, l), append(at, i)
		}
	}
	if len(ask) == 0 {
		return keys, nil, nil
	}
	start := time.Now()
	var got struct {
		Layers []layerKey `json:"layers"`
		Files  []string   `json:"files"`
	}
	err := s.askTrust(ctx, "unwrap", map[string]any{"keys": s.cfg.DecryptionKeys, "layers": ask},
		func(dec *json.Decoder, _ *json.Encoder) error { return dec.Decode(&got) })
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrSealed, err)
	}
	if len(got.Layers) != len(ask) {
		return nil, nil, fmt.Errorf("%w: cri-shim-trust: keys of %d layers for %d", ErrSealed, len(got.Layers), len(ask))
	}
	for i := range got.Layers {
		k := &got.Layers[i]
		if err := k.check(); err != nil {
			return nil, nil, fmt.Errorf("%w: layer %d, %s: %w (keys are looked for in %s)", ErrSealed, at[i], ask[i].Digest, err,
				strings.Join(s.cfg.DecryptionKeys, ", "))
		}
		keys[at[i]] = k
	}
	return keys, stampsOf(got.Files, start), nil
}

func (k *layerKey) check() error {
	switch {
	case k.Error != "":
		return errors.New(k.Error)
	case len(k.Key) != 32 || len(k.Nonce) != aes.BlockSize || len(k.HMAC) != sha256.Size:
		return fmt.Errorf("a key of %d, a nonce of %d and an HMAC of %d bytes", len(k.Key), len(k.Nonce), len(k.HMAC))
	}
	return nil
}

// decipher gives the plain text of raw, and raw as it is to be drained: what was read of it is authentic if genuine,
// called at its end, returns nil. A nil key is for what is not encrypted.
func (k *layerKey) decipher(raw io.Reader) (drain, plain io.Reader, genuine func() error) {
	if k == nil {
		return raw, raw, func() error { return nil }
	}
	block, err := aes.NewCipher(k.Key)
	if err != nil { // check has seen the size
		return raw, raw, func() error { return err }
	}
	mac := hmac.New(sha256.New, k.Key)
	drain = io.TeeReader(raw, mac)
	return drain, cipher.StreamReader{S: cipher.NewCTR(block, k.Nonce), R: drain}, func() error {
		if !hmac.Equal(mac.Sum(nil), k.HMAC) {
			return fmt.Errorf("it is encrypted, and its HMAC is not the one in the manifest: %w", ErrDigest)
		}
		return nil
	}
}

// proveLayer fetches a layer that is here, to see that who describes it has it: its blob, plain, with the digest that
// the manifest says, and in it the content of the diff ID. Nothing is written.
func (s *Store) proveLayer(ctx context.Context, src fetcher, desc ocispec.Descriptor, id digest.Digest) error {
	if err := s.layers.gate.enter(ctx, desc.Size); err != nil {
		return err
	}
	defer s.layers.gate.leave()
	err := src.whole(ctx, desc, nil, func(b *blobReader) error {
		blobHash, diffHash := desc.Digest.Algorithm().Digester(), id.Algorithm().Digester()
		raw := io.TeeReader(b, blobHash.Hash())
		err := decompressTo(diffHash.Hash(), raw, s.cfg.MaxLayerSize)
		if b.err != nil {
			return b.err
		}
		if _, derr := io.Copy(io.Discard, raw); derr != nil {
			return errors.Join(derr, err)
		}
		if got := blobHash.Digest(); got != desc.Digest {
			return b.f.wrap(b.sender(), wrongBlob("blob %s: got one with digest %s", desc.Digest, got))
		}
		if got := diffHash.Digest(); err == nil && got != id {
			err = fmt.Errorf("uncompressed content has digest %s, the image's configuration says %s: %w", got, id, ErrDigest)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("layer %s: %w", desc.Digest, err)
	}
	return nil
}

func decompressTo(w io.Writer, r io.Reader, limit int64) error {
	z, err := layer.Decompress(r)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	defer z.Close()
	n, err := io.Copy(w, io.LimitReader(z, limit+1))
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	case n > limit:
		return fmt.Errorf("more than %d bytes: %w", limit, ErrTooLarge)
	}
	return nil
}
