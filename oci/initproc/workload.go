package initproc

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// workload is the tail that a container's first process and an exec share: from
// a finished root to execve.
func (s *setup) workload() error {
	p := &s.m.Process
	if len(p.Args) == 0 || p.Args[0] == "" {
		return text("message: no command")
	}
	s.stage = "session"
	if s.last == nil { // its child leads the session
		if err := s.session(); err != nil {
			return err
		}
	}
	if !p.KeepKeyring {
		// An own session keyring: the inherited one may hold the host's keys
		// (keyrings(7)). An anonymous one cannot be joined by its name.
		if _, _, e := unix.Syscall6(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0, 0); e != 0 && e != unix.ENOSYS && e != unix.EPERM {
			return wrap("join a new session keyring", "", e)
		}
	}
	s.stage = "lsm"
	if err := s.setLabels(); err != nil {
		return err
	}
	s.stage = "scheduling"
	// While CAP_SYS_NICE is still there.
	if err := setScheduling(p); err != nil {
		return err
	}
	s.stage = "environment"
	// As root: the image's /etc may be closed to the user.
	env := s.environment()
	s.stage = "stdio"
	if err := ownStdio(p); err != nil {
		return err
	}
	s.stage = "cwd"
	if p.CreateCwd {
		fd, err := ensure(s.root, p.Cwd, true, 0o755)
		if err != nil {
			return wrap("mkdir", p.Cwd, err)
		}
		unix.Close(fd)
	}
	// Root may enter what the user may not, as users of runc rely on, but on a
	// network file system that squashes root only the user may.
	cwdErr := s.chdir(p.Cwd)
	if cwdErr != nil && errnoOf(cwdErr) != unix.EACCES && errnoOf(cwdErr) != unix.EPERM {
		return cwdErr
	}
	s.stage = "rlimits"
	// Late, as a low RLIMIT_NOFILE or RLIMIT_AS would hit the init, but with
	// CAP_SYS_RESOURCE, and before the user changes: RLIMIT_NPROC counts then.
	if err := setRlimits(p); err != nil {
		return err
	}
	s.stage = "no_new_privs"
	// After the LSM labels; before seccomp, which needs it or CAP_SYS_ADMIN.
	if p.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return wrap("prctl PR_SET_NO_NEW_PRIVS", "", err)
		}
	} else {
		// Without no_new_privs the filter needs CAP_SYS_ADMIN, so it has to be
		// loaded before that is dropped, and the filter has to allow the few
		// calls from here on (seccomp(2)). Profiles that are older than
		// close_range(2) do not, so it comes first.
		if err := s.closeAll(cwdErr != nil); err != nil {
			return err
		}
		if err := s.loadSeccomp(); err != nil {
			return err
		}
	}
	s.stage = "user"
	if err := setUser(p); err != nil {
		return err
	}
	s.stage = "cwd"
	if cwdErr != nil {
		if err := s.chdir(p.Cwd); err != nil {
			return err
		}
		unix.Close(s.root)
	}
	if err := cwdInside(); err != nil {
		return err
	}
	s.stage = "capabilities"
	if err := setCapabilities(p.Caps); err != nil {
		return err
	}
	s.stage = "exec"
	// Close-on-exec is not enough: the image's command may be
	// /proc/self/fd/N/…, which execve would look up while N is still open
	// (CVE-2024-21626).
	if p.NoNewPrivs {
		if err := s.closeAll(false); err != nil {
			return err
		}
	}
	// With the user's own rights, and before the gate, so that a missing command
	// is an error of create.
	name, err := lookPath(p.Args[0], env)
	if err != nil {
		return err
	}
	return s.start(name, env)
}

