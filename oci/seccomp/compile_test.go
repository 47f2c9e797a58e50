package seccomp

import (
	"errors"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func ptr(v uint) *uint { return &v }

func errno(e syscall.Errno) uint32 { return retErrno | uint32(e) }

func allow(names ...string) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: names, Action: specs.ActAllow}
}

func when(action specs.LinuxSeccompAction, name string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: []string{name}, Action: action, Args: args}
}

func arg(index uint, op specs.LinuxSeccompOperator, values ...uint64) specs.LinuxSeccompArg {
	a := specs.LinuxSeccompArg{Index: index, Op: op, Value: values[0]}
	if len(values) > 1 {
		a.ValueTwo = values[1]
	}
	return a
}

func denying(rules ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	// A late syscall keeps ENOSYS out of tests that are about something else.
	rules = append(rules, allow("rseq_slice_yield"))
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: rules}
}

func TestActions(t *testing.T) {
	for _, tt := range []struct {
		action specs.LinuxSeccompAction
		errno  *uint
		want   uint32
	}{
		{specs.ActKill, nil, 0},
		{specs.ActKillThread, nil, 0},
		{specs.ActKillProcess, nil, 0x80000000},
		{specs.ActTrap, nil, 0x00030000},
		{specs.ActErrno, nil, 0x00050001},
		{specs.ActErrno, ptr(0), 0x00050000},
		{specs.ActErrno, ptr(4095), 0x00050fff},
		{specs.ActTrace, nil, 0x7ff00001},
		{specs.ActTrace, ptr(0xffff), 0x7ff0ffff},
		{specs.ActAllow, nil, 0x7fff0000},
		{specs.ActLog, nil, 0x7ffc0000},
		{specs.ActNotify, nil, 0x7fc00000},
	} {
		p := denying(specs.LinuxSyscall{Names: []string{"getpid"}, Action: tt.action, ErrnoRet: tt.errno})
		p.DefaultErrnoRet = ptr(uint(syscall.EACCES))
		if tt.action == specs.ActNotify {
			p.ListenerPath = "/run/agent.sock"
		}
		if got, _ := run(program(t, p, archX8664), on(t, archX8664, "getpid")); got != tt.want {
			t.Errorf("%s: verdict = %#x; want %#x", tt.action, got, tt.want)
		}
		if tt.action == specs.ActNotify {
			continue
		}
		p = &specs.LinuxSeccomp{DefaultAction: tt.action, DefaultErrnoRet: tt.errno}
		if got, _ := run(program(t, p, archX8664), on(t, archX8664, "getpid")); got != tt.want {
			t.Errorf("default %s: verdict = %#x; want %#x", tt.action, got, tt.want)
		}
	}
}

// TestOperators compares each operator with Go's own, on values round the word
// boundaries.
func TestOperators(t *testing.T) {
	values := []uint64{0, 1, 5, 0x7fffffff, 0x80000000, 0xffffffff, 1 << 32, 1<<32 + 5, 5<<32 + 1, math.MaxUint64 - 1, math.MaxUint64}
	ops := map[specs.LinuxSeccompOperator]func(a, v, w uint64) bool{
		specs.OpEqualTo:      func(a, v, _ uint64) bool { return a == v },
		specs.OpNotEqual:     func(a, v, _ uint64) bool { return a != v },
		specs.OpLessThan:     func(a, v, _ uint64) bool { return a < v },
		specs.OpLessEqual:    func(a, v, _ uint64) bool { return a <= v },
		specs.OpGreaterThan:  func(a, v, _ uint64) bool { return a > v },
		specs.OpGreaterEqual: func(a, v, _ uint64) bool { return a >= v },
		specs.OpMaskedEqual:  func(a, v, w uint64) bool { return a&v == w&v },
	}
	for op, holds := range ops {
		for _, v := range values {
			for _, w := range values {
				p := denying(when(specs.ActAllow, "getpid", arg(3, op, v, w)))
				p.Architectures = []specs.Arch{specs.ArchX86, specs.ArchX32}
				prog := program(t, p, archX8664)
				for _, x := range values {
					for _, a := range []arch{archX8664, archX86, archX32} {
						x, v, w := x, v, w
						d := on(t, a, "getpid", 9, 9, 9, x)
						if !archInfos[a].wide {
							x, v, w = x&0xffffffff, v&0xffffffff, w&0xffffffff
						}
						want := errno(syscall.EPERM)
						if holds(x, v, w) {
							want = retAllow
						}
						if got, _ := run(prog, d); got != want {
							t.Errorf("%s %#x %s (%#x, %#x): verdict = %#x; want %#x", archInfos[a].name, x, op, v, w, got, want)
						}
					}
				}
				if op != specs.OpMaskedEqual {
					break
				}
			}
		}
	}
}

