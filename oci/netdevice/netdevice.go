// Package netdevice moves network interfaces of the runtime's network namespace into a container's (runtime-spec,
// "Network Devices"). It is done by who starts the init, which needs CAP_NET_ADMIN over both.
package netdevice

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// maxName is the longest name of an interface (IFNAMSIZ, without the NUL).
const maxName = 15

// template is what a name ends with for the kernel, and so for the specification, to number it.
const template = "%d"

// CheckName refuses what the kernel would not take for the name of an interface (dev_valid_name), and what its tools
// would not.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q is not the name of an interface", name)
	case len(name) > maxName:
		return fmt.Errorf("%q is longer than %d bytes", name, maxName)
	case strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '/' || r == ':' }):
		return fmt.Errorf("%q: an interface's name has no slash, colon, space or control character", name)
	case strings.Contains(name, "%"):
		return fmt.Errorf("%q: an interface's name has no %%", name)
	}
	return nil
}

// CheckTarget is CheckName for the name inside, which may be a template.
func CheckTarget(name string) error {
	if stem, ok := strings.CutSuffix(name, template); ok {
		return CheckName(stem + "0")
	}
	return CheckName(name)
}

// Ledger remembers which interface went into a network namespace under which name, where another container of that
// namespace may ask for the same one: a container that is started anew.
type Ledger interface {
	// Do calls f with what is recorded, alone; f may call save with what is to be.
	Do(f func(known map[string]string, save func(map[string]string) error) error) error
}

// Moved are interfaces that were moved, for Restore until Close; nil is none.
type Moved struct {
	target *os.File
	all    []*device
}

// device is what it takes to put an interface back.
type device struct {
	name, inside string
	up           bool
	addresses    []netlink.Addr
}

