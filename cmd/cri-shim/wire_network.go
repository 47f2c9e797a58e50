package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/cri-shim/cri-shim/cni"
	"github.com/cri-shim/cri-shim/sandbox"
)

// podNetwork is sandbox.Network over CNI.
type podNetwork struct {
	cni *cni.Networks

	mu sync.Mutex
	// attached are the pods for which Setup was called and Teardown has not succeeded since.
	attached map[string]bool
}

func newPodNetwork(n *cni.Networks) *podNetwork {
	return &podNetwork{cni: n, attached: map[string]bool{}}
}

// Setup implements sandbox.Network.
func (n *podNetwork) Setup(ctx context.Context, p *sandbox.Pod) ([]netip.Addr, error) {
	a := attachment(p)
	var err error
	if a.Bandwidth, err = cni.ParseBandwidth(p.Config.Annotations); err != nil {
		return nil, fmt.Errorf("%w: config.annotations: %w", sandbox.ErrInvalid, err)
	}
	n.mu.Lock()
	n.attached[p.ID] = true
	n.mu.Unlock()
	r, err := n.cni.Setup(ctx, a)
	if err != nil {
		return nil, networkError(err)
	}
	return r.IPs, nil
}

// Teardown implements sandbox.Network.
func (n *podNetwork) Teardown(ctx context.Context, p *sandbox.Pod) error {
	if err := n.cni.Teardown(ctx, attachment(p)); err != nil {
		return networkError(err)
	}
	n.mu.Lock()
	delete(n.attached, p.ID)
	n.mu.Unlock()
	return nil
}

// Ready implements sandbox.Network.
func (n *podNetwork) Ready(ctx context.Context) error { return n.cni.Status(ctx) }

// Collect implements sandbox.Network. A pod that was made since live was listed has its
// attachment in attached, so it is never taken for a leftover.
func (n *podNetwork) Collect(ctx context.Context, live []*sandbox.Pod) error {
	return n.cni.GC(ctx, func() ([]cni.AttachmentID, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		ids := make(map[string]bool, len(live)+len(n.attached))
		for _, p := range live {
			ids[p.ID] = true
		}
		for id := range n.attached {
			ids[id] = true
		}
		valid := make([]cni.AttachmentID, 0, len(ids))
		for id := range ids {
			valid = append(valid, cni.AttachmentID{PodID: id})
		}
		return valid, nil
	})
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
