package seccomp

// syscalls.csv is src/syscalls.csv of github.com/seccomp/libseccomp; it is not kept here.
//go:generate go run gen_syscalls.go syscalls.csv

import (
	"runtime"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// arch is one of the ABIs that the compiler has syscall tables for.
type arch int

const (
	archX8664 arch = iota
	archX86
	archX32
	archARM64
	archARM
	numArchs
)

// syscallNumbers is a syscall's number for each arch, -1 where there is none.
type syscallNumbers struct {
	name string
	nr   [numArchs]int32
}

// x32Bit marks a syscall of the x32 ABI, which shares AUDIT_ARCH_X86_64
// (__X32_SYSCALL_BIT in asm/unistd.h).
const x32Bit = 0x40000000

// armPrivate is the first of arm's private numbers, such as set_tls
// (__ARM_NR_BASE in asm/unistd.h). Nothing is ever allocated between the
// ordinary syscalls and these.
const armPrivate = 0xf0000

// AUDIT_ARCH_* of linux/audit.h, as the kernel puts them into seccomp_data.
const (
	auditX8664 = 0xc000003e
	auditI386  = 0x40000003
	auditARM64 = 0xc00000b7
	auditARM   = 0x40000028
)

// archInfo says how calls of an arch appear in seccomp_data.
type archInfo struct {
	name  specs.Arch
	audit uint32
	wide  bool   // arguments have 64 bits
	bit   uint32 // set in every number
}

var archInfos = [numArchs]archInfo{
	archX8664: {specs.ArchX86_64, auditX8664, true, 0},
	archX86:   {specs.ArchX86, auditI386, false, 0},
	archX32:   {specs.ArchX32, auditX8664, false, x32Bit},
	archARM64: {specs.ArchAARCH64, auditARM64, true, 0},
	archARM:   {specs.ArchARM, auditARM, false, 0},
}

// foreignArchs are names of the runtime specification that no machine with one
// of our native architectures can execute.
var foreignArchs = map[specs.Arch]bool{
	specs.ArchMIPS: true, specs.ArchMIPS64: true, specs.ArchMIPS64N32: true,
	specs.ArchMIPSEL: true, specs.ArchMIPSEL64: true, specs.ArchMIPSEL64N32: true,
	specs.ArchPPC: true, specs.ArchPPC64: true, specs.ArchPPC64LE: true,
	specs.ArchS390: true, specs.ArchS390X: true,
	specs.ArchPARISC: true, specs.ArchPARISC64: true,
	specs.ArchRISCV64: true, specs.ArchLOONGARCH64: true,
	specs.ArchM68K: true, specs.ArchSH: true, specs.ArchSHEB: true,
}

// nativeArch is the arch of this process; false where there are no tables for it.
func nativeArch() (arch, bool) {
	switch runtime.GOARCH {
	case "amd64":
		return archX8664, true
	case "386":
		return archX86, true
	case "arm64":
		return archARM64, true
	case "arm":
		return archARM, true
	}
	return 0, false
}

func archByName(name specs.Arch) (arch, bool) {
	for a := range numArchs {
		if archInfos[a].name == name {
			return a, true
		}
	}
	return 0, false
}

// syscallIndex finds a syscall's numbers by name; built on first use because
// most processes that link this package never compile a profile.
var syscallIndex = sync.OnceValue(func() map[string]*[numArchs]int32 {
	m := make(map[string]*[numArchs]int32, len(syscallTable))
	for i := range syscallTable {
		m[syscallTable[i].name] = &syscallTable[i].nr
	}
	return m
})

// The x86 multiplexers and the calls behind them (linux/net.h, linux/ipc.h).
const (
	x86Socketcall = 102
	x86IPC        = 117
)

type muxed struct{ nr, call uint32 }

var x86Muxed = map[string]muxed{
	"socket": {x86Socketcall, 1}, "bind": {x86Socketcall, 2}, "connect": {x86Socketcall, 3},
	"listen": {x86Socketcall, 4}, "accept": {x86Socketcall, 5}, "getsockname": {x86Socketcall, 6},
	"getpeername": {x86Socketcall, 7}, "socketpair": {x86Socketcall, 8}, "send": {x86Socketcall, 9},
	"recv": {x86Socketcall, 10}, "sendto": {x86Socketcall, 11}, "recvfrom": {x86Socketcall, 12},
	"shutdown": {x86Socketcall, 13}, "setsockopt": {x86Socketcall, 14}, "getsockopt": {x86Socketcall, 15},
	"sendmsg": {x86Socketcall, 16}, "recvmsg": {x86Socketcall, 17}, "accept4": {x86Socketcall, 18},
	"recvmmsg": {x86Socketcall, 19}, "sendmmsg": {x86Socketcall, 20},

	"semop": {x86IPC, 1}, "semget": {x86IPC, 2}, "semctl": {x86IPC, 3}, "semtimedop": {x86IPC, 4},
	"msgsnd": {x86IPC, 11}, "msgrcv": {x86IPC, 12}, "msgget": {x86IPC, 13}, "msgctl": {x86IPC, 14},
	"shmat": {x86IPC, 21}, "shmdt": {x86IPC, 22}, "shmget": {x86IPC, 23}, "shmctl": {x86IPC, 24},
}
