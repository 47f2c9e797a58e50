package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// setting is one limit: a file of the group and what goes into it.
type setting struct {
	limit      string // the OCI field, for errors
	controller string
	file       string
	values     []string // each takes a write of its own
	neutral    bool     // a kernel without the file (or the controller) behaves as asked
	alt        *setting // for a kernel without the file
}

// plan is everything that an OCI linux.resources asks of a group.
type plan struct {
	settings []setting
	devices  *deviceList // nil: leave devices alone
	check    uint64      // v2: refuse if memory.current is above this many bytes; 0: do not
}

func (p *plan) add(limit, controller, file string, values ...string) {
	p.settings = append(p.settings, setting{limit: limit, controller: controller, file: file, values: values})
}

// addNeutral adds a setting that a kernel without the file already obeys.
func (p *plan) addNeutral(limit, controller, file string, values ...string) {
	p.add(limit, controller, file, values...)
	p.settings[len(p.settings)-1].neutral = true
}

// current reads a file of the group as it is now; for a group that nobody has changed it returns "".
type current func(controller, file string) (string, error)

// plan turns r into settings. It touches nothing, so that bad input fails before anything is made.
func (h *Host) plan(r *specs.LinuxResources, cur current) (plan, error) {
	var p plan
	if r == nil {
		return p, nil
	}
	var err error
	if h.mode == V2 {
		err = p.v2(r, cur)
	} else {
		err = p.v1(r)
	}
	if err != nil {
		return p, err
	}
	if r.Devices != nil {
		p.devices, err = parseDevices(r.Devices)
	}
	return p, err
}

// Update applies every limit that r sets to a group in use; what r leaves out stays as it is. Limits whose order matters
// (memory and swap, quota and period and burst) are applied in the order that the kernel accepts. The first
// refusal ends it: limits of other controllers may have been applied by then.
func (g *Group) Update(ctx context.Context, r *specs.LinuxResources) error {
	p, err := g.host.plan(r, g.read)
	if err == nil {
		err = g.checkUsage(p.check)
	}
	switch {
	case err != nil:
	case g.unit != "":
		err = g.updateUnit(ctx, p)
	default:
		err = g.apply(p, nil)
	}
	if err != nil {
		return fmt.Errorf("update cgroup %s: %w", g.path, err)
	}
	return nil
}

// read returns the content of a file of the group, "" when the group has no such controller.
func (g *Group) read(controller, file string) (string, error) {
	hi := g.host.byName[controller]
	if hi == nil {
		return "", nil
	}
	s, err := readTrim(hi.root, join(g.rel, file))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", hi.file(g.rel, file), err)
	}
	return s, nil
}

// checkUsage is memory.checkBeforeUpdate: v1 refuses a limit below the usage by itself, v2 would kill.
func (g *Group) checkUsage(limit uint64) error {
	if limit == 0 {
		return nil
	}
	s, err := g.read("memory", "memory.current")
	if err != nil {
		return err
	}
	if used, err := strconv.ParseUint(s, 10, 64); err == nil && used > limit {
		return &LimitError{
			Limit: "memory.limit", File: g.host.primary.file(g.rel, "memory.max"), Value: strconv.FormatUint(limit, 10),
			Err: fmt.Errorf("below the current usage of %d bytes: %w", used, syscall.EBUSY),
		}
	}
	return nil
}

// apply writes the plan, controller by controller. refused says of controllers why they could not be enabled.
func (g *Group) apply(p plan, refused map[string]error) error {
	var enabled []string
	if g.host.mode == V2 && len(p.settings) > 0 {
		var err error
		if enabled, err = g.host.primary.enabled(g.rel); err != nil {
			return err
		}
	}
	for len(p.settings) > 0 {
		c := p.settings[0].controller
		n := slices.IndexFunc(p.settings, func(s setting) bool { return s.controller != c })
		if n < 0 {
			n = len(p.settings)
		}
		group := p.settings[:n]
		p.settings = p.settings[n:]
		hi := g.host.byName[c]
		if c == "cgroup" { // the core files of v2
			hi = g.host.primary
		} else if hi == nil || g.host.mode == V2 && !slices.Contains(enabled, c) {
			if err := g.withoutController(group, refused[c]); err != nil {
				return err
			}
			continue
		}
		if err := g.writeAll(hi, group); err != nil {
			return err
		}
	}
	if p.devices == nil {
		return nil
	}
	return g.applyDevices(p.devices)
}

