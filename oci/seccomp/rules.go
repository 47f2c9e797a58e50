package seccomp

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// maxArgs is the number of arguments in struct seccomp_data.
const maxArgs = 6

type operator uint8

const (
	opEQ operator = iota
	opNE
	opLT
	opLE
	opGT
	opGE
	opMaskedEQ
)

var operators = map[specs.LinuxSeccompOperator]operator{
	specs.OpEqualTo:      opEQ,
	specs.OpNotEqual:     opNE,
	specs.OpLessThan:     opLT,
	specs.OpLessEqual:    opLE,
	specs.OpGreaterThan:  opGT,
	specs.OpGreaterEqual: opGE,
	specs.OpMaskedEqual:  opMaskedEQ,
}

// rank orders operators on the same argument: exact values come before ranges.
func (o operator) rank() int {
	switch o {
	case opEQ, opNE, opMaskedEQ:
		return 0
	case opLT, opLE:
		return 1
	}
	return 2
}

// cond compares an argument; it holds when (arg & mask) op value.
type cond struct {
	arg   int
	op    operator
	mask  uint64 // all ones but for opMaskedEQ
	value uint64
}

// rule gives ret when all of its conds hold. Its conds look at different
// arguments, in ascending order.
type rule struct {
	ret   uint32
	conds []cond
}

// call is an entry of the profile's syscalls: each name gets each rule.
type call struct {
	names []string
	rules []rule
}

// policy is what the filter does with one syscall number: the first rule that
// holds, or ret.
type policy struct {
	ret   uint32
	fixed bool // ret stems from a rule without conditions, which ends the matter
	rules []rule
}

// calls converts and checks the profile's syscalls.
func calls(p *specs.LinuxSeccomp) ([]call, error) {
	var out []call
	for i, s := range p.Syscalls {
		field := fmt.Sprintf("syscalls[%d]", i)
		ret, err := action(s.Action, s.ErrnoRet, field+".action", field+".errnoRet")
		if err != nil {
			return nil, err
		}
		if len(s.Names) == 0 {
			return nil, fmt.Errorf("%s.names: empty", field)
		}
		for j, n := range s.Names {
			if n == "" {
				return nil, fmt.Errorf("%s.names[%d]: empty", field, j)
			}
			if n == "write" && ret == retUserNotif {
				// runc's rule: a runtime may have to write before the listener serves anyone.
				return nil, fmt.Errorf("%s.names[%d]: %s cannot be used for write", field, j, s.Action)
			}
		}
		conds, err := conditions(s.Args, field)
		if err != nil {
			return nil, err
		}
		out = append(out, call{s.Names, split(ret, conds)})
	}
	return out, nil
}

func conditions(args []specs.LinuxSeccompArg, field string) ([]cond, error) {
	var out []cond
	for i, a := range args {
		op, ok := operators[a.Op]
		if !ok {
			return nil, fmt.Errorf("%s.args[%d].op: unknown operator %q", field, i, a.Op)
		}
		if a.Index >= maxArgs {
			return nil, fmt.Errorf("%s.args[%d].index: %d is above %d", field, i, a.Index, maxArgs-1)
		}
		c := cond{int(a.Index), op, ^uint64(0), a.Value}
		if op == opMaskedEQ {
			c.mask, c.value = a.Value, a.ValueTwo&a.Value
		}
		out = append(out, c)
	}
	return out, nil
}

// split makes one rule of the conditions, or one of each where two of them look
// at the same argument.
func split(ret uint32, conds []cond) []rule {
	var seen [maxArgs]bool
	twice := false
	for _, c := range conds {
		twice = twice || seen[c.arg]
		seen[c.arg] = true
	}
	if !twice {
		slices.SortFunc(conds, func(a, b cond) int { return cmp.Compare(a.arg, b.arg) })
		return []rule{{ret, conds}}
	}
	var out []rule
	for _, c := range conds {
		out = append(out, rule{ret, []cond{c}})
	}
	return out
}

