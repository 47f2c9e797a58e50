package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// dialTime bounds one try to connect to a pod's port: a server that accepts nothing does not answer.
const dialTime = 10 * time.Second

// loopback are the addresses of which a forwarded port is tried, as "localhost" stands for both.
var loopback = [...]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}

// DialPod connects to a TCP port on the loopback of a ready pod's network, which for a pod on the host's network is the host's.
func (m *Manager) DialPod(ctx context.Context, id string, port uint16) (net.Conn, error) {
	p, err := m.pod(id)
	if err != nil {
		return nil, fmt.Errorf("port %d: %w", port, err)
	}
	conn, err := m.dialPod(ctx, m.snapshot(p), port)
	if err != nil {
		return nil, fmt.Errorf("port %d of pod sandbox %s: %w", port, p.ID, err)
	}
	return conn, nil
}

func (m *Manager) dialPod(ctx context.Context, p *Pod, port uint16) (net.Conn, error) {
	if p.State() != PodReady {
		return nil, fmt.Errorf("%w: it is %s", ErrState, p.State())
	}
	var failed error
	for _, ip := range loopback {
		conn, err := dialIn(ctx, p.Netns, netip.AddrPortFrom(ip, port))
		switch {
		case err == nil:
			return conn, nil
		case ctx.Err() != nil:
			return nil, err
		case failed == nil:
			failed = err
		case errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EADDRNOTAVAIL): // a network without IPv6 is no news
		default:
			failed = fmt.Errorf("%w; %w", failed, err)
		}
	}
	return nil, failed
}

func dialIn(ctx context.Context, netns string, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	return sys.DialTCPIn(ctx, netns, to)
}
