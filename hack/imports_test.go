// Package hack holds what developers run. Its tests check the tree as a whole.
package hack

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cri-shim/cri-shim"

// allowed is the map of docs/architecture.md: which of this module's packages the packages in a folder
// and below it may import, beside internal/..., which everyone may. The longest matching key counts; a
// name in a list stands for the packages that this key covers, "." for the folder's own, "*" for all.
var allowed = map[string][]string{
	"cmd/cri-shim":            {"*"},
	"cmd/cri-shim-supervisor": {"sandbox/supervisor"},
	"cmd/cri-shim-init":       {"oci/initproc"},
	"cmd/cri-shim-classes":    {},
	"cmd/cri-shim-oci":        {"oci"},
	"cri":                     {".", "sandbox", "image"},
	"sandbox":                 {".", "sandbox/api"},
	"sandbox/api":             {},
	"sandbox/supervisor":      {".", "sandbox/api", "oci"},
	"cni":                     {"."},
	"oci":                     {"."},
	"oci/initproc":            {"."},
	"image":                   {"."},
	"gpu":                     {"."},
	"internal":                {"."},
	"hack":                    {"*"},
}

// restricted names packages from elsewhere that only some folders import; test files are exempt.
var restricted = []struct {
	what string
	by   []string
	why  string
}{
	{"golang.org/x/sys/unix", []string{"internal/sys", "oci/initproc"}, "kernel calls are wrapped in internal/sys"},
	{"google.golang.org/grpc", []string{"cri", "cmd/cri-shim", "hack"}, "gRPC stays at the edge"},
	{"k8s.io/cri-api", []string{"cri", "cmd/cri-shim", "hack"}, "CRI types stay at the edge"},
}

// absent names packages that must not even be reached through others: they cost memory in every
// supervisor, or time at every container start.
var absent = map[string][]string{
	"cmd/cri-shim": {"github.com/intel/goresctrl/pkg/rdt", "github.com/intel/goresctrl/pkg/blockio"},
	"cmd/cri-shim-supervisor": {"net/http", "os/exec", "text/template", "google.golang.org/grpc", "google.golang.org/protobuf",
		"github.com/opencontainers/runtime-spec"},
	"cmd/cri-shim-init": {"net/http", "os/exec", "text/template", "encoding/json", "google.golang.org/grpc",
		"google.golang.org/protobuf"},
}

type goPackage struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	CgoFiles   []string
	Imports    []string // of the package itself, not of its tests
	Deps       []string
}

// folder is the import path within the module.
func (p goPackage) folder() string { return folderOf(p.ImportPath) }

func folderOf(importPath string) string {
	return strings.TrimPrefix(strings.TrimPrefix(importPath, module), "/")
}

func TestImports(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, problem := range importProblems(p) {
			t.Error(problem)
		}
	}
}

func importProblems(p goPackage) (problems []string) {
	from := p.folder()
	for _, imported := range p.Imports {
		if within(imported, module) {
			if !mayImport(from, folderOf(imported)) {
				problems = append(problems, from+" imports "+folderOf(imported)+"; the map in docs/architecture.md denies it")
			}
			continue
		}
		for _, r := range restricted {
			if within(imported, r.what) && !slices.ContainsFunc(r.by, func(by string) bool { return within(from, by) }) {
				problems = append(problems, from+" imports "+imported+": "+r.why)
			}
		}
	}
	for _, dep := range p.Deps {
		for _, what := range absent[from] {
			if within(dep, what) {
				problems = append(problems, from+" depends on "+dep+" (see go mod why, or go list -deps)")
			}
		}
	}
	return problems
}

func mayImport(from, to string) bool {
	if within(to, "internal") {
		return true
	}
	rule, list := ruleFor(from)
	if rule == "" {
		return false
	}
	return slices.ContainsFunc(list, func(may string) bool {
		switch may {
		case "*":
			return true
		case ".":
			may = rule
		}
		owner, _ := ruleFor(to)
		return owner == may
	})
}

