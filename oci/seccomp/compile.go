package seccomp

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// MaxInstructions is the longest program that the kernel takes (BPF_MAXINSNS).
const MaxInstructions = 4096

// Filter is a compiled profile. It may be shared: nobody may change it.
type Filter struct {
	// Program is an array of struct sock_filter in native byte order, eight bytes
	// each, for the struct sock_fprog of SECCOMP_SET_MODE_FILTER.
	Program []byte
	// Flags are the SECCOMP_FILTER_FLAG_* for seccomp(2). With FlagNewListener the
	// call returns a file descriptor that has to go to ListenerPath.
	Flags uint32
	// ListenerPath is the socket of the agent that serves SCMP_ACT_NOTIFY, and
	// ListenerMetadata is what it is told (runtime-spec, "containerProcessState").
	ListenerPath     string
	ListenerMetadata string
	// Hash identifies the profile: the SHA-256 of its JSON, in hex.
	Hash string
}

// Instructions is the length of the program in instructions.
func (f *Filter) Instructions() int { return len(f.Program) / instructionSize }

// Compile translates a profile for this machine's native architecture. An error names
// the field that is at fault and why, or says that the filter would be longer than
// [MaxInstructions]. It matches [errors.ErrUnsupported] where there is no
// syscall table for the native architecture.
func Compile(p *specs.LinuxSeccomp) (*Filter, error) {
	hash, err := hashProfile(p)
	if err != nil {
		return nil, err
	}
	return compileHashed(p, hash)
}

