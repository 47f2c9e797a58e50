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

// Default returns the profile for containers that ask for RuntimeDefault: moby's
// default profile for a process with the bounding capabilities caps
// ("CAP_SYS_ADMIN"), this kernel and this architecture, with sockets of AF_ALG and
// AF_VSOCK failing with EAFNOSUPPORT. A filter cannot see the address family behind x86's socketcall multiplexer, so a
// 32-bit x86 program reaches AF_ALG unless an LSM or the kernel's configuration forbids it; denying socketcall takes the
// network from all 32-bit x86 Go programs and from old C libraries, which is why moby took it back as a default.
func Default(caps []string) (*specs.LinuxSeccomp, error) {
	p, err := moby.GetDefaultProfile(specWithCaps(caps))
	if err != nil {
		return nil, fmt.Errorf("seccomp: default profile: %w", err)
	}
	p.Syscalls = append(p.Syscalls, denyFamilies()...)
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
