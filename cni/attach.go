package cni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// Setup attaches a pod (ADD). What an earlier try may have left is removed first, so it may be
// repeated; after an error nothing of the pod is attached, or the error says what could not be undone
// and Teardown will try again. An error names the network, the plugin, the command and what the plugin said;
// it matches ErrNotReady when there is no configuration.
func (n *Networks) Setup(ctx context.Context, a Attachment) (*Result, error) {
	id := a.id()
	if err := errors.Join(id.validate(), a.validate()); err != nil {
		return nil, fmt.Errorf("cni setup of pod %s: %w", a.PodID, err)
	}
	leave, err := n.begin(ctx, id, "ADD")
	if err != nil {
		return nil, err
	}
	defer leave()
	net := n.current()
	if net.net == nil {
		return nil, fmt.Errorf("cni setup of pod %s: %w: %w", a.PodID, ErrNotReady, net.none)
	}
	if err := n.undoEarlier(ctx, id, a.Netns); err != nil {
		return nil, fmt.Errorf("cni setup of pod %s: undo the earlier try: %w", a.PodID, err)
	}
	r, err := n.add(ctx, net.net, a)
	if err == nil {
		return r, nil
	}
	err = commandError("ADD", net.net.list.Name, id, err)
	// The caller's time may be what ran out.
	return nil, errors.Join(err, n.delAll(context.WithoutCancel(ctx), id, a.Netns))
}

// begin waits for the pod's turn and for GC.
func (n *Networks) begin(ctx context.Context, id AttachmentID, op string) (leave func(), err error) {
	unlock, err := n.pods.lock(ctx, id.PodID, op)
	if err != nil {
		return nil, fmt.Errorf("cni %s of pod %s: %w", op, id.PodID, err)
	}
	out, err := n.gate.enter(ctx)
	if err != nil {
		unlock()
		return nil, fmt.Errorf("cni %s of pod %s: %w", op, id.PodID, err)
	}
	return func() { out(); unlock() }, nil
}

func (n *Networks) undoEarlier(ctx context.Context, id AttachmentID, netns string) error {
	r, _, err := n.readRecord(id)
	if err != nil || r == nil {
		return err
	}
	return n.delAll(ctx, id, netns)
}

func (n *Networks) add(ctx context.Context, net *network, a Attachment) (*Result, error) {
	rt := a.runtimeConf()
	n.gone.remove(a.id())
	err := n.writeRecord(&record{
		PodID: rt.ContainerID, IfName: rt.IfName, Netns: rt.NetNS,
		Config: net.list.Bytes, Args: rt.Args, Capabilities: rt.CapabilityArgs,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := n.limit(ctx)
	defer cancel()
	raw, err := n.cni.AddNetworkList(ctx, net.list, rt)
	if err != nil {
		return nil, err
	}
	return convertResult(raw, rt.IfName)
}

// limit bounds one command of all plugins.
func (n *Networks) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, n.cfg.Timeout,
		fmt.Errorf("the time limit of %s for all plugins: %w", n.cfg.Timeout, context.DeadlineExceeded))
}

// Teardown detaches a pod (DEL), with the configuration that attached it, whatever the configuration is now.
// It is nil when the pod is detached already or never was attached; the network namespace need not exist
// any more. Only PodID, IfName and Netns of a count.
func (n *Networks) Teardown(ctx context.Context, a Attachment) error {
	id := a.id()
	if err := id.validate(); err != nil {
		return fmt.Errorf("cni teardown of pod %s: %w", a.PodID, err)
	}
	if n.gone.has(id) {
		return nil
	}
	leave, err := n.begin(ctx, id, "DEL")
	if err != nil {
		return err
	}
	defer leave()
	r, _, err := n.readRecord(id)
	if err != nil {
		return fmt.Errorf("cni teardown of pod %s: %w", a.PodID, err)
	}
	if r == nil {
		n.delUnrecorded(ctx, a)
	}
	return n.delAll(ctx, id, a.Netns)
}

// unrecordedTimeout bounds a DEL that most likely has nothing to do.
const unrecordedTimeout = 10 * time.Second

// delUnrecorded runs DEL for a pod without a (readable) record: a power cut may have lost it, while the
// plugins' own state lasted. Plugins must accept DEL of what they do not know; that one does not is
// no reason to keep the pod.
func (n *Networks) delUnrecorded(ctx context.Context, a Attachment) {
	net := n.current().net
	if net == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, unrecordedTimeout)
	defer cancel()
	rt := a.runtimeConf()
	rt.NetNS = usableNetns(a.Netns)
	if err := n.cni.DelNetworkList(ctx, net.list, rt); err != nil {
		n.log.Warn("DEL of a pod without an attachment record", "pod", a.PodID,
			"err", commandError("DEL", net.list.Name, a.id(), err))
	}
}

