package oci

import (
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/initmsg"
	"github.com/cri-shim/cri-shim/internal/sys"
)

func (c *compiler) process(p *specs.Process) error {
	if len(p.Args) == 0 {
		return fieldf("process.args", "empty")
	}
	if !filepath.IsAbs(p.Cwd) {
		return fieldf("process.cwd", "%q is not an absolute path", p.Cwd)
	}
	if p.CommandLine != "" {
		return unsupported("process.commandLine", "this is Linux")
	}
	if p.User.Username != "" {
		return unsupported("process.user.username", "this is Linux")
	}
	m := &c.msg.Process
	m.Args, m.Env, m.Cwd, m.CreateCwd = p.Args, p.Env, p.Cwd, true
	m.UID, m.GID, m.Groups, m.Umask = p.User.UID, p.User.GID, p.User.AdditionalGids, p.User.Umask
	if err := c.checkUser(&p.User); err != nil {
		return err
	}
	m.NoNewPrivs = p.NoNewPrivileges
	m.AppArmor, m.SELinux = p.ApparmorProfile, p.SelinuxLabel
	m.Terminal = p.Terminal
	if err := checkStrings(m); err != nil {
		return err
	}
	if b := p.ConsoleSize; b != nil && p.Terminal { // runtime-spec: ignored without a terminal
		if b.Width > math.MaxUint16 || b.Height > math.MaxUint16 {
			return fieldf("process.consoleSize", "%d by %d is too large", b.Width, b.Height)
		}
		m.ConsoleRows, m.ConsoleCols = uint32(b.Height), uint32(b.Width)
	}
	if p.OOMScoreAdj != nil {
		if *p.OOMScoreAdj < -1000 || *p.OOMScoreAdj > 1000 {
			return fieldf("process.oomScoreAdj", "%d is not between -1000 and 1000", *p.OOMScoreAdj)
		}
		v := int32(*p.OOMScoreAdj)
		m.OOMScoreAdj = &v
	}
	for _, step := range []func(*specs.Process) error{c.capabilities, c.rlimits, c.scheduling, c.affinity} {
		if err := step(p); err != nil {
			return err
		}
	}
	if err := c.personality(); err != nil {
		return err
	}
	return c.memoryPolicy()
}

// checkStrings refuses what execve(2) would cut short.
func checkStrings(m *initmsg.Process) error {
	for field, list := range map[string][]string{"process.args": m.Args, "process.env": m.Env, "process.cwd": {m.Cwd}} {
		for i, s := range list {
			if strings.IndexByte(s, 0) >= 0 {
				return fieldf(index(field, i), "NUL byte in %q", s)
			}
		}
	}
	return nil
}

func (c *compiler) capabilities(p *specs.Process) error {
	set := p.Capabilities
	if set == nil {
		// runc's rule: no capabilities section is no capability.
		set = &specs.LinuxCapabilities{}
	}
	out := &initmsg.Capabilities{}
	for _, s := range []struct {
		field string
		names []string
		to    *uint64
	}{
		{"bounding", set.Bounding, &out.Bounding},
		{"effective", set.Effective, &out.Effective},
		{"inheritable", set.Inheritable, &out.Inheritable},
		{"permitted", set.Permitted, &out.Permitted},
		{"ambient", set.Ambient, &out.Ambient},
	} {
		for i, name := range s.names {
			n, ok := capNumbers[name]
			if !ok || !strings.HasPrefix(name, "CAP_") {
				return fieldf(index("process.capabilities."+s.field, i), "unknown capability %q", name)
			}
			*s.to |= 1 << n
		}
	}
	c.msg.Process.Caps = out
	return nil
}

func (c *compiler) rlimits(p *specs.Process) error {
	seen := map[uint32]bool{}
	for i, l := range p.Rlimits {
		field := index("process.rlimits", i)
		n, ok := sys.Rlimits[l.Type]
		switch {
		case !ok:
			return fieldf(field+".type", "unknown limit %q", l.Type)
		case seen[n]: // runtime-spec: "MUST generate an error"
			return fieldf(field+".type", "a second %s", l.Type)
		case l.Soft > l.Hard:
			return fieldf(field+".soft", "%s: %d is more than the hard limit %d", l.Type, l.Soft, l.Hard)
		}
		seen[n] = true
		c.msg.Process.Rlimits = append(c.msg.Process.Rlimits, initmsg.Rlimit{Resource: n, Soft: l.Soft, Hard: l.Hard})
	}
	return nil
}

// ioClasses of ioprio_set(2), linux/ioprio.h.
var ioClasses = map[specs.IOPriorityClass]uint32{
	specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3,
}

func (c *compiler) scheduling(p *specs.Process) error {
	m := &c.msg.Process
	if io := p.IOPriority; io != nil {
		class, ok := ioClasses[io.Class]
		if !ok {
			return fieldf("process.ioPriority.class", "unknown class %q", io.Class)
		}
		if io.Priority < 0 || io.Priority > 7 {
			return fieldf("process.ioPriority.priority", "%d is not between 0 and 7", io.Priority)
		}
		v := class<<13 | uint32(io.Priority)
		m.IOPriority = &v
	}
	s := p.Scheduler
	if s == nil {
		return nil
	}
	policy, ok := sys.SchedPolicies[string(s.Policy)]
	if !ok {
		return fieldf("process.scheduler.policy", "unknown policy %q", s.Policy)
	}
	if s.Priority < 0 {
		return fieldf("process.scheduler.priority", "%d is negative", s.Priority)
	}
	if s.Nice < -20 || s.Nice > 19 {
		return fieldf("process.scheduler.nice", "%d is not between -20 and 19", s.Nice)
	}
	out := &initmsg.Scheduler{
		Policy: policy, Nice: s.Nice, Priority: uint32(s.Priority),
		Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period,
	}
	for i, f := range s.Flags {
		flag, ok := sys.SchedFlags[string(f)]
		if !ok {
			return fieldf(index("process.scheduler.flags", i), "unknown flag %q", f)
		}
		out.Flags |= flag
	}
	m.Scheduler = out
	return nil
}