// narrow adapts a rule to an arch: on 32-bit ABIs only the low words count, and
// a comparison under an empty mask always holds.
func (r rule) narrow(wide bool) rule {
	words := ^uint64(0)
	if !wide {
		words = 0xffffffff
	}
	if len(r.conds) == 0 {
		return r
	}
	out := rule{ret: r.ret}
	for _, c := range r.conds {
		c.mask &= words
		c.value &= words
		if c.op == opMaskedEQ && c.mask == 0 {
			continue
		}
		out.conds = append(out.conds, c)
	}
	return out
}

// behind is the rule for the multiplexer that also reaches the rule's syscall.
func (r rule) behind(m muxed) rule {
	out := rule{r.ret, []cond{{0, opEQ, ^uint64(0), uint64(m.call)}}}
	for _, c := range r.conds {
		if c.arg != 0 {
			out.conds = append(out.conds, c)
		}
	}
	return out
}

// policyTable holds policies by [slot], nil where the profile says nothing. Syscall
// numbers are dense, and a map of them would take most of a compilation's time.
type policyTable []*policy

const (
	privateSlots = 16   // for arm's private numbers, above the others
	tableSize    = 1024 // far above the newest syscall, 471 in Linux 7.1
)

// slot is the place of a syscall number, with or without the x32 bit.
func slot(nr uint32) int {
	nr &^= x32Bit
	if nr >= armPrivate {
		return tableSize - privateSlots + int(nr-armPrivate)
	}
	return int(nr)
}

// number is the syscall number, without the x32 bit, whose place is i.
func number(i int) uint32 {
	if i >= tableSize-privateSlots {
		return armPrivate + uint32(i-(tableSize-privateSlots))
	}
	return uint32(i)
}

// policies maps the syscall numbers that the profile treats in a special way, with
// the x32 bit where the arch has it. newest is the greatest number that the
// profile names at all, false if it names none; arm's private numbers apart.
func policies(cs []call, a arch, def uint32) (m policyTable, newest uint32, named bool) {
	m = make(policyTable, tableSize)
	info := archInfos[a]
	fixed := make(map[uint32]*policy) // most policies are a mere action: shared
	add := func(nr uint32, r rule) {
		if r.ret == def {
			return
		}
		r = r.narrow(info.wide)
		i := slot(nr)
		p := m[i]
		switch {
		case p != nil && p.fixed:
		case len(r.conds) == 0:
			if fixed[r.ret] == nil {
				fixed[r.ret] = &policy{ret: r.ret, fixed: true}
			}
			m[i] = fixed[r.ret]
		case p == nil:
			m[i] = &policy{ret: def, rules: []rule{r}}
		default:
			p.rules = append(p.rules, r)
		}
	}
	index := syscallIndex()
	for _, c := range cs {
		for _, name := range c.names {
			mux, isMuxed := x86Muxed[name]
			if isMuxed && a == archX86 {
				newest, named = max(newest, mux.nr), true
				for _, r := range c.rules {
					add(mux.nr, r.behind(mux))
				}
			}
			nrs := index[name]
			if nrs == nil || nrs[a] < 0 {
				continue
			}
			nr := uint32(nrs[a]) | info.bit
			if a != archARM || nr < armPrivate {
				newest, named = max(newest, nr), true
			} else if m[slot(nr)] == nil {
				m[slot(nr)] = &policy{ret: def} // keeps ENOSYS off a number that is named
			}
			for _, r := range c.rules {
				add(nr, r)
			}
		}
	}
	for _, p := range m {
		if p == nil {
			continue
		}
		slices.SortStableFunc(p.rules, compareRules)
		p.rules = slices.CompactFunc(p.rules, func(a, b rule) bool { return slices.Equal(a.conds, b.conds) })
	}
	return m, newest, named
}

// compareRules is the order in which libseccomp's decision tree tries rules.
func compareRules(a, b rule) int {
	for i := range min(len(a.conds), len(b.conds)) {
		if c := compareConds(a.conds[i], b.conds[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a.conds), len(b.conds))
}

func compareConds(a, b cond) int {
	if c := cmp.Compare(b.arg, a.arg); c != 0 {
		return c
	}
	if c := cmp.Compare(a.op.rank(), b.op.rank()); c != 0 {
		return c
	}
	if a.op == opLT || a.op == opLE {
		return cmp.Compare(a.value, b.value)
	}
	return cmp.Compare(b.value, a.value)
}
