package cni

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

const (
	gcIdleTimeout = 5 * time.Second // for a moment without ADD and DEL
	gcParallel    = 4
	gcTimeout     = 15 * time.Second // for the plugins' GC, which holds up every ADD and DEL
)

// GC frees what no valid attachment holds: attachments of ours get a DEL with the configuration that
// made them (any CNI version), and plugins of CNI 1.1 get a GC. valid lists the attachments that exist or may be
// in the making; it is called when the answer is needed, more than once, and must name every pod that was
// recorded before Setup was called for it. So an attachment made meanwhile is never taken for a leftover.
//
// What other runtimes have attached to a network of the same name is left alone as far as it is in one of
// Config.OtherCaches. One stuck attachment does not keep the others from being freed: errors are
// joined.
func (n *Networks) GC(ctx context.Context, valid func() ([]AttachmentID, error)) error {
	return errors.Join(n.delStale(ctx, valid), n.pluginGC(ctx, valid))
}

func (n *Networks) delStale(ctx context.Context, valid func() ([]AttachmentID, error)) error {
	stale, err := n.attachments() // before valid: whatever is here was recorded there earlier
	if err != nil || len(stale) == 0 {
		return err
	}
	keep, err := validSet(valid)
	if err != nil {
		return err
	}
	var (
		wg    sync.WaitGroup
		slots = make(chan struct{}, gcParallel)
		errs  = make([]error, len(stale))
	)
	for i, id := range stale {
		if keep[id] {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			n.log.Info("free a leftover network attachment", "pod", id.PodID, "interface", id.IfName)
			errs[i] = n.delLeftover(ctx, id)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (n *Networks) delLeftover(ctx context.Context, id AttachmentID) error {
	if ctx.Err() != nil {
		return fmt.Errorf("cni gc: pod %s: %w", id.PodID, context.Cause(ctx))
	}
	leave, err := n.begin(ctx, id, "DEL")
	if err != nil {
		return err
	}
	defer leave()
	r, _, err := n.readRecord(id)
	if err != nil {
		return err
	}
	if r == nil {
		n.delUnrecorded(ctx, Attachment{PodID: id.PodID, IfName: id.IfName})
	}
	return n.delAll(ctx, id, "")
}

// attachments are those of our records and of libcni's cache.
func (n *Networks) attachments() ([]AttachmentID, error) {
	ids, err := n.records()
	if err != nil {
		return nil, err
	}
	seen := make(map[AttachmentID]bool, len(ids))
	for _, id := range ids {
		seen[id] = true
	}
	cached, err := n.cni.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("cached attachments: %w", err)
	}
	for _, c := range cached {
		id := AttachmentID{c.ContainerID, c.IfName}
		if !seen[id] && id.validate() == nil {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	return ids, nil
}

func validSet(valid func() ([]AttachmentID, error)) (map[AttachmentID]bool, error) {
	ids, err := valid()
	if err != nil {
		return nil, fmt.Errorf("cni gc: valid attachments: %w", err)
	}
	set := make(map[AttachmentID]bool, len(ids))
	for _, id := range ids {
		set[id.withDefault()] = true
	}
	return set, nil
}

func (n *Networks) pluginGC(ctx context.Context, valid func() ([]AttachmentID, error)) error {
	net := n.current().net
	if net == nil || net.list.DisableGC || !net.supports("1.1.0") {
		return nil
	}
	waitCtx, cancel := context.WithTimeout(ctx, gcIdleTimeout)
	defer cancel()
	leave, err := n.gate.exclusive(waitCtx)
	if err != nil {
		return fmt.Errorf("cni gc of network %q: %w", net.list.Name, err)
	}
	defer leave()
	keep, err := validSet(valid)
	if err != nil {
		return err
	}
	if err := n.addForeign(keep, net.list.Name); err != nil {
		return fmt.Errorf("cni gc of network %q: %w", net.list.Name, err)
	}
	args := &libcni.GCArgs{ValidAttachments: make([]types.GCAttachment, 0, len(keep))}
	for id := range keep {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id.PodID, IfName: id.IfName})
	}
	ctx, cancelGC := context.WithTimeoutCause(ctx, gcTimeout,
		fmt.Errorf("the time limit of %s for GC: %w", gcTimeout, context.DeadlineExceeded))
	defer cancelGC()
	if err := n.cni.GCNetworkList(ctx, net.list, args); err != nil {
		return fmt.Errorf("cni gc of network %q: %w", net.list.Name, err)
	}
	return nil
}

// addForeign adds what other runtimes have attached to the network. Two runtimes that share a network's
// name share its plugins' state, and each one's GC would free the other's pods.
func (n *Networks) addForeign(keep map[AttachmentID]bool, network string) error {
	for _, dir := range n.cfg.OtherCaches {
		if filepath.Clean(dir) == filepath.Clean(n.cfg.CacheDir) {
			continue
		}
		cached, err := libcni.NewCNIConfigWithCacheDir(nil, dir, nil).GetCachedAttachments("")
		if err != nil {
			return fmt.Errorf("attachments of other runtimes: %w", err)
		}
		for _, c := range cached {
			if c.Network == network {
				keep[AttachmentID{c.ContainerID, c.IfName}] = true
			}
		}
	}
	return nil
}
