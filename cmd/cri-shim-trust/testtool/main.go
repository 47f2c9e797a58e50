// Command testtool makes for tests what others do with libraries that the daemon does without.
//
// testtool FILE RECIPIENT... encrypts the layer on standard input to FILE, as ocicrypt does, and prints the annotations of
// its descriptor in JSON. A recipient is jwe:PUBLIC-KEY, pkcs7:CERTIFICATE or pgp:USER.
//
// testtool sigstore signs, as cosign 3 does, what standard input lists in JSON, and prints the bundles with the key and the
// trusted root that they are good for.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/containers/ocicrypt"
	"github.com/containers/ocicrypt/helpers"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cri-shim/cri-shim/cmd/cri-shim-trust/sigtest"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "sigstore" {
		if err := sign(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "testtool:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: testtool FILE RECIPIENT... | testtool sigstore")
		os.Exit(2)
	}
	plain, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = encrypt(plain, os.Args[1], os.Args[2:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testtool:", err)
		os.Exit(1)
	}
}

func encrypt(plain []byte, file string, recipients []string) error {
	cc, err := helpers.CreateCryptoConfig(recipients, nil)
	if err != nil {
		return err
	}
	pr, pw := io.Pipe() // EncryptLayer takes a stream that says of itself where it ends
	go func() {
		_, err := pw.Write(plain)
		pw.CloseWithError(err)
	}()
	r, finish, err := ocicrypt.EncryptLayer(cc.EncryptConfig, pr, ocispec.Descriptor{Digest: digest.FromBytes(plain)})
	if err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	annotations, err := finish()
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(annotations)
}

// sign makes a bundle for each of the things to sign: by a key that is logged by Rekor 1, or by a certificate and Rekor 2.
func sign(in io.Reader, out io.Writer) error {
	var todo []struct {
		Digest        digest.Digest
		Annotations   map[string]string
		Email, Issuer string // of the certificate; none: by the key
		Stranger      bool   // by another key, which is as good
	}
	if err := json.NewDecoder(in).Decode(&todo); err != nil {
		return err
	}
	s, key := sigtest.New(), sigtest.NewKey()
	var bundles []any
	for _, d := range todo {
		g := sigtest.Signing{Key: key, Rekor: 1}
		if d.Stranger {
			g.Key = sigtest.NewKey()
		}
		if d.Email != "" {
			g = sigtest.Signing{Email: d.Email, Issuer: d.Issuer, Rekor: 2, Stamp: true}
		}
		bundles = append(bundles, s.Bundle(sigtest.Statement{Digest: d.Digest, Annotations: d.Annotations}.JSON(), g))
	}
	return json.NewEncoder(out).Encode(map[string]any{
		"key": sigtest.PEM(key.Public()), "trustedRoot": s.TrustedRoot(), "bundles": bundles,
	})
}
