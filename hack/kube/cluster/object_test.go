package cluster

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// patience bounds every wait: the machine may have other work.
const patience = 4 * time.Minute

// sleeper is the container of most pods: it counts, and ends when it is told to.
const sleeper = "{name: main, image: '" + TestImage + "', command: [/bin/sh, -c, \"trap 'exit 0' TERM; i=0; while :; do echo count $i; i=$((i+1)); sleep 0.1; done\"]}"

// server answers HTTP with its host name.
const server = "{name: main, image: '" + TestImage + "', command: [/testserver], ports: [{containerPort: 8080}], readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}}"

// name is the test's, as an object may be called.
func name(t *testing.T) string {
	return strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(strings.TrimPrefix(t.Name(), "Test")))
}

// podTemplate is a pod template with one container.
func podTemplate(app, container string) string {
	return fmt.Sprintf("{metadata: {labels: {app: %s}}, spec: {terminationGracePeriodSeconds: 10, containers: [%s]}}", app, container)
}

func deployment(app string, replicas int, container string) string {
	return fmt.Sprintf("{apiVersion: apps/v1, kind: Deployment, metadata: {name: %[1]s}, spec: {replicas: %[2]d, selector: {matchLabels: {app: %[1]s}}, template: %[3]s}}",
		app, replicas, podTemplate(app, container))
}

func pod(app, container string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: %[1]s, labels: {app: %[1]s}}, spec: {terminationGracePeriodSeconds: 10, containers: [%[2]s]}}", app, container)
}

// kubectl fails the test if the command does.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := one.Kubectl("", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply makes the objects and deletes them at the test's end, waiting until their pods are gone.
func apply(t *testing.T, app, manifest string) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			out, err := one.Kubectl("", "describe", "pods", "-l", "app="+app)
			t.Logf("%s\n%v", out, err)
		}
		if _, err := one.Kubectl(manifest, "delete", "--ignore-not-found", "--wait=false", "-f", "-"); err != nil {
			t.Error(err)
		}
		gone(t, app)
	})
	if _, err := one.Kubectl(manifest, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, try func() error) {
	t.Helper()
	if err := one.until(what, patience, try); err != nil {
		t.Fatal(err)
	}
}

// pods are those with the label app.
func pods(app string) ([]corev1.Pod, error) {
	out, err := one.Kubectl("", "get", "pods", "-l", "app="+app, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	err = json.Unmarshal([]byte(out), &list)
	return list.Items, err
}

func gone(t *testing.T, app string) {
	t.Helper()
	err := one.until("no pod of "+app, patience, func() error {
		list, err := pods(app)
		if err == nil && len(list) > 0 {
			err = fmt.Errorf("%d pods", len(list))
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue && p.DeletionTimestamp == nil
		}
	}
	return false
}

// ready waits until exactly n pods of app are there and ready.
func ready(t *testing.T, app string, n int) (list []corev1.Pod) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d pods of %s are ready", n, app), func() (err error) {
		if list, err = pods(app); err != nil {
			return err
		}
		have := 0
		for i := range list {
			if isReady(&list[i]) {
				have++
			}
		}
		if have != n || len(list) != n {
			return fmt.Errorf("%d of %d pods are ready", have, len(list))
		}
		return nil
	})
	return list
}

// logsHave waits for text in a pod's log.
func logsHave(t *testing.T, pod, text string, args ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%q in the log of %s", text, pod), func() error {
		out, err := one.Kubectl("", append([]string{"logs", pod}, args...)...)
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("the log is %q", out)
		}
		return err
	})
}
