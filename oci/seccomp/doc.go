// Package seccomp compiles the seccomp section of an OCI runtime configuration
// into a classic BPF program for seccomp(2), without libseccomp and without cgo.
//
// A profile is compiled once (see [Cache]) and handed to the init as bytes, so
// that starting a container costs one system call instead of the milliseconds
// that libseccomp takes for each compilation.
//
// # Semantics
//
// The verdict for a system call is the one that runc with libseccomp gives.
// Where the two are silent or surprising, these are the rules:
//
//   - The native architecture is always part of the filter, together with the
//     profile's architectures. An architecture that this machine's kernel never
//     reports (SCMP_ARCH_S390X on x86_64) is accepted and adds nothing. A call
//     from any other architecture is answered with SECCOMP_RET_KILL_THREAD,
//     libseccomp's default for a bad architecture. So are numbers with the x32
//     bit where x32 is not listed, except -1, which a tracer uses to skip a call.
//   - A name that an architecture does not have is skipped for it. A name that
//     no architecture has is skipped altogether: profiles name calls that only
//     newer or other kernels know.
//   - On x86, a rule for a socket or System V IPC call also covers the socketcall
//     or ipc multiplexer. The filter cannot see the arguments behind the
//     multiplexer's pointer, so a condition on argument 0 is replaced by the
//     multiplexer's call number and the other conditions stay as they are.
//   - A rule with the default action is redundant and dropped, before anything
//     else is considered.
//   - A rule without conditions beats all rules with conditions for the same call,
//     wherever it stands; the first of several rules without conditions counts.
//   - The conditions of a rule are ANDed, unless two of them look at the same
//     argument: then every condition of that rule is a rule of its own (runc
//     has always done so), which makes it an OR.
//   - Rules with conditions and different actions are tried in the order of
//     libseccomp's decision tree: higher argument first; within an argument EQ, NE and MASKED_EQ before
//     LE and LT before GE and GT; within those the narrower range, or the greater
//     value, first; then in the profile's order. So an exception is tried before
//     the range round it, wherever it stands. Rules that agree on the conditions and
//     differ in action, which libseccomp refuses, count in the profile's order.
//   - Arguments are compared as 64-bit values on x86_64 and arm64. On x86, x32 and
//     arm only the lower 32 bits of the argument and of the rule's values count.
//   - Calls newer than the newest one that the profile names, on the same
//     architecture, get ENOSYS instead of the default action, so that programs
//     fall back to older calls. A profile whose default is ALLOW, LOG or TRACE is
//     left alone. Numbers of arm's private range (0xf0000 and above) do not count
//     as newest; x86's multiplexers do when a call behind them is named.
package seccomp
