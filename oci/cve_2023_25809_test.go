package oci

import "testing"

// TestCVE_2023_25809: the root of a user namespace, to whom /sys/fs/cgroup may belong, can write there no more than another's.
func TestCVE_2023_25809(t *testing.T) {
	n := newNode(t, Config{})
	for _, own := range []bool{false, true} {
		p := n.params(`b=/bin/busybox; d=/sys/fs/cgroup
for g in $d $d/*; do $b mkdir $g/x 2>/dev/null && echo made $g; echo $$ 2>/dev/null >$g/cgroup.procs && echo moved $g; done
$b mount -o remount,rw $d 2>/dev/null && echo remounted $d; echo id $($b cat /proc/self/uid_map)`)
		if own {
			usernsPod(t, &p)
		}
		got := n.run(p)
		for _, what := range []string{"made", "moved", "remounted"} {
			if got[what] != "" {
				t.Errorf("user namespace %v: %s in %s; want the control groups read-only", own, what, got[what])
			}
		}
		if want := map[bool]string{false: "0 0 4294967295", true: "0 200000 65536"}[own]; got["id"] != want {
			t.Errorf("user namespace %v: map %q; want %q", own, got["id"], want)
		}
	}
}
