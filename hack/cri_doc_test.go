package hack

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	docRow  = regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (.*) \\|$")
	docTest = regexp.MustCompile("`(\\w+)\\.(Test\\w+)`")
)

// docFolders are the folders that docs/cri.md has other names for.
var docFolders = map[string]string{"e2e": "hack/e2e", "kubelet": "hack/kube/kubelet", "cluster": "hack/kube/cluster"}

// TestEveryCallHasItsTests: docs/cri.md has a line for each call of the services as they describe themselves, with tests
// that are there.
func TestEveryCallHasItsTests(t *testing.T) {
	text, err := os.ReadFile("../docs/cri.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, m := range docRow.FindAllStringSubmatch(string(text), -1) {
		if docTest.MatchString(m[2]) {
			if rows[m[1]] != "" {
				t.Errorf("docs/cri.md has two lines of %s", m[1])
			}
			rows[m[1]] = m[2]
		}
	}
	for _, service := range []grpc.ServiceDesc{pb.RuntimeService_ServiceDesc, pb.ImageService_ServiceDesc} {
		var calls []string
		for _, m := range service.Methods {
			calls = append(calls, m.MethodName)
		}
		for _, s := range service.Streams {
			calls = append(calls, s.StreamName)
		}
		for _, call := range calls {
			if rows[call] == "" {
				t.Errorf("docs/cri.md has no line of %s with a test", call)
			}
			delete(rows, call)
		}
	}
	for call := range rows {
		t.Errorf("docs/cri.md has a line of %s, which is no call", call)
	}
	for _, m := range docTest.FindAllStringSubmatch(string(text), -1) {
		if err := findTest(m[1], m[2]); err != nil {
			t.Error(err)
		}
	}
}

// findTest looks for a test function in the sources of a folder.
func findTest(name, test string) error {
	folder := docFolders[name]
	if folder == "" {
		folder = name
	}
	files, err := filepath.Glob(filepath.Join("..", folder, "*_test.go"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("docs/cri.md names %s.%s: no tests in %s: %v", name, test, folder, err)
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.Contains(string(source), "\nfunc "+test+"(t *testing.T) {") {
			return nil
		}
	}
	return fmt.Errorf("docs/cri.md names %s.%s, which is not in %s", name, test, folder)
}
