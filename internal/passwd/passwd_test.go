package passwd

import (
	"errors"
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

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		user string
		want Identity
		err  error
	}{
		{"", Identity{Name: "root", Home: "/root", Groups: []uint32{10}}, nil},
		{"root", Identity{Name: "root", Home: "/root", Groups: []uint32{10}}, nil},
		{"app", Identity{Name: "app", UID: 1000, GID: 1001, Home: "/home/app", Groups: []uint32{10, 44}}, nil},
		{"1000", Identity{Name: "app", UID: 1000, GID: 1001, Home: "/home/app", Groups: []uint32{10, 44}}, nil},
		{"app:wheel", Identity{Name: "app", UID: 1000, GID: 10, Home: "/home/app"}, nil},
		{"1000:5555", Identity{Name: "app", UID: 1000, GID: 5555, Home: "/home/app"}, nil},
		{"4242", Identity{UID: 4242}, nil},
		{"4242:44", Identity{UID: 4242, GID: 44}, nil},
		{"1234", Identity{Name: "1234", UID: 77, GID: 78, Home: "/n"}, nil},
		{"short", Identity{Name: "short", UID: 5, GID: 6}, nil},
		{"nobody", Identity{}, ErrNoUser},
		{"big", Identity{}, ErrNoUser},
		{"4294967295", Identity{}, ErrNoUser},
		{"-1", Identity{}, ErrNoUser},
		{"app:nogroup", Identity{Name: "app", UID: 1000, Home: "/home/app"}, ErrNoGroup},
	} {
		got, err := Resolve(c.user, strings.NewReader(users), strings.NewReader(groups))
		if !errors.Is(err, c.err) {
			t.Errorf("Resolve(%q) = %v; want error %v", c.user, err, c.err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("Resolve(%q): -want +got\n%s", c.user, diff)
		}
	}
	if got, err := Resolve("7:8", nil, nil); err != nil || got.UID != 7 || got.GID != 8 {
		t.Errorf("Resolve without files = %v, %v; want 7:8", got, err)
	}
}

func TestTooLong(t *testing.T) {
	long := strings.NewReader(strings.Repeat("#\n", MaxFile/2+1))
	if _, err := Lookup(long, ByUID(0)); !errors.Is(err, ErrTooLong) {
		t.Errorf("Lookup(long file) = %v; want %v", err, ErrTooLong)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("app:wheel", users, groups)
	f.Add("0", ":::::", "a:b:c:d")
	f.Fuzz(func(t *testing.T, user, p, g string) {
		i, err := Resolve(user, strings.NewReader(p), strings.NewReader(g))
		if err == nil && (i.UID == 1<<32-1 || i.GID == 1<<32-1) {
			t.Fatalf("Resolve(%q) = %v: an id that means no change", user, i)
		}
		if len(i.Groups) > MaxGroups {
			t.Fatalf("%d groups", len(i.Groups))
		}
	})
}
