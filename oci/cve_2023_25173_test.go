package oci

import (
	"slices"
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/internal/workload"
)

// TestCVE_2023_25173 (and CVE-2022-2995, CVE-2022-36109): the primary group is a supplementary group too, so that a set-group-ID
// program or newgrp(1) does not rid the process of a group that files deny access to.
func TestCVE_2023_25173(t *testing.T) {
	n := newNode(t, Config{})
	for name, sec := range map[string]workload.Security{
		"of the database": {RunAsUsername: "app"},
		"of the client":   {RunAsUser: ptr[int64](1000), RunAsGroup: ptr[int64](77)},
		"strict":          {RunAsUsername: "app", GroupsPolicy: workload.GroupsStrict},
		"unknown user":    {RunAsUser: ptr[int64](4242), SupplementalGroups: []int64{9}},
	} {
		p := n.params("b=/bin/busybox; echo gid $($b id -g); echo groups $($b grep Groups: /proc/self/status)")
		p.Container.Security = sec
		got := n.run(p)
		if groups := strings.Fields(got["groups"]); got["gid"] == "" || !slices.Contains(groups, got["gid"]) {
			t.Errorf("%s: group %s, supplementary groups %q; want it among them", name, got["gid"], groups)
		}
	}
}
