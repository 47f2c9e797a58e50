package oci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/cri-shim/cri-shim/internal/passwd"
	"github.com/cri-shim/cri-shim/internal/sys"
	"github.com/cri-shim/cri-shim/internal/workload"
)

// accounts are an image's user database, read when it is first needed.
type accounts struct {
	root          *os.File
	passwd, group []byte
	havePasswd    bool
	haveGroup     bool
	absent        bool // names are not looked up at all
}

func (a *accounts) read(name string, have *bool, data *[]byte) (io.Reader, error) {
	if !*have && a.root != nil {
		b, err := sys.ReadInRoot(a.root, name, passwd.MaxFile)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the image's %s: %w", name, err)
		}
		*data = b
	}
	*have = true
	return bytes.NewReader(*data), nil
}

func (a *accounts) passwdFile() (io.Reader, error) {
	return a.read("etc/passwd", &a.havePasswd, &a.passwd)
}

func (a *accounts) groupFile() (io.Reader, error) {
	return a.read("etc/group", &a.haveGroup, &a.group)
}

// identity is a resolved user.
type identity struct {
	workload.User
	name, home string
}

// user resolves run_as_username, run_as_user and run_as_group, or else the image's "user[:group]", in the image's
// own user database (CRI LinuxContainerSecurityContext; image-spec config, "User").
func (b *builder) user() error {
	acc := &accounts{root: b.Root, absent: b.checkOnly}
	id, err := b.identity(acc)
	if err != nil {
		return err
	}
	if err := b.groups(acc, id); err != nil {
		return err
	}
	b.built.User = id.User
	u := &b.spec.Process.User
	u.UID, u.GID, u.AdditionalGids = id.UID, id.GID, id.Groups
	u.Username = "" // a Windows field
	if id.home == "" {
		id.home = "/"
	}
	b.homeDir = id.home
	return nil
}

func (b *builder) home() string { return b.homeDir }

func (b *builder) identity(acc *accounts) (*identity, error) {
	s := b.sec
	field, name, group := "security.run_as_username", s.RunAsUsername, ""
	switch {
	case s.RunAsUsername != "":
	case s.RunAsUser != nil:
		field, name = "security.run_as_user", strconv.FormatInt(*s.RunAsUser, 10)
	case s.RunAsGroup != nil:
		return nil, fieldf("security.run_as_group", "set without run_as_user or run_as_username")
	default:
		field = "image.user"
		name, group, _ = strings.Cut(b.Image.User, ":")
		if name == "" {
			name = "0"
		}
	}
	id, err := lookupUser(acc, name)
	if err != nil {
		return nil, &FieldError{Field: field, Err: err}
	}
	if s.RunAsGroup != nil {
		if id.GID, err = checkID(*s.RunAsGroup); err != nil {
			return nil, &FieldError{Field: "security.run_as_group", Err: err}
		}
	} else if group != "" {
		if id.GID, err = lookupGroup(acc, group); err != nil {
			return nil, &FieldError{Field: field, Err: err}
		}
	}
	return id, nil
}

// lookupUser finds a name, or a number that need not be in the database. A number gets the primary group of its entry, or
// 0. It is tried as a number first: were an image's user named "1000" found for run_as_user 1000, it could be root
// (CVE-2016-3697).
func lookupUser(acc *accounts, name string) (*identity, error) {
	id := &identity{}
	numeric, uid, err := parseID(name)
	if err != nil {
		return nil, err
	}
	match := passwd.ByName(name)
	if numeric {
		id.UID, match = uid, passwd.ByUID(uid)
	}
	file, err := acc.passwdFile()
	if err != nil {
		return nil, err
	}
	u, err := passwd.Lookup(file, match)
	switch {
	case err == nil:
		id.name, id.home, id.UID, id.GID = u.Name, u.Home, u.UID, u.GID
		return id, nil
	case !errors.Is(err, passwd.ErrNoUser):
		return nil, fmt.Errorf("the image's etc/passwd: %w", err)
	case numeric || acc.absent:
		return id, nil
	}
	return nil, fmt.Errorf("user %q is not in the image's /etc/passwd", name)
}

func lookupGroup(acc *accounts, name string) (uint32, error) {
	if numeric, gid, err := parseID(name); numeric || err != nil {
		return gid, err
	}
	file, err := acc.groupFile()
	if err != nil {
		return 0, err
	}
	g, err := passwd.LookupGroup(file, func(g passwd.Group) bool { return g.Name == name })
	switch {
	case err == nil || acc.absent:
		return g.GID, nil
	case !errors.Is(err, passwd.ErrNoGroup):
		return 0, fmt.Errorf("the image's etc/group: %w", err)
	}
	return 0, fmt.Errorf("group %q is not in the image's /etc/group", name)
}

// parseID says whether a name is a number, and which. One that is too large is an error and no name: the image's database
// could make it root's (CVE-2024-40635, CVE-2026-46680).
func parseID(name string) (numeric bool, id uint32, err error) {
	n, err := strconv.ParseInt(name, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return true, 0, fmt.Errorf("%.100s is not a user or group id (0 to %d)", name, uint32(math.MaxUint32-1))
	}
	if err != nil {
		return false, 0, nil
	}
	id, err = checkID(n)
	return true, id, err
}

// checkID refuses what setuid(2) cannot take; the highest number means "unchanged" to the kernel.
func checkID(n int64) (uint32, error) {
	if n < 0 || n >= math.MaxUint32 {
		return 0, fmt.Errorf("%d is not a user or group id (0 to %d)", n, uint32(math.MaxUint32-1))
	}
	return uint32(n), nil
}

// groups sets the supplemental groups: the primary group (as Docker and containerd do, so that a file of
// that group stays accessible after setgid), the groups that the image's /etc/group lists the user in unless the
// policy is strict (CRI SupplementalGroupsPolicy), and those of the client.
func (b *builder) groups(acc *accounts, id *identity) error {
	id.Groups = []uint32{id.GID}
	add := func(field string, n int64) error {
		gid, err := checkID(n)
		if err != nil {
			return &FieldError{Field: field, Err: err}
		}
		if !slices.Contains(id.Groups, gid) {
			id.Groups = append(id.Groups, gid)
		}
		return nil
	}
	switch b.sec.GroupsPolicy {
	case "", workload.GroupsMerge:
		file, err := acc.groupFile()
		if err != nil {
			return err
		}
		member, err := passwd.Memberships(file, id.name)
		if err != nil {
			return fmt.Errorf("the image's etc/group: %w", err)
		}
		for _, g := range member {
			if g != id.GID {
				id.Groups = append(id.Groups, g)
			}
		}
	case workload.GroupsStrict:
	default:
		return fieldf("security.supplemental_groups_policy", "unknown policy %q", b.sec.GroupsPolicy)
	}
	for i, g := range b.sec.SupplementalGroups {
		if err := add(index("security.supplemental_groups", i), g); err != nil {
			return err
		}
	}
	return nil
}
