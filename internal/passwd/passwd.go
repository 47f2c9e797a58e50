// Package passwd reads /etc/passwd and /etc/group of images. It has no
// dependencies and bounds what it reads, since an image can contain anything.
// The rules are those of passwd(5) and group(5).
package passwd

import (
	"errors"
	"io"
	"strconv"
	"strings"
)

// MaxFile is the most that is read of a file, in bytes; a longer file is an error.
const MaxFile = 8 << 20

// MaxGroups is NGROUPS_MAX of the kernel: more supplementary groups cannot be set.
const MaxGroups = 65536

// Errors that callers tell apart.
var (
	ErrTooLong = errors.New("file is longer than 8 MiB")
	ErrNoUser  = errors.New("no such user")
	ErrNoGroup = errors.New("no such group")
)

// User is a line of passwd(5).
type User struct {
	Name     string
	UID, GID uint32
	Home     string
}

// Group is a line of group(5).
type Group struct {
	Name    string
	GID     uint32
	Members []string
}

// id parses a decimal uid or gid below 2^32-1, which means "no change" to setresuid(2).
func id(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, false
	}
	return uint32(n), true
}

// lines calls each with every line that is neither empty nor a comment, until each returns false.
func lines(r io.Reader, each func(line string) bool) error {
	data, err := io.ReadAll(io.LimitReader(r, MaxFile+1))
	if err != nil {
		return err
	}
	if len(data) > MaxFile {
		return ErrTooLong
	}
	for rest := string(data); rest != ""; {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if !each(line) {
			return nil
		}
	}
	return nil
}

func parseUser(line string) (u User, ok bool) {
	f := strings.SplitN(line, ":", 7)
	if len(f) < 4 || f[0] == "" {
		return u, false
	}
	uid, ok1 := id(f[2])
	gid, ok2 := id(f[3])
	if !ok1 || !ok2 {
		return u, false
	}
	u = User{Name: f[0], UID: uid, GID: gid}
	if len(f) > 5 {
		u.Home = f[5]
	}
	return u, true
}

func parseGroup(line string) (g Group, ok bool) {
	f := strings.SplitN(line, ":", 5)
	if len(f) < 3 || f[0] == "" {
		return g, false
	}
	gid, ok := id(f[2])
	if !ok {
		return g, false
	}
	g = Group{Name: f[0], GID: gid}
	if len(f) > 3 && f[3] != "" {
		g.Members = strings.Split(f[3], ",")
	}
	return g, true
}

// Lookup returns the first user of a passwd file for which match is true.
// Lines that are not of passwd(5)'s form are skipped. ErrNoUser when there is none.
func Lookup(r io.Reader, match func(User) bool) (found User, err error) {
	err = lines(r, func(line string) bool {
		u, ok := parseUser(line)
		if ok && match(u) {
			found = u
			return false
		}
		return true
	})
	if err == nil && found.Name == "" {
		err = ErrNoUser
	}
	return found, err
}

// ByUID matches a numeric user.
func ByUID(uid uint32) func(User) bool { return func(u User) bool { return u.UID == uid } }

// ByName matches a user's name.
func ByName(name string) func(User) bool { return func(u User) bool { return u.Name == name } }

// LookupGroup is Lookup for a group file. ErrNoGroup when there is none.
func LookupGroup(r io.Reader, match func(Group) bool) (found Group, err error) {
	err = lines(r, func(line string) bool {
		g, ok := parseGroup(line)
		if ok && match(g) {
			found = g
			return false
		}
		return true
	})
	if err == nil && found.Name == "" {
		err = ErrNoGroup
	}
	return found, err
}

// Memberships returns the group ids that list name as a member, in the file's
// order and without doubles; at most MaxGroups.
func Memberships(r io.Reader, name string) (gids []uint32, err error) {
	if name == "" {
		return nil, nil
	}
	seen := map[uint32]bool{}
	err = lines(r, func(line string) bool {
		g, ok := parseGroup(line)
		if !ok || seen[g.GID] {
			return true
		}
		for _, m := range g.Members {
			if m == name {
				seen[g.GID] = true
				gids = append(gids, g.GID)
				break
			}
		}
		return len(gids) < MaxGroups
	})
	return gids, err
}
