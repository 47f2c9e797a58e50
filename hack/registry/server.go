// Package registry is an OCI distribution server for tests, demonstrations and development: pull and push, basic and
// bearer authentication, faults on demand. It is small, keeps everything below one directory, and does not separate
// the blobs of repositories: it is no registry to put on a network.
package registry

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// AuthKind is how the server wants to be convinced.
type AuthKind string

// The kinds of authentication.
const (
	NoAuth     AuthKind = ""
	BasicAuth  AuthKind = "basic"
	BearerAuth AuthKind = "bearer" // tokens from the server's own /token
)

// Options describe a server.
type Options struct {
	Root               string // where everything is kept; "" for a temporary directory that goes with Close
	Auth               AuthKind
	Username, Password string
	RefreshToken       string // an identity token that /token takes instead of the password
	NoReferrers        bool   // the Referrers API is not there: clients list referrers under a tag
}

// Request is what a client asked and what it got.
type Request struct {
	Method, Path, Range, Authorization string
	Status                             int
}

// Server is a registry. It is an http.Handler, and can listen by itself.
type Server struct {
	opts   Options
	temp   bool
	http   *http.Server
	host   string
	mu     sync.Mutex
	tokens map[string]bool
	fault  func(*http.Request) *Fault
	log    []Request
	layers map[string]ocispec.Descriptor // by compression and diff ID
	closed chan struct{}
}

// New makes a server.
func New(o Options) (*Server, error) {
	s := &Server{opts: o, tokens: map[string]bool{}, layers: map[string]ocispec.Descriptor{}, closed: make(chan struct{})}
	if o.Root == "" {
		dir, err := os.MkdirTemp("", "registry-")
		if err != nil {
			return nil, err
		}
		s.opts.Root, s.temp = dir, true
	}
	for _, d := range []string{"blobs", "tags", "uploads"} {
		if err := os.MkdirAll(filepath.Join(s.opts.Root, d), 0o755); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Listen serves on addr ("127.0.0.1:0") until Close and returns host:port.
func (s *Server) Listen(addr string) (string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	s.host = l.Addr().String()
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = s.http.Serve(l) }() // ends with Close
	return s.host, nil
}

// Host is the address that Listen got.
func (s *Server) Host() string { return s.host }

// Close ends all connections and removes a temporary directory.
func (s *Server) Close() error {
	close(s.closed)
	var err error
	if s.http != nil {
		err = s.http.Close()
	}
	if s.temp {
		err = errors.Join(err, os.RemoveAll(s.opts.Root))
	}
	return err
}

// Requests returns what was asked so far.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.log...)
}

// ServeHTTP implements the parts of the distribution specification that clients use.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rec := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	defer func() {
		s.mu.Lock()
		s.log = append(s.log, Request{r.Method, r.URL.Path, r.Header.Get("Range"), r.Header.Get("Authorization"), rec.status})
		s.mu.Unlock()
	}()
	if r.URL.Path == "/token" {
		s.token(rec, r)
		return
	}
	if !s.authorized(rec, r) {
		return
	}
	out, done := s.applyFault(rec, r)
	if done {
		return
	}
	s.route(out, r)
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(code int) {
	w.status = code
	w.ResponseWriter.WriteHeader(code)
}

// ReadFrom lets files be sent without a copy.
func (w *statusWriter) ReadFrom(r io.Reader) (int64, error) { return io.Copy(w.ResponseWriter, r) }

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

var route = regexp.MustCompile(`^/v2/([a-z0-9]+(?:[._/-]+[a-z0-9]+)*)/(manifests|blobs|blobs/uploads|tags|referrers)/([^/]*)$`)

func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/v2/" || r.URL.Path == "/v2" {
		w.WriteHeader(http.StatusOK)
		return
	}
	m := route.FindStringSubmatch(r.URL.Path)
	if m == nil {
		fail(w, http.StatusNotFound, "NAME_UNKNOWN", "no such resource")
		return
	}
	repo, kind, ref := m[1], m[2], m[3]
	switch {
	case kind == "manifests" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		s.getManifest(w, r, repo, ref)
	case kind == "manifests" && r.Method == http.MethodPut:
		s.putManifest(w, r, repo, ref)
	case kind == "blobs" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
		s.getBlob(w, r, digest.Digest(ref))
	case kind == "referrers" && r.Method == http.MethodGet:
		s.getReferrers(w, r, repo, digest.Digest(ref))
	case kind == "blobs/uploads":
		s.upload(w, r, repo, ref)
	case kind == "tags" && ref == "list" && r.Method == http.MethodGet:
		s.listTags(w, repo)
	default:
		fail(w, http.StatusMethodNotAllowed, "UNSUPPORTED", r.Method+" is not supported here")
	}
}

func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

