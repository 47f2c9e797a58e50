package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Allows says whether a compiled program lets a native system call through, without a notification or an errno.
func Allows(program []byte, nr uintptr, args ...uint64) bool {
	native, ok := nativeArch()
	if !ok || len(program) == 0 || len(program)%instructionSize != 0 {
		return false
	}
	d := data{nr: uint32(nr), arch: archInfos[native].audit}
	copy(d.args[:], args)
	ret, _ := run(decode(program), d)
	return ret == retAllow || ret == retLog
}

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
