package cri

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/cri-shim/cri-shim/sandbox"
)

// Timeline is where the time went for one pod sandbox and its containers.
type Timeline struct {
	ID         string              `json:"id"`
	Name       string              `json:"name"` // namespace/name
	CreatedAt  time.Time           `json:"created_at"`
	Stages     []sandbox.Stage     `json:"stages"`
	Containers []ContainerTimeline `json:"containers,omitempty"`
}

// ContainerTimeline is where the time went for one container.
type ContainerTimeline struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	CreatedAt time.Time       `json:"created_at"`
	StartedAt time.Time       `json:"started_at,omitzero"`
	Stages    []sandbox.Stage `json:"stages"`
}

// timeline answers the ID of a pod or a container with one Timeline, and "" with those of all
// pods, newest first.
func (a *adminService) timeline(_ context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
	timelines, err := a.timelines(string(in.GetValue()))
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(timelines)
	if err != nil {
		return nil, fmt.Errorf("encode timelines: %w", err)
	}
	return &wrapperspb.BytesValue{Value: text}, nil
}

func (a *adminService) timelines(id string) ([]Timeline, error) {
	containers := a.runtime.Containers()
	pods := a.runtime.Pods()
	if id != "" {
		pod, err := a.runtime.Pod(id)
		if c, cErr := a.runtime.Container(id); err != nil && cErr == nil {
			containers = []*sandbox.Container{c}
			pod, err = a.runtime.Pod(c.PodID)
		}
		if err != nil {
			return nil, err
		}
		pods = []*sandbox.Pod{pod}
	}
	byPod := map[string][]ContainerTimeline{}
	for _, c := range containers {
		byPod[c.PodID] = append(byPod[c.PodID], ContainerTimeline{
			ID: c.ID, Name: c.Config.Metadata.Name, CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, Stages: c.Timeline,
		})
	}
	out := make([]Timeline, 0, len(pods))
	for _, p := range pods {
		of := byPod[p.ID]
		slices.SortFunc(of, func(a, b ContainerTimeline) int {
			return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
		})
		m := p.Config.Metadata
		out = append(out, Timeline{ID: p.ID, Name: m.Namespace + "/" + m.Name, CreatedAt: p.CreatedAt, Stages: p.Timeline, Containers: of})
	}
	return out, nil
}
