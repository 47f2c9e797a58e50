package selinux

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cri-shim/cri-shim/internal/workload"
)

func TestLabels(t *testing.T) {
	for _, tc := range []struct {
		s              *workload.SELinux
		process, mount string
	}{
		{nil, "system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"},
		{&workload.SELinux{Level: "s0:c1,c2"}, "system_u:system_r:container_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"},
		{&workload.SELinux{User: "u", Role: "r", Type: "t", Level: "l"}, "u:r:t:l", "system_u:object_r:container_file_t:l"},
	} {
		process, mount, err := Labels(tc.s)
		if process != tc.process || mount != tc.mount || err != nil {
			t.Errorf("Labels(%v) = %q, %q, %v; want %q, %q", tc.s, process, mount, err, tc.process, tc.mount)
		}
	}
	for _, bad := range []workload.SELinux{{User: "a b"}, {Role: "a:b"}, {Type: "a\x00"}, {Level: "s0\n"}} {
		if _, _, err := Labels(&bad); err == nil {
			t.Errorf("Labels(%q): no error", bad)
		}
	}
}

func TestLevels(t *testing.T) {
	l := NewLevels()
	l.Keep("client", "s0:c5,c6")
	seen := map[string]bool{"s0:c5,c6": true}
	for i := range 2000 {
		pod := fmt.Sprint(i)
		level, err := l.Take(pod)
		if err != nil {
			t.Fatal(err)
		}
		if seen[level] {
			t.Fatalf("Take(%s) = %s, which another pod has", pod, level)
		}
		seen[level] = true
		if again, err := l.Take(pod); again != level || err != nil {
			t.Fatalf("Take(%s) again = %s, %v; want %s", pod, again, err, level)
		}
	}
	first, _ := l.Take("0")
	l.Release("0")
	l.Release("0")
	if l.taken[first] != 0 {
		t.Errorf("%s is taken after Release", first)
	}
	// Two pods of one client may share a level; it is free when both have gone.
	l.Keep("a", "s0:c7,c8")
	l.Keep("b", "s0:c7,c8")
	l.Release("a")
	if l.taken["s0:c7,c8"] != 1 {
		t.Errorf("taken = %d; want 1", l.taken["s0:c7,c8"])
	}
}

func TestLevelsExhausted(t *testing.T) {
	l := NewLevels()
	l.categories = 40
	for n := range l.pairs() {
		level := pair(n)
		var low, high int
		if _, err := fmt.Sscanf(level, "s0:c%d,c%d", &low, &high); err != nil || low >= high || high >= 40 {
			t.Errorf("pair(%d) = %q", n, level)
		}
		l.taken[level] = 1
	}
	if len(l.taken) != 40*39/2 {
		t.Errorf("%d levels; want %d different ones", len(l.taken), 40*39/2)
	}
	if _, err := l.Take("x"); !errors.Is(err, ErrExhausted) {
		t.Errorf("Take = %v; want ErrExhausted", err)
	}
	delete(l.taken, pair(77))
	if got, err := l.Take("x"); got != pair(77) || err != nil {
		t.Errorf("Take = %q, %v; want the one that is free", got, err)
	}
}

func TestRelabelWithoutSELinux(t *testing.T) {
	if Enabled() {
		t.Skip("this kernel has SELinux")
	}
	if err := Relabel(t.TempDir(), ""); err != nil {
		t.Errorf("Relabel = %v", err)
	}
	if _, mount, _ := Labels(nil); !strings.HasSuffix(mount, ":s0") {
		t.Errorf("mount label = %q", mount)
	}
}
