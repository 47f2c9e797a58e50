package cluster

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/cri-shim/cri-shim/hack/kube/node"
)

func TestManyPods(t *testing.T) {
	const count = 60
	app := name(t)
	began := time.Now()
	apply(t, app, deployment(app, count, server))
	// One request a round: 60 pods as JSON take longer to read than they are to be measured.
	eventually(t, "all pods are ready", func() error {
		out, err := one.Kubectl("", "get", "deployment", app, "-o", "jsonpath={.status.readyReplicas}")
		if err == nil && out != strconv.Itoa(count) {
			err = fmt.Errorf("%s ready", out)
		}
		return err
	})
	up := time.Since(began)
	ready(t, app, count)
	began = time.Now()
	kubectl(t, "delete", "deployment", app)
	eventually(t, "all pods are gone", func() error {
		out, err := one.Kubectl("", "get", "pods", "-l", "app="+app, "-o", "name")
		if err == nil && out != "" {
			err = fmt.Errorf("%d pods", strings.Count(out, "\n"))
		}
		return err
	})
	fmt.Printf("%d pods: ready after %.1f s, gone after %.1f s\n", count, up.Seconds(), time.Since(began).Seconds())
}

func TestRollingUpdate(t *testing.T) {
	app := name(t)
	apply(t, app, deployment(app, 4, server))
	before := ready(t, app, 4)
	kubectl(t, "set", "env", "deployment/"+app, "VERSION=2")
	kubectl(t, "rollout", "status", "deployment/"+app, "--timeout="+patience.String())
	after := ready(t, app, 4)
	for _, old := range before {
		for _, p := range after {
			if p.UID == old.UID {
				t.Errorf("pod %s is from before the update", p.Name)
			}
		}
	}
	if got := kubectl(t, "exec", after[0].Name, "--", "sh", "-c", "echo $VERSION"); got != "2\n" {
		t.Errorf("VERSION = %q; want 2", got)
	}
}

// containerPID is the process of a pod's only container, on the node.
func containerPID(t *testing.T, p *corev1.Pod) int {
	t.Helper()
	_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
	out, err := node.Crictl(one.dir, "inspect", id)
	if err != nil {
		t.Fatal(err)
	}
	var inspected struct{ Info struct{ PID int } }
	if err := json.Unmarshal([]byte(out), &inspected); err != nil || inspected.Info.PID <= 1 {
		t.Fatalf("crictl inspect %s: %v, pid %d", id, err, inspected.Info.PID)
	}
	return inspected.Info.PID
}

func TestKilled(t *testing.T) {
	app := name(t)
	apply(t, app, deployment(app, 1, server))
	p := ready(t, app, 1)[0]
	t.Run("container", func(t *testing.T) {
		if err := syscall.Kill(containerPID(t, &p), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		var after corev1.Pod
		eventually(t, "the container is restarted", func() error {
			list, err := pods(app)
			if err == nil && (len(list) != 1 || list[0].Status.ContainerStatuses[0].RestartCount != 1 || !isReady(&list[0])) {
				err = fmt.Errorf("%+v", list)
			}
			if err == nil {
				after = list[0]
			}
			return err
		})
		last := after.Status.ContainerStatuses[0].LastTerminationState.Terminated
		if after.UID != p.UID || last == nil || last.ExitCode != 137 {
			t.Errorf("pod %s, last termination %+v; want %s, exit code 137", after.UID, last, p.UID)
		}
	})
	t.Run("sandbox", func(t *testing.T) {
		id, err := node.Crictl(one.dir, "pods", "-q", "--state", "ready", "--name", p.Name)
		if err != nil {
			t.Fatal(err)
		}
		id = strings.TrimSpace(id)
		if _, err := node.Crictl(one.dir, "stopp", id); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the pod has another sandbox", func() error {
			got, err := node.Crictl(one.dir, "pods", "-q", "--state", "ready", "--name", p.Name)
			if got = strings.TrimSpace(got); err == nil && (got == "" || got == id) {
				err = fmt.Errorf("sandbox %q", got)
			}
			return err
		})
		if again := ready(t, app, 1)[0]; again.UID != p.UID {
			t.Errorf("pod %s; want %s in a new sandbox", again.UID, p.UID)
		}
	})
	t.Run("pod", func(t *testing.T) {
		kubectl(t, "delete", "pod", p.Name, "--force", "--grace-period=0")
		if again := ready(t, app, 1)[0]; again.UID == p.UID {
			t.Errorf("pod %s; want another one", again.UID)
		}
	})
}

