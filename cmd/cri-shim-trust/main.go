// Command cri-shim-trust answers the daemon's questions about trust: whether a signature policy allows an image, and
// which keys the layers of an encrypted image have. It is a program, and a module, of its own because the libraries
// for it are a third of the daemon's size, and because private keys and parsers of signatures then live in a process
// that ends with the answer.
//
// Both sides write JSON values, one after the other. The daemon begins with a question on standard input. What has to
// come from the image's registry is asked of the daemon, which has the mirrors and the credentials.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: cri-shim-trust policy|unwrap, with a question on standard input; the daemon's, not a person's")
		os.Exit(2)
	}
	said := os.Stderr
	os.Stderr = nil // libraries write their thoughts there, and the daemon would take them for ours
	if err := run(os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(said, err) // the daemon says whose words these are
		os.Exit(1)
	}
}

// maxQuestion bounds what is read from the daemon, which sends manifests and signatures.
const maxQuestion = 256 << 20

func run(what string, in io.Reader, out io.Writer) error {
	dec := json.NewDecoder(io.LimitReader(in, maxQuestion))
	enc := json.NewEncoder(out)
	switch what {
	case "policy":
		var q policyQuestion
		if err := dec.Decode(&q); err != nil {
			return fmt.Errorf("question: %w", err)
		}
		v, err := judge(&q, &daemon{dec, enc})
		if err != nil {
			return err
		}
		return enc.Encode(map[string]any{"verdict": v})
	case "unwrap":
		var q unwrapQuestion
		if err := dec.Decode(&q); err != nil {
			return fmt.Errorf("question: %w", err)
		}
		return enc.Encode(unwrap(&q))
	}
	return fmt.Errorf("%q is neither policy nor unwrap", what)
}

// daemon fetches for us.
type daemon struct {
	dec *json.Decoder
	enc *json.Encoder
}

// wanted is a piece of the image's repository.
type wanted struct {
	Kind      string `json:"kind"`      // manifest, blob, referrers
	Reference string `json:"reference"` // a digest, or for a manifest a tag
	Size      int64  `json:"size,omitempty"`
	MediaType string `json:"mediaType,omitempty"`
}

type piece struct {
	Data      []byte `json:"data"`
	MediaType string `json:"mediaType"`
	NotFound  bool   `json:"notFound"`
	Error     string `json:"error"`
}

var errNotFound = errors.New("not found")

func (d *daemon) fetch(w wanted) (piece, error) {
	var p piece
	if err := d.enc.Encode(map[string]any{"fetch": w}); err != nil {
		return p, err
	}
	if err := d.dec.Decode(&p); err != nil {
		return p, fmt.Errorf("answer of the daemon: %w", err)
	}
	switch {
	case p.NotFound:
		return p, errNotFound
	case p.Error != "":
		return p, errors.New(p.Error)
	}
	return p, nil
}
