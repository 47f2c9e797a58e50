package initproc

import (
	"strings"

	"golang.org/x/sys/unix"
)

// beneath is how every path inside a root is resolved: links, absolute ones
// too, and ".." stay inside, and no magic link of a procfs leads out
// (openat2(2); CVE-2021-30465).
const beneath = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// openIn opens path with dir as its root.
func openIn(dir int, path string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve}
	if path == "" {
		path = "."
	}
	// EAGAIN: the kernel saw a rename beside a ".." and cannot vouch for it.
	for range 128 {
		fd, err := unix.Openat2(dir, path, &how)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		return fd, needs("5.6", err)
	}
	return -1, unix.EAGAIN
}

// maxLinks is the kernel's own limit on links in a path (path_resolution(7)).
const maxLinks = 40

// ensure opens path below root with O_PATH, creating what is missing of it: a
// directory where dir is true, else an empty file; directories on the way. A link
// that leads nowhere has its target created, below root again: images
// have /etc/resolv.conf point to what only a running systemd makes.
func ensure(root int, path string, dir bool, mode uint32) (int, error) {
	for range maxLinks {
		fd, err := openIn(root, path, unix.O_PATH, beneath)
		if err != unix.ENOENT {
			return fd, err
		}
		next, err := createMissing(root, path, dir, mode)
		if err != nil {
			return -1, err
		}
		path = next
	}
	return -1, unix.ELOOP
}

// createMissing creates all of path that is not there. Where it meets a link that
// leads nowhere it returns the path with the link resolved, to be tried again.
func createMissing(root int, path string, dir bool, mode uint32) (string, error) {
	parts := split(path)
	at, n, err := deepest(root, parts)
	if err != nil {
		return "", err
	}
	defer func() { unix.Close(at) }()
	for i := n; i < len(parts); i++ {
		// ".." after a part that did not exist has no meaning that cannot be raced.
		if parts[i] == ".." {
			return "", unix.ENOENT
		}
		last := i == len(parts)-1
		if last {
			err = makeEntry(at, parts[i], dir, mode)
		} else {
			err = makeEntry(at, parts[i], true, 0o755)
		}
		if err == unix.EEXIST {
			link, lerr := readlinkAt(at, parts[i])
			if lerr != nil {
				return path, nil // someone else made it: look again
			}
			rest := strings.Join(append([]string{link}, parts[i+1:]...), "/")
			if strings.HasPrefix(link, "/") {
				return rest, nil
			}
			return strings.Join(parts[:i], "/") + "/" + rest, nil
		}
		if err != nil {
			return "", err
		}
		if last {
			break
		}
		// Relative to what was just made, never through a link that replaced it.
		fd, err := openIn(at, parts[i], unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW,
			unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			return "", err
		}
		unix.Close(at)
		at = fd
	}
	return path, nil
}

func makeEntry(at int, name string, dir bool, mode uint32) error {
	if dir {
		return unix.Mkdirat(at, name, mode&0o7777)
	}
	return unix.Mknodat(at, name, unix.S_IFREG|mode&0o7777, 0)
}

// deepest opens the longest prefix of parts that exists, and says how long it is.
func deepest(root int, parts []string) (fd, n int, err error) {
	for n = len(parts) - 1; n >= 0; n-- {
		fd, err = openIn(root, strings.Join(parts[:n], "/"), unix.O_PATH|unix.O_DIRECTORY, beneath)
		if err != unix.ENOENT {
			return fd, n, err
		}
	}
	return -1, 0, unix.ENOENT
}

// split is path's parts without empty ones and ".".
func split(path string) []string {
	var parts []string
	for part := range strings.SplitSeq(path, "/") {
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	return parts
}

// parent opens the directory of path below root, creating it, and returns the last part.
func parent(root int, path string) (dir int, base string, err error) {
	parts := split(path)
	if len(parts) == 0 || parts[len(parts)-1] == ".." {
		return -1, "", unix.EINVAL
	}
	n := len(parts) - 1
	dir, err = ensure(root, strings.Join(parts[:n], "/"), true, 0o755)
	return dir, parts[n], err
}

func readlinkAt(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// mountID is the id of the mount that fd is on; unique while it is held.
func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	if st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, &kernelError{"5.8", unix.ENOSYS}
	}
	return st.Mnt_id, nil
}

func fsType(fd int) (int64, error) {
	var st unix.Statfs_t
	err := unix.Fstatfs(fd, &st)
	return int64(st.Type), err
}
