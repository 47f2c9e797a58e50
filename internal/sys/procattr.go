package sys

import "golang.org/x/sys/unix"

// Rlimits are the resources of setrlimit(2) by the names that POSIX and the OCI give them.
var Rlimits = map[string]uint32{
	"RLIMIT_AS":         unix.RLIMIT_AS,
	"RLIMIT_CORE":       unix.RLIMIT_CORE,
	"RLIMIT_CPU":        unix.RLIMIT_CPU,
	"RLIMIT_DATA":       unix.RLIMIT_DATA,
	"RLIMIT_FSIZE":      unix.RLIMIT_FSIZE,
	"RLIMIT_LOCKS":      unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK":    unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE":   unix.RLIMIT_MSGQUEUE,
	"RLIMIT_NICE":       unix.RLIMIT_NICE,
	"RLIMIT_NOFILE":     unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC":      unix.RLIMIT_NPROC,
	"RLIMIT_RSS":        unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO":     unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME":     unix.RLIMIT_RTTIME,
	"RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_STACK":      unix.RLIMIT_STACK,
}

// SchedPolicies are the policies of sched_setattr(2).
var SchedPolicies = map[string]uint32{
	"SCHED_OTHER":    unix.SCHED_NORMAL,
	"SCHED_FIFO":     unix.SCHED_FIFO,
	"SCHED_RR":       unix.SCHED_RR,
	"SCHED_BATCH":    unix.SCHED_BATCH,
	"SCHED_IDLE":     unix.SCHED_IDLE,
	"SCHED_DEADLINE": unix.SCHED_DEADLINE,
}

// SchedFlags are the flags of sched_setattr(2).
var SchedFlags = map[string]uint64{
	"SCHED_FLAG_RESET_ON_FORK":  unix.SCHED_FLAG_RESET_ON_FORK,
	"SCHED_FLAG_RECLAIM":        unix.SCHED_FLAG_RECLAIM,
	"SCHED_FLAG_DL_OVERRUN":     unix.SCHED_FLAG_DL_OVERRUN,
	"SCHED_FLAG_KEEP_POLICY":    unix.SCHED_FLAG_KEEP_POLICY,
	"SCHED_FLAG_KEEP_PARAMS":    unix.SCHED_FLAG_KEEP_PARAMS,
	"SCHED_FLAG_UTIL_CLAMP_MIN": unix.SCHED_FLAG_UTIL_CLAMP_MIN,
	"SCHED_FLAG_UTIL_CLAMP_MAX": unix.SCHED_FLAG_UTIL_CLAMP_MAX,
}

// Modes and mode flags of set_mempolicy(2), of linux/mempolicy.h.
var (
	MempolicyModes = map[string]uint32{
		"MPOL_DEFAULT": 0, "MPOL_PREFERRED": 1, "MPOL_BIND": 2, "MPOL_INTERLEAVE": 3,
		"MPOL_LOCAL": 4, "MPOL_PREFERRED_MANY": 5, "MPOL_WEIGHTED_INTERLEAVE": 6,
	}
	MempolicyFlags = map[string]uint32{
		"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_NUMA_BALANCING": 1 << 13,
	}
)
