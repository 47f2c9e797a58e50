package seccomp

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// childEnv names the scenario that a re-executed test binary plays.
const childEnv = "SECCOMP_TEST_SCENARIO"

// In init, where the main goroutine is still on the main thread: TestKernelKills watches that thread die.
func init() {
	if os.Getenv(childEnv) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if name := os.Getenv(childEnv); name != "" {
		if err := child(scenarios[name]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// scenario is a profile and the calls that a process under it makes.
type scenario struct {
	profile func() (*specs.LinuxSeccomp, error)
	calls   []kernelCall
}

type kernelCall struct {
	name string
	bits uint32 // set in the number
	args [4]uintptr
	want syscall.Errno
}

func fixed(p *specs.LinuxSeccomp) func() (*specs.LinuxSeccomp, error) {
	return func() (*specs.LinuxSeccomp, error) { return p, nil }
}

func allowing(rules ...specs.LinuxSyscall) *specs.LinuxSeccomp {
	return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: rules}
}

func failing(e syscall.Errno, name string, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
	s := when(specs.ActErrno, name, args...)
	s.ErrnoRet = ptr(uint(e))
	return s
}

const stream = syscall.SOCK_STREAM

var scenarios = map[string]scenario{
	"default": {
		func() (*specs.LinuxSeccomp, error) { return Default(nil) },
		[]kernelCall{
			{name: "getppid"},
			{name: "mount", want: syscall.EPERM},
			{name: "keyctl", want: syscall.EPERM},
			{name: "clone3", want: syscall.ENOSYS},
			{name: "unshare", args: [4]uintptr{syscall.CLONE_NEWUSER}, want: syscall.EPERM},
			{name: "socket", args: [4]uintptr{syscall.AF_UNIX, stream}},
			{name: "socket", args: [4]uintptr{afAlg, syscall.SOCK_SEQPACKET}, want: syscall.EAFNOSUPPORT},
			{name: "socket", args: [4]uintptr{1<<32 | afAlg, syscall.SOCK_SEQPACKET}, want: syscall.EAFNOSUPPORT},
			{name: "socket", args: [4]uintptr{afVsock, stream}, want: syscall.EAFNOSUPPORT},
			{name: "socket", args: [4]uintptr{1<<40 | afVsock, stream}, want: syscall.EAFNOSUPPORT},
			{name: "socket", bits: x32Bit, args: [4]uintptr{afAlg, syscall.SOCK_SEQPACKET}, want: syscall.EAFNOSUPPORT},
			{name: "mount", bits: x32Bit, want: syscall.EPERM},
			{name: "personality", args: [4]uintptr{0xffffffff}},
			{name: "personality", args: [4]uintptr{0x0040000}, want: syscall.EPERM},
			{name: "rseq_slice_yield", want: syscall.ENOSYS},
		},
	},
	"default with CAP_SYS_ADMIN": {
		func() (*specs.LinuxSeccomp, error) { return Default([]string{"CAP_SYS_ADMIN"}) },
		[]kernelCall{{name: "setns", args: [4]uintptr{^uintptr(0)}, want: syscall.EBADF}},
	},
	"operators": {
		fixed(allowing(
			failing(1001, "lseek", arg(0, specs.OpEqualTo, 1000), arg(1, specs.OpEqualTo, 1<<32)),
			failing(1002, "fchmod", arg(0, specs.OpGreaterThan, 1<<32)),
			failing(1003, "fchdir", arg(0, specs.OpLessThan, 5<<32), arg(0, specs.OpMaskedEqual, 0xff<<32, 7<<32)),
			failing(1004, "dup", arg(0, specs.OpNotEqual, 1<<33)),
		)),
		[]kernelCall{
			{name: "lseek", args: [4]uintptr{1000, 1 << 32}, want: 1001},
			{name: "lseek", args: [4]uintptr{1000, 1}, want: syscall.EBADF},
			{name: "fchmod", args: [4]uintptr{1<<32 + 1}, want: 1002},
			{name: "fchmod", args: [4]uintptr{1 << 16}, want: syscall.EBADF},
			{name: "fchdir", args: [4]uintptr{1<<16 | 5<<32 - 1<<32}, want: 1003},
			{name: "fchdir", args: [4]uintptr{1<<16 | 7<<32}, want: 1003},
			{name: "fchdir", args: [4]uintptr{1<<16 | 6<<32}, want: syscall.EBADF},
			{name: "dup", args: [4]uintptr{0}, want: 1004},
		},
	},
	// The kernel drops the upper half of an int argument, the filter does not: why
	// denyFamilies masks.
	"upper half": {
		fixed(allowing(failing(1005, "socket", arg(0, specs.OpEqualTo, syscall.AF_UNIX)))),
		[]kernelCall{
			{name: "socket", args: [4]uintptr{syscall.AF_UNIX, stream}, want: 1005},
			{name: "socket", args: [4]uintptr{1<<32 | syscall.AF_UNIX, stream}},
		},
	},
	"upper half masked": {
		fixed(allowing(failing(1005, "socket", arg(0, specs.OpMaskedEqual, 0xffffffff, syscall.AF_UNIX)))),
		[]kernelCall{{name: "socket", args: [4]uintptr{1<<32 | syscall.AF_UNIX, stream}, want: 1005}},
	},
	"kill process": {fixed(allowing(when(specs.ActKillProcess, "getppid"))), []kernelCall{{name: "getppid"}}},
	"kill by arch": {fixed(allowing()), []kernelCall{{name: "getppid", bits: x32Bit}}},
	"flags": {
		func() (*specs.LinuxSeccomp, error) {
			p := allowing(when(specs.ActNotify, "mount"))
			p.ListenerPath = "/run/agent.sock"
			for _, name := range SupportedFlags() {
				p.Flags = append(p.Flags, specs.LinuxSeccompFlag(name))
			}
			return p, nil
		},
		[]kernelCall{{name: "getppid"}},
	},
	"trace": {fixed(allowing(when(specs.ActTrace, "getppid"))), []kernelCall{{name: "getppid", want: syscall.ENOSYS}}},
	"log":   {fixed(allowing(when(specs.ActLog, "getppid"))), []kernelCall{{name: "getppid"}}},
}

// child loads the scenario's filter and makes its calls, an answer on each line.
func child(s scenario) error {
	p, err := s.profile()
	if err != nil {
		return err
	}
	f, err := Compile(p)
	if err != nil {
		return err
	}
	index := syscallIndex()
	native, _ := nativeArch()
	listener, err := loadFilter(f.Program, f.Flags)
	if err != nil {
		return err
	}
	if want := f.Flags&FlagNewListener != 0; want != (listener >= 0) {
		return fmt.Errorf("flags %#x gave the listener %d", f.Flags, listener)
	}
	for _, c := range s.calls {
		nr := uintptr(uint32(index[c.name][native]) | c.bits)
		_, _, e := syscall.RawSyscall6(nr, c.args[0], c.args[1], c.args[2], c.args[3], 0, 0)
		fmt.Printf("%s %d\n", c.name, int(e))
	}
	return nil
}

// play runs a scenario in a process of its own.
func play(t *testing.T, name string) (output string, err error) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+name)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if stderr.Len() > 0 {
		t.Logf("stderr: %s", stderr.String())
	}
	return string(out), err
}

