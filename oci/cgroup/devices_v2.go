package cgroup

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// programName marks our programs among those attached to a group, across restarts of the daemon: systemd may have one
// of its own there, which must stay.
const programName = "cri_shim_dev"

// The kernel's linux/bpf.h.
const (
	devBlock        = 1      // BPF_DEVCG_DEV_BLOCK
	devChar         = 2      // BPF_DEVCG_DEV_CHAR
	flagAllowMulti  = 1 << 1 // BPF_F_ALLOW_MULTI
	maxKeptPrograms = 64     // in programs
	deviceCtxAccess = 0      // offsets in struct bpf_cgroup_dev_ctx
	deviceCtxMajor  = 4
	deviceCtxMinor  = 8
)

// instructions compiles the list to a program for BPF_PROG_TYPE_CGROUP_DEVICE: the rules in reverse, each permission
// decided by the first rule that matches. R3 holds the permissions asked for that no rule has allowed yet.
func (l *deviceList) instructions() asm.Instructions {
	var out asm.Instructions
	emit := func(ins ...asm.Instruction) { out = append(out, ins...) }
	emit(
		asm.LoadMem(asm.R2, asm.R1, deviceCtxAccess, asm.Word), // access << 16 | type
		asm.Mov.Reg(asm.R3, asm.R2),
		asm.And.Imm(asm.R2, 0xffff),
		asm.RSh.Imm(asm.R3, 16),
		asm.LoadMem(asm.R4, asm.R1, deviceCtxMajor, asm.Word),
		asm.LoadMem(asm.R5, asm.R1, deviceCtxMinor, asm.Word),
	)
	// A label goes to the first instruction that follows.
	for i := len(l.rules) - 1; i >= 0; i-- {
		r := l.rules[i]
		start, next := len(out), fmt.Sprintf("rule%d", i-1)
		kind := int32(devChar)
		if r.key.kind == 'b' {
			kind = devBlock
		}
		emit(asm.JNE.Imm(asm.R2, kind, next))
		if r.key.major != anyNumber {
			emit(asm.JNE.Imm(asm.R4, int32(r.key.major), next))
		}
		if r.key.minor != anyNumber {
			emit(asm.JNE.Imm(asm.R5, int32(r.key.minor), next))
		}
		switch {
		case !r.allow:
			emit(asm.Mov.Reg(asm.R0, asm.R3), asm.And.Imm(asm.R0, int32(r.perm)), asm.JEq.Imm(asm.R0, 0, next))
			emit(verdict(false)...)
		case r.perm == permAll:
			emit(verdict(true)...)
		default:
			emit(asm.And.Imm(asm.R3, int32(permAll&^r.perm)), asm.JNE.Imm(asm.R3, 0, next))
			emit(verdict(true)...)
		}
		if i < len(l.rules)-1 {
			out[start] = out[start].WithSymbol(fmt.Sprintf("rule%d", i))
		}
	}
	last := verdict(l.allowAll)
	if len(l.rules) > 0 {
		last[0] = last[0].WithSymbol("rule-1")
	}
	return append(out, last...)
}

func verdict(allow bool) []asm.Instruction {
	v := int32(0)
	if allow {
		v = 1
	}
	return []asm.Instruction{asm.Mov.Imm(asm.R0, v), asm.Return()}
}

// programs keeps loaded device programs by their list: nearly all containers share one, and the verifier need not see it
// again at each start. Its lock also keeps two updates of a group apart.
type programs struct {
	mu     sync.Mutex
	byList map[string]*program
}

// program is a loaded or attached device program.
type program struct {
	*ebpf.Program
	id ebpf.ProgramID
}

// get returns the loaded program for l; the caller holds the lock, and keeps it while it uses the program.
func (p *programs) get(l *deviceList) (*program, error) {
	key := l.String()
	if prog := p.byList[key]; prog != nil {
		return prog, nil
	}
	loaded, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: programName, Type: ebpf.CGroupDevice, License: "Apache-2.0", Instructions: l.instructions(),
	})
	if err != nil {
		return nil, fmt.Errorf("load device program: %w", err)
	}
	prog, err := identify(loaded)
	if err != nil {
		return nil, err
	}
	for k, old := range p.byList { // any one goes: the kernel keeps what is attached
		if len(p.byList) < maxKeptPrograms {
			break
		}
		delete(p.byList, k)
		_ = old.Close()
	}
	if p.byList == nil {
		p.byList = map[string]*program{}
	}
	p.byList[key] = prog
	return prog, nil
}

