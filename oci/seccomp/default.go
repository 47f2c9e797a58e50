package seccomp

import (
	"fmt"
	"syscall"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Address families that the default profile denies (linux/socket.h): AF_ALG is a
// standing source of kernel vulnerabilities (CVE-2026-31431), AF_VSOCK reaches past
// the network namespace.
const (
	afAlg   = 38
	afVsock = 40
)

// DefaultOption adjusts the default profile.
type DefaultOption func(*specs.LinuxSeccomp)

// DenySocketcall makes x86's socketcall multiplexer fail with ENOSYS. A filter
// cannot see the address family behind it, so without this option a 32-bit x86
// program reaches AF_ALG unless an LSM or the kernel's configuration forbids it. With
// it, 32-bit programs whose C library knows no direct socket calls (Linux 4.3)
// lose their network, and so do all 32-bit x86 Go programs; that is why moby
// took it back as a default.
func DenySocketcall() DefaultOption {
	return func(p *specs.LinuxSeccomp) {
		enosys := uint(syscall.ENOSYS)
		// It stands first because libseccomp refuses rules for single calls behind
		// the multiplexer that contradict each other, but only until a rule without
		// conditions covers it.
		deny := specs.LinuxSyscall{Names: []string{"socketcall"}, Action: specs.ActErrno, ErrnoRet: &enosys}
		p.Syscalls = append([]specs.LinuxSyscall{deny}, p.Syscalls...)
	}
}

// Default returns the profile for containers that ask for RuntimeDefault: moby's
// default profile for a process with the bounding capabilities caps
// ("CAP_SYS_ADMIN"), this kernel and this architecture, with sockets of AF_ALG and
// AF_VSOCK failing with EAFNOSUPPORT.
func Default(caps []string, opts ...DefaultOption) (*specs.LinuxSeccomp, error) {
	p, err := moby.GetDefaultProfile(specWithCaps(caps))
	if err != nil {
		return nil, fmt.Errorf("seccomp: default profile: %w", err)
	}
	p.Syscalls = append(p.Syscalls, denyFamilies()...)
	for _, o := range opts {
		o(p)
	}
	return p, nil
}

// denyFamilies makes the exclusion of the families hold on 64-bit ABIs. moby's
// rules allow every other family by comparing all 64 bits of the argument, but
// socket(2) takes an int and the kernel drops the upper half: 1<<32 + AF_ALG is
// above AF_VSOCK to the filter and AF_ALG to the kernel. These look at the
// lower half alone, and exact matches are tried before ranges.
func denyFamilies() []specs.LinuxSyscall {
	errno := uint(syscall.EAFNOSUPPORT)
	var out []specs.LinuxSyscall
	for _, family := range []uint64{afAlg, afVsock} {
		out = append(out, specs.LinuxSyscall{
			Names:    []string{"socket"},
			Action:   specs.ActErrno,
			ErrnoRet: &errno,
			Args: []specs.LinuxSeccompArg{
				{Index: 0, Op: specs.OpMaskedEqual, Value: 0xffffffff, ValueTwo: family},
			},
		})
	}
	return out
}

// specWithCaps is the part of a spec that moby's rules look at.
func specWithCaps(caps []string) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{
		Capabilities: &specs.LinuxCapabilities{Bounding: caps},
	}}
}
