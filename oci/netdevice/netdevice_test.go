package netdevice

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/testtools"
)

func TestMain(m *testing.M) { os.Exit(testtools.RunPrivate(m)) }

// space is a network namespace that ends with the test.
func space(t *testing.T) *os.File {
	t.Helper()
	testtools.NeedPrivate(t)
	path := filepath.Join(t.TempDir(), "net")
	if err := sys.PinNamespaces([]sys.NamespacePin{{Flag: sys.NamespaceNet, Path: path}}, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(sys.UnpinNamespace(path), sys.UnmountDetach(filepath.Dir(path))); err != nil {
			t.Error(err)
		}
	})
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// again is another descriptor of a namespace.
func again(t *testing.T, ns *os.File) *os.File {
	t.Helper()
	f, err := os.Open(ns.Name())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func inside(t *testing.T, ns *os.File, f func()) {
	t.Helper()
	if err := sys.WithNetns(ns.Name(), func() error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
}

// add makes a pair of interfaces, of which one is to be moved.
func add(t *testing.T, name string, addresses ...string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, 1400
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "p" + name}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	peer := "p" + name
	t.Cleanup(func() {
		if l, err := netlink.LinkByName(peer); err == nil {
			netlink.LinkDel(l)
		}
	})
	for _, text := range addresses {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		if a.IP.IsLinkLocalUnicast() {
			a.Scope = int(netlink.SCOPE_LINK)
		}
		if a.IP.Equal(net.IPv4(10, 9, 0, 9)) {
			a.ValidLft, a.PreferedLft = 1000, 1000 // not permanent
		}
		if a.IP.To4() == nil {
			a.Flags = 0x02 // no wait for duplicates
		}
		if err := netlink.AddrAdd(link, a); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

// seen is what this thread's network namespace has under a name: its addresses but those of IPv6 that the kernel gives.
func seen(t *testing.T, name string) string {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		return "none"
	}
	all, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	text := "down"
	if l.Attrs().Flags&net.FlagUp != 0 {
		text = "up"
	}
	if l.Attrs().MTU != 1400 {
		text += " with another MTU"
	}
	var lines []string
	for _, a := range all {
		if a.IP.To4() == nil && a.IP.IsLinkLocalUnicast() {
			continue
		}
		line := " " + a.IPNet.String()
		if a.Broadcast != nil {
			line += " to " + a.Broadcast.String()
		}
		if a.Label != "" {
			line += " as " + a.Label
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return text + strings.Join(lines, "")
}

func TestMove(t *testing.T) {
	ns := space(t)
	add(t, "a0", "10.9.0.1/24 a0:one", "10.9.0.9/24", "169.254.3.4/16", "10.9.1.1/32", "2001:db8::1/64")
	add(t, "b0", "10.8.0.1/24")
	add(t, "c0")
	before := seen(t, "a0")
	m, err := Move(again(t, ns), map[string]string{"a0": "net1", "b0": "", "c0": "net%d"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := seen(t, "a0") + seen(t, "b0") + seen(t, "c0"); got != "nonenonenone" {
		t.Errorf("left in the runtime's namespace: %s", got)
	}
	inside(t, ns, func() {
		want := "up 10.9.0.1/24 to 10.9.0.255 as net1:one 10.9.1.1/32 as net1 2001:db8::1/64"
		if got := seen(t, "net1"); got != want {
			t.Errorf("in the container: %s; want %s", got, want)
		}
		if got := seen(t, "b0"); got != "up 10.8.0.1/24 to 10.8.0.255 as b0" {
			t.Errorf("b0 in the container: %s", got)
		}
		if got := seen(t, "net0"); got != "up" {
			t.Errorf("what was to be numbered: %s; want net0, up", got)
		}
	})
	if err := m.Restore(); err != nil {
		t.Fatal(err)
	}
	after := strings.NewReplacer(" 10.9.0.9/24 to 10.9.0.255 as a0", "", " 169.254.3.4/16 to 169.254.255.255 as a0", "").Replace(before)
	if got := seen(t, "a0"); got != after {
		t.Errorf("a0 was put back as %q; want %q", got, after)
	}
}

// TestMoveFails: what cannot be moved leaves the others where they were, as they were.
func TestMoveFails(t *testing.T) {
	ns := space(t)
	inside(t, ns, func() { add(t, "taken") })
	for name, tt := range map[string]struct {
		names map[string]string
		want  string
	}{
		"missing":    {map[string]string{"a1": "x", "z1": ""}, "linux.netDevices[z1]: there is no such interface"},
		"taken":      {map[string]string{"a1": "x", "b1": "taken"}, "linux.netDevices[b1]: the container's network namespace has an interface named taken already"},
		"taken, old": {map[string]string{"a1": "x", "taken": ""}, "linux.netDevices[taken]: the container's network namespace has"},
		"bound":      {map[string]string{"a1": "x", "lo": "lo2"}, "linux.netDevices[lo]: move it"},
	} {
		t.Run(name, func(t *testing.T) {
			add(t, "a1", "10.7.0.1/24")
			add(t, "b1")
			add(t, "taken")
			before := seen(t, "a1") + seen(t, "b1")
			if _, err := Move(again(t, ns), tt.names, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Move = %v; want %q", err, tt.want)
			}
			if got := seen(t, "a1") + seen(t, "b1"); got != before {
				t.Errorf("afterwards: %s; want %s", got, before)
			}
		})
	}
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	add(t, "a2")
	if _, err := Move(own, map[string]string{"a2": ""}, nil); err == nil || !strings.Contains(err.Error(), "no network namespace of its own") {
		t.Errorf("Move into the runtime's own namespace = %v", err)
	}
}

// ledger is in memory.
type ledger struct {
	known map[string]string
	fail  error
}

func (l *ledger) Do(f func(map[string]string, func(map[string]string) error) error) error {
	return f(l.known, func(next map[string]string) error {
		if l.fail == nil {
			l.known = next
		}
		return l.fail
	})
}

// TestLedger: what a container has moved is there for the next one of the same namespace, and for no other name.
func TestLedger(t *testing.T) {
	ns, l := space(t), &ledger{}
	add(t, "a3", "10.6.0.1/24")
	l.fail = errors.New("disk full")
	if _, err := Move(again(t, ns), map[string]string{"a3": "net%d"}, l); !errors.Is(err, l.fail) || seen(t, "a3") == "none" {
		t.Errorf("Move without a record = %v, and a3 is %s", err, seen(t, "a3"))
	}
	l.fail = nil
	for range 2 {
		if _, err := Move(again(t, ns), map[string]string{"a3": "net%d"}, l); err != nil {
			t.Fatal(err)
		}
	}
	if want := map[string]string{"a3": "net0"}; !cmp.Equal(l.known, want) {
		t.Errorf("the ledger has %v; want %v", l.known, want)
	}
	if _, err := Move(again(t, ns), map[string]string{"a3": "other"}, l); err == nil {
		t.Error("it was found under a name that it does not have")
	}
	if _, err := Move(again(t, ns), map[string]string{"a3": "net%d"}, nil); err == nil {
		t.Error("it was found without a ledger")
	}
	other := space(t)
	if _, err := Move(again(t, other), map[string]string{"a3": "net%d"}, l); err == nil || !strings.Contains(err.Error(), "is not there") {
		t.Errorf("Move to a namespace that does not have it = %v", err)
	}
}

func TestCheckName(t *testing.T) {
	for name, want := range map[string]bool{
		"eth0": true, "a-very-long-nam": true, "a-very-long-name": false, "": false, ".": false, "..": false, "a/b": false,
		"a:1": false, "a b": false, "a\x00": false, "a\n": false, "eth%d": false, "100%": false,
	} {
		if err := CheckName(name); (err == nil) != want {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
	for name, want := range map[string]bool{"eth%d": true, "%d": true, "e%dx": false, "%d%d": false, "%s": false, "fourteen-chars%d": true, "fifteen-chars-x%d": false, "x": true} {
		if err := CheckTarget(name); (err == nil) != want {
			t.Errorf("CheckTarget(%q) = %v", name, err)
		}
	}
}
