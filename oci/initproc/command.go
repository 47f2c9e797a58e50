package initproc

import (
	"io"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/passwd"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is the message's, with PATH and HOME where they are missing.
func (s *setup) environment() []string {
	env := s.m.Process.Env
	if getenv(env, "PATH") == "" {
		env = append(env, defaultPath)
	}
	if getenv(env, "HOME") == "" {
		env = append(env, "HOME="+s.home())
	}
	return env
}

func getenv(env []string, key string) string {
	for _, e := range env {
		if k, v, _ := strings.Cut(e, "="); k == key {
			return v
		}
	}
	return ""
}

// home is the user's directory in the container's passwd file, or "/", as runc has it.
func (s *setup) home() string {
	// Not a device or a pipe of the image: they could block or have no end.
	fd, err := openIn(s.root, "etc/passwd", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, beneath)
	if err != nil {
		return "/"
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "/"
	}
	u, err := passwd.Lookup(fdReader(fd), passwd.ByUID(s.m.Process.UID))
	if err != nil || u.Home == "" {
		return "/"
	}
	return u.Home
}

// fdReader reads a descriptor without package os, whose init costs process start.
type fdReader int

func (fd fdReader) Read(b []byte) (int, error) {
	n, err := unix.Read(int(fd), b)
	if err != nil {
		return 0, err
	}
	if n == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// lookPath finds the command in the workload's PATH. The texts are os/exec's, which
// runc, kubelet's tests and users know.
func lookPath(name string, env []string) (string, error) {
	quoted := `exec: "` + name + `"`
	if strings.Contains(name, "/") {
		err := executable(name)
		if err == unix.ENOENT {
			err = wrap("stat "+name, "", err)
		}
		return name, wrap(quoted, "", err)
	}
	for dir := range strings.SplitSeq(getenv(env, "PATH"), ":") {
		if dir == "" {
			dir = "."
		}
		if path := dir + "/" + name; executable(path) == nil {
			return path, nil
		}
	}
	return "", wrap(quoted, "", notFound{})
}

// notFound is ENOENT with os/exec's text.
type notFound struct{}

func (notFound) Error() string { return "executable file not found in $PATH" }
func (notFound) Unwrap() error { return unix.ENOENT }

func executable(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return syscall.EISDIR
	}
	// With the effective ids: the real ones are the same, but capabilities count so.
	err := unix.Faccessat(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
	if err != nil {
		return err
	}
	if st.Mode&0o111 == 0 {
		return syscall.EACCES
	}
	return nil
}