func TestVerdicts(t *testing.T) {
	eperm, enosys, einval := errno(syscall.EPERM), errno(syscall.ENOSYS), errno(syscall.EINVAL)
	deny := func(args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		s := when(specs.ActErrno, "ioctl", args...)
		s.ErrnoRet = ptr(uint(syscall.EINVAL))
		return s
	}
	x86 := func(p *specs.LinuxSeccomp) *specs.LinuxSeccomp {
		p.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
		return p
	}
	eq, ge, lt := specs.OpEqualTo, specs.OpGreaterEqual, specs.OpLessThan
	for _, tt := range []struct {
		name    string
		profile *specs.LinuxSeccomp
		native  arch
		call    data
		want    uint32
	}{
		{"unnamed", denying(allow("read")), archX8664, on(t, archX8664, "mount"), eperm},
		{"named", denying(allow("read")), archX8664, on(t, archX8664, "read"), retAllow},
		{"unknown name is skipped", denying(allow("no_such_call", "read")), archX8664, on(t, archX8664, "read"), retAllow},
		{"other arch", denying(allow("read")), archX8664, on(t, archX86, "read"), retKillThread},
		{"other arch, permissive", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, archX8664, on(t, archX86, "read"), retKillThread},
		{"x32 unlisted", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, archX8664, on(t, archX32, "read"), retKillThread},
		{"-1 is not x32", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, archX8664, data{nr: math.MaxUint32, arch: auditX8664}, retAllow},
		{"x32 listed", x86(denying(allow("read"))), archX8664, on(t, archX32, "read"), retAllow},
		{"x32 alone", denyingOn(specs.ArchX32, allow("read")), archARM64, on(t, archX8664, "read"), retKillThread},
		{"x32 alone, its own", denyingOn(specs.ArchX32, allow("read")), archARM64, on(t, archX32, "read"), retAllow},
		{"foreign arch adds nothing", denyingOn(specs.ArchS390X, allow("read")), archX8664, on(t, archX8664, "read"), retAllow},
		{"arm under arm64", denyingOn(specs.ArchARM, allow("set_tls")), archARM64, on(t, archARM, "set_tls"), retAllow},

		{"AND", denying(when(specs.ActAllow, "ioctl", arg(0, eq, 1), arg(1, eq, 2))), archX8664, on(t, archX8664, "ioctl", 1, 2), retAllow},
		{"AND, one fails", denying(when(specs.ActAllow, "ioctl", arg(0, eq, 1), arg(1, eq, 2))), archX8664, on(t, archX8664, "ioctl", 1, 3), eperm},
		{"AND, other fails", denying(when(specs.ActAllow, "ioctl", arg(1, eq, 2), arg(0, eq, 1))), archX8664, on(t, archX8664, "ioctl", 2, 2), eperm},
		{"same argument twice is OR", denying(when(specs.ActAllow, "ioctl", arg(0, eq, 1), arg(0, eq, 2), arg(1, eq, 3))), archX8664, on(t, archX8664, "ioctl", 2, 0), retAllow},
		{"OR covers the other arguments", denying(when(specs.ActAllow, "ioctl", arg(0, eq, 1), arg(0, eq, 2), arg(1, eq, 3))), archX8664, on(t, archX8664, "ioctl", 7, 3), retAllow},
		{"rules are alternatives", denying(when(specs.ActAllow, "ioctl", arg(0, eq, 1)), when(specs.ActAllow, "ioctl", arg(0, eq, 2))), archX8664, on(t, archX8664, "ioctl", 2), retAllow},

		{"no condition wins, first", denying(allow("ioctl"), deny(arg(0, eq, 1))), archX8664, on(t, archX8664, "ioctl", 1), retAllow},
		{"no condition wins, last", denying(deny(arg(0, eq, 1)), allow("ioctl")), archX8664, on(t, archX8664, "ioctl", 1), retAllow},
		{"first of two without conditions", denying(deny(), allow("ioctl")), archX8664, on(t, archX8664, "ioctl"), einval},
		{"a rule with the default action is dropped", denying(when(specs.ActErrno, "ioctl"), when(specs.ActAllow, "ioctl", arg(0, eq, 1))), archX8664, on(t, archX8664, "ioctl", 1), retAllow},
		{"an empty mask is no condition", denying(deny(arg(0, eq, 1)), when(specs.ActAllow, "ioctl", arg(0, specs.OpMaskedEqual, 0, 7))), archX8664, on(t, archX8664, "ioctl", 1), retAllow},

		{"exception after the range", denying(when(specs.ActAllow, "ioctl", arg(0, ge, 5)), deny(arg(0, eq, 7))), archX8664, on(t, archX8664, "ioctl", 7), einval},
		{"exception before the range", denying(deny(arg(0, eq, 7)), when(specs.ActAllow, "ioctl", arg(0, ge, 5))), archX8664, on(t, archX8664, "ioctl", 7), einval},
		{"round the exception", denying(deny(arg(0, eq, 7)), when(specs.ActAllow, "ioctl", arg(0, ge, 5))), archX8664, on(t, archX8664, "ioctl", 8), retAllow},
		{"narrower range", denying(when(specs.ActAllow, "ioctl", arg(0, lt, 9)), deny(arg(0, lt, 5))), archX8664, on(t, archX8664, "ioctl", 4), einval},
		{"same conditions, first counts", denying(deny(arg(0, eq, 7)), when(specs.ActAllow, "ioctl", arg(0, eq, 7))), archX8664, on(t, archX8664, "ioctl", 7), einval},

		{"socketcall", x86(denying(allow("socket"))), archX8664, on(t, archX86, "socketcall", 1), retAllow},
		{"socketcall, other call", x86(denying(allow("socket"))), archX8664, on(t, archX86, "socketcall", 2), eperm},
		{"socketcall, condition on argument 0", x86(denying(when(specs.ActAllow, "socket", arg(0, eq, 2)))), archX8664, on(t, archX86, "socketcall", 1), retAllow},
		{"socket on x86", x86(denying(when(specs.ActAllow, "socket", arg(0, eq, 2)))), archX8664, on(t, archX86, "socket", 1), eperm},
		{"accept has no number on x86", x86(denying(allow("accept"))), archX8664, on(t, archX86, "socketcall", 5), retAllow},
		{"ipc", x86(denying(allow("shmget"))), archX8664, on(t, archX86, "ipc", 23), retAllow},
		{"ipc, other call", x86(denying(allow("shmget"))), archX8664, on(t, archX86, "ipc", 24), eperm},

		{"newer than the newest", errnoProfile(allow("openat2")), archX8664, data{nr: 438, arch: auditX8664}, enosys},
		{"the newest", errnoProfile(allow("openat2")), archX8664, data{nr: 437, arch: auditX8664}, retAllow},
		{"older and unnamed", errnoProfile(allow("openat2")), archX8664, data{nr: 436, arch: auditX8664}, eperm},
		{"the newest is named with the default action", errnoProfile(when(specs.ActErrno, "openat2")), archX8664, data{nr: 437, arch: auditX8664}, eperm},
		{"newer, after that", errnoProfile(when(specs.ActErrno, "openat2")), archX8664, data{nr: 438, arch: auditX8664}, enosys},
		{"newer, killing profile", &specs.LinuxSeccomp{DefaultAction: specs.ActKillProcess, Syscalls: []specs.LinuxSyscall{allow("openat2")}}, archX8664, data{nr: 438, arch: auditX8664}, enosys},
		{"newer, permissive profile", &specs.LinuxSeccomp{DefaultAction: specs.ActLog, Syscalls: []specs.LinuxSyscall{allow("openat2")}}, archX8664, data{nr: 438, arch: auditX8664}, retLog},
		{"newer, nothing named", errnoProfile(), archX8664, data{nr: 438, arch: auditX8664}, eperm},
		{"newest is per arch", x86(errnoProfile(allow("pwritev2"))), archX8664, data{nr: 400, arch: auditX8664}, enosys},
		{"newest is per arch, x32", x86(errnoProfile(allow("pwritev2"))), archX8664, data{nr: 400 | x32Bit, arch: auditX8664}, eperm},
		{"newest on x32", x86(errnoProfile(allow("pwritev2"))), archX8664, data{nr: 548 | x32Bit, arch: auditX8664}, enosys},
		{"arm's private numbers are not newest", errnoProfile(allow("openat2", "set_tls")), archARM, data{nr: 438, arch: auditARM}, enosys},
		{"arm's private numbers", errnoProfile(allow("openat2", "set_tls")), archARM, on(t, archARM, "set_tls"), retAllow},
		{"arm, beyond", errnoProfile(allow("openat2", "set_tls")), archARM, data{nr: armPrivate + 6, arch: auditARM}, enosys},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got, _ := run(program(t, tt.profile, tt.native), tt.call); got != tt.want {
				t.Errorf("verdict for %v = %#x; want %#x", tt.call, got, tt.want)
			}
		})
	}
}

