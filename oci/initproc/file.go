package initproc

import (
	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// writeFile makes a file in the root. It takes the name away first, so that neither a link nor a file that has other
// names is written to.
func (s *setup) writeFile(f *initmsg.File) error {
	dir, base, err := parent(s.root, f.Path)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if err := unix.Unlinkat(dir, base, 0); err != nil && err != unix.ENOENT {
		return wrap("unlink", "", err)
	}
	at, err := unix.Openat2(dir, base, &unix.OpenHow{
		Flags: unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC, Mode: 0o644,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return wrap("create", "", err)
	}
	defer unix.Close(at)
	for data := f.Data; len(data) > 0; {
		n, err := unix.Write(at, data)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		data = data[n:]
	}
	// The umask is the daemon's.
	return unix.Fchmod(at, 0o644)
}
