package initmsg

func (m *Message) code(c *codec) {
	mode := uint32(m.Mode)
	c.u32(&mode)
	m.Mode = Mode(mode)
	c.flag(&m.UserNamespace)
	c.strs(&m.CgroupTasks)
	list(c, &m.Join, codeNamespace)
	c.u64(&m.Unshare)
	c.str(&m.Hostname)
	c.str(&m.Domainname)
	list(c, &m.Sysctls, codeSysctl)
	optional(c, &m.Root, codeRoot, c.room.root)
	list(c, &m.Files, codeFile)
	listIn(c, &m.Mounts, codeMount, &c.room.mounts)
	listIn(c, &m.Devices, codeDevice, &c.room.devices)
	listIn(c, &m.Symlinks, codeSymlink, &c.room.symlinks)
	c.strs(&m.Masked)
	c.strs(&m.Readonly)
	list(c, &m.CreateContainerHooks, codeHook)
	list(c, &m.StartContainerHooks, codeHook)
	c.bytes(&m.State)
	optional(c, &m.ExecRoot, (*codec).i32, nil)
	optional(c, &m.HookFile, (*codec).i32, nil)
	optional(c, &m.PIDFile, (*codec).i32, nil)
	c.i32(&m.StartFile)
	codeProcess(c, &m.Process)
}

func codeNamespace(c *codec, n *Namespace) {
	c.u64(&n.Type)
	c.str(&n.Path)
	c.i32(&n.File)
}

func codeSysctl(c *codec, s *Sysctl) {
	c.str(&s.Name)
	c.str(&s.Value)
}

func codeRoot(c *codec, r *Root) {
	c.i32(&r.File)
	c.str(&r.Path)
	c.str(&r.Staging)
	c.flag(&r.Readonly)
	c.u64(&r.Propagation)
	c.u64(&r.FinalPropagation)
	c.flag(&r.NoPivot)
	c.flag(&r.Detached)
}

func codeFile(c *codec, f *File) {
	c.str(&f.Path)
	c.bytes(&f.Data)
}

func codeMount(c *codec, m *Mount) {
	c.str(&m.FSType)
	c.str(&m.Source)
	c.i32(&m.File)
	c.i32(&m.IDMap)
	c.str(&m.Target)
	c.flag(&m.Recursive)
	c.u64(&m.AttrSet)
	c.u64(&m.AttrClear)
	c.u64(&m.RecAttrSet)
	c.u64(&m.RecAttrClear)
	c.u64(&m.Propagation)
	c.strs(&m.Options)
	c.flag(&m.TmpCopyUp)
	c.u32(&m.CreateMode)
	c.flag(&m.Optional)
	c.flag(&m.ReadonlyAtEnd)
	c.flag(&m.NoFollow)
	c.flag(&m.Remount)
	c.flag(&m.IVersion)
}

func codeDevice(c *codec, d *Device) {
	c.str(&d.Path)
	c.u32(&d.Mode)
	c.u32(&d.Major)
	c.u32(&d.Minor)
	c.u32(&d.UID)
	c.u32(&d.GID)
	c.str(&d.Bind)
}

func codeSymlink(c *codec, s *Symlink) {
	c.str(&s.Target)
	c.str(&s.Path)
}

func codeHook(c *codec, h *Hook) {
	c.str(&h.Path)
	c.strs(&h.Args)
	c.strs(&h.Env)
	c.u64(&h.Timeout)
}

func codeRlimit(c *codec, r *Rlimit) {
	c.u32(&r.Resource)
	c.u64(&r.Soft)
	c.u64(&r.Hard)
}

func codeCapabilities(c *codec, s *Capabilities) {
	for _, v := range []*uint64{&s.Effective, &s.Permitted, &s.Inheritable, &s.Bounding, &s.Ambient} {
		c.u64(v)
	}
}

func codeScheduler(c *codec, s *Scheduler) {
	c.u32(&s.Policy)
	c.u64(&s.Flags)
	c.i32(&s.Nice)
	c.u32(&s.Priority)
	c.u64(&s.Runtime)
	c.u64(&s.Deadline)
	c.u64(&s.Period)
}

func codeProcess(c *codec, p *Process) {
	c.strs(&p.Args)
	c.strs(&p.Env)
	c.str(&p.Cwd)
	c.flag(&p.CreateCwd)
	c.u32(&p.UID)
	c.u32(&p.GID)
	c.u32s(&p.Groups)
	optional(c, &p.Umask, (*codec).u32, nil)
	optional(c, &p.Caps, codeCapabilities, c.room.caps)
	c.flag(&p.NoNewPrivs)
	list(c, &p.Rlimits, codeRlimit)
	optional(c, &p.OOMScoreAdj, (*codec).i32, nil)
	c.bytes(&p.Seccomp)
	c.u32(&p.SeccompFlags)
	c.str(&p.SeccompListener)
	c.bytes(&p.SeccompState)
	c.str(&p.AppArmor)
	c.str(&p.SELinux)
	c.flag(&p.Terminal)
	c.i32(&p.ConsoleFile)
	c.u32(&p.ConsoleRows)
	c.u32(&p.ConsoleCols)
	optional(c, &p.Scheduler, codeScheduler, nil)
	optional(c, &p.IOPriority, (*codec).u32, nil)
	optional(c, &p.Personality, (*codec).u32, nil)
	c.flag(&p.KeepKeyring)
	list(c, &p.Affinity, (*codec).u64)
	optional(c, &p.NUMAMode, (*codec).u32, nil)
	list(c, &p.NUMAMask, (*codec).u64)
	c.i32(&p.FirstExtra)
	c.u32(&p.ExtraFiles)
}
