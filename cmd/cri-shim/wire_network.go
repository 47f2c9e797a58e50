package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cri-shim/cri-shim/cni"
	"github.com/cri-shim/cri-shim/sandbox"
)

// podNetwork is sandbox.Network over CNI.
type podNetwork struct {
	cni     *cni.Networks
	metrics *nodeMetrics // nil: nobody counts
}

// Setup implements sandbox.Network.
func (n podNetwork) Setup(ctx context.Context, p *sandbox.Pod) ([]netip.Addr, error) {
	a := attachment(p)
	var err error
	if a.Bandwidth, err = cni.ParseBandwidth(p.Config.Annotations); err != nil {
		return nil, fmt.Errorf("%w: config.annotations: %w", sandbox.ErrInvalid, err)
	}
	start := time.Now()
	r, err := n.cni.Setup(ctx, a)
	n.metrics.network("setup", start, err)
	if err != nil {
		return nil, networkError(err)
	}
	return r.IPs, nil
}

// Teardown implements sandbox.Network.
func (n podNetwork) Teardown(ctx context.Context, p *sandbox.Pod) error {
	start := time.Now()
	err := n.cni.Teardown(ctx, attachment(p))
	n.metrics.network("teardown", start, err)
	return networkError(err)
}

// Ready implements sandbox.Network.
func (n podNetwork) Ready(ctx context.Context) error { return n.cni.Status(ctx) }

// Collect implements sandbox.Network.
func (n podNetwork) Collect(ctx context.Context, live func() []*sandbox.Pod) error {
	start := time.Now()
	err := n.cni.GC(ctx, func() ([]cni.AttachmentID, error) {
		var valid []cni.AttachmentID
		for _, p := range live() {
			valid = append(valid, cni.AttachmentID{PodID: p.ID})
		}
		return valid, nil
	})
	n.metrics.network("gc", start, err)
	return err
}

func attachment(p *sandbox.Pod) cni.Attachment {
	m := p.Config.Metadata
	return cni.Attachment{
		PodID: p.ID, Namespace: m.Namespace, Name: m.Name, UID: m.UID, Netns: p.Netns,
		PortMappings: p.Config.PortMappings, DNS: p.Config.DNS,
		CgroupParent: p.Config.CgroupParent, Annotations: p.Config.Annotations,
	}
}

func networkError(err error) error {
	if errors.Is(err, cni.ErrNotReady) {
		return fmt.Errorf("%w: %w", sandbox.ErrUnavailable, err)
	}
	return err
}
