package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/payload"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/oci"
	"github.com/cri-shim/cri-shim/oci/cgroup"
	"github.com/cri-shim/cri-shim/oci/launcher"
)

const busybox = "/bin/busybox"

// inProcess is cri-shim's runtime as the daemon and a supervisor use it, without the frames between the two.
type inProcess struct {
	*options
	host    *cgroup.Host
	runtime *oci.Runtime
	init    *os.File
	server  launcher.Server
	null    *os.File
	spec    *specs.Spec // of a container, for the others
	running map[string]*container
}

type container struct {
	*oci.Prepared
	child *launcher.Child
}

func newInProcess(ctx context.Context, o *options) (_ *inProcess, err error) {
	p := &inProcess{options: o, running: map[string]*container{}}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if err := makeImage(filepath.Join(o.dir, "rootfs")); err != nil {
		return nil, err
	}
	staging := filepath.Join(o.dir, "staging")
	if err := os.Mkdir(staging, 0o700); err != nil {
		return nil, err
	}
	if p.host, err = cgroup.Detect(); err != nil {
		return nil, err
	}
	if p.runtime, err = oci.New(p.host, oci.Config{Staging: staging}); err != nil {
		return nil, err
	}
	if p.null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
		return nil, err
	}
	if p.init, err = payload.Init(o.dir); err != nil {
		return nil, err
	}
	if err := p.server.Warm(p.init); err != nil {
		return nil, err
	}
	if err := p.create(ctx, "spec"); err != nil {
		return nil, err
	}
	p.spec = p.running["spec"].Spec
	return p, p.delete(ctx, "spec")
}

// makeImage makes a root file system of busybox.
func makeImage(root string) error {
	data, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("the image needs busybox-static: %w", err)
	}
	for _, d := range []string{"bin", "etc", "proc", "dev", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(root, "bin/busybox"), data, 0o755),
		os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\n"), 0o644),
		os.Symlink("busybox", filepath.Join(root, "bin/sleep")), os.Symlink("busybox", filepath.Join(root, "bin/true")))
}

func (p *inProcess) prepare(string) error { return nil }

func (p *inProcess) path(id string) string { return p.cgroup + "/" + id }

func (p *inProcess) create(ctx context.Context, id string) error {
	rootfs := filepath.Join(p.dir, "rootfs")
	root, err := os.Open(rootfs)
	if err != nil {
		return err
	}
	defer root.Close()
	prepared, err := p.runtime.Prepare(ctx, oci.Params{
		Pod:   &workload.Pod{Metadata: workload.PodMetadata{Name: "bench"}},
		PodID: "bench", ContainerID: id, Root: root, RootPath: rootfs, CgroupPath: p.path(id),
		Container: &workload.Container{
			Command:   []string{"/bin/sleep", "1000000"},
			Resources: &workload.Resources{MemoryLimit: 64 << 20, CPUPeriod: 100000, CPUQuota: 50000, CPUShares: 512},
			Security:  workload.Security{Seccomp: &workload.Profile{Kind: workload.ProfileRuntimeDefault}},
		},
		NoSecurityContext: true, // the default masked and read-only paths
	})
	if err != nil {
		return err
	}
	p.running[id] = &container{Prepared: prepared}
	return nil
}

// launch starts an init with a message and returns once the workload is executed.
func (p *inProcess) launch(c *oci.Prepared) (*launcher.Child, error) {
	message, err := sys.Memfd("message", c.Encoded)
	if err != nil {
		return nil, err
	}
	defer message.Close()
	how := launcher.Process{
		Init: p.init, Message: message, Stdio: [3]*os.File{p.null, p.null, p.null}, Files: c.Files,
		CloneFlags: c.CloneFlags, Cgroup: c.CgroupFD, Server: &p.server,
	}
	if c.PIDNamespace != "" {
		if how.PIDNamespace, err = os.Open(c.PIDNamespace); err != nil {
			return nil, err
		}
		defer how.PIDNamespace.Close()
	}
	how.Late = c.LatePID
	child, err := launcher.Start(how)
	if err != nil {
		return nil, err
	}
	if _, err := child.Executed(); err != nil {
		return nil, errors.Join(err, end(child))
	}
	return child, nil
}

// end kills a process and waits for it.
func end(c *launcher.Child) error {
	err := sys.PidfdSignal(c.Pidfd, syscall.SIGKILL)
	sys.WaitChild(c.PID)
	return errors.Join(err, c.Pidfd.Close())
}

func (p *inProcess) start(_ context.Context, id string) (err error) {
	c := p.running[id]
	c.child, err = p.launch(c.Prepared)
	return err
}

func (p *inProcess) exec(ctx context.Context, id string) error {
	c := p.running[id]
	e, err := p.runtime.Exec(ctx, oci.ExecParams{
		ContainerID: id, CgroupPath: p.path(id), Spec: c.Spec, Command: []string{"/bin/true"}, PID: c.child.PID, LatePID: true,
	})
	if err != nil {
		return err
	}
	defer e.Close()
	child, err := p.launch(e)
	if err != nil {
		return err
	}
	sys.WaitChild(child.PID)
	return child.Pidfd.Close()
}

func (p *inProcess) delete(ctx context.Context, id string) (err error) {
	c := p.running[id]
	if c == nil {
		return nil
	}
	delete(p.running, id)
	if c.child != nil {
		err = end(c.child)
	}
	c.Close()
	return errors.Join(err, p.runtime.Remove(ctx, p.path(id)))
}

func (p *inProcess) close() {
	p.server.Close()
	if p.null != nil {
		p.null.Close()
	}
	if p.host != nil {
		p.host.Close()
	}
}
