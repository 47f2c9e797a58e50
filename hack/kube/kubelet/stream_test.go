package kubelet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
)

var restConfig = &rest.Config{Host: secure, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}

// streamURL is the kubelet's address of exec, attach or portForward.
func (p *pod) streamURL(verb, container string, query url.Values) *url.URL {
	path := "/" + verb + "/default/" + p.fullName()
	if container != "" {
		path += "/" + container
	}
	u, _ := url.Parse(secure + path)
	u.RawQuery = query.Encode()
	return u
}

func executor(transport string, u *url.URL) (remotecommand.Executor, error) {
	if transport == "websocket" {
		return remotecommand.NewWebSocketExecutor(restConfig, http.MethodGet, u.String())
	}
	return remotecommand.NewSPDYExecutor(restConfig, http.MethodPost, u)
}

// exec runs a command through the kubelet and returns its output and exit code.
func (p *pod) exec(transport, stdin string, command ...string) (stdout, stderr string, code int, err error) {
	query := url.Values{"command": command, "output": {"1"}, "error": {"1"}}
	o := remotecommand.StreamOptions{}
	var out, errOut bytes.Buffer
	o.Stdout, o.Stderr = &out, &errOut
	if stdin != "" {
		query.Set("input", "1")
		o.Stdin = strings.NewReader(stdin)
	}
	e, err := executor(transport, p.streamURL("exec", "main", query))
	if err != nil {
		return "", "", 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = e.StreamWithContext(ctx, o)
	var exit utilexec.CodeExitError
	if errors.As(err, &exit) {
		return out.String(), errOut.String(), exit.Code, nil
	}
	return out.String(), errOut.String(), 0, err
}

func TestExec(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, nil))
	p.ready(t)
	for _, transport := range []string{"spdy", "websocket"} {
		out, errOut, code, err := p.exec(transport, "to standard input", "/bin/sh", "-c", "cat; echo problem >&2; exit 7")
		if err != nil || out != "to standard input" || errOut != "problem\n" || code != 7 {
			t.Errorf("exec by %s = %q, %q, %d, %v; want the input, problem, 7", transport, out, errOut, code, err)
		}
	}
}

func TestAttach(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) {
		s.Containers[0] = container("main", "while read line; do echo got $line; done; echo end of input; sleep 100000")
		s.Containers[0].Stdin, s.Containers[0].StdinOnce = true, true
	}))
	p.ready(t)
	e, err := executor("spdy", p.streamURL("attach", "main", url.Values{"input": {"1"}, "output": {"1"}, "error": {"1"}}))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	out, w := io.Pipe()
	in, inW := io.Pipe()
	go func() {
		ended <- e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: in, Stdout: w, Stderr: io.Discard})
	}()
	fmt.Fprintln(inW, "one")
	got := make([]byte, len("got one\n"))
	if _, err := io.ReadFull(out, got); err != nil || string(got) != "got one\n" {
		t.Errorf("attached: %q, %v; want got one", got, err)
	}
	inW.Close()
	p.logsWant(t, "main", "", "end of input")
	cancel()
	go io.Copy(io.Discard, out)
	<-ended
}

func TestPortForward(t *testing.T) {
	t.Parallel()
	p := create(t, newPod(t, func(s *corev1.PodSpec) { s.Containers[0] = server("main") }))
	p.ready(t)
	rt, upgrader, err := spdy.RoundTripperFor(restConfig)
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: rt}, http.MethodPost, p.streamURL("portForward", "", nil))
	stop, ready := make(chan struct{}), make(chan struct{})
	f, err := portforward.New(dialer, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		got, err := get(fmt.Sprintf("http://127.0.0.1:%d/n%d", ports[0].Local, i))
		if err != nil || !strings.Contains(got, fmt.Sprintf("/n%d", i)) {
			t.Errorf("through the forwarded port: %q, %v", got, err)
		}
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
