package registry

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Listen("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// ask returns status, headers and body of one request.
func ask(t *testing.T, s *Server, method, path string, body []byte, edit func(*http.Request)) (int, http.Header, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Host()+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// TestPush: what is pushed, in one piece or several, is what is pulled.
func TestPush(t *testing.T) {
	s := start(t, Options{})
	blob := []byte(strings.Repeat("content", 1000))
	d := digest.FromBytes(blob)
	code, h, _ := ask(t, s, http.MethodPost, "/v2/a/b/blobs/uploads/", nil, nil)
	if code != http.StatusAccepted {
		t.Fatalf("POST = %d; want 202", code)
	}
	at := h.Get("Location")
	if code, _, _ := ask(t, s, http.MethodPatch, at, blob[:100], nil); code != http.StatusAccepted {
		t.Errorf("PATCH = %d; want 202", code)
	}
	if code, _, msg := ask(t, s, http.MethodPut, at+"?digest="+d.String(), blob[100:], nil); code != http.StatusCreated {
		t.Errorf("PUT = %d %s; want 201", code, msg)
	}
	if code, _, got := ask(t, s, http.MethodGet, "/v2/a/b/blobs/"+d.String(), nil, nil); code != http.StatusOK || got != string(blob) {
		t.Errorf("GET = %d, %d bytes; want the blob", code, len(got))
	}
	code, _, got := ask(t, s, http.MethodGet, "/v2/a/b/blobs/"+d.String(), nil, func(r *http.Request) { r.Header.Set("Range", "bytes=6990-") })
	if code != http.StatusPartialContent || got != string(blob[6990:]) {
		t.Errorf("GET of a range = %d %q; want its end", code, got)
	}
	if code, _, _ := ask(t, s, http.MethodPost, "/v2/a/b/blobs/uploads/?digest="+digest.FromString("other").String(), blob, nil); code != http.StatusBadRequest {
		t.Errorf("POST with the wrong digest = %d; want 400", code)
	}
	manifest := []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}`)
	if code, _, _ := ask(t, s, http.MethodPut, "/v2/a/b/manifests/v1", manifest, nil); code != http.StatusCreated {
		t.Errorf("PUT manifest = %d; want 201", code)
	}
	code, h, got = ask(t, s, http.MethodGet, "/v2/a/b/manifests/v1", nil, nil)
	if code != http.StatusOK || got != string(manifest) || h.Get("Docker-Content-Digest") != digest.FromBytes(manifest).String() {
		t.Errorf("GET manifest = %d %v; want what was put", code, h)
	}
	if _, _, got := ask(t, s, http.MethodGet, "/v2/a/b/tags/list", nil, nil); !strings.Contains(got, `"v1"`) {
		t.Errorf("tags = %s; want v1", got)
	}
	for _, path := range []string{"/v2/a/b/manifests/v2", "/v2/a/b/manifests/..%2f..%2fx", "/v2/a/b/blobs/" + digest.FromString("x").String(), "/x"} {
		if code, _, _ := ask(t, s, http.MethodGet, path, nil, nil); code != http.StatusNotFound {
			t.Errorf("GET %s = %d; want 404", path, code)
		}
	}
}

func TestBearer(t *testing.T) {
	s := start(t, Options{Auth: BearerAuth, Username: "u", Password: "p"})
	code, h, _ := ask(t, s, http.MethodGet, "/v2/", nil, nil)
	if code != http.StatusUnauthorized || !strings.HasPrefix(h.Get("WWW-Authenticate"), "Bearer ") {
		t.Errorf("GET without a token = %d %v; want 401 that asks for one", code, h)
	}
	if code, _, _ := ask(t, s, http.MethodGet, "/token", nil, func(r *http.Request) { r.SetBasicAuth("u", "wrong") }); code != http.StatusUnauthorized {
		t.Errorf("token for a wrong password = %d; want 401", code)
	}
	if code, _, got := ask(t, s, http.MethodGet, "/token", nil, func(r *http.Request) { r.SetBasicAuth("u", "p") }); code != http.StatusOK || !strings.Contains(got, "token") {
		t.Errorf("token = %d %s; want one", code, got)
	}
	token := s.Token()
	if code, _, _ := ask(t, s, http.MethodGet, "/v2/", nil, func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+token) }); code != http.StatusOK {
		t.Errorf("GET with a token = %d; want 200", code)
	}
}
