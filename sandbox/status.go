package sandbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
)

// Conditions are what the CRI's Status reports of the runtime.
func (m *Manager) Conditions(ctx context.Context) []Condition {
	runtime := Condition{Type: "RuntimeReady", Ready: true}
	network := Condition{Type: "NetworkReady", Ready: true}
	if err := m.cfg.Network.Ready(ctx); err != nil {
		network.Ready, network.Reason, network.Message = false, "NetworkPluginNotReady", err.Error()
	}
	return []Condition{runtime, network}
}

// BadRecords are the records that could not be read at start.
func (m *Manager) BadRecords() []BadRecord { return m.bad }

// PodVerbose is what is known of a pod beyond the CRI's fields. The names are those that clients of other runtimes read,
// where those have the same fact.
func (m *Manager) PodVerbose(id string) (map[string]any, error) {
	p, err := m.Pod(id)
	if err != nil {
		return nil, err
	}
	namespaces := map[string]string{}
	for _, ns := range podNamespaces {
		if path := m.namespacePath(p, ns.kind); path != "" {
			namespaces[ns.kind] = path
		}
	}
	status := "running"
	if p.State() != PodReady {
		status = "stopped"
	}
	return map[string]any{
		"pid": m.podPID(p.ID), "processStatus": status, "netNamespaceClosed": p.Netns == "" && m.ownsNetwork(p),
		"runtimeHandler": p.Config.Handler, "config": &p.Config, "namespaces": namespaces, "ips": p.IPs,
		"why": p.Why, "overhead": p.Overhead, "resources": p.Resources,
		"stateDir": m.podStateDir(p.ID), "supervisor": m.pool.describe(p.Supervisor), "timeline": timelineText(p.Timeline),
	}, nil
}

// podPID is a process that is in the pod's namespaces: that of the container which has run longest, for a pod has none
// of its own that would be worth entering. 0 is none.
func (m *Manager) podPID(id string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	var oldest *ctr
	for _, c := range m.ctrs {
		if c.PodID == id && c.State() == ContainerRunning && (oldest == nil || c.StartedAt.Before(oldest.StartedAt)) {
			oldest = c
		}
	}
	if oldest == nil {
		return 0
	}
	return oldest.PID
}

// ContainerVerbose is the same for a container.
func (m *Manager) ContainerVerbose(id string) (map[string]any, error) {
	c, err := m.Container(id)
	if err != nil {
		return nil, err
	}
	pid, root := 0, ""
	if c.State() == ContainerRunning {
		// The root is mounted in the container's namespace alone.
		pid, root = c.PID, fmt.Sprintf("/proc/%d/root", c.PID)
	}
	values := map[string]any{
		"sandboxID": c.PodID, "pid": pid, "config": &c.Config, "resources": c.Limits(),
		"snapshotter": m.snapshotter(c.ID), "snapshotKey": c.ID, "layer": m.layerDir(c.ID), "rootfs": root,
		"image": map[string]string{"id": c.ImageID, "ref": c.ImageRef}, "logPath": c.LogPath, "stopSignal": c.StopSignal,
		"timeline": timelineText(c.Timeline),
	}
	if p, err := m.Pod(c.PodID); err == nil {
		values["runtimeHandler"], values["supervisor"] = p.Config.Handler, m.pool.describe(p.Supervisor)
	}
	return values, nil
}

// snapshotter is containerd's name for how a container's root file system is made.
func (m *Manager) snapshotter(id string) string {
	for folder, name := range map[string]string{"upper": "overlayfs", "root": "native"} {
		if _, err := os.Lstat(filepath.Join(m.layerDir(id), folder)); err == nil {
			return name
		}
	}
	return m.cfg.Snapshotter
}

// SupervisorInfo is what is told of a supervisor.
type SupervisorInfo struct {
	ID    string `json:"id"`
	PID   int    `json:"pid,omitempty"` // 0: unknown
	Pods  int    `json:"pods"`
	State string `json:"state"`
}

// States of a supervisor.
const (
	SupervisorConnected   = "connected"
	SupervisorUnreachable = "unreachable" // it lives and does not answer, or speaks another version
	SupervisorGone        = "gone"
)

// Supervisors are those that there are, by ID.
func (m *Manager) Supervisors() map[string]*SupervisorInfo {
	p := m.pool
	p.mu.Lock()
	ids := make(map[string]bool, len(p.clients)+len(p.estranged))
	for id := range p.clients {
		ids[id] = true
	}
	for id := range p.estranged {
		ids[id] = true
	}
	p.mu.Unlock()
	all := make(map[string]*SupervisorInfo, len(ids))
	for id := range ids {
		all[id] = p.describe(id)
	}
	return all
}

// describe says what is known of a supervisor, nil for none.
func (p *pool) describe(id string) *SupervisorInfo {
	if id == "" {
		return nil
	}
	info := &SupervisorInfo{ID: id, State: SupervisorGone}
	p.mu.Lock()
	info.Pods = len(p.pods[id])
	switch {
	case p.clients[id] != nil:
		info.State = SupervisorConnected
	case p.estranged[id]:
		info.State = SupervisorUnreachable
	}
	p.mu.Unlock()
	if info.State != SupervisorGone {
		// The file is this daemon's or the one's before; what it lacks is not worth an error.
		text, _ := os.ReadFile(filepath.Join(p.dir, id, "pid"))
		info.PID, _ = strconv.Atoi(string(text))
	}
	return info
}

func timelineText(stages []Stage) []string {
	text := make([]string, len(stages))
	for i, s := range stages {
		text[i] = fmt.Sprintf("%s %s", s.Name, s.Took)
	}
	return text
}