// Move moves interfaces, named to names inside (the specification's netDevices; "" is the same name), into the namespace
// target, which it takes over, with their permanent global addresses, and brings them up. On an error they are where
// they were. Interfaces that the ledger, which may be nil, knows to be there already are left as they are.
func Move(target *os.File, names map[string]string, ledger Ledger) (*Moved, error) {
	m := &Moved{target: target}
	move := func(known map[string]string, save func(map[string]string) error) error {
		err := m.move(names, known, save)
		if err != nil {
			err = errors.Join(err, m.Restore())
		}
		return err
	}
	var err error
	if ledger != nil {
		err = ledger.Do(move)
	} else {
		err = move(nil, func(map[string]string) error { return nil })
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// Close leaves what was moved where it is.
func (m *Moved) Close() {
	if m != nil {
		m.target.Close()
	}
}

func (m *Moved) move(names, known map[string]string, save func(map[string]string) error) error {
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if err := m.moveOne(name, names[name], known, save); err != nil {
			return &Error{Name: name, Err: err}
		}
	}
	return nil
}

// Error says which interface could not be moved.
type Error struct {
	Name string
	Err  error
}

func (e *Error) Error() string { return "linux.netDevices[" + e.Name + "]: " + e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// inside runs f in the container's network namespace, which must not be this process's own.
func (m *Moved) inside(f func() error) error {
	own, err := os.Stat("/proc/self/ns/net")
	if err != nil {
		return err
	}
	other, err := m.target.Stat()
	if err != nil {
		return err
	}
	if os.SameFile(own, other) {
		return errors.New("the container has no network namespace of its own")
	}
	return sys.WithNetns("/proc/self/fd/"+strconv.Itoa(int(m.target.Fd())), f)
}

func (m *Moved) moveOne(name, want string, known map[string]string, save func(map[string]string) error) error {
	if want == "" {
		want = name
	}
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		there := known[name]
		if there == "" || !matches(there, want) {
			return errors.New("there is no such interface in the runtime's network namespace")
		}
		return m.inside(func() error {
			if _, err := netlink.LinkByName(there); err != nil {
				return fmt.Errorf("it was moved to the container's network namespace before, and is not there: %w", err)
			}
			return nil
		})
	}
	if err != nil {
		return err
	}
	if real := link.Attrs().Name; real != name { // the kernel finds it by its other names too
		return fmt.Errorf("it is another name of %s", real)
	}
	d := &device{name: name, up: link.Attrs().Flags&net.FlagUp != 0}
	if d.addresses, err = permanent(link); err != nil {
		return err
	}
	err = m.inside(func() (err error) { d.inside, err = freeName(want); return err })
	if err != nil {
		return err
	}
	// Before it is moved: a daemon that dies in between must know it when it looks again.
	next := maps.Clone(known)
	if next == nil {
		next = map[string]string{}
	}
	next[name] = d.inside
	if err := save(next); err != nil {
		return err
	}
	m.all = append(m.all, d)
	if err := rehome(link.Attrs().Index, m.target, d.inside); err != nil {
		return fmt.Errorf("move it to the container's network namespace as %s: %w", d.inside, explain(err))
	}
	return m.inside(func() error { return d.configure(d.inside, name, true) })
}

// explain says what the kernel means by EINVAL for a well-formed request.
func explain(err error) error {
	if errors.Is(err, syscall.EINVAL) {
		return fmt.Errorf("%w (interfaces of this kind may be bound to their network namespace)", err)
	}
	return err
}

// matches says whether an interface's name is what was asked for.
func matches(name, want string) bool {
	stem, ok := strings.CutSuffix(want, template)
	if !ok {
		return name == want
	}
	number, ok := strings.CutPrefix(name, stem)
	_, err := strconv.ParseUint(number, 10, 31)
	return ok && err == nil
}

// freeName refuses a name that is taken in this thread's network namespace, and numbers a template as the kernel would: by
// the first number that is free.
func freeName(want string) (string, error) {
	links, err := list(netlink.LinkList)
	if err != nil {
		return "", err
	}
	taken := map[string]bool{}
	for _, l := range links {
		taken[l.Attrs().Name] = true
		for _, alt := range l.Attrs().AltNames {
			taken[alt] = true
		}
	}
	stem, ok := strings.CutSuffix(want, template)
	if !ok {
		if taken[want] {
			return "", fmt.Errorf("the container's network namespace has an interface named %s already", want)
		}
		return want, nil
	}
	for i := 0; ; i++ {
		name := stem + strconv.Itoa(i)
		if len(name) > maxName {
			return "", fmt.Errorf("the container's network namespace has no name like %s free", want)
		}
		if !taken[name] {
			return name, nil
		}
	}
}

// Flags of addresses (linux/if_addr.h) that are the administrator's; the others are the kernel's.
const (
	addressPermanent = 0x80
	addressKeep      = 0x02 /* nodad */ | 0x10 /* homeaddress */ | 0x100 /* managetempaddr */ |
		0x200 /* noprefixroute */ | 0x400 /* mcautojoin */
)

// permanent are the addresses that the specification wants kept. The kernel takes all away from an interface that moves.
func permanent(link netlink.Link) ([]netlink.Addr, error) {
	all, err := list(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, err
	}
	var keep []netlink.Addr
	for _, a := range all {
		if a.Flags&addressPermanent != 0 && a.Scope == int(netlink.SCOPE_UNIVERSE) {
			keep = append(keep, a)
		}
	}
	return keep, nil
}

// list asks again where the list changed while it was told.
func list[T any](ask func() ([]T, error)) (all []T, err error) {
	for range 5 {
		if all, err = ask(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// configure gives an interface of this thread's network namespace its addresses, and then brings it up. Labels of
// addresses begin with the name that the interface had.
func (d *device) configure(name, was string, up bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find it as %s: %w", name, err)
	}
	for _, a := range d.addresses {
		a.Flags &= addressKeep
		if rest, ok := strings.CutPrefix(a.Label, was); ok && len(name+rest) <= maxName {
			a.Label = name + rest
		} else {
			a.Label = ""
		}
		if a.Broadcast == nil {
			a.Broadcast = net.IPv4zero // or the library makes one up
		}
		if err := netlink.AddrAdd(link, &a); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("give it the address %s: %w", a.IPNet, err)
		}
	}
	if !up {
		return nil
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring it up: %w", err)
	}
	return nil
}

// Restore puts back what was moved, for a container that does not come to be. Nothing is moved out of a container that
// was: its interfaces go with their namespace (runtime-spec, "Namespace Lifecycle and Container Termination").
func (m *Moved) Restore() error {
	if m == nil || len(m.all) == 0 {
		return nil
	}
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	for _, d := range slices.Backward(m.all) {
		if rerr := m.restore(d, own); rerr != nil {
			err = errors.Join(err, &Error{Name: d.name, Err: fmt.Errorf("put it back: %w", rerr)})
		}
	}
	m.all = nil
	return err
}

func (m *Moved) restore(d *device, own *os.File) error {
	if _, err := netlink.LinkByName(d.name); err == nil {
		return nil // it has not left
	}
	err := m.inside(func() error {
		link, err := netlink.LinkByName(d.inside)
		if err != nil { // it was moved, and could not be renamed
			if link, err = netlink.LinkByName(d.name); err != nil {
				return err
			}
		}
		return rehome(link.Attrs().Index, own, d.name)
	})
	if err != nil {
		return err
	}
	return d.configure(d.name, d.name, d.up)
}

// netNSFile is IFLA_NET_NS_FD (linux/if_link.h).
const netNSFile = 28

// rehome moves and renames an interface of this thread's network namespace in one request, so that neither name has to be
// free in both.
func rehome(index int, to *os.File, name string) error {
	req := nl.NewNetlinkRequest(syscall.RTM_NEWLINK, syscall.NLM_F_ACK)
	msg := nl.NewIfInfomsg(syscall.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(syscall.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(netNSFile, nl.Uint32Attr(uint32(to.Fd()))))
	_, err := req.Execute(syscall.NETLINK_ROUTE, 0)
	return err
}
