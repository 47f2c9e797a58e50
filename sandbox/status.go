package sandbox

import (
	"context"
	"fmt"
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

// PodVerbose is what is known of a pod beyond the CRI's fields.
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
	return map[string]any{
		"record": p, "namespaces": namespaces, "timeline": timelineText(p.Timeline),
	}, nil
}

// ContainerVerbose is what is known of a container beyond the CRI's fields.
func (m *Manager) ContainerVerbose(id string) (map[string]any, error) {
	c, err := m.Container(id)
	if err != nil {
		return nil, err
	}
	return map[string]any{
		"record": c, "pid": c.PID, "sandboxID": c.PodID, "layer": m.layerDir(c.ID), "timeline": timelineText(c.Timeline),
	}, nil
}

func timelineText(stages []Stage) []string {
	text := make([]string, len(stages))
	for i, s := range stages {
		text[i] = fmt.Sprintf("%s %s", s.Name, s.Took)
	}
	return text
}
