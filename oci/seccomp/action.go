package seccomp

import (
	"fmt"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// SECCOMP_RET_* of linux/seccomp.h; the low 16 bits are the action's data.
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retUserNotif   = 0x7fc00000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000

	retENOSYS = retErrno | uint32(syscall.ENOSYS)

	maxErrno = 4095 // MAX_ERRNO of linux/err.h; the kernel would clamp silently
	maxData  = 0xffff
)

var actions = map[specs.LinuxSeccompAction]uint32{
	specs.ActKill:        retKillThread,
	specs.ActKillThread:  retKillThread,
	specs.ActKillProcess: retKillProcess,
	specs.ActTrap:        retTrap,
	specs.ActErrno:       retErrno,
	specs.ActTrace:       retTrace,
	specs.ActAllow:       retAllow,
	specs.ActLog:         retLog,
	specs.ActNotify:      retUserNotif,
}

// action converts an action and its errno to the value that a filter returns. The
// runtime specification demands an error for an errno that the action cannot carry,
// and EPERM where an action that can carry one has none.
func action(name specs.LinuxSeccompAction, errno *uint, field, errnoField string) (uint32, error) {
	ret, ok := actions[name]
	if name == "" {
		return 0, fmt.Errorf("%s: missing", field)
	}
	if !ok {
		return 0, fmt.Errorf("%s: unknown action %q", field, name)
	}
	var limit uint
	switch ret {
	case retErrno:
		limit = maxErrno
	case retTrace:
		limit = maxData
	default:
		if errno != nil {
			return 0, fmt.Errorf("%s: %s does not take an errno", errnoField, name)
		}
		return ret, nil
	}
	if errno == nil {
		return ret | uint32(syscall.EPERM), nil
	}
	if *errno > limit {
		return 0, fmt.Errorf("%s: %d is above %d", errnoField, *errno, limit)
	}
	return ret | uint32(*errno), nil
}

// permissive says whether a default action lets unknown syscalls run, or leaves
// them to a tracer; those profiles get no ENOSYS for newer syscalls.
func permissive(ret uint32) bool {
	switch ret &^ maxData {
	case retAllow, retLog, retTrace:
		return true
	}
	return false
}

// SECCOMP_FILTER_FLAG_* of linux/seccomp.h.
const (
	FlagTSync            = 1 << 0
	FlagLog              = 1 << 1
	FlagSpecAllow        = 1 << 2
	FlagNewListener      = 1 << 3
	FlagTSyncESRCH       = 1 << 4
	FlagWaitKillableRecv = 1 << 5
)

// flagTSyncName is known to runc though the runtime specification dropped it.
const flagTSyncName specs.LinuxSeccompFlag = "SECCOMP_FILTER_FLAG_TSYNC"

var flags = map[specs.LinuxSeccompFlag]uint32{
	flagTSyncName:                          FlagTSync,
	specs.LinuxSeccompFlagLog:              FlagLog,
	specs.LinuxSeccompFlagSpecAllow:        FlagSpecAllow,
	specs.LinuxSeccompFlagWaitKillableRecv: FlagWaitKillableRecv,
}