func denyingOn(a specs.Arch, rules ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	p := denying(rules...)
	p.Architectures = []specs.Arch{a}
	return p
}

func errnoProfile(rules ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: rules}
}

func TestErrors(t *testing.T) {
	with := func(change func(p *specs.LinuxSeccomp)) *specs.LinuxSeccomp {
		p := errnoProfile(when(specs.ActAllow, "ioctl", arg(1, specs.OpEqualTo, 1)))
		change(p)
		return p
	}
	for _, tt := range []struct {
		profile *specs.LinuxSeccomp
		want    string
	}{
		{nil, "no profile"},
		{&specs.LinuxSeccomp{}, "defaultAction: missing"},
		{with(func(p *specs.LinuxSeccomp) { p.DefaultAction = "SCMP_ACT_DENY" }), `defaultAction: unknown action "SCMP_ACT_DENY"`},
		{with(func(p *specs.LinuxSeccomp) { p.DefaultAction = specs.ActNotify }), "defaultAction: SCMP_ACT_NOTIFY cannot be the default"},
		{with(func(p *specs.LinuxSeccomp) { p.DefaultErrnoRet = ptr(4096) }), "defaultErrnoRet: 4096 is above 4095"},
		{with(func(p *specs.LinuxSeccomp) { p.DefaultAction = specs.ActKill; p.DefaultErrnoRet = ptr(1) }), "defaultErrnoRet: SCMP_ACT_KILL does not take an errno"},
		{with(func(p *specs.LinuxSeccomp) { p.Syscalls[0].Action = "" }), "syscalls[0].action: missing"},
		{with(func(p *specs.LinuxSeccomp) { p.Syscalls[0].Action = "allow" }), `syscalls[0].action: unknown action "allow"`},
		{with(func(p *specs.LinuxSeccomp) { p.Syscalls[0].ErrnoRet = ptr(1) }), "syscalls[0].errnoRet: SCMP_ACT_ALLOW does not take an errno"},
		{with(func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names = nil }), "syscalls[0].names: empty"},
		{with(func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names = []string{"read", ""} }), "syscalls[0].names[1]: empty"},
		{with(func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Op = "=" }), `syscalls[0].args[0].op: unknown operator "="`},
		{with(func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Index = 6 }), "syscalls[0].args[0].index: 6 is above 5"},
		{with(func(p *specs.LinuxSeccomp) { p.Architectures = []specs.Arch{specs.ArchX86, "amd64"} }), `architectures[1]: unknown architecture "amd64"`},
		{with(func(p *specs.LinuxSeccomp) { p.Flags = []specs.LinuxSeccompFlag{"TSYNC"} }), `flags[0]: unknown flag "TSYNC"`},
		{with(func(p *specs.LinuxSeccomp) { p.Syscalls[0].Action = specs.ActNotify }), "listenerPath: missing"},
		{with(func(p *specs.LinuxSeccomp) { p.ListenerMetadata = "x" }), "listenerMetadata: set without listenerPath"},
		{with(func(p *specs.LinuxSeccomp) {
			p.Syscalls[0] = when(specs.ActNotify, "write")
			p.ListenerPath = "/run/agent.sock"
		}), "syscalls[0].names[0]: SCMP_ACT_NOTIFY cannot be used for write"},
	} {
		f, err := Compile(tt.profile)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Compile = %v, %v; want an error with %q", f, err, tt.want)
		}
	}
}

