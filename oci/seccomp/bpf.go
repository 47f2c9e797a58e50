package seccomp

import "encoding/binary"

// Classic BPF opcodes (linux/bpf_common.h) that seccomp allows and we need.
const (
	bpfLdAbs = 0x20 // BPF_LD | BPF_W | BPF_ABS
	bpfAnd   = 0x54 // BPF_ALU | BPF_AND | BPF_K
	bpfJa    = 0x05 // BPF_JMP | BPF_JA
	bpfJeq   = 0x15 // BPF_JMP | BPF_JEQ | BPF_K
	bpfJgt   = 0x25 // BPF_JMP | BPF_JGT | BPF_K
	bpfJge   = 0x35 // BPF_JMP | BPF_JGE | BPF_K
	bpfRet   = 0x06 // BPF_RET | BPF_K
)

// Offsets in struct seccomp_data; an argument's low word comes first, for all
// supported architectures are little endian.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// maxJump is the farthest that a conditional jump reaches.
const maxJump = 255

// instruction is struct sock_filter.
type instruction struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// instructionSize is sizeof(struct sock_filter).
const instructionSize = 8

// label is an instruction's place, counted from the end of the program.
type label int

// assembler builds a program from its end to its beginning: every jump goes
// forward, so each target is known by the time it is jumped to.
type assembler struct {
	rev  []instruction
	rets map[uint32]label // the nearest return of each value
}

func newAssembler() *assembler {
	return &assembler{rets: make(map[uint32]label)}
}

func (b *assembler) emit(in instruction) label {
	b.rev = append(b.rev, in)
	return label(len(b.rev) - 1)
}

// distance is the jump offset from the next instruction to be emitted.
func (b *assembler) distance(l label) int { return len(b.rev) - int(l) - 1 }

// ret is the place of a return of v that is within reach of a jump.
func (b *assembler) ret(v uint32) label {
	if l, ok := b.rets[v]; ok && b.distance(l) < maxJump {
		return l
	}
	l := b.emit(instruction{code: bpfRet, k: v})
	b.rets[v] = l
	return l
}

// reach is l, or a stepping stone to it if l is too far away. One more
// instruction may be emitted before the jump.
func (b *assembler) reach(l label) label {
	if b.distance(l) < maxJump {
		return l
	}
	if in := b.rev[l]; in.code == bpfRet {
		return b.ret(in.k)
	}
	return b.emit(instruction{code: bpfJa, k: uint32(b.distance(l))})
}

// jump compares the accumulator with k and goes to t or to f.
func (b *assembler) jump(code uint16, k uint32, t, f label) label {
	if t == f {
		return t
	}
	t = b.reach(t)
	f = b.reach(f)
	return b.emit(instruction{code, uint8(b.distance(t)), uint8(b.distance(f)), k})
}

// test loads the word at off and goes to t or to f.
func (b *assembler) test(off int, mask uint32, code uint16, k uint32, t, f label) label {
	if t == f {
		return t
	}
	b.jump(code, k, t, f)
	if mask != ^uint32(0) {
		b.emit(instruction{code: bpfAnd, k: mask})
	}
	return b.emit(instruction{code: bpfLdAbs, k: uint32(off)})
}

// cond goes to t if c holds, else to f.
func (b *assembler) cond(c cond, wide bool, t, f label) label {
	lo := offArgs + 8*c.arg
	hi := lo + 4
	high, low := uint32(c.value>>32), uint32(c.value)
	switch c.op {
	case opNE:
		c.op = opEQ
		return b.cond(c, wide, f, t)
	case opLT:
		c.op = opGE
		return b.cond(c, wide, f, t)
	case opLE:
		c.op = opGT
		return b.cond(c, wide, f, t)
	case opGT, opGE:
		code := uint16(bpfJgt)
		if c.op == opGE {
			code = bpfJge
		}
		l := b.test(lo, ^uint32(0), code, low, t, f)
		if !wide {
			return l
		}
		b.jump(bpfJgt, high, t, b.jump(bpfJeq, high, l, f))
		return b.emit(instruction{code: bpfLdAbs, k: uint32(hi)})
	}
	if m := uint32(c.mask); m != 0 {
		t = b.test(lo, m, bpfJeq, low, t, f)
	}
	if m := uint32(c.mask >> 32); wide && m != 0 {
		t = b.test(hi, m, bpfJeq, high, t, f)
	}
	return t
}

// policy goes through the rules in order.
func (b *assembler) policy(p *policy, wide bool) label {
	next := b.ret(p.ret)
	for i := len(p.rules) - 1; i >= 0; i-- {
		r := p.rules[i]
		t := b.ret(r.ret)
		for j := len(r.conds) - 1; j >= 0; j-- {
			t = b.cond(r.conds[j], wide, t, next)
		}
		next = t
	}
	return next
}

// bytes is the program as an array of struct sock_filter.
func (b *assembler) bytes() []byte {
	out := make([]byte, 0, len(b.rev)*instructionSize)
	for i := len(b.rev) - 1; i >= 0; i-- {
		in := b.rev[i]
		out = binary.NativeEndian.AppendUint16(out, in.code)
		out = append(out, in.jt, in.jf)
		out = binary.NativeEndian.AppendUint32(out, in.k)
	}
	return out
}
