package seccomp

import (
	"fmt"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// checkProgram applies the kernel's rules (bpf_check_classic, seccomp_check_filter)
// for the opcodes that we and libseccomp use.
func checkProgram(prog []instruction) error {
	n := len(prog)
	if n == 0 || n > MaxInstructions {
		return fmt.Errorf("%d instructions", n)
	}
	for i, in := range prog {
		switch in.code {
		case bpfLdAbs:
			if in.k%4 != 0 || in.k >= 64 {
				return fmt.Errorf("%d: load of %d", i, in.k)
			}
		case bpfAnd, bpfRet:
		case bpfJa:
			if uint64(i)+1+uint64(in.k) >= uint64(n) {
				return fmt.Errorf("%d: jump of %d out of range", i, in.k)
			}
		case bpfJeq, bpfJgt, bpfJge, 0x45:
			if i+1+int(in.jt) >= n || i+1+int(in.jf) >= n {
				return fmt.Errorf("%d: jump of %d, %d out of range", i, in.jt, in.jf)
			}
		default:
			return fmt.Errorf("%d: opcode %#x", i, in.code)
		}
	}
	if prog[n-1].code != bpfRet {
		return fmt.Errorf("the last instruction is %#x", prog[n-1].code)
	}
	return nil
}

// program compiles a profile for native and checks the result.
func program(t testing.TB, p *specs.LinuxSeccomp, native arch) []instruction {
	t.Helper()
	f, err := compile(p, native)
	if err != nil {
		t.Fatalf("compile = %v", err)
	}
	prog := decode(f.Program)
	if err := checkProgram(prog); err != nil {
		t.Fatalf("bad program: %v", err)
	}
	return prog
}

// nrOf is a syscall's number as the kernel reports it.
func nrOf(t testing.TB, a arch, name string) uint32 {
	t.Helper()
	nrs := syscallIndex()[name]
	if nrs == nil || nrs[a] < 0 {
		t.Fatalf("%s has no %s", archInfos[a].name, name)
	}
	return uint32(nrs[a]) | archInfos[a].bit
}

// on is a call by name.
func on(t testing.TB, a arch, name string, args ...uint64) data {
	t.Helper()
	d := data{nr: nrOf(t, a, name), arch: archInfos[a].audit}
	copy(d.args[:], args)
	return d
}
