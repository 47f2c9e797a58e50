package sys

import (
	"io/fs"

	"golang.org/x/sys/unix"
)

// File types in a mode, as in mknod(2).
const (
	ModeChar  uint32 = unix.S_IFCHR
	ModeBlock uint32 = unix.S_IFBLK
	ModeFIFO  uint32 = unix.S_IFIFO
	modeType  uint32 = unix.S_IFMT
)

// Node is what lstat(2) says about a file that may be a device.
type Node struct {
	Mode         uint32 // type and permissions
	Major, Minor uint32 // 0 unless it is a device
	UID, GID     uint32
}

// Type is the file type in n.Mode: ModeChar, ModeBlock, ModeFIFO or another.
func (n Node) Type() uint32 { return n.Mode & modeType }

// IsDir reports whether n is a directory.
func (n Node) IsDir() bool { return n.Type() == unix.S_IFDIR }

// Perm are the permission bits with setuid, setgid and sticky.
func (n Node) Perm() uint32 { return n.Mode &^ modeType }

// StatNode looks at path and does not follow a symbolic link in its last part.
func StatNode(path string) (Node, error) {
	var st unix.Stat_t
	for {
		err := unix.Lstat(path, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return Node{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
		}
		break
	}
	return Node{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid,
		Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev),
	}, nil
}