// start waits at the gate and executes the workload.
func (s *setup) start(name string, env []string) error {
	p := &s.m.Process
	umask := s.umask
	if p.Umask != nil {
		umask = int(*p.Umask & 0o777)
	}
	unix.Umask(umask)
	if s.m.StartFile != initmsg.NoFile {
		s.stage = "start"
		s.report(initmsg.KindReady, nil)
		if err := s.gate(); err != nil {
			return err
		}
	}
	s.stage = "exec"
	s.closeProc()
	// In this order no copy overwrites a file that is still to be copied:
	// the source is always above its target.
	for i := range int(p.ExtraFiles) {
		if err := unix.Dup3(int(file(p.FirstExtra))+i, 3+i, 0); err != nil {
			return wrap("dup file", itoa(3+i), err)
		}
	}
	// Before SIGPIPE gets its default back: nobody may be left to read it.
	if err := s.executing(name); err != nil {
		return err
	}
	if s.server == nil { // which has done it for its forks
		if err := resetSignals(); err != nil {
			return err
		}
	}
	if p.NoNewPrivs {
		// As late as possible: whatever is called after this has to be in
		// every profile. Only hooks come after, since runtime-spec takes
		// their programs from the image.
		if err := s.loadSeccomp(); err != nil {
			return err
		}
	}
	s.stage = "hooks"
	// runtime-spec, "startContainer Hooks": after start was asked for, in the
	// container, before the workload.
	if err := runHooks("startContainer", s.m.StartContainerHooks, hookState("created", s.m.State)); err != nil {
		return err
	}
	s.stage = "exec"
	if s.last != nil {
		return s.last.take(s.sync, name, p, env)
	}
	return wrap("exec", name, syscall.Exec(name, p.Args, env))
}

// gate opens the start FIFO for writing, which blocks until someone opens it for reading. Whoever created the
// container may be gone by then: the reports are for who starts it.
func (s *setup) gate() error {
	path := "self/fd/" + itoa(int(file(s.m.StartFile)))
	for {
		fd, err := unix.Openat(s.proc, path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return wrap("open", "the start fifo", err)
		}
		unix.Close(s.sync)
		s.sync, err = s.above(fd)
		return err
	}
}

// chdir enters a directory of the root. No magic link is followed: /proc/self/fd/N
// as the working directory has led to the host (CVE-2024-21626).
func (s *setup) chdir(path string) error {
	fd, err := openIn(s.root, path, unix.O_PATH|unix.O_DIRECTORY, beneath)
	if err == nil {
		err = unix.Fchdir(fd)
		unix.Close(fd)
	}
	return wrap("chdir to cwd", path, err)
}

// cwdInside proves that the working directory can be reached from the root. The
// kernel gives a path without a leading slash, "(unreachable)/…", where it
// cannot be (getcwd(3); CVE-2024-21626).
func cwdInside() error {
	wd, err := unix.Getwd()
	if err == nil && (wd == "" || wd[0] != '/') {
		err = unix.ENOENT
	}
	return wrap("the working directory is outside the container's root", "", err)
}

// ownStdio gives the workload's user the pipes and files that are its stdio, so that it
// can open /dev/stdout and the like, as runc does. The group stays.
func ownStdio(p *initmsg.Process) error {
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return wrap("stat stdio", itoa(fd), err)
		}
		// A node of /dev belongs to all containers; sockets and files of the
		// right owner need nothing.
		if st.Uid == p.UID || st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
			continue
		}
		err := unix.Fchown(fd, int(p.UID), -1)
		// EINVAL: an anonymous inode or an id that the mount does not know.
		if err != nil && err != unix.EINVAL && err != unix.EPERM && err != unix.EROFS {
			return wrap("chown stdio", itoa(fd), err)
		}
	}
	return nil
}

// closeAll closes every descriptor but stdio and what is still to be used.
func (s *setup) closeAll(keepRoot bool) error {
	keep := []int{s.sync, s.proc, s.listener}
	if s.m.StartFile != initmsg.NoFile {
		keep = append(keep, int(file(s.m.StartFile)))
	}
	for i := range int(s.m.Process.ExtraFiles) {
		keep = append(keep, int(file(s.m.Process.FirstExtra))+i)
	}
	if keepRoot {
		keep = append(keep, s.root)
	} else {
		s.root = -1
	}
	return closeExcept(3, keep)
}

// closeExcept closes all descriptors from first on that are not in keep.
func closeExcept(first int, keep []int) error {
	for {
		next := -1
		for _, fd := range keep {
			if fd >= first && (next < 0 || fd < next) {
				next = fd
			}
		}
		last := uint(maxFD)
		if next >= 0 {
			last = uint(next - 1)
		}
		if uint(first) <= last {
			if err := unix.CloseRange(uint(first), last, 0); err != nil {
				return wrap("close_range", "", err)
			}
		}
		if next < 0 {
			return nil
		}
		first = next + 1
	}
}

// closeProc closes the private procfs, through which /proc/self/fd/N would show
// what is masked.
func (s *setup) closeProc() {
	if s.proc >= 0 {
		unix.Close(s.proc)
		s.proc = -1
	}
	if s.m.StartFile != initmsg.NoFile {
		unix.Close(int(file(s.m.StartFile)))
	}
}
