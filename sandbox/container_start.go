package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
	"github.com/cri-shim/cri-shim/sandbox/api"
)

// exitStartError is the exit code of a container whose workload was never executed.
const exitStartError = 128

// StartContainer runs a created container. A retry joins the call that still runs.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	c, err := m.container(id)
	if err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	_, err = m.operations.do(ctx, "start/"+c.ID, func(ctx context.Context, f *flight) (string, error) {
		free, err := m.locks.take(ctx, "container "+c.ID, "start")
		if err != nil {
			return "", err
		}
		defer free()
		return "", m.startContainer(ctx, f, c)
	})
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.ID, err)
	}
	return nil
}

func (m *Manager) startContainer(ctx context.Context, f *flight, c *ctr) (err error) {
	p, err := m.pod(c.PodID)
	if err != nil {
		return err
	}
	pod := m.snapshot(p)
	if pod.State() != PodReady {
		return fmt.Errorf("%w: pod sandbox %s is %s", ErrState, pod.ID, pod.State())
	}
	facts, err := m.Container(c.ID)
	if err != nil {
		return err
	}
	if facts.State() != ContainerCreated || facts.CreatedAt.IsZero() {
		return fmt.Errorf("%w: the container is %s", ErrState, facts.State())
	}
	if err := m.updateContainer(c, func(c *ctr) { c.LaunchedAt, c.starting = time.Now(), true }); err != nil {
		m.tellStart(c, false)
		return err
	}
	defer func() { m.tellStart(c, err == nil) }()
	timeline := facts.Timeline
	var (
		pid   int
		pidfd *os.File
		user  *workload.User
	)
	if err = m.askPlugins(ctx, PluginStart, pod, facts); err == nil {
		pid, pidfd, user, err = m.execute(ctx, f, p, c, &timeline)
	}
	if err != nil {
		ctx, cancel := m.cleanup(ctx)
		defer cancel()
		f.enter("roll back")
		err = errors.Join(err, m.failed(ctx, pod, c, timeline, err))
		m.background.Go(func() { m.checkNamespaces(m.life, p) }) // that the next attempt be made in a pod that has them
		return err
	}
	begun, _ := sys.StartTime(pid) // 0 where it has ended already
	err = m.updateContainer(c, func(c *ctr) {
		c.PID, c.PIDStart, c.pidfd, c.User, c.Timeline = pid, begun, pidfd, user, timeline
		c.StartedAt = time.Now()
		if !c.FinishedAt.IsZero() { // it has ended already
			c.StartedAt = c.FinishedAt
			c.dropPidfd()
		}
	})
	if err != nil { // it runs; a restarted daemon learns the same from its supervisor
		m.cfg.Log.Error("record a start", "ctr", c.ID, "err", err)
	}
	m.tellPluginsOf(ctx, PluginStarted, c)
	return nil
}

func (c *ctr) dropPidfd() {
	if c.pidfd != nil {
		c.pidfd.Close()
		c.pidfd = nil
	}
}

// failed records that a container could not be started, and gives back what the attempt took.
func (m *Manager) failed(ctx context.Context, pod *Pod, c *ctr, timeline []Stage, cause error) error {
	err := m.cfg.Runtime.Cleanup(ctx, pod, &c.Container)
	why := func(c *Container) {
		c.ExitCode, c.Reason, c.Message, c.Timeline = exitStartError, reasonStartError, cause.Error(), timeline
	}
	m.finish(c, func(c *Container) {
		c.FinishedAt = time.Now()
		why(c)
	})
	// The kill that undid the attempt may be on record as the end; the reason is what the client is told.
	return errors.Join(err, m.updateContainer(c, func(c *ctr) { why(&c.Container) }))
}

// execute mounts the root, prepares the launch and hands it to a supervisor.
func (m *Manager) execute(ctx context.Context, f *flight, p *pod, c *ctr, timeline *[]Stage) (pid int, pidfd *os.File, user *workload.User, err error) {
	var (
		env    = m.environment(m.snapshot(p))
		l      *Launch
		log    *os.File
		client *client
	)
	defer func() {
		for _, f := range []*os.File{env.Root, log} {
			if f != nil {
				f.Close()
			}
		}
		if l != nil {
			l.Close()
		}
	}()
	steps := []struct {
		name string
		do   func() error
	}{
		{"root file system", func() (err error) {
			img, err := m.cfg.Images.Resolve(c.ImageID)
			if err != nil {
				return err
			}
			env.Dir, env.Volumes = m.layerDir(c.ID), m.volumes(&c.Container, img)
			if env.Root, err = m.cfg.Images.Rootfs(ctx, &c.Container, env.Dir, env.Namespaces[nsUser]); err != nil {
				return err
			}
			return fillVolumes(env.Root, env.Volumes)
		}},
		{"prepare", func() (err error) {
			l, err = m.cfg.Runtime.Prepare(ctx, m.snapshot(p), &c.Container, env)
			return err
		}},
		{"log file", func() (err error) { log, err = openLog(c.LogPath); return err }},
		{"supervisor", func() (err error) { client, err = m.supervisorOf(ctx, p); return err }},
		{"launch", func() (err error) {
			how, stdio := m.containerLaunch(c, l), map[api.Role]*os.File{api.RoleLog: log}
			if pidns := m.pidfdOf(how.PIDNamespaceOf); pidns != nil {
				defer pidns.Close()
				stdio[api.RolePIDNamespace] = pidns
			}
			pid, pidfd, err = m.launch(ctx, client, c.ID, l, how, stdio)
			return err
		}},
	}
	for _, s := range steps {
		err := m.step(f, timeline, s.name, s.do)
		if err == nil && pidfd != nil && l.Started != nil {
			err = m.step(f, timeline, "hooks", func() error { return l.Started(ctx, pid) })
		}
		if err != nil {
			if pidfd != nil { // it runs: hooks, or a failpoint
				m.abandon(client.id, c.ID)
				pidfd.Close()
			}
			return 0, nil, nil, err
		}
	}
	return pid, pidfd, l.User, nil
}

func (m *Manager) environment(p *Pod) Environment {
	env := Environment{
		Namespaces: map[string]string{},
		ResolvConf: m.podFile(p, fileResolvConf),
		Hostname:   m.podFile(p, fileHostname),
		Hosts:      m.podFile(p, fileHosts),
		Shm:        "/dev/shm",
	}
	if m.ownsIPC(p) {
		env.Shm = m.podFile(p, dirShm)
	}
	for _, ns := range podNamespaces {
		env.Namespaces[ns.kind] = m.namespacePath(p, ns.kind)
	}
	return env
}

func (m *Manager) containerLaunch(c *ctr, l *Launch) *api.Launch {
	how := &api.Launch{
		Pod: c.PodID, Logged: true, Stdin: c.Config.Stdin, StdinOnce: c.Config.StdinOnce,
		Terminal: c.Config.TTY, MaxLine: m.cfg.LogLineMax, ExitFile: m.exitFile(c.ID),
	}
	if l.JoinPID {
		how.PIDNamespaceOf = c.PodID // the pod's init
		if ns := c.Config.Security.Namespaces; ns.PID == workload.ModeTarget {
			how.PIDNamespaceOf = ns.Target
		}
	}
	return how
}

// openLog opens a container's log. Without a path the output is thrown away. A container that has the folder of logs as a
// volume may have put a link there, or a FIFO that nobody reads.
func openLog(path string) (*os.File, error) {
	if path == "" {
		return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	const flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND | sys.OpenNoFollow | syscall.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0o640)
	if err != nil {
		return nil, err
	}
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fmt.Errorf("log %s: not a regular file", path))
	}
	return f, nil
}
