package oci

import (
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// capNames are the capabilities by number (linux/capability.h), without their prefix.
var capNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

var capNumbers = func() map[string]uint {
	m := make(map[string]uint, 2*len(capNames))
	for i, n := range capNames {
		m[n], m["CAP_"+n] = uint(i), uint(i)
	}
	return m
}()

// defaultCaps are the fourteen of Docker and containerd.
var defaultCaps = mustCaps("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "MKNOD", "NET_RAW", "SETGID", "SETUID",
	"SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE")

const capSysResource = 24

func mustCaps(names ...string) uint64 {
	var mask uint64
	for _, n := range names {
		mask |= 1 << capNumbers[n]
	}
	return mask
}

// capability returns the number of a name with or without the prefix, in any case.
func capability(name string) (uint, error) {
	n, ok := capNumbers[name]
	if !ok {
		n, ok = capNumbers[strings.ToUpper(name)]
	}
	if !ok {
		return 0, fmt.Errorf("unknown capability %q", name)
	}
	return n, nil
}

// capList are the names of a mask, with their prefix, in order of number.
func capList(mask uint64) []string {
	if mask == 0 {
		return nil
	}
	out := make([]string, 0, bits.OnesCount64(mask))
	for i, n := range capNames {
		if mask&(1<<i) != 0 {
			out = append(out, "CAP_"+n)
		}
	}
	return out
}

// capabilities applies the CRI's additions and then its drops to the default set, so that "ALL" in one can be
// corrected by a name in the other. The inheritable set stays empty (CVE-2022-24769) but for ambient ones.
func (b *builder) capabilities() error {
	own := b.host.Capabilities
	set := defaultCaps & own
	if b.sec.Privileged {
		set = own
	}
	add, addAll, err := capMask("security.capabilities.add_capabilities", b.sec.AddCapabilities, own)
	if err != nil {
		return err
	}
	drop, dropAll, err := capMask("security.capabilities.drop_capabilities", b.sec.DropCapabilities, ^uint64(0))
	if err != nil {
		return err
	}
	ambient, ambientAll, err := capMask("security.capabilities.add_ambient_capabilities", b.sec.AddAmbientCapabilities, own)
	if err != nil {
		return err
	}
	if ambientAll {
		ambient = own
	}
	// CRI: a privileged container has all capabilities, whatever is dropped.
	if !b.sec.Privileged {
		if addAll {
			set = own
		}
		if dropAll {
			set = 0
		}
		set = (set | add | ambient) &^ drop
		ambient &^= drop
	}
	names := capList(set)
	b.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: names, Permitted: names, Effective: names}
	if ambient != 0 {
		a := capList(ambient)
		b.spec.Process.Capabilities.Ambient, b.spec.Process.Capabilities.Inheritable = a, a
	}
	return nil
}

// capMask reads a list of names. Those that this process cannot give are an error: a workload that was promised a
// capability must not find out later.
func capMask(field string, names []string, own uint64) (mask uint64, all bool, err error) {
	for i, name := range names {
		if strings.EqualFold(name, "ALL") {
			all = true
			continue
		}
		n, err := capability(name)
		if err != nil {
			return 0, false, &FieldError{Field: index(field, i), Err: err}
		}
		if own&(1<<n) == 0 {
			return 0, false, fieldf(index(field, i), "%s is not in the node's own bounding set", name)
		}
		mask |= 1 << n
	}
	return mask, all, nil
}

// ownCapabilities reads this process's bounding set.
func ownCapabilities() (uint64, error) {
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapBnd:"); ok {
			mask, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			if err != nil {
				return 0, fmt.Errorf("bounding set: %w", err)
			}
			return mask & (1<<len(capNames) - 1), nil
		}
	}
	return 0, fmt.Errorf("/proc/thread-self/status has no CapBnd line")
}

// CapabilityMask has a bit for each of the capabilities ("CAP_CHOWN"), by the kernel's numbers.
func CapabilityMask(names []string) (mask uint64, err error) {
	for _, name := range names {
		n, err := capability(name)
		if err != nil {
			return 0, err
		}
		mask |= 1 << n
	}
	return mask, nil
}