func (s *Server) authorized(w http.ResponseWriter, r *http.Request) bool {
	switch s.opts.Auth {
	case BasicAuth:
		if s.passes(r) {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
	case BearerAuth:
		t, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		s.mu.Lock()
		ok = ok && s.tokens[t]
		s.mu.Unlock()
		if ok {
			return true
		}
		scope := ""
		if m := route.FindStringSubmatch(r.URL.Path); m != nil {
			scope = fmt.Sprintf(`,scope="repository:%s:pull"`, m[1])
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="registry"%s`, r.Host, scope))
	default:
		return true
	}
	fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
	return false
}

func (s *Server) passes(r *http.Request) bool {
	u, p, ok := r.BasicAuth()
	return ok && equal(u, s.opts.Username) && equal(p, s.opts.Password)
}

func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// token hands out bearer tokens: to basic authentication (GET), a password or a refresh token (POST).
func (s *Server) token(w http.ResponseWriter, r *http.Request) {
	ok := s.passes(r)
	if r.Method == http.MethodPost {
		switch r.PostFormValue("grant_type") {
		case "password":
			ok = equal(r.PostFormValue("username"), s.opts.Username) && equal(r.PostFormValue("password"), s.opts.Password)
		case "refresh_token":
			ok = s.opts.RefreshToken != "" && equal(r.PostFormValue("refresh_token"), s.opts.RefreshToken)
		}
	}
	if !ok {
		fail(w, http.StatusUnauthorized, "UNAUTHORIZED", "wrong credentials")
		return
	}
	t := s.Token()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": t, "access_token": t, "expires_in": 300})
}

// Token makes a bearer token that the server takes.
func (s *Server) Token() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	t := hex.EncodeToString(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokens[t] = true
	return t
}

// Revoke makes all tokens void.
func (s *Server) Revoke() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

func (s *Server) blobPath(d digest.Digest) string {
	return filepath.Join(s.opts.Root, "blobs", d.Algorithm().String(), d.Encoded())
}

func (s *Server) tagPath(repo, tag string) string {
	return filepath.Join(s.opts.Root, "tags", filepath.FromSlash(repo), "@"+tag)
}

// Resolve returns the digest that a tag, or a digest, names.
func (s *Server) Resolve(repo, ref string) (digest.Digest, error) {
	if d, err := digest.Parse(ref); err == nil {
		return d, nil
	}
	if strings.ContainsAny(ref, `/\`) {
		return "", fs.ErrNotExist
	}
	b, err := os.ReadFile(s.tagPath(repo, ref))
	if err != nil {
		return "", err
	}
	return digest.Parse(string(b))
}

func (s *Server) getManifest(w http.ResponseWriter, r *http.Request, repo, ref string) {
	d, err := s.Resolve(repo, ref)
	var b []byte
	if err == nil {
		b, err = os.ReadFile(s.blobPath(d))
	}
	if err != nil {
		fail(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "manifest unknown to registry: "+ref)
		return
	}
	var doc struct {
		MediaType string          `json:"mediaType"`
		Manifests json.RawMessage `json:"manifests"`
	}
	_ = json.Unmarshal(b, &doc)
	switch {
	case doc.MediaType != "":
	case doc.Manifests != nil:
		doc.MediaType = ocispec.MediaTypeImageIndex
	default:
		doc.MediaType = ocispec.MediaTypeImageManifest
	}
	w.Header().Set("Content-Type", doc.MediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodGet {
		_, _ = w.Write(b)
	}
}

func (s *Server) putManifest(w http.ResponseWriter, r *http.Request, repo, ref string) {
	b, err := io.ReadAll(io.LimitReader(r.Body, 8<<20))
	if err != nil {
		fail(w, http.StatusBadRequest, "MANIFEST_INVALID", err.Error())
		return
	}
	tag := ref
	if _, err := digest.Parse(ref); err == nil {
		tag = ""
	}
	d, err := s.AddManifest(repo, tag, b)
	if err != nil {
		fail(w, http.StatusInternalServerError, "MANIFEST_INVALID", err.Error())
		return
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Location", "/v2/"+repo+"/manifests/"+d.String())
	w.WriteHeader(http.StatusCreated)
}

func (s *Server) getBlob(w http.ResponseWriter, r *http.Request, d digest.Digest) {
	if d.Validate() != nil {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", "invalid digest")
		return
	}
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		fail(w, http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry: "+d.String())
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, r, "", time.Time{}, f) // ranges included
}

func (s *Server) listTags(w http.ResponseWriter, repo string) {
	tags := []string{}
	entries, _ := os.ReadDir(filepath.Dir(s.tagPath(repo, "x")))
	for _, e := range entries {
		if t, ok := strings.CutPrefix(e.Name(), "@"); ok {
			tags = append(tags, t)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"name": repo, "tags": tags})
}

// upload takes blobs: POST begins (or takes all, with ?digest=), PATCH adds, PUT ends.
func (s *Server) upload(w http.ResponseWriter, r *http.Request, repo, id string) {
	if r.Method == http.MethodPost {
		b := make([]byte, 16)
		_, _ = rand.Read(b)
		id = hex.EncodeToString(b)
	}
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		fail(w, http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", "no such upload")
		return
	}
	path := filepath.Join(s.opts.Root, "uploads", id)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err == nil {
		_, err = io.Copy(f, r.Body)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		fail(w, http.StatusInternalServerError, "BLOB_UPLOAD_INVALID", err.Error())
		return
	}
	want := r.URL.Query().Get("digest")
	if want == "" {
		w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id)
		w.Header().Set("Docker-Upload-UUID", id)
		w.WriteHeader(http.StatusAccepted)
		return
	}
	if err := s.finishUpload(path, digest.Digest(want)); err != nil {
		fail(w, http.StatusBadRequest, "DIGEST_INVALID", err.Error())
		return
	}
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+want)
	w.Header().Set("Docker-Content-Digest", want)
	w.WriteHeader(http.StatusCreated)
}

func (s *Server) finishUpload(path string, want digest.Digest) error {
	defer os.Remove(path)
	if err := want.Validate(); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	v := want.Verifier()
	if _, err := io.Copy(v, f); err != nil {
		return err
	}
	if !v.Verified() {
		return errors.New("content has another digest")
	}
	dst := s.blobPath(want)
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	return os.Rename(path, dst)
}

// Root is the directory that everything is kept in.
func (s *Server) Root() string { return s.opts.Root }
