package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	ip       uint64
	args     [maxArgs]uint64
}

func (d data) String() string { return fmt.Sprintf("{nr %#x arch %#x args %#x}", d.nr, d.arch, d.args) }

func (d data) word(off uint32) uint32 {
	switch {
	case off == 0:
		return d.nr
	case off == 4:
		return d.arch
	case off < offArgs:
		return uint32(d.ip >> (8 * (off - 8)))
	}
	return uint32(d.args[(off-offArgs)/8] >> (8 * ((off - offArgs) % 8)))
}

func decode(prog []byte) []instruction {
	var out []instruction
	for b := range slices.Chunk(prog, instructionSize) {
		out = append(out, instruction{binary.NativeEndian.Uint16(b), b[2], b[3], binary.NativeEndian.Uint32(b[4:])})
	}
	return out
}

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

// run executes a checked program; steps is the number of instructions it took.
func run(prog []instruction, d data) (ret uint32, steps int) {
	var acc uint32
	branch := func(in instruction, cond bool) int {
		if cond {
			return int(in.jt)
		}
		return int(in.jf)
	}
	for pc := 0; ; pc++ {
		steps++
		switch in := prog[pc]; in.code {
		case bpfLdAbs:
			acc = d.word(in.k)
		case bpfAnd:
			acc &= in.k
		case bpfJa:
			pc += int(in.k)
		case bpfJeq:
			pc += branch(in, acc == in.k)
		case bpfJgt:
			pc += branch(in, acc > in.k)
		case bpfJge:
			pc += branch(in, acc >= in.k)
		case 0x45: // BPF_JSET
			pc += branch(in, acc&in.k != 0)
		case bpfRet:
			return in.k, steps
		}
	}
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
