package sys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cri-shim/cri-shim/internal/usage"
)

const netDev = "Inter-|   Receive                                                |  Transmit\n" +
	" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n" +
	"    lo:    1000       1    0    0    0     0          0         0     1000       1    0    0    0     0       0          0\n" +
	"  eth0: 3735928559      22    3    4    0     0          0         5    42   6    7    8    0     0       0          0\n" +
	"veth\"\xe9: 1 2 3 4 0 0 0 0 9 10 11 12 0 0 0 0\n"

func TestParseNetDev(t *testing.T) {
	got, err := parseNetDev([]byte(netDev))
	want := []usage.Interface{
		{Name: "eth0", RxBytes: 3735928559, RxPackets: 22, RxErrors: 3, RxDropped: 4, TxBytes: 42, TxPackets: 6, TxErrors: 7, TxDropped: 8},
		{Name: `"veth\"\xe9"`, RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 9, TxPackets: 10, TxErrors: 11, TxDropped: 12},
	}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("parseNetDev = %v (-want +got):\n%s", err, d)
	}
	for _, bad := range []string{"a\nb\neth0: 1 2 3\n", "a\nb\neth0: -1 2 3 4 5 6 7 8 9 10 11 12\n"} {
		if got, err := parseNetDev([]byte(bad)); err == nil {
			t.Errorf("parseNetDev(%q) = %v; want an error", bad, got)
		}
	}
}

func FuzzParseNetDev(f *testing.F) {
	f.Add([]byte(netDev))
	f.Add([]byte("\n\n:"))
	f.Fuzz(func(_ *testing.T, data []byte) { parseNetDev(data) })
}

func TestNetworkCounters(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("makes a network namespace: needs root")
	}
	dir := filepath.Join(t.TempDir(), "netns")
	path := filepath.Join(dir, "a")
	if err := PinNamespaces([]NamespacePin{{Flag: NamespaceNet, Path: path}}, LoopbackUp); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(UnpinNamespace(path), UnmountDetach(dir)); err != nil {
			t.Error(err)
		}
	})
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	all := NetworkCounters(path, filepath.Join(dir, "gone"), path)
	if len(all) != 3 || !errors.Is(all[1].Err, fs.ErrNotExist) {
		t.Fatalf("NetworkCounters with one that is not there = %v; want not exist for that alone", all)
	}
	for _, got := range []Counters{all[0], all[2]} {
		for _, i := range got.Interfaces { // the kernel may make tunl0 and its like in every namespace
			if i.Name == "lo" || i.RxBytes+i.TxBytes != 0 || got.Err != nil {
				t.Errorf("NetworkCounters of a new namespace = %+v", got)
			}
		}
	}
	for range 100 { // every thread is where it belongs
		if after, err := os.Readlink("/proc/thread-self/ns/net"); err != nil || after != before {
			t.Fatalf("the network namespace is %s, %v; before %s", after, err, before)
		}
	}
}
