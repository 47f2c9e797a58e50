package hack

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/pelletier/go-toml/v2"

	"github.com/cri-shim/cri-shim/internal/config"
)

// documents are the pages of the repository.
func documents(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Glob("../*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages := map[string]string{}
	for _, path := range append(paths, top...) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		pages[path] = string(text)
	}
	return pages
}

var (
	link     = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	codePath = regexp.MustCompile("`([a-zA-Z_/.-]+/[a-zA-Z_.-]+\\.(?:go|sh|md|service))`")
	block    = regexp.MustCompile("(?ms)^```(json|toml)\n(.*?)^```$")
)

// TestDocumentsNameWhatIsThere: files that the pages link to or name exist.
func TestDocumentsNameWhatIsThere(t *testing.T) {
	names := 0
	for page, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			names++
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, m[1], err)
			}
		}
		for _, m := range codePath.FindAllStringSubmatch(text, -1) {
			names++
			if filepath.IsAbs(m[1]) || strings.Contains(page, "CHANGELOG") {
				continue
			}
			if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
				t.Errorf("%s names %s: %v", page, m[1], err)
			}
		}
	}
	if names < 20 {
		t.Errorf("the pages name %d files; the patterns do not find them any more", names)
	}
}

// TestDocumentsExamples: networks and configurations in the pages can be used as they stand.
func TestDocumentsExamples(t *testing.T) {
	kinds := map[string]int{}
	for page, text := range documents(t) {
		for _, m := range block.FindAllStringSubmatch(text, -1) {
			kind, err := checkExample(t, m[1], m[2])
			kinds[kind]++
			if err != nil {
				t.Errorf("%s: %s example: %v\n%s", page, kind, err, m[2])
			}
		}
	}
	for _, kind := range []string{"network", "configuration", "registry"} {
		if kinds[kind] == 0 {
			t.Errorf("the pages have no %s example", kind)
		}
	}
}

func checkExample(t *testing.T, language, text string) (kind string, err error) {
	switch {
	case language == "json":
		if !json.Valid([]byte(text)) {
			return "network", os.ErrInvalid
		}
		_, err := libcni.NetworkConfFromBytes([]byte(text))
		return "network", err
	case strings.Contains(text, "hosts.toml"):
		var hosts map[string]any
		return "registry", toml.Unmarshal([]byte(text), &hosts)
	}
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return "configuration", err
	}
	_, err = config.Load(path)
	return "configuration", err
}