func TestFlags(t *testing.T) {
	all := []specs.LinuxSeccompFlag{flagTSyncName, specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagWaitKillableRecv}
	for _, tt := range []struct {
		flags  []specs.LinuxSeccompFlag
		notify bool
		want   uint32
	}{
		{nil, false, 0},
		{all[:1], false, FlagTSync},
		{all[1:3], false, FlagLog | FlagSpecAllow},
		{all[3:], false, 0},
		{nil, true, FlagNewListener},
		{all[3:], true, FlagNewListener | FlagWaitKillableRecv},
		{all, true, FlagTSync | FlagLog | FlagSpecAllow | FlagNewListener | FlagTSyncESRCH | FlagWaitKillableRecv},
	} {
		p := errnoProfile(allow("read"))
		p.Flags = tt.flags
		if tt.notify {
			p.Syscalls = append(p.Syscalls, when(specs.ActNotify, "mount"))
			p.ListenerPath, p.ListenerMetadata = "/run/agent.sock", "meta"
		}
		f, err := Compile(p)
		if err != nil {
			t.Fatalf("Compile(%v) = %v", tt.flags, err)
		}
		if f.Flags != tt.want || f.ListenerPath != p.ListenerPath || f.ListenerMetadata != p.ListenerMetadata {
			t.Errorf("Compile(%v).Flags = %#x, %q, %q; want %#x, %q, %q", tt.flags, f.Flags, f.ListenerPath, f.ListenerMetadata, tt.want, p.ListenerPath, p.ListenerMetadata)
		}
	}
}

