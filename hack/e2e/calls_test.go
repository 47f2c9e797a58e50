package e2e

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// calls is what the daemons of all tests were asked, by crictl too, and what they answered.
var calls = callCount{seen: map[string]map[string]int{}}

type callCount struct {
	mu   sync.Mutex
	seen map[string]map[string]int // call to code to count
}

// callLine is a daemon's line of a call; one without a code was answered.
var callLine = regexp.MustCompile(`msg=call op=(\w+)(?:.* code=(\w+))?`)

// read counts the calls in a daemon's log.
func (c *callCount) read(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		if m := callLine.FindStringSubmatch(lines.Text()); m != nil {
			code := m[2]
			if code == "" {
				code = codes.OK.String()
			}
			if c.seen[m[1]] == nil {
				c.seen[m[1]] = map[string]int{}
			}
			c.seen[m[1]][code]++
		}
	}
	return lines.Err()
}

// rpcs are the names of all calls of both services.
func rpcs() (all []string) {
	for _, service := range []grpc.ServiceDesc{pb.RuntimeService_ServiceDesc, pb.ImageService_ServiceDesc} {
		for _, m := range service.Methods {
			all = append(all, m.MethodName)
		}
		for _, s := range service.Streams {
			all = append(all, s.StreamName)
		}
	}
	return all
}

// needsCRIU are the calls that nothing answers where no criu works; their tests skip and say so.
var needsCRIU = []string{"CheckpointContainer", "CheckpointPod", "RestorePod"}

// report is a line for each call with its answers, and an error that names those that no test saw answered.
func (c *callCount) report() (string, error) {
	var b strings.Builder
	var missing []string
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range rpcs() {
		fmt.Fprintf(&b, "%-26s", name)
		for _, code := range slices.Sorted(maps.Keys(c.seen[name])) {
			fmt.Fprintf(&b, " %s %d", code, c.seen[name][code])
		}
		b.WriteByte('\n')
		answered := c.seen[name][codes.OK.String()]
		if name == "GetContainerEvents" { // ends when its client does
			answered += c.seen[name][codes.Canceled.String()]
		}
		if answered == 0 && !slices.Contains(needsCRIU, name) {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return b.String(), fmt.Errorf("no test saw these calls answered: %s", strings.Join(missing, ", "))
	}
	return b.String(), nil
}

// callsEnv names a file for the report.
const callsEnv = "CRI_SHIM_CALLS"

// check is for the end of all tests: where some were left out, there is nothing to be said.
func (c *callCount) check() error {
	text, err := c.report()
	if path := os.Getenv(callsEnv); path != "" {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, name := range []string{"test.run", "test.skip", "test.list"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" {
			return nil
		}
	}
	if len(c.seen) == 0 { // not root: all were skipped
		return nil
	}
	return err
}
