package cluster

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestDaemonRestart ends cri-shim while pods are at every stage; those that were there do not notice.
func TestDaemonRestart(t *testing.T) {
	app := name(t)
	apply(t, app, pod(app, sleeper))
	before := ready(t, app, 1)[0].Status.ContainerStatuses[0]
	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			begun := fmt.Sprintf("%s-%d", app, i)
			apply(t, begun, deployment(begun, 12, server))
			eventually(t, "pods are on their way", func() error {
				list, err := pods(begun)
				if err == nil && len(list) < 6 {
					err = fmt.Errorf("%d pods", len(list))
				}
				return err
			})
			time.Sleep(500 * time.Millisecond)
			if err := one.StopDaemon(sig); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			if err := one.StartDaemon(); err != nil {
				t.Fatal(err)
			}
			ready(t, begun, 12)
		})
	}
	after := ready(t, app, 1)[0].Status.ContainerStatuses[0]
	if after.ContainerID != before.ContainerID || after.RestartCount != 0 {
		t.Errorf("container %s, %d restarts; want %s to live on", after.ContainerID, after.RestartCount, before.ContainerID)
	}
	next := 0
	for line := range strings.Lines(kubectl(t, "logs", app)) {
		if want := fmt.Sprintf("count %d\n", next); line != want {
			t.Fatalf("the log has %q; want %q", line, want)
		}
		next++
	}
}
