package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/wrapperspb"
)

const adminDevices = "/" + adminName + "/Devices"

// DeviceUse is what a running container has of the node's devices.
type DeviceUse struct {
	PodID       string   `json:"pod_id"`
	Pod         string   `json:"pod"` // namespace/name
	ContainerID string   `json:"container_id"`
	Container   string   `json:"container"`
	Privileged  bool     `json:"privileged,omitempty"` // it may use all
	Names       []string `json:"cdi_devices,omitempty"`
	Devices     []Device `json:"devices,omitempty"`
}

// Device is a node in a container.
type Device struct {
	Path  string `json:"path"`
	Type  string `json:"type"`
	Major int64  `json:"major"`
	Minor int64  `json:"minor"`
}

func (a *adminService) devicesInUse(context.Context, *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
	if a.devices == nil {
		return nil, fmt.Errorf("devices: %w", errors.ErrUnsupported)
	}
	uses, err := a.devices()
	if err != nil {
		return nil, fmt.Errorf("devices: %w", err)
	}
	text, err := json.Marshal(uses)
	if err != nil {
		return nil, err
	}
	return &wrapperspb.BytesValue{Value: text}, nil
}

// DevicesInUse returns what the running containers have.
func (c *AdminClient) DevicesInUse(ctx context.Context) ([]DeviceUse, error) {
	out := new(wrapperspb.BytesValue)
	if err := c.conn.Invoke(ctx, adminDevices, &wrapperspb.BytesValue{}, out); err != nil {
		return nil, err
	}
	var uses []DeviceUse
	if err := json.Unmarshal(out.GetValue(), &uses); err != nil {
		return nil, fmt.Errorf("devices: %w", err)
	}
	return uses, nil
}
