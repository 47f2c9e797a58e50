package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestSources(t *testing.T) {
	ref, err := parseReference("registry.example:5000/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	all := registriesFile{Docker: map[string]registryNamespace{}}
	from := map[string]string{}
	for path, text := range map[string]string{
		"a.yaml": "default-docker:\n  lookaside: file:///default\n  use-sigstore-attachments: true\n",
		"b.yaml": "docker:\n  registry.example:5000/team:\n    sigstore: https://old.example\n",
		"c.yaml": "docker:\n  registry.example:5000/team/app:\n    use-sigstore-attachments: false\n  other.example:\n    lookaside: file:///other\n",
	} {
		if err := all.merge([]byte(text), path, from); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := *all.of(ref), (signatureSources{"https://old.example", false, false}); got != want {
		t.Errorf("of(%s) = %+v; want %+v", ref, got, want)
	}
	other, err := parseReference("elsewhere.example/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := *all.of(other), (signatureSources{"file:///default", true, false}); got != want {
		t.Errorf("of(%s) = %+v; want %+v", other, got, want)
	}
	for text, want := range map[string]string{
		"default-docker: {}\n":               "a.yaml",
		"docker:\n  other.example: {}\n":     "c.yaml",
		"docker: [1\n":                       "d.yaml",
		"docker:\n  x:\n    lookaside: []\n": "d.yaml",
	} {
		if err := all.merge([]byte(text), "d.yaml", from); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("merge(%q) = %v; want an error that names %s", text, err, want)
		}
	}
}

func FuzzSources(f *testing.F) {
	f.Add([]byte("docker:\n  registry.example:\n    use-sigstore-attachments: true\n"))
	ref, err := parseReference("registry.example/app:v1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		all := registriesFile{Docker: map[string]registryNamespace{}}
		if all.merge(b, "x", map[string]string{}) == nil {
			all.of(ref)
		}
	})
}

// answers is a daemon that answers everything with b.
func answers(b []byte) *daemon {
	one, _ := json.Marshal(piece{Data: b})
	return &daemon{json.NewDecoder(bytes.NewReader(bytes.Repeat(one, 300))), json.NewEncoder(io.Discard)}
}

// FuzzAttachments: manifests of signatures and lists of referrers are anybody's.
func FuzzAttachments(f *testing.F) {
	f.Add([]byte(`{"layers": [{"mediaType": "` + simpleSigning + `", "digest": "sha256:0", "size": 3, "annotations": {"a": "b"}}]}`))
	f.Add([]byte(`[{"artifactType": "` + cosignArtifact + `", "digest": "sha256:0"}, {"artifactType": "` + bundlePrefix + `"}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, _ := attached(answers(b), wanted{})
		more, bundles, _ := fromReferrers(answers(b), digest.FromString("x"))
		if len(all) > maxSignatures || len(more) > maxReferrers*maxSignatures || len(bundles) > maxReferrers {
			t.Errorf("%d and %d signatures, %d bundles", len(all), len(more), len(bundles))
		}
	})
}

// FuzzUnwrap: what an image says of its keys is anybody's.
func FuzzUnwrap(f *testing.F) {
	public := base64.StdEncoding.EncodeToString([]byte(`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAAA","cipheroptions":{}}`))
	f.Add([]byte(`{"symkey":"AAAA","cipheroptions":{"nonce":"AAAA"}}`), public, "YWJj,YWJj")
	f.Fuzz(func(t *testing.T, private []byte, public, packets string) {
		if u, err := options(private, public); err == nil && (len(u.Key) != 32 || len(u.Nonce) != 16 || len(u.HMAC) != 32) {
			t.Errorf("options = %+v", u)
		}
		l := ocispec.Descriptor{Annotations: map[string]string{pubOpts: public, keysAnnotation + "jwe": packets, keysAnnotation + "pgp": packets}}
		if _, err := readKeys(nil).open(l); err == nil {
			t.Error("a layer was opened without keys")
		}
	})
}