// TestLong makes filters whose jumps exceed a byte, and then one that no kernel takes.
func TestLong(t *testing.T) {
	var rules []specs.LinuxSyscall
	for i := range uint64(900) {
		rules = append(rules, when(specs.ActAllow, "ioctl", arg(1, specs.OpEqualTo, i<<33|3*i)))
	}
	p := denying(append(rules, allow("read"))...)
	prog := program(t, p, archX8664)
	for i := range uint64(900) {
		for _, v := range []uint64{i<<33 | 3*i, i<<33 | 3*i + 1} {
			want := errno(syscall.EPERM)
			if v == i<<33|3*i {
				want = retAllow
			}
			if got, _ := run(prog, on(t, archX8664, "ioctl", 0, v)); got != want {
				t.Fatalf("ioctl(0, %#x): verdict = %#x; want %#x", v, got, want)
			}
		}
	}
	if got, _ := run(prog, on(t, archX8664, "read")); got != retAllow {
		t.Errorf("read: verdict = %#x; want %#x", got, uint32(retAllow))
	}
	p.Syscalls = append(p.Syscalls, rules...)
	program(t, p, archX8664) // the same rules again cost nothing
	for i := range uint64(200) {
		p.Syscalls = append(p.Syscalls, when(specs.ActAllow, "ioctl", arg(2, specs.OpEqualTo, i)))
	}
	if _, err := Compile(p); err == nil || !strings.Contains(err.Error(), "limit of 4096") {
		t.Errorf("Compile of a long profile = %v; want the kernel's limit", err)
	}
}

// TestSlots: every number in the tables has a slot of its own, in ascending order.
func TestSlots(t *testing.T) {
	for _, s := range syscallTable {
		for a, nr := range s.nr {
			if nr < 0 {
				continue
			}
			bit := archInfos[a].bit
			i := slot(uint32(nr) | bit)
			if i >= tableSize || number(i) != uint32(nr) || (uint32(nr) < armPrivate && i >= tableSize-privateSlots) {
				t.Errorf("%s on %s: slot(%#x) = %d, number(%d) = %#x", s.name, archInfos[a].name, uint32(nr)|bit, i, i, number(i))
			}
		}
	}
}

// TestTable compares the generated numbers with the kernel headers of this machine.
func TestTable(t *testing.T) {
	headers := map[arch]string{
		archX8664: "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
		archX86:   "/usr/include/x86_64-linux-gnu/asm/unistd_32.h",
		archX32:   "/usr/include/x86_64-linux-gnu/asm/unistd_x32.h",
		archARM64: "/usr/include/asm-generic/unistd.h",
		archARM:   "/usr/arm-linux-gnueabihf/include/asm/unistd-eabi.h",
	}
	for a, path := range headers {
		t.Run(string(archInfos[a].name), func(t *testing.T) {
			b, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) {
				t.Skipf("kernel headers are not installed: %v", err)
			}
			seen := 0
			for line := range strings.Lines(string(b)) {
				name, nr, ok := headerLine(line)
				if !ok {
					continue
				}
				seen++
				nrs := syscallIndex()[name]
				if a == archARM64 && (nrs == nil || nrs[a] < 0) {
					continue // the generic table has entries that arm64 does not take
				}
				if nrs == nil || nrs[a] != nr {
					t.Errorf("%s: table has %v; want %d", name, nrs, nr)
				}
			}
			if seen < 250 {
				t.Errorf("found %d syscalls in %s; want at least 250", seen, path)
			}
		})
	}
}

var headerDefine = regexp.MustCompile(`^#define __NR_(\w+)\s+\(?(?:__X32_SYSCALL_BIT \+ |__NR_SYSCALL_BASE\s*\+\s*)?(\d+)\)?\s*$`)

func headerLine(line string) (name string, nr int32, ok bool) {
	m := headerDefine.FindStringSubmatch(line)
	if m == nil {
		return "", 0, false
	}
	n, err := strconv.ParseInt(m[2], 10, 32)
	return m[1], int32(n), err == nil
}
