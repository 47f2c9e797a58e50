package seccomp

import (
	"fmt"
	"runtime"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sockFilterSize is sizeof(struct sock_filter).
const sockFilterSize = 8

// loadFilter puts a filter on the calling thread, as the init does; it returns the listener, or -1.
func loadFilter(prog []byte, flags uint32) (int, error) {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, fmt.Errorf("set no_new_privs: %w", err)
	}
	n := len(prog) / sockFilterSize
	fprog := unix.SockFprog{Len: uint16(n), Filter: (*unix.SockFilter)(unsafe.Pointer(unsafe.SliceData(prog)))}
	r, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&fprog)))
	runtime.KeepAlive(prog)
	if errno != 0 {
		return -1, fmt.Errorf("load seccomp filter of %d instructions, flags %#x: %w", n, flags, errno)
	}
	if flags&unix.SECCOMP_FILTER_FLAG_NEW_LISTENER != 0 {
		return int(r), nil
	}
	if r != 0 {
		return -1, fmt.Errorf("load seccomp filter: thread %d cannot be synchronised", r)
	}
	return -1, nil
}

// defaultOption adjusts the default profile.
type defaultOption func(*specs.LinuxSeccomp)

func defaultWith(caps []string, opts ...defaultOption) (*specs.LinuxSeccomp, error) {
	p, err := Default(caps)
	if err != nil {
		return nil, err
	}
	for _, o := range opts {
		o(p)
	}
	return p, nil
}

// denySocketcall makes x86's socketcall multiplexer fail with ENOSYS. It stands first because libseccomp refuses rules for
// single calls behind the multiplexer that contradict each other, but only until a rule without conditions covers it.
func denySocketcall() defaultOption {
	return func(p *specs.LinuxSeccomp) {
		enosys := uint(unix.ENOSYS)
		deny := specs.LinuxSyscall{Names: []string{"socketcall"}, Action: specs.ActErrno, ErrnoRet: &enosys}
		p.Syscalls = append([]specs.LinuxSyscall{deny}, p.Syscalls...)
	}
}
