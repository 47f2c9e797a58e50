package cgroup

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// decide is what the rules mean by the OCI runtime specification: applied in order, on top of "deny".
func decide(rules []specs.LinuxDeviceCgroup, kind byte, major, minor int64, want perm) bool {
	var allowed perm
	for _, r := range rules {
		p, err := parseRule(r)
		if err != nil {
			panic(err)
		}
		k := p.key
		if k.kind == 'a' {
			k.kind = kind
		}
		if !k.covers(deviceKey{kind, major, minor}) {
			continue
		}
		if p.allow {
			allowed |= p.perm
		} else {
			allowed &^= p.perm
		}
	}
	return want&^allowed == 0
}

// execute interprets the few instructions that a device program is made of.
func execute(t *testing.T, ins asm.Instructions, ctx [3]uint32) bool {
	t.Helper()
	labels := map[string]int{}
	for i, in := range ins {
		if s := in.Symbol(); s != "" {
			labels[s] = i
		}
	}
	var reg [11]uint64
	for pc := 0; pc < len(ins); pc++ {
		in := ins[pc]
		src := uint64(in.Constant)
		if in.OpCode.Source() == asm.RegSource {
			src = reg[in.Src]
		}
		jump := false
		switch op := in.OpCode; {
		case op.Class() == asm.LdXClass:
			reg[in.Dst] = uint64(ctx[in.Offset/4])
		case op.JumpOp() == asm.Exit:
			return reg[asm.R0] != 0
		case op.JumpOp() == asm.JNE:
			jump = reg[in.Dst] != src
		case op.JumpOp() == asm.JEq:
			jump = reg[in.Dst] == src
		case op.ALUOp() == asm.Mov:
			reg[in.Dst] = src
		case op.ALUOp() == asm.And:
			reg[in.Dst] &= src
		case op.ALUOp() == asm.RSh:
			reg[in.Dst] >>= src
		default:
			t.Fatalf("unknown instruction %v", in)
		}
		if jump {
			to, ok := labels[in.Reference()]
			if !ok || to <= pc {
				t.Fatalf("instruction %d jumps to %q at %d", pc, in.Reference(), to)
			}
			pc = to - 1
		}
	}
	t.Fatal("program runs off its end")
	return false
}

func randomRules(r *rand.Rand) []specs.LinuxDeviceCgroup {
	var rules []specs.LinuxDeviceCgroup
	number := func() *int64 {
		return []*int64{nil, ptr(int64(-1)), ptr(int64(1)), ptr(int64(2)), ptr(int64(3))}[r.IntN(5)]
	}
	for range r.IntN(7) {
		rules = append(rules, specs.LinuxDeviceCgroup{
			Allow: r.IntN(3) > 0, Type: []string{"a", "b", "c", ""}[r.IntN(4)], Major: number(), Minor: number(),
			Access: []string{"r", "w", "m", "rw", "rm", "rwm", ""}[r.IntN(7)],
		})
	}
	return rules
}

// forEachAccess calls f with every access that the kernel asks about to every device that the random rules can name
// and one that they cannot.
func forEachAccess(f func(kind byte, major, minor int64, p perm)) {
	for _, kind := range []byte{'b', 'c'} {
		for major := int64(1); major <= 4; major++ {
			for minor := int64(1); minor <= 4; minor++ {
				for _, p := range []perm{permMknod, permRead, permWrite, permRead | permWrite} {
					f(kind, major, minor, p)
				}
			}
		}
	}
}

func TestProgramMeansTheRules(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		rules := randomRules(r)
		l, err := parseDevices(rules)
		if err != nil {
			t.Fatal(err)
		}
		ins := l.instructions()
		forEachAccess(func(kind byte, major, minor int64, p perm) {
			typ := uint32(devChar)
			if kind == 'b' {
				typ = devBlock
			}
			got := execute(t, ins, [3]uint32{uint32(p)<<16 | typ, uint32(major), uint32(minor)})
			if want := decide(rules, kind, major, minor, p); got != want {
				t.Fatalf("%s: %c %d:%d %s = %t; want %t", l, kind, major, minor, p, got, want)
			}
		})
	}
}

// v1 has its own way to decide (security/device_cgroup.c): with default deny one exception must hold all that is asked
// for, with default allow none may hold any of it.
func TestExceptionsMeanTheRules(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	checked := 0
	for range 2000 {
		rules := randomRules(r)
		l, err := parseDevices(rules)
		if err != nil {
			t.Fatal(err)
		}
		e, err := l.exceptions()
		if errors.Is(err, errors.ErrUnsupported) {
			continue
		}
		checked++
		forEachAccess(func(kind byte, major, minor int64, p perm) {
			one, some := false, false
			for k, q := range e.perms {
				if k.covers(deviceKey{kind, major, minor}) {
					one = one || p&^q == 0
					some = some || p&q != 0
				}
			}
			got := one
			if e.allowAll {
				got = !some
			}
			want := decide(rules, kind, major, minor, p)
			if got != want && !(want && crossing(e, deviceKey{kind, major, minor})) {
				t.Fatalf("%s as %v: %c %d:%d %s = %t; want %t", l, e, kind, major, minor, p, got, want)
			}
		})
	}
	if checked < 500 {
		t.Errorf("only %d of 2000 lists could be expressed", checked)
	}
}

// crossing reports that "1:*" and "*:1" both name the device: v1 cannot add up what they grant.
func crossing(e exceptions, dev deviceKey) bool {
	for a := range e.perms {
		for b := range e.perms {
			if a.covers(dev) && b.covers(dev) && !a.covers(b) && !b.covers(a) {
				return true
			}
		}
	}
	return false
}

func TestParseDevicesErrors(t *testing.T) {
	for want, r := range map[string]specs.LinuxDeviceCgroup{
		"devices[0]: type":   {Type: "x"},
		"devices[0]: access": {Type: "c", Access: "rx"},
		"devices[0]: major":  {Type: "c", Major: ptr(int64(4096))},
		"devices[0]: minor":  {Type: "c", Minor: ptr(int64(-2))},
	} {
		if _, err := parseDevices([]specs.LinuxDeviceCgroup{r}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("parseDevices(%+v) = %v; want %s", r, err, want)
		}
	}
	allowC := specs.LinuxDeviceCgroup{Allow: true, Type: "c"}
	denyNull := specs.LinuxDeviceCgroup{Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "w"}
	l, err := parseDevices([]specs.LinuxDeviceCgroup{allowC, denyNull})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.exceptions(); err == nil || !strings.Contains(err.Error(), "deny c 1:3 w inside c *:*") {
		t.Errorf("exceptions = %v; want unsupported that names the rules", err)
	}
}

func TestDevicesListRoundTrip(t *testing.T) {
	l, err := parseDevices(DefaultDevices())
	if err != nil {
		t.Fatal(err)
	}
	e, err := l.exceptions()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"b *:* m", "c *:* m", "c 136:* rwm", "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm",
		"c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm",
	}
	if diff := cmp.Diff(want, e.lines()); diff != "" {
		t.Error(diff)
	}
	back := parseDevicesList([]byte(strings.Join(e.lines(), "\n") + "\n"))
	if diff := cmp.Diff(e, back, cmp.AllowUnexported(exceptions{}, deviceKey{})); diff != "" {
		t.Error(diff)
	}
}
