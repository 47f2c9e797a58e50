// Command testtool encrypts layers for tests, as ocicrypt does: testtool FILE RECIPIENT... writes the layer on standard
// input, encrypted, to FILE and prints the annotations of its descriptor in JSON. A recipient is jwe:PUBLIC-KEY,
// pkcs7:CERTIFICATE or pgp:USER.
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
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: testtool FILE RECIPIENT...")
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