// delAll runs DEL for all that is known of an attachment: our record, and results in libcni's cache that
// the record does not explain. The record goes last.
func (n *Networks) delAll(ctx context.Context, id AttachmentID, netns string) error {
	r, net, err := n.readRecord(id)
	if err != nil {
		return err
	}
	var name string
	if r != nil {
		name = net.list.Name
		if err := n.del(ctx, net, r.runtimeConf(), netns); err != nil {
			return err
		}
	}
	cached, err := n.cni.GetCachedAttachments(id.PodID)
	if err != nil {
		return fmt.Errorf("cached attachments of pod %s: %w", id.PodID, err)
	}
	for _, c := range cached {
		if c.IfName != id.IfName {
			continue
		}
		list, err := parseConf(".conflist", c.Config)
		if err != nil {
			n.log.Warn("corrupt configuration in the cache", "pod", id.PodID, "network", c.Network, "err", err)
			continue
		}
		rt := &libcni.RuntimeConf{
			ContainerID: c.ContainerID, NetNS: c.NetNS, IfName: c.IfName,
			Args: c.CniArgs, CapabilityArgs: c.CapabilityArgs,
		}
		if err := n.del(ctx, &network{list: list}, rt, netns); err != nil {
			return err
		}
	}
	if err := n.removeRecord(id, name); err != nil {
		return err
	}
	n.gone.add(id)
	return nil
}

// del runs DEL in the namespace at netns, else in the one that ADD had, else in none: "plugins should
// generally complete a DEL action without error even if some resources are missing".
func (n *Networks) del(ctx context.Context, net *network, rt *libcni.RuntimeConf, netns string) error {
	recorded := rt.NetNS
	if rt.NetNS = usableNetns(netns); rt.NetNS == "" {
		rt.NetNS = usableNetns(recorded)
	}
	ctx, cancel := n.limit(ctx)
	defer cancel()
	if err := n.cni.DelNetworkList(ctx, net.list, rt); err != nil {
		return commandError("DEL", net.list.Name, AttachmentID{rt.ContainerID, rt.IfName}, err)
	}
	return nil
}

// usableNetns is path if a namespace is there, else "".
func usableNetns(path string) string {
	if path == "" {
		return ""
	}
	if ok, err := sys.IsNamespace(path); err != nil || !ok {
		return ""
	}
	return path
}

// Check asks the plugins whether the pod is still attached as ADD left it (CHECK). It is nil for networks whose CNI
// version is below 0.4.0 or that disable it.
func (n *Networks) Check(ctx context.Context, a Attachment) error {
	id := a.id()
	if err := errors.Join(id.validate(), a.validate()); err != nil {
		return fmt.Errorf("cni check of pod %s: %w", a.PodID, err)
	}
	leave, err := n.begin(ctx, id, "CHECK")
	if err != nil {
		return err
	}
	defer leave()
	r, net, err := n.readRecord(id)
	if err != nil {
		return fmt.Errorf("cni check of pod %s: %w", a.PodID, err)
	}
	if r == nil {
		return fmt.Errorf("cni check of pod %s: %s is not attached", a.PodID, id.IfName)
	}
	if !net.supports("0.4.0") {
		return nil
	}
	rt := r.runtimeConf()
	rt.NetNS = a.Netns
	ctx, cancel := n.limit(ctx)
	defer cancel()
	if err := n.cni.CheckNetworkList(ctx, net.list, rt); err != nil {
		return commandError("CHECK", net.list.Name, id, err)
	}
	return nil
}

// commandError leaves out libcni's own wording where a plugin is to blame, since the PluginError says it all. A
// plugin that asks to be tried again later, or says that it is not there, makes it match ErrNotReady.
func commandError(command, network string, id AttachmentID, err error) error {
	var p *PluginError
	if errors.As(err, &p) {
		if p.Command == "" {
			p = &PluginError{Plugin: p.Plugin, Command: command, Err: p.Err}
		}
		err = p
	}
	var e *types.Error
	if errors.As(err, &e) && (e.Code == types.ErrTryAgainLater || e.Code == types.ErrPluginNotAvailable) {
		err = &notReadyError{err}
	}
	return fmt.Errorf("cni network %q: pod %s %s: %w", network, id.PodID, id.IfName, err)
}

// notReadyError matches ErrNotReady besides what it wraps, without a word of its own.
type notReadyError struct{ error }

func (e *notReadyError) Is(target error) bool { return target == ErrNotReady }
func (e *notReadyError) Unwrap() error        { return e.error }