// affinity is for an exec alone (runtime-spec, execCPUAffinity); the container's first process has the control group's.
func (c *compiler) affinity(p *specs.Process) error {
	a := p.ExecCPUAffinity
	if a == nil {
		return nil
	}
	for field, list := range map[string]string{
		"process.execCPUAffinity.initial": a.Initial, "process.execCPUAffinity.final": a.Final,
	} {
		if _, err := parseSet(list); err != nil {
			return &FieldError{Field: field, Err: err}
		}
	}
	if c.msg.Mode != initmsg.ModeExec {
		return nil
	}
	var err error
	if c.launch.Affinity, err = parseSet(a.Initial); err != nil {
		return err
	}
	c.msg.Process.Affinity, err = parseSet(a.Final)
	return err
}

func (c *compiler) personality() error {
	p := c.spec.Linux.Personality
	if p == nil {
		return nil
	}
	if len(p.Flags) > 0 {
		return unsupported("linux.personality.flags", "no flag is supported (runtime-spec)")
	}
	var v uint32
	switch p.Domain {
	case specs.PerLinux:
	case specs.PerLinux32:
		v = 8 // PER_LINUX32
	default:
		return fieldf("linux.personality.domain", "unknown domain %q", p.Domain)
	}
	c.msg.Process.Personality = &v
	return nil
}

func (c *compiler) memoryPolicy() error {
	p := c.spec.Linux.MemoryPolicy
	if p == nil {
		return nil
	}
	mode, ok := sys.MempolicyModes[string(p.Mode)]
	if !ok {
		return fieldf("linux.memoryPolicy.mode", "unknown mode %q", p.Mode)
	}
	for i, f := range p.Flags {
		flag, ok := sys.MempolicyFlags[string(f)]
		if !ok {
			return fieldf(index("linux.memoryPolicy.flags", i), "unknown flag %q", f)
		}
		mode |= flag
	}
	mask, err := parseSet(p.Nodes)
	if err != nil {
		return &FieldError{Field: "linux.memoryPolicy.nodes", Err: err}
	}
	c.msg.Process.NUMAMode, c.msg.Process.NUMAMask = &mode, mask
	return nil
}

// maxSet bounds the numbers in a set: the kernel's CONFIG_NR_CPUS and MAX_NUMNODES are at most 8192.
const maxSet = 8192

// parseSet reads "0-3,8" (cpuset(7), "List format") into words of a mask; "" is empty.
func parseSet(s string) ([]uint64, error) {
	if s == "" {
		return nil, nil
	}
	var mask []uint64
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.ParseUint(from, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%q is not a list of numbers and ranges", s)
		}
		b := a
		if isRange {
			if b, err = strconv.ParseUint(to, 10, 32); err != nil {
				return nil, fmt.Errorf("%q is not a list of numbers and ranges", s)
			}
		}
		if b < a || b >= maxSet {
			return nil, fmt.Errorf("%q: the range %s is not within 0-%d", s, part, maxSet-1)
		}
		for uint64(len(mask))*64 <= b {
			mask = append(mask, 0)
		}
		for n := a; n <= b; n++ {
			mask[n/64] |= 1 << (n % 64)
		}
	}
	return mask, nil
}

func (c *compiler) seccomp() error {
	s := c.spec.Linux.Seccomp
	if s == nil {
		return nil
	}
	if c.opt.Seccomp == nil {
		return unsupported("linux.seccomp", "no compiler for profiles")
	}
	f, err := c.opt.Seccomp(s)
	if err != nil {
		return &FieldError{Field: "linux.seccomp", Err: err}
	}
	p := &c.msg.Process
	p.Seccomp, p.SeccompFlags = f.Program, f.Flags
	return c.seccompListener(s)
}

func (c *compiler) seccompListener(s *specs.LinuxSeccomp) error {
	if s.ListenerPath == "" {
		if s.ListenerMetadata != "" {
			return fieldf("linux.seccomp.listenerMetadata", "set without listenerPath")
		}
		return nil
	}
	if !filepath.IsAbs(s.ListenerPath) {
		return fieldf("linux.seccomp.listenerPath", "%q is not an absolute path", s.ListenerPath)
	}
	// The process IDs stay 0: there is no process yet when this is written.
	state, err := json.Marshal(specs.ContainerProcessState{
		Version: specs.Version, Fds: []string{specs.SeccompFdName}, Metadata: s.ListenerMetadata,
		State: specs.State{
			Version: specs.Version, ID: c.opt.ID, Status: specs.StateCreating,
			Bundle: c.opt.Bundle, Annotations: c.spec.Annotations,
		},
	})
	if err != nil {
		return err
	}
	c.msg.Process.SeccompListener, c.msg.Process.SeccompState = s.ListenerPath, state
	return nil
}
