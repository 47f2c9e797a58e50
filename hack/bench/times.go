package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-shim/cri-shim/cri"
	"github.com/cri-shim/cri-shim/sandbox"
)

// roundTimeout bounds one pod's life.
const roundTimeout = 2 * time.Minute

// measureTimes runs the rounds; the first of each kind warms up and does not count.
func measureTimes(ctx context.Context, o *options) error {
	for round := range o.rounds + 1 {
		for _, network := range o.networks {
			for i := range o.targets {
				t := o.targets[(i+round)%len(o.targets)] // nobody is always first
				r := &results{}
				if err := t.round(ctx, o, network, round, r); err != nil {
					return fmt.Errorf("%s: %w", t.name, err)
				}
				if round > 0 {
					t.results.merge(*r)
				}
			}
		}
	}
	return nil
}

// round takes a pod through its life and notes how long each call took.
func (t *target) round(ctx context.Context, o *options, network string, number int, r *results) (err error) {
	ctx, cancel := context.WithTimeout(ctx, roundTimeout)
	defer cancel()
	p := t.pod(o, network, fmt.Sprintf("bench-%d-%s-%d", os.Getpid(), network, number))
	defer func() { err = errors.Join(err, t.remove(ctx, p.id)) }()
	begin := time.Now()
	timed := func(what string, call func() error) {
		if err != nil {
			return
		}
		from := time.Now()
		if err = call(); err != nil {
			err = fmt.Errorf("%s: %w", what, err)
		}
		r.add(network, what, time.Since(from))
	}
	timed("RunPodSandbox", func() error { return p.run(ctx) })
	timed("CreateContainer", func() error { return p.create(ctx) })
	timed("StartContainer", func() error { return p.start(ctx) })
	if err != nil {
		return err
	}
	r.add(network, coldStart, time.Since(begin))
	timed("ExecSync /bin/true", func() error { return p.exec(ctx) })
	if err := t.stages(ctx, p, network, r); err != nil {
		return err
	}
	timed(stop, func() error { return p.stop(ctx) })
	timed("remove", func() error { return p.remove(ctx) })
	return err
}

// pod is a pod with a container, on its way.
type pod struct {
	*target
	config        *pb.PodSandboxConfig
	id, container string
}

func (t *target) pod(o *options, network, name string) *pod {
	options := &pb.NamespaceOption{Pid: pb.NamespaceMode_CONTAINER}
	if network == "host" {
		options.Network = pb.NamespaceMode_NODE
	}
	return &pod{target: t, config: &pb.PodSandboxConfig{
		Metadata:     &pb.PodSandboxMetadata{Name: name, Uid: name, Namespace: "bench"},
		LogDirectory: os.TempDir() + "/cri-shim-bench/" + name,
		Linux: &pb.LinuxPodSandboxConfig{
			CgroupParent:    o.parent,
			SecurityContext: &pb.LinuxSandboxSecurityContext{NamespaceOptions: options},
		},
	}}
}

func (p *pod) run(ctx context.Context) error {
	resp, err := p.runtime.RunPodSandbox(ctx, &pb.RunPodSandboxRequest{Config: p.config})
	p.id = resp.GetPodSandboxId()
	return err
}

// create makes a container as the kubelet would: limits, the default seccomp profile, masked and read-only paths.
func (p *pod) create(ctx context.Context) error {
	resp, err := p.runtime.CreateContainer(ctx, &pb.CreateContainerRequest{
		PodSandboxId: p.id, SandboxConfig: p.config,
		Config: &pb.ContainerConfig{
			Metadata: &pb.ContainerMetadata{Name: "c"},
			Image:    &pb.ImageSpec{Image: p.image},
			Command:  []string{"/bin/sleep", "1000000"},
			LogPath:  "c.log",
			Linux: &pb.LinuxContainerConfig{
				Resources: &pb.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512},
				SecurityContext: &pb.LinuxContainerSecurityContext{
					NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
					Seccomp:          &pb.SecurityProfile{ProfileType: pb.SecurityProfile_RuntimeDefault},
					MaskedPaths:      []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
					ReadonlyPaths:    []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
				},
			},
		},
	})
	p.container = resp.GetContainerId()
	return err
}

func (p *pod) start(ctx context.Context) error {
	_, err := p.runtime.StartContainer(ctx, &pb.StartContainerRequest{ContainerId: p.container})
	return err
}

func (p *pod) exec(ctx context.Context) error {
	resp, err := p.runtime.ExecSync(ctx, &pb.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"/bin/true"}})
	if err == nil && resp.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", resp.ExitCode, resp.Stderr)
	}
	return err
}

func (p *pod) stop(ctx context.Context) error {
	if _, err := p.runtime.StopContainer(ctx, &pb.StopContainerRequest{ContainerId: p.container}); err != nil {
		return err
	}
	_, err := p.runtime.StopPodSandbox(ctx, &pb.StopPodSandboxRequest{PodSandboxId: p.id})
	return err
}

func (p *pod) remove(ctx context.Context) error {
	if _, err := p.runtime.RemoveContainer(ctx, &pb.RemoveContainerRequest{ContainerId: p.container}); err != nil {
		return err
	}
	_, err := p.runtime.RemovePodSandbox(ctx, &pb.RemovePodSandboxRequest{PodSandboxId: p.id})
	return err
}

// remove puts right what a failure left, even if it was the context's end; it does nothing to a pod that is gone.
func (t *target) remove(ctx context.Context, id string) error {
	if id == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), roundTimeout)
	defer cancel()
	_, stop := t.runtime.StopPodSandbox(ctx, &pb.StopPodSandboxRequest{PodSandboxId: id})
	_, remove := t.runtime.RemovePodSandbox(ctx, &pb.RemovePodSandboxRequest{PodSandboxId: id})
	for _, err := range []error{stop, remove} {
		if err != nil && status.Code(err) != codes.NotFound {
			return err
		}
	}
	return nil
}

// stages notes the pod's timeline, where the runtime keeps one.
func (t *target) stages(ctx context.Context, p *pod, network string, r *results) error {
	timelines, err := cri.NewAdminClient(t.conn).Timelines(ctx, p.id)
	if status.Code(err) == codes.Unimplemented {
		return nil
	}
	if err != nil {
		return err
	}
	add := func(of string, stages []sandbox.Stage) {
		for _, s := range stages {
			r.add(network, "  "+of+": "+strings.TrimSpace(s.Name), s.Took)
		}
	}
	for _, timeline := range timelines {
		add("pod", timeline.Stages)
		for _, c := range timeline.Containers {
			add("container", c.Stages)
		}
	}
	return nil
}