// ruleFor is the longest key of allowed that holds folder.
func ruleFor(folder string) (rule string, list []string) {
	for key, value := range allowed {
		if within(folder, key) && len(key) > len(rule) {
			rule, list = key, value
		}
	}
	return rule, list
}

// within says whether p is dir or below it.
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

func TestImportRules(t *testing.T) {
	tests := []struct {
		from, to string
		want     bool
	}{
		{"cni", "internal/sys", true},
		{"cni", "oci", false},
		{"image", "cri", false},
		{"oci/seccomp", "oci/cgroup", true},
		{"oci", "oci/initproc", false},
		{"oci/initproc", "oci", false},
		{"sandbox", "sandbox/api", true},
		{"sandbox", "cni", false},
		{"sandbox/api", "sandbox", false},
		{"sandbox/supervisor", "oci/seccomp", true},
		{"sandbox/supervisor", "sandbox", false},
		{"cri", "sandbox", true},
		{"cri", "sandbox/supervisor", false},
		{"cmd/cri-shim", "gpu", true},
		{"cmd/cri-shim-init", "oci", false},
		{"cmd/cri-shim-init", "oci/initproc", true},
		{"unlisted", "oci", false},
		{"internal/config", "cri", false},
	}
	for _, tt := range tests {
		if got := mayImport(tt.from, tt.to); got != tt.want {
			t.Errorf("mayImport(%s, %s) = %v; want %v", tt.from, tt.to, got, tt.want)
		}
	}
	bad := goPackage{
		ImportPath: module + "/cmd/cri-shim-init",
		Imports:    []string{"google.golang.org/grpc/codes", "golang.org/x/sys/unix", "k8s.io/cri-api/pkg/apis/runtime/v1"},
		Deps:       []string{"net/http", "fmt", "encoding/json"},
	}
	if got := importProblems(bad); len(got) != 5 {
		t.Errorf("importProblems = %q; want 5 problems", got)
	}
}

// A package outside the table would be bound by nothing.
func TestEveryPackageIsOnTheMap(t *testing.T) {
	for _, p := range listPackages(t) {
		if rule, _ := ruleFor(p.folder()); rule == "" {
			t.Errorf("%s is not on the map in hack/imports_test.go", p.folder())
		}
	}
}

func TestEveryPackageHasAComment(t *testing.T) {
	for _, p := range listPackages(t) {
		files := slices.Concat(p.GoFiles, p.CgoFiles)
		if len(files) > 0 && !slices.ContainsFunc(files, func(name string) bool { return hasDoc(t, filepath.Join(p.Dir, name)) }) {
			t.Errorf("%s has no package comment", p.folder())
		}
	}
}

func hasDoc(t *testing.T, file string) bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	return f.Doc != nil && strings.TrimSpace(f.Doc.Text()) != ""
}

// A promise in a comment is a defect that nobody tracks.
func TestNoPromises(t *testing.T) {
	words := [][]byte{[]byte("TO" + "DO"), []byte("FIX" + "ME"), []byte("XX" + "X ")}
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == "testdata" || strings.HasPrefix(name, ".") && name != ".." {
				return fs.SkipDir
			}
			return nil
		}
		if ext := path.Ext(p); ext != ".go" && ext != ".sh" {
			return nil
		}
		data, err := os.ReadFile(p)
		for _, word := range words {
			if i := bytes.Index(data, word); i >= 0 {
				t.Errorf("%s:%d: %s", p, 1+bytes.Count(data[:i], []byte("\n")), word)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// listPackages is `go list -deps` of this module's packages, for Linux, without cgo, as it is built.
func listPackages(t *testing.T) []goPackage {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs the go command")
	}
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,CgoFiles,Imports,Deps", "./...")
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOFLAGS=-buildvcs=false")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var packages []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) == 0 {
		t.Fatal("go list found no package")
	}
	return packages
}
