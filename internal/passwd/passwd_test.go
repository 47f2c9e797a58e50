package passwd

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const users = `# comment
root:x:0:0:root:/root:/bin/sh

broken
nouid:x:abc:1::/:/bin/sh
big:x:4294967295:1::/:/bin/sh
app:x:1000:1001:App:/home/app:/bin/sh
1234:x:77:78:numeric name:/n:
short:x:5:6
`

const groups = `root:x:0:root
wheel:x:10:root,app
app:x:1001:app
bad:x:zz:app
video:x:44:app
video2:x:44:app
`

func TestLookup(t *testing.T) {
	for _, c := range []struct {
		match func(User) bool
		want  User
		err   error
	}{
		{ByName("root"), User{Name: "root", Home: "/root"}, nil},
		{ByName("app"), User{Name: "app", UID: 1000, GID: 1001, Home: "/home/app"}, nil},
		{ByUID(1000), User{Name: "app", UID: 1000, GID: 1001, Home: "/home/app"}, nil},
		{ByName("short"), User{Name: "short", UID: 5, GID: 6}, nil},
		{ByUID(1234), User{}, ErrNoUser},
		{ByName("nobody"), User{}, ErrNoUser},
		{ByName("nouid"), User{}, ErrNoUser},
		{ByName("big"), User{}, ErrNoUser},
		{ByUID(1<<32 - 1), User{}, ErrNoUser},
	} {
		got, err := Lookup(strings.NewReader(users), c.match)
		if diff := cmp.Diff(c.want, got); diff != "" || !errors.Is(err, c.err) {
			t.Errorf("Lookup = %v; want %v: -want +got\n%s", err, c.err, diff)
		}
	}
}

func TestGroups(t *testing.T) {
	got, err := Memberships(strings.NewReader(groups), "app")
	if diff := cmp.Diff([]uint32{10, 1001, 44}, got); diff != "" || err != nil {
		t.Errorf("Memberships(app) = %v: -want +got\n%s", err, diff)
	}
	if got, err := Memberships(strings.NewReader(groups), ""); len(got) != 0 || err != nil {
		t.Errorf("Memberships of nobody = %v, %v; want none", got, err)
	}
	named := func(name string) func(Group) bool { return func(g Group) bool { return g.Name == name } }
	if g, err := LookupGroup(strings.NewReader(groups), named("video")); g.GID != 44 || err != nil {
		t.Errorf("LookupGroup(video) = %v, %v; want 44", g, err)
	}
	if _, err := LookupGroup(strings.NewReader(groups), named("bad")); !errors.Is(err, ErrNoGroup) {
		t.Errorf("LookupGroup(bad) = %v; want %v", err, ErrNoGroup)
	}
}

// TestManyGroups is CVE-2026-47262: an image's group file does not make the daemon hold or set more than the kernel takes.
func TestManyGroups(t *testing.T) {
	var b strings.Builder
	for i := range MaxGroups + 1000 {
		b.WriteString("g:x:" + strconv.Itoa(i) + ":app\n")
	}
	got, err := Memberships(strings.NewReader(b.String()), "app")
	if len(got) != MaxGroups || err != nil {
		t.Errorf("Memberships = %d groups, %v; want %d", len(got), err, MaxGroups)
	}
}

func TestTooLong(t *testing.T) {
	long := strings.NewReader(strings.Repeat("#\n", MaxFile/2+1))
	if _, err := Lookup(long, ByUID(0)); !errors.Is(err, ErrTooLong) {
		t.Errorf("Lookup(long file) = %v; want %v", err, ErrTooLong)
	}
}

func FuzzLookup(f *testing.F) {
	f.Add("app", users, groups)
	f.Add("0", ":::::", "a:b:c:d")
	f.Fuzz(func(t *testing.T, name, p, g string) {
		u, err := Lookup(strings.NewReader(p), ByName(name))
		if err == nil && (u.UID == 1<<32-1 || u.GID == 1<<32-1 || u.Name != name) {
			t.Fatalf("Lookup(%q) = %v: an id that means no change, or another user", name, u)
		}
		gids, err := Memberships(strings.NewReader(g), name)
		if err == nil && (len(gids) > MaxGroups || slices.Contains(gids, 1<<32-1)) {
			t.Fatalf("Memberships(%q) = %d groups: too many, or an id that means no change", name, len(gids))
		}
	})
}