func (p *programs) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for k, prog := range p.byList {
		errs = append(errs, prog.Close())
		delete(p.byList, k)
	}
	return errors.Join(errs...)
}

// identify takes ownership of p.
func identify(p *ebpf.Program) (*program, error) {
	info, err := p.Info()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("device program: %w", err), p.Close())
	}
	id, ok := info.ID()
	if !ok {
		needs := &UnsupportedError{Feature: "devices", Needs: "program IDs (Linux 4.13)"}
		return nil, errors.Join(needs, p.Close())
	}
	return &program{p, id}, nil
}

// applyDevicesV2 makes the program for l the only one of ours on the group; at no time is the group without one. A list
// that allows everything needs no program, but a group that had one gets one that says yes, because that is
// a replacement, which cannot fail half-way.
func (g *Group) applyDevicesV2(l *deviceList) (err error) {
	hi := g.host.primary
	defer func() {
		if err != nil {
			err = fmt.Errorf("devices of %s/%s: %w", hi.mount, g.rel, err)
		}
	}()
	dir, err := hi.root.ReadableDir(g.rel)
	if err != nil {
		return err
	}
	defer dir.Close()
	g.host.programs.mu.Lock()
	defer g.host.programs.mu.Unlock()
	ours, err := attachedPrograms(dir)
	if err != nil {
		return err
	}
	defer closeAll(ours)
	if len(ours) == 0 && l.allowAll && len(l.rules) == 0 {
		return nil
	}
	p, err := g.host.programs.get(l)
	if err != nil {
		return err
	}
	return replacePrograms(dir, ours, p)
}

// attachedPrograms opens the programs that carry our name on the group itself (not inherited ones).
func attachedPrograms(dir sys.DirFD) (ours []*program, err error) {
	res, err := link.QueryPrograms(link.QueryOptions{Target: int(dir), Attach: ebpf.AttachCGroupDevice})
	if err != nil {
		return nil, err
	}
	for _, a := range res.Programs {
		p, err := ebpf.NewProgramFromID(a.ID)
		if errors.Is(err, syscall.ENOENT) {
			continue // detached meanwhile
		}
		if err != nil {
			closeAll(ours)
			return nil, fmt.Errorf("open device program %d: %w", a.ID, err)
		}
		info, err := p.Info()
		if err == nil && info.Name == programName {
			ours = append(ours, &program{p, a.ID})
			continue
		}
		_ = p.Close()
		if err != nil {
			closeAll(ours)
			return nil, fmt.Errorf("device program %d: %w", a.ID, err)
		}
	}
	return ours, nil
}

// replacePrograms puts p in the place of one of ours, in one step where the kernel can (5.6), and detaches the rest.
// Programs of a group are all asked and must all agree, so one too many never lets a device through.
func replacePrograms(dir sys.DirFD, ours []*program, p *program) error {
	opts := link.RawAttachProgramOptions{
		Target: int(dir), Program: p.Program, Attach: ebpf.AttachCGroupDevice, Flags: flagAllowMulti,
	}
	i := slices.IndexFunc(ours, func(o *program) bool { return o.id == p.id })
	replaced := -1
	switch {
	case i >= 0: // the kernel refuses to attach a program twice
		replaced = i
	case len(ours) > 0:
		opts.Anchor = link.ReplaceProgram(ours[0].Program)
		if link.RawAttachProgram(opts) == nil {
			replaced = 0
			break
		}
		opts.Anchor = nil
		fallthrough
	default:
		if err := link.RawAttachProgram(opts); err != nil {
			return err
		}
	}
	for j, o := range ours {
		if j == replaced {
			continue
		}
		err := link.RawDetachProgram(link.RawDetachProgramOptions{
			Target: int(dir), Program: o.Program, Attach: ebpf.AttachCGroupDevice,
		})
		if err != nil && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("the old list still applies as well: %w", err)
		}
	}
	return nil
}

func closeAll(ps []*program) {
	for _, p := range ps {
		_ = p.Close()
	}
}
