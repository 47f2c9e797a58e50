// Command nriplugin is a plugin of the Node Resource Interface for tests. It writes what it hears to the file in
// $NRI_TEST_LOG, a line an event, and does to containers what their annotations say:
//
//	nri.test/env: NAME=VALUE     an environment variable
//	nri.test/mount: FROM:TO      a bind mount
//	nri.test/annotate: NAME=VALUE
//	nri.test/memory: BYTES       a memory limit
//	nri.test/pids: N             a limit of processes, which the CRI does not have
//	nri.test/cgroup: PATH        which the runtime refuses
//	nri.test/adjust: JSON        any adjustment (api.ContainerAdjustment)
//	nri.test/limit: ID=BYTES     a memory limit for another container
//	nri.test/on-update: ID=BYTES one when this container is updated; "own" is the container itself
//	nri.test/on-stop: ID=BYTES   one when this container has ended
//	nri.test/by-itself: ID=BYTES one that the plugin asks for by itself, once this container runs
//	nri.test/hang                it does not answer
//	nri.test/refuse              it answers with an error
//	nri.test/veto                it lets no plugin adjust the container
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

func main() {
	p := &plugin{log: os.Getenv("NRI_TEST_LOG")}
	opts := []stub.Option{stub.WithOnClose(func() { os.Exit(0) })}
	if s := os.Getenv("NRI_TEST_SOCKET"); s != "" {
		opts = append(opts, stub.WithSocketPath(s), stub.WithPluginName("test"), stub.WithPluginIdx("10"))
	}
	s, err := stub.New(p, opts...)
	if err == nil {
		p.stub = s
		err = s.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type plugin struct {
	log  string
	stub stub.Stub
}

func (p *plugin) note(event string, id string) {
	f, err := os.OpenFile(p.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	fmt.Fprintln(f, event, id)
}

func (p *plugin) Configure(_ context.Context, config, runtime, _ string) (api.EventMask, error) {
	p.note("Configure", runtime+" "+config)
	return 0, nil
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.note("Synchronize", fmt.Sprint(len(pods), " ", len(containers)))
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("RunPodSandbox", pod.GetId())
	return ask(pod.GetAnnotations())
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	p.note("UpdatePodSandbox", pod.GetId())
	return nil
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("PostUpdatePodSandbox", pod.GetId())
	return nil
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("StopPodSandbox", pod.GetId())
	return nil
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("RemovePodSandbox", pod.GetId())
	return nil
}

func ask(annotations map[string]string) error {
	if _, ok := annotations["nri.test/hang"]; ok {
		time.Sleep(time.Hour)
	}
	if _, ok := annotations["nri.test/refuse"]; ok {
		return errors.New("refused by the test")
	}
	return nil
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("CreateContainer", c.GetId()+" "+strings.Join(c.GetArgs(), " "))
	a := &api.ContainerAdjustment{}
	get := func(key string) (name, value string, ok bool) {
		v, ok := c.GetAnnotations()["nri.test/"+key]
		name, value, _ = strings.Cut(v, "=")
		return name, value, ok
	}
	if name, value, ok := get("env"); ok {
		a.AddEnv(name, value)
	}
	if name, value, ok := get("annotate"); ok {
		a.AddAnnotation(name, value)
	}
	if v, _, ok := get("mount"); ok {
		from, to, _ := strings.Cut(v, ":")
		a.AddMount(&api.Mount{Source: from, Destination: to, Type: "bind", Options: []string{"bind", "ro"}})
	}
	if v, _, ok := get("memory"); ok {
		n, _ := strconv.ParseInt(v, 10, 64)
		a.SetLinuxMemoryLimit(n)
	}
	if v, _, ok := get("pids"); ok {
		n, _ := strconv.ParseInt(v, 10, 64)
		a.SetLinuxPidLimits(n)
	}
	if v, _, ok := get("cgroup"); ok {
		a.SetLinuxCgroupsPath(v)
	}
	if text, ok := c.GetAnnotations()["nri.test/adjust"]; ok {
		more := &api.ContainerAdjustment{}
		if err := protojson.Unmarshal([]byte(text), more); err != nil {
			return nil, nil, err
		}
		proto.Merge(a, more)
	}
	return a, limit(c, "limit"), ask(c.GetAnnotations())
}

// limit is the update that an annotation of a container asks for, if any.
func limit(c *api.Container, key string) []*api.ContainerUpdate {
	id, value, ok := strings.Cut(c.GetAnnotations()["nri.test/"+key], "=")
	if !ok {
		return nil
	}
	if id == "own" {
		id = c.GetId()
	}
	n, _ := strconv.ParseInt(value, 10, 64)
	u := &api.ContainerUpdate{}
	u.SetContainerId(id)
	u.SetLinuxMemoryLimit(n)
	return []*api.ContainerUpdate{u}
}

func (p *plugin) ValidateContainerAdjustment(_ context.Context, r *api.ValidateContainerAdjustmentRequest) error {
	p.note("ValidateContainerAdjustment", r.GetContainer().GetId())
	if _, ok := r.GetContainer().GetAnnotations()["nri.test/veto"]; ok {
		return errors.New("vetoed by the test")
	}
	return nil
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("PostCreateContainer", c.GetId())
	return nil
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("StartContainer", c.GetId())
	return nil
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("PostStartContainer", c.GetId())
	if u := limit(c, "by-itself"); u != nil {
		go func() { // the runtime waits for this event's end
			failed, err := p.stub.UpdateContainers(u)
			p.note("UpdateContainers", fmt.Sprint(len(failed), " ", err))
		}()
	}
	return nil
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.note("UpdateContainer", c.GetId())
	return limit(c, "on-update"), nil
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("PostUpdateContainer", c.GetId())
	return nil
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("StopContainer", c.GetId())
	return limit(c, "on-stop"), nil
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("RemoveContainer", c.GetId())
	return nil
}