func needSeccomp(t *testing.T) {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("the scenarios use numbers of x86_64 and x32")
	}
	if !sys.SeccompFlagsSupported(0) {
		t.Skip("the kernel has no seccomp filters")
	}
}

func TestKernelVerdicts(t *testing.T) {
	needSeccomp(t)
	for _, name := range []string{"default", "default with CAP_SYS_ADMIN", "operators", "upper half", "upper half masked", "flags", "trace", "log"} {
		t.Run(name, func(t *testing.T) {
			got, err := play(t, name)
			if err != nil {
				t.Fatalf("child: %v\n%s", err, got)
			}
			want := ""
			for _, c := range scenarios[name].calls {
				want += fmt.Sprintf("%s %d\n", c.name, int(c.want))
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("calls and errnos (-want +got):\n%s", diff)
			}
		})
	}
}

func TestKernelKills(t *testing.T) {
	needSeccomp(t)
	out, err := play(t, "kill process")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGSYS || out != "" {
		t.Errorf("child = %v, output %q; want death by SIGSYS", err, out)
	}
	// KILL_THREAD takes the main thread only: Go's other threads live on, so the child
	// has to be ended from here, and must not have got past the call.
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"=kill by arch")
	var stdout strings.Builder
	cmd.Stdout = &stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitZombieThread(t, cmd.Process.Pid)
	cmd.Process.Kill()
	cmd.Wait()
	if stdout.String() != "" {
		t.Errorf("a call of an unlisted architecture returned: %q", stdout.String())
	}
}

// waitZombieThread waits until the main thread of pid is dead.
func waitZombieThread(t *testing.T, pid int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", pid, pid))
		if err != nil {
			t.Errorf("state of the child: %v", err)
			return
		}
		_, after, _ := strings.Cut(string(b), ") ")
		if strings.HasPrefix(after, "Z") {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("state of the child = %.1q; want Z", after)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestKernelI386 makes i386 calls, which 64-bit code can make by int 0x80.
func TestKernelI386(t *testing.T) {
	needSeccomp(t)
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skipf("no C compiler: %v", err)
	}
	bin := filepath.Join(t.TempDir(), "int80")
	if out, err := exec.Command(gcc, "-O1", "-Wall", "-o", bin, "testdata/int80.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	if err := exec.Command(bin, "20,0,0").Run(); err != nil {
		t.Skipf("the kernel has no IA-32 emulation: getpid = %v", err)
	}
	p, err := defaultWith(nil, denySocketcall())
	if err != nil {
		t.Fatal(err)
	}
	libc := []string{"write", "exit_group", "fstat", "newfstatat"}
	for _, tt := range []struct {
		profile *specs.LinuxSeccomp
		call    string
		want    string
	}{
		{p, "359,38,5", "-97"}, // socket(AF_ALG)
		{p, "359,40,1", "-97"}, // socket(AF_VSOCK)
		{p, "359,1,1", "fd"},   // socket(AF_UNIX)
		{p, "102,1,0", "-38"},  // socketcall(SYS_SOCKET)
		{p, "21,0,0", "-1"},    // mount
		{p, "471,0,0", "-38"},  // newer than the profile
		{denyingOn(specs.ArchX86, allow(append(libc, "bind")...)), "102,2,0", "-14"},   // socketcall(SYS_BIND)
		{denyingOn(specs.ArchX86, allow(append(libc, "bind")...)), "102,3,0", "-1"},    // socketcall(SYS_CONNECT)
		{denyingOn(specs.ArchX86, allow(append(libc, "shmget")...)), "117,24,0", "-1"}, // ipc(SHMCTL)
	} {
		f, err := Compile(tt.profile)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(bin, tt.call)
		cmd.Stdin = bytes.NewReader(f.Program)
		out, err := cmd.CombinedOutput()
		got := strings.TrimSpace(string(out))
		if tt.want == "fd" && err == nil {
			if n, err := strconv.Atoi(got); err != nil || n < 0 {
				t.Errorf("%s = %s; want a file descriptor", tt.call, got)
			}
			continue
		}
		if err != nil || got != tt.want {
			t.Errorf("%s = %s, %v; want %s", tt.call, got, err, tt.want)
		}
	}
}