func compileHashed(p *specs.LinuxSeccomp, hash string) (*Filter, error) {
	native, ok := nativeArch()
	if !ok {
		return nil, fmt.Errorf("seccomp: no syscall table for %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	f, err := compile(p, native)
	if err != nil {
		return nil, fmt.Errorf("seccomp: %w", err)
	}
	f.Hash = hash
	return f, nil
}

func hashProfile(p *specs.LinuxSeccomp) (string, error) {
	if p == nil {
		return "", errors.New("seccomp: no profile")
	}
	b, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("seccomp: encode profile: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

func compile(p *specs.LinuxSeccomp, native arch) (*Filter, error) {
	def, err := action(p.DefaultAction, p.DefaultErrnoRet, "defaultAction", "defaultErrnoRet")
	if err != nil {
		return nil, err
	}
	if def == retUserNotif {
		// The init could not even execute the workload before the agent listens.
		return nil, fmt.Errorf("defaultAction: %s cannot be the default", p.DefaultAction)
	}
	archs, err := architectures(p.Architectures, native)
	if err != nil {
		return nil, err
	}
	cs, err := calls(p)
	if err != nil {
		return nil, err
	}
	fl, err := filterFlags(p)
	if err != nil {
		return nil, err
	}
	b := assemble(cs, archs, def)
	if n := len(b.rev); n > MaxInstructions {
		return nil, fmt.Errorf("the filter has %d instructions, more than the kernel's limit of %d", n, MaxInstructions)
	}
	return &Filter{
		Program:          b.bytes(),
		Flags:            fl,
		ListenerPath:     p.ListenerPath,
		ListenerMetadata: p.ListenerMetadata,
	}, nil
}

// architectures are those that the filter has to know, the native one first.
func architectures(names []specs.Arch, native arch) ([]arch, error) {
	out := []arch{native}
	for i, name := range names {
		a, ok := archByName(name)
		if !ok {
			if foreignArchs[name] {
				continue
			}
			return nil, fmt.Errorf("architectures[%d]: unknown architecture %q", i, name)
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

func filterFlags(p *specs.LinuxSeccomp) (uint32, error) {
	var fl uint32
	for i, name := range p.Flags {
		f, ok := flags[name]
		if !ok {
			return 0, fmt.Errorf("flags[%d]: unknown flag %q", i, name)
		}
		fl |= f
	}
	notify := slices.ContainsFunc(p.Syscalls, func(s specs.LinuxSyscall) bool { return s.Action == specs.ActNotify })
	switch {
	case notify && p.ListenerPath == "":
		return 0, fmt.Errorf("listenerPath: missing, but %s is used", specs.ActNotify)
	case p.ListenerPath == "" && p.ListenerMetadata != "":
		return 0, errors.New("listenerMetadata: set without listenerPath")
	case notify:
		fl |= FlagNewListener
		if fl&FlagTSync != 0 {
			// The return value cannot be both a listener and a thread ID (seccomp(2)).
			fl |= FlagTSyncESRCH
		}
	default:
		// The kernel refuses it without a listener, where it would mean nothing.
		fl &^= FlagWaitKillableRecv
	}
	return fl, nil
}

// segment is a range of syscall numbers, up to the next segment's start, that
// share a policy.
type segment struct {
	start  uint32
	policy *policy
	wide   bool
}

func (s segment) same(o segment) bool {
	return s.policy == o.policy ||
		len(s.policy.rules) == 0 && len(o.policy.rules) == 0 && s.policy.ret == o.policy.ret
}

// assemble emits: load the architecture, go to its search tree or kill.
func assemble(cs []call, archs []arch, def uint32) *assembler {
	audits := []uint32{}
	for _, a := range archs {
		if !slices.Contains(audits, archInfos[a].audit) {
			audits = append(audits, archInfos[a].audit)
		}
	}
	b := newAssembler()
	next := b.ret(retKillThread)
	for _, audit := range slices.Backward(audits) {
		root := b.search(segments(cs, archs, audit, def))
		if root == label(len(b.rev)-1) {
			root = b.emit(instruction{code: bpfLdAbs, k: offNr})
		}
		next = b.jump(bpfJeq, audit, root, next)
	}
	b.emit(instruction{code: bpfLdAbs, k: offArch})
	return b
}

// segments lists what happens to every number that a call with this AUDIT_ARCH can
// have, in ascending order and without neighbours that do the same.
func segments(cs []call, archs []arch, audit, def uint32) []segment {
	fallback := &policy{ret: def}
	enosys := &policy{ret: retENOSYS}
	bad := &policy{ret: retKillThread}
	var out []segment
	put := func(s segment) {
		if n := len(out); n > 0 && out[n-1].start == s.start {
			out = out[:n-1]
		}
		if n := len(out); n == 0 || !out[n-1].same(s) {
			out = append(out, s)
		}
	}
	for a, info := range archInfos {
		if info.audit != audit {
			continue
		}
		if !slices.Contains(archs, arch(a)) {
			put(segment{start: info.bit, policy: bad})
			if info.bit != 0 {
				put(segment{start: math.MaxUint32, policy: fallback})
			}
			continue
		}
		m, newest, named := policies(cs, arch(a), def)
		beyond := fallback
		if named && !permissive(def) {
			beyond = enosys
		}
		put(segment{start: info.bit, policy: fallback})
		passed := !named // whether newest lies behind us
		for i, p := range m {
			if p == nil {
				continue
			}
			nr := number(i) | info.bit
			if nr > newest && !passed {
				put(segment{start: newest + 1, policy: beyond})
				passed = true
			}
			after := fallback
			if nr >= newest {
				after, passed = beyond, true
			}
			put(segment{start: nr, policy: p, wide: info.wide})
			put(segment{start: nr + 1, policy: after})
		}
		if !passed {
			put(segment{start: newest + 1, policy: beyond})
		}
	}
	return out
}

// search is a balanced binary search with the syscall number in the accumulator.
func (b *assembler) search(s []segment) label {
	switch {
	case len(s) == 1:
		return b.policy(s[0].policy, s[0].wide)
	case len(s) == 3 && s[0].same(s[2]) && s[1].start+1 == s[2].start:
		f := b.policy(s[0].policy, s[0].wide)
		t := b.policy(s[1].policy, s[1].wide)
		return b.jump(bpfJeq, s[1].start, t, f)
	}
	mid := len(s) / 2
	right := b.search(s[mid:])
	left := b.search(s[:mid])
	return b.jump(bpfJge, s[mid].start, right, left)
}