// withoutController is the error for settings of one controller that the group has not, unless it makes no difference.
func (g *Group) withoutController(ss []setting, refused error) error {
	i := slices.IndexFunc(ss, func(s setting) bool { return !s.neutral })
	if i < 0 {
		return nil
	}
	err := &UnsupportedError{Feature: ss[i].limit, Needs: "cgroup controller " + ss[i].controller + ", which " + g.path + " has not"}
	if refused != nil {
		return fmt.Errorf("%w: %w", err, refused)
	}
	return err
}

// writeAll writes the settings of one controller. The kernel refuses (EINVAL) a value that contradicts another in force,
// as a memory limit above the old memory+swap limit, so a refused one is tried again after the others have been
// written, as long as that gets any further.
func (g *Group) writeAll(hi *hierarchy, pending []setting) error {
	dir, err := hi.group(g.rel, len(pending))
	if err != nil {
		return err
	}
	defer dir.close()
	for {
		var again []setting
		var first error
		for _, s := range pending {
			err := g.write(hi, dir, s)
			switch {
			case err == nil:
			case errors.Is(err, syscall.EINVAL):
				again = append(again, s)
				if first == nil {
					first = err
				}
			default:
				return err
			}
		}
		if len(again) == 0 || len(again) == len(pending) {
			return first
		}
		pending = again
	}
}

func (g *Group) write(hi *hierarchy, dir groupDir, s setting) error {
	n, err := dir.at.WriteFile(dir.prefix+s.file, s.values...)
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) && n == 0 {
		if there, e := hi.root.Exists(g.rel); e == nil && there {
			switch {
			case s.alt != nil:
				return g.write(hi, dir, *s.alt)
			case s.neutral:
				return nil
			}
			return &UnsupportedError{Feature: s.limit, Needs: "a kernel that has " + hi.file(g.rel, s.file)}
		}
	}
	return &LimitError{Limit: s.limit, File: hi.file(g.rel, s.file), Value: s.values[min(n, len(s.values)-1)], Err: err}
}

// bytesOrMax checks a limit where -1 means none; set is false for nil and for 0, which OCI runtimes take as "not set".
func bytesOrMax(field string, v *int64) (n int64, set bool, err error) {
	if v == nil || *v == 0 {
		return 0, false, nil
	}
	if *v < -1 {
		return 0, false, fmt.Errorf("%s: %d is negative; only -1 (no limit) may be", field, *v)
	}
	return *v, true, nil
}

func maxOr(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// word checks that a string goes into a kernel file as one word.
func word(field, s string) error {
	if s == "" || strings.ContainsAny(s, " \t\r\n\x00") {
		return fmt.Errorf("%s: %q is empty or contains blanks", field, s)
	}
	return nil
}

// pidsMax is the value of pids.max. 0 becomes 1: the limit counts the container's first process, and 0 would keep it from
// being cloned into the group.
func pidsMax(n int64) (string, error) {
	switch {
	case n < -1:
		return "", fmt.Errorf("pids.limit: %d is negative; only -1 (no limit) may be", n)
	case n == 0:
		return "1", nil
	}
	return maxOr(n), nil
}

// CPUWeight converts cpu.shares (2 to 262144, default 1024) to cpu.weight (1 to 10000, default 100) with the quadratic
// formula that runc and crun use since 2025, which keeps the ratio round the default:
// 10^((l²+125l)/612 - 7/34) with l = log2(shares). 0 stays 0 ("not set").
func CPUWeight(shares uint64) uint64 {
	switch {
	case shares == 0:
		return 0
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612.0-7.0/34.0)))
}

