package node

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Lines of the kubelet that blame the runtime, and those that a restart of the daemon explains.
var (
	blame     = regexp.MustCompile(`(?i)rpc error|PLEG is not healthy|runtime service failed|image service failed|FailedCreatePodSandBox|FailedKillPod|CreateContainerError|RunContainerError|KillContainerError|RuntimeNotReady`)
	restarted = regexp.MustCompile(`code = Unavailable|code = Canceled|error reading server preface`)
)

// Blames fails when the kubelet that wrote the log saw an error of the runtime. Lines with one of the texts in expected
// are errors that the tests provoke.
func Blames(log string, expected ...string) error {
	text, err := os.ReadFile(log)
	if err != nil {
		return err
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if blame.MatchString(line) && !restarted.MatchString(line) && !contains(line, expected) {
			found = append(found, line[:min(len(line)-1, 600)])
		}
	}
	if len(found) == 0 {
		return nil
	}
	return fmt.Errorf("the kubelet blames the runtime in %d lines:\n%s", len(found), strings.Join(found[:min(len(found), 40)], "\n"))
}

// always are lines that the kubelet writes at its start, and when it removes containers and asks for them again.
var always = []string{
	"pleg has yet to be successful",
	"DeleteContainer returned error", `"ContainerStatus from runtime service failed" err="rpc error: code = NotFound`,
}

func contains(line string, expected []string) bool {
	for _, text := range append(expected[:len(expected):len(expected)], always...) {
		if strings.Contains(line, text) {
			return true
		}
	}
	return false
}
