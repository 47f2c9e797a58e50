package initproc

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cri-shim/cri-shim/internal/initmsg"
)

// setScheduling sets what of CPU and memory belongs to the main thread and is kept over execve.
func setScheduling(p *initmsg.Process) error {
	if n := len(p.Affinity); n > 0 {
		_, _, e := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(n*8), uintptr(unsafe.Pointer(&p.Affinity[0])))
		if e != 0 {
			return wrap("sched_setaffinity", "", e)
		}
	}
	if c := p.Scheduler; c != nil {
		attr := unix.SchedAttr{
			Policy: c.Policy, Flags: c.Flags, Nice: c.Nice, Priority: c.Priority,
			Runtime: c.Runtime, Deadline: c.Deadline, Period: c.Period,
		}
		if err := unix.SchedSetAttr(0, &attr, 0); err != nil {
			return wrap("sched_setattr", "", err)
		}
	}
	if p.IOPriority != nil {
		const whoProcess = 1 // IOPRIO_WHO_PROCESS: with 0, the calling thread
		if _, _, e := unix.RawSyscall(unix.SYS_IOPRIO_SET, whoProcess, 0, uintptr(*p.IOPriority)); e != 0 {
			return wrap("ioprio_set", "", e)
		}
	}
	if p.NUMAMode != nil {
		var mask unsafe.Pointer
		bits := 0
		if n := len(p.NUMAMask); n > 0 {
			// One more than there are: the kernel takes one off (set_mempolicy(2), BUGS).
			mask, bits = unsafe.Pointer(&p.NUMAMask[0]), n*64+1
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SET_MEMPOLICY, uintptr(*p.NUMAMode), uintptr(mask), uintptr(bits)); e != 0 {
			return wrap("set_mempolicy", "", e)
		}
	}
	if p.Personality != nil {
		if _, _, e := unix.RawSyscall(unix.SYS_PERSONALITY, uintptr(*p.Personality), 0, 0); e != 0 {
			return wrap("personality", "", e)
		}
	}
	return nil
}

func setRlimits(p *initmsg.Process) error {
	for _, r := range p.Rlimits {
		if err := unix.Prlimit(0, int(r.Resource), &unix.Rlimit{Cur: r.Soft, Max: r.Hard}, nil); err != nil {
			return wrap("setrlimit", itoa(int(r.Resource)), err)
		}
	}
	return nil
}

// setUser drops the bounding set and changes groups and user, of the main thread
// alone: package syscall's versions stop and change every thread, which takes
// time and is for nothing, as the others end at execve.
func setUser(p *initmsg.Process) error {
	if p.Caps != nil {
		// First: dropping from the bounding set needs CAP_SETPCAP.
		if err := dropBounding(p.Caps.Bounding); err != nil {
			return err
		}
		// So that what is asked for can be taken after the change of user,
		// which otherwise clears the permitted set (capabilities(7)).
		if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
			return wrap("prctl PR_SET_KEEPCAPS", "", err)
		}
	}
	var groups unsafe.Pointer
	if len(p.Groups) > 0 {
		groups = unsafe.Pointer(&p.Groups[0])
	}
	// Groups and gid before uid, with which CAP_SETGID goes from the effective set.
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(p.Groups)), uintptr(groups), 0); e != 0 {
		return wrap("setgroups", "", e)
	}
	gid, uid := uintptr(p.GID), uintptr(p.UID)
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
		return wrap("setresgid", itoa(int(p.GID)), e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return wrap("setresuid", itoa(int(p.UID)), e)
	}
	return nil
}

func dropBounding(keep uint64) error {
	for c := range uintptr(64) {
		if keep&(1<<c) != 0 {
			continue
		}
		// EINVAL: beyond the kernel's last capability.
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err == unix.EINVAL {
			return nil
		}
		if err != nil {
			return wrap("drop from the bounding set capability", itoa(int(c)), err)
		}
	}
	return nil
}

// setCapabilities sets the other four sets to exactly what was asked for, less what
// the machine itself does not have. nil leaves them to the kernel's rules.
func setCapabilities(caps *initmsg.Capabilities) error {
	if caps == nil {
		return nil
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return wrap("capget", "", err)
	}
	permitted := caps.Permitted & (uint64(have[0].Permitted) | uint64(have[1].Permitted)<<32)
	effective := caps.Effective & permitted
	inheritable := caps.Inheritable & permitted
	// Inheritable ones that are not permitted need CAP_SETPCAP and to be in the
	// bounding set (capset(2)); they give the workload nothing by themselves.
	if extra := caps.Inheritable & caps.Bounding &^ permitted; extra != 0 {
		inheritable |= extra & (uint64(have[0].Permitted) | uint64(have[1].Permitted)<<32)
	}
	// While the old ones are still there: KEEPCAPS has done its work, and
	// execve would clear it only then.
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 0, 0, 0, 0); err != nil {
		return wrap("prctl PR_SET_KEEPCAPS", "", err)
	}
	var data [2]unix.CapUserData
	for i := range data {
		shift := 32 * i
		data[i] = unix.CapUserData{
			Effective: uint32(effective >> shift), Permitted: uint32(permitted >> shift), Inheritable: uint32(inheritable >> shift),
		}
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return wrap("capset", "", err)
	}
	// Inherited ones would survive the execve of a user that is not root.
	err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	if err != nil && (err != unix.EINVAL || caps.Ambient != 0) {
		return wrap("clear the ambient set", "", err)
	}
	// A capability can only be ambient that is permitted and inheritable.
	for c := range uintptr(64) {
		if caps.Ambient&permitted&inheritable&(1<<c) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return wrap("raise ambient capability", itoa(int(c)), err)
		}
	}
	return nil
}
