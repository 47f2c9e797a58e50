package initproc

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// openProc makes a procfs that no one else can mount over or see: it is not
// attached anywhere. It is only made where something is to be written to it.
func (s *setup) openProc() error {
	m := s.m
	p := &m.Process
	if s.proc >= 0 {
		return verifyProc(s.proc) // the server's
	}
	if len(m.Sysctls) == 0 && p.OOMScoreAdj == nil && p.AppArmor == "" && p.SELinux == "" &&
		m.StartFile == initmsg.NoFile && (m.Root == nil || !m.Root.NoPivot) && !countsVersions(m.Mounts) {
		return nil
	}
	if m.UserNamespace {
		return s.openHostProc()
	}
	fd, err := newProc()
	if err != nil {
		return err
	}
	s.proc = fd
	return verifyProc(s.proc)
}

func countsVersions(mounts []initmsg.Mount) bool {
	for i := range mounts {
		if mounts[i].IVersion {
			return true
		}
	}
	return false
}

func newProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, wrap("fsopen", "proc", needs("5.2", err))
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, wrap("fsconfig", "proc", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	return fd, wrap("fsmount", "proc", err)
}

// openHostProc opens the host's procfs, which this process still sees. Without rights over the host's mount namespace it
// can make none of its own before it enters the container's, where a new one is refused because of what is masked there
// (mount_too_revealing in the kernel). Nothing of the container can be mounted over the host's.
func (s *setup) openHostProc() (err error) {
	s.proc, err = unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return wrap("open", "/proc", err)
	}
	return verifyProc(s.proc)
}

func verifyProc(fd int) error {
	t, err := fsType(fd)
	if err == nil && t != unix.PROC_SUPER_MAGIC {
		err = text("not a procfs")
	}
	return wrap("verify", "procfs", err)
}

// procWrite writes to a file below dir of the private procfs, without leaving dir.
func (s *setup) procWrite(dir, path, value string) error {
	at, err := openIn(s.proc, dir, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	fd, err := openIn(at, path, unix.O_WRONLY|unix.O_NOFOLLOW, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := verifyProc(fd); err != nil {
		return err
	}
	return writeOnce(fd, value)
}

// readSelf is the line in a file of this process in the private procfs, or "".
func (s *setup) readSelf(path string) string {
	fd, err := openIn(s.proc, "self/"+path, unix.O_RDONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	data, err := readAll(fd, make([]byte, 64))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(data), "\n")
}

// setSysctls comes after the namespaces are joined: /proc/sys/net, kernel/shm… and fs/mqueue show those of the writer.
func (s *setup) setSysctls() error {
	s.stage = "sysctl"
	for _, c := range s.m.Sysctls {
		if err := s.procWrite("sys", c.Name, c.Value); err != nil {
			return wrap("write sysctl", c.Name, err)
		}
	}
	return nil
}

// setOOMScore warns where the machine lacks CAP_SYS_RESOURCE, as the CRI allows going on.
func (s *setup) setOOMScore() error {
	v := s.m.Process.OOMScoreAdj
	if v == nil {
		return nil
	}
	if s.m.UserNamespace && s.readSelf("oom_score_adj") == itoa(int(*v)) {
		return nil // set with the node's rights already
	}
	err := wrap("write oom_score_adj", itoa(int(*v)), s.procWrite("self", "oom_score_adj", itoa(int(*v))))
	if e := errnoOf(err); e == unix.EACCES || e == unix.EPERM {
		s.report(initmsg.KindWarning, err)
		return nil
	}
	return err
}

// setLabels sets the LSM labels that execve(2) will give the workload. They are
// set while root and before no_new_privs, with which both modules refuse
// most transitions.
func (s *setup) setLabels() error {
	p := &s.m.Process
	if p.AppArmor != "" {
		// Both are the same where only one LSM is active; with several, only
		// the first one is AppArmor's (Linux 5.8).
		err := s.procWrite("thread-self/attr/apparmor", "exec", "exec "+p.AppArmor)
		if err == unix.ENOENT {
			err = s.procWrite("thread-self/attr", "exec", "exec "+p.AppArmor)
		}
		if err != nil {
			return wrap("set the AppArmor profile", p.AppArmor, err)
		}
	}
	if p.SELinux != "" {
		if err := s.procWrite("thread-self/attr", "exec", p.SELinux); err != nil {
			return wrap("set the SELinux label", p.SELinux, err)
		}
	}
	return nil
}