// IOWeight converts blkio weight (10 to 1000) to io.weight (1 to 10000) linearly, as runc does. 0 stays 0.
func IOWeight(blkio uint16) uint64 {
	if blkio == 0 {
		return 0
	}
	return 1 + (uint64(blkio)-10)*9999/990
}

func checkIOWeight(field string, w *uint16) (set bool, err error) {
	if w == nil || *w == 0 {
		return false, nil
	}
	if *w < 10 || *w > 1000 {
		return false, fmt.Errorf("%s: %d is not between 10 and 1000", field, *w)
	}
	return true, nil
}

func deviceNumber(d specs.LinuxBlockIODevice) string {
	return strconv.FormatInt(d.Major, 10) + ":" + strconv.FormatInt(d.Minor, 10)
}

// pageSize checks the name of a huge page size, which becomes part of a file name.
func pageSize(s string) error {
	digits := strings.TrimRight(s, "KMGB")
	unit := s[len(digits):]
	if _, err := strconv.ParseUint(digits, 10, 32); err != nil || unit != "KB" && unit != "MB" && unit != "GB" {
		return fmt.Errorf("hugepageLimits.pageSize: %q is not <number>KB, MB or GB", s)
	}
	return nil
}

// hugepages is the same on both versions but for the last part of the file name. Page faults are limited, and
// reservations where the kernel can (5.7), which refuses the mmap instead of killing by SIGBUS later.
func (p *plan) hugepages(limits []specs.LinuxHugepageLimit, suffix string) error {
	for _, l := range limits {
		if err := pageSize(l.Pagesize); err != nil {
			return err
		}
		v := strconv.FormatUint(l.Limit, 10)
		p.add("hugepageLimits "+l.Pagesize, "hugetlb", "hugetlb."+l.Pagesize+"."+suffix, v)
		p.addNeutral("hugepageLimits "+l.Pagesize, "hugetlb", "hugetlb."+l.Pagesize+".rsvd."+suffix, v)
	}
	return nil
}

func (p *plan) rdma(devices map[string]specs.LinuxRdma) error {
	var lines []string
	for name, l := range devices {
		if err := word("rdma device", name); err != nil {
			return err
		}
		line := name
		if l.HcaHandles != nil {
			line += " hca_handle=" + strconv.FormatUint(uint64(*l.HcaHandles), 10)
		}
		if l.HcaObjects != nil {
			line += " hca_object=" + strconv.FormatUint(uint64(*l.HcaObjects), 10)
		}
		if line != name {
			lines = append(lines, line)
		}
	}
	if len(lines) > 0 {
		slices.Sort(lines)
		p.add("rdma", "rdma", "rdma.max", lines...)
	}
	return nil
}

// cpusetLists adds cpuset.cpus and cpuset.mems.
func (p *plan) cpusetLists(c *specs.LinuxCPU) error {
	for _, f := range []struct{ name, v string }{{"cpus", c.Cpus}, {"mems", c.Mems}} {
		if f.v == "" {
			continue
		}
		if err := word("cpu."+f.name, f.v); err != nil {
			return err
		}
		p.add("cpu."+f.name, "cpuset", "cpuset."+f.name, f.v)
	}
	return nil
}

// idleAndWeight adds cpu.idle and the weight, given as the file's name and value ("": not set). The kernel refuses a
// weight for an idle group, whose weight is the smallest there is.
func (p *plan) idleAndWeight(c *specs.LinuxCPU, file, weight string) error {
	idle := false
	if c.Idle != nil {
		if *c.Idle != 0 && *c.Idle != 1 {
			return fmt.Errorf("cpu.idle: %d is neither 0 nor 1", *c.Idle)
		}
		idle = *c.Idle == 1
		v := strconv.FormatInt(*c.Idle, 10)
		if idle {
			p.add("cpu.idle", "cpu", "cpu.idle", v)
		} else {
			p.addNeutral("cpu.idle", "cpu", "cpu.idle", v)
		}
	}
	if weight != "" && !idle {
		p.add("cpu.shares", "cpu", file, weight)
	}
	return nil
}