func TestJob(t *testing.T) {
	app := name(t)
	apply(t, app, fmt.Sprintf(`{apiVersion: batch/v1, kind: Job, metadata: {name: %s}, spec: {completions: 6, parallelism: 3, template:
  {metadata: {labels: {app: %[1]s}}, spec: {restartPolicy: Never, containers: [{name: main, image: '%s', command: [/bin/sh, -c, 'echo done by $HOSTNAME']}]}}}}`, app, TestImage))
	kubectl(t, "wait", "--for=condition=Complete", "job/"+app, "--timeout="+patience.String())
	list, err := pods(app)
	if err != nil || len(list) != 6 {
		t.Fatalf("%d pods, %v; want 6", len(list), err)
	}
	for _, p := range list {
		if p.Status.Phase != corev1.PodSucceeded {
			t.Errorf("pod %s: %s; want Succeeded", p.Name, p.Status.Phase)
		}
		if got := kubectl(t, "logs", p.Name); got != "done by "+p.Name+"\n" {
			t.Errorf("log of %s = %q", p.Name, got)
		}
	}
}

func TestDaemonSetOnHostNetwork(t *testing.T) {
	app := name(t)
	apply(t, app, fmt.Sprintf(`{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: %[1]s}, spec: {selector: {matchLabels: {app: %[1]s}}, template:
  {metadata: {labels: {app: %[1]s}}, spec: {hostNetwork: true, containers: [{name: main, image: '%[2]s', command: [/testserver, '-http=:18090']}]}}}}`, app, TestImage))
	p := ready(t, app, 1)[0]
	if p.Status.PodIP != nodeAddress {
		t.Errorf("address %s; want the node's, %s", p.Status.PodIP, nodeAddress)
	}
	eventually(t, "it answers at the node's address", func() error {
		_, err := get("http://" + nodeAddress + ":18090/")
		return err
	})
}

func TestStatefulSet(t *testing.T) {
	app := name(t)
	apply(t, app, fmt.Sprintf(`{apiVersion: v1, kind: List, items: [
  {apiVersion: v1, kind: Service, metadata: {name: %[1]s}, spec: {clusterIP: None, selector: {app: %[1]s}}},
  {apiVersion: apps/v1, kind: StatefulSet, metadata: {name: %[1]s}, spec: {serviceName: %[1]s, replicas: 2, selector: {matchLabels: {app: %[1]s}}, template: %[2]s}}]}`,
		app, podTemplate(app, server)))
	ready(t, app, 2)
	for i := range 2 {
		p := fmt.Sprintf("%s-%d", app, i)
		if got := kubectl(t, "exec", p, "--", "hostname"); got != p+"\n" {
			t.Errorf("hostname of %s = %q", p, got)
		}
		full := p + "." + app + ".default.svc.cluster.local"
		if got := kubectl(t, "exec", p, "--", "hostname", "-f"); got != full+"\n" {
			t.Errorf("hostname -f of %s = %q; want %s", p, got, full)
		}
	}
	// By its name of the headless service, from the other one.
	eventually(t, app+"-1 is found by name", func() error {
		got, err := one.Kubectl("", "exec", app+"-0", "--", "wget", "-qO-", "http://"+app+"-1."+app+":8080/")
		if err == nil && !strings.HasPrefix(got, app+"-1 ") {
			err = fmt.Errorf("%q", got)
		}
		return err
	})
}

func TestService(t *testing.T) {
	app := name(t)
	apply(t, app, fmt.Sprintf("{apiVersion: v1, kind: List, items: [%s, {apiVersion: v1, kind: Service, metadata: {name: %[2]s}, spec: {selector: {app: %[2]s}, ports: [{port: 80, targetPort: 8080}]}}]}",
		deployment(app, 2, server), app))
	list := ready(t, app, 2)
	ip := kubectl(t, "get", "service", app, "-o", "jsonpath={.spec.clusterIP}")
	for _, address := range []string{ip, app, app + ".default.svc.cluster.local"} {
		seen := map[string]bool{}
		// Each pod also asks for itself: what comes back has to pass the node.
		eventually(t, "both pods answer at "+address, func() error {
			for _, p := range list {
				got, err := one.Kubectl("", "exec", p.Name, "--", "timeout", "10", "wget", "-qO-", "http://"+address+"/")
				if err != nil {
					return err
				}
				host, _, _ := strings.Cut(got, " ")
				seen[host] = true
			}
			if !seen[list[0].Name] || !seen[list[1].Name] {
				return fmt.Errorf("%v answered", seen)
			}
			return nil
		})
	}
	eventually(t, "the node reaches the service", func() error {
		_, err := get("http://" + ip + "/")
		return err
	})
}

var get = node.Get
