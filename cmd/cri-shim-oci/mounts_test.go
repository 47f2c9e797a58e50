package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cri-shim/cri-shim/internal/testtools"
)

func mountsOf(t *testing.T, pid string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/" + pid + "/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func namespaceOf(t *testing.T, pid string) string {
	t.Helper()
	link, err := os.Readlink("/proc/" + pid + "/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// others is a process in a mount namespace of its own.
func others(t *testing.T) (pid string) {
	t.Helper()
	cmd := exec.Command("unshare", "--mount", "sh", "-c", "echo; exec sleep 1000")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return itoa(cmd.Process.Pid)
}

// TestForeignMounts: a container in the host's mount namespace, or in that of other processes, has its own root and
// mounts, and they have none of them; an exec is in the container's root too, and root cannot break out of it.
func TestForeignMounts(t *testing.T) {
	for name, of := range map[string]func(*testing.T) string{
		"host": func(*testing.T) string { return "self" }, "others": others,
	} {
		t.Run(name, func(t *testing.T) {
			b := ours(t, "echo started; exec sleep 1000")
			for _, a := range []string{"chroot", "mkdir", "grep", "mount"} {
				b.applet(a)
			}
			pid := of(t)
			b.spec.Linux.Namespaces = slices.DeleteFunc(b.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.MountNamespace })
			if pid != "self" {
				b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.MountNamespace, Path: "/proc/" + pid + "/ns/mnt"})
			}
			volume := t.TempDir()
			if err := os.WriteFile(filepath.Join(volume, "here"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/volume", Source: volume, Options: []string{"rbind", "ro"}},
				specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "nodev", "noexec"}})
			caps := &specs.LinuxCapabilities{}
			for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted} {
				*set = []string{"CAP_SYS_CHROOT", "CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"}
			}
			b.spec.Process.Capabilities = caps
			b.spec.Root.Readonly = true
			b.write()

			before, root := mountsOf(t, pid), namespaceOf(t, pid)
			rootsBefore, _ := os.ReadDir("/proc/" + pid + "/root/")
			if r := b.run("create", "c"); strings.Contains(r.errs, "needs Linux 6.15") {
				t.Skip(r.errs)
			} else if r.code != 0 {
				t.Fatalf("create = %d, %s", r.code, r.errs)
			}
			first := itoa(b.state("c").PID)
			if got := namespaceOf(t, first); got != root {
				t.Errorf("the container's mount namespace is %s; want %s", got, root)
			}
			for script, want := range map[string]string{
				"ls /volume":                               "here\n",
				"echo >/volume/x || echo refused":          "refused\n",
				"echo >/x || echo refused":                 "refused\n",
				"echo >/sys/fs/cgroup/x || echo refused":   "refused\n",
				"ls /proc/acpi":                            "",
				"echo >/proc/sys/kernel/x || echo refused": "refused\n",
				"cd /tmp; mkdir -p /dev/jail; chroot /dev/jail /bin/true 2>/dev/null; cd ../../../../..; ls -d home root boot 2>/dev/null": "",
				"ls -d /home /root /boot 2>/dev/null": "",
			} {
				r := b.run("exec", "c", "sh", "-c", script)
				if r.out != want {
					t.Errorf("%s = %q (%s); want %q", script, r.out, r.errs, want)
				}
			}
			b.ok("start", "c")
			if after := mountsOf(t, pid); after != before {
				t.Errorf("the mounts of %s changed:\n%s\nbefore:\n%s", name, after, before)
			}
			if after, _ := os.ReadDir("/proc/" + pid + "/root/"); len(after) != len(rootsBefore) {
				t.Errorf("the root of %s has %v; want %v", name, after, rootsBefore)
			}
			b.ok("delete", "-f", "c")
			b.gone("c")
		})
	}
}

// TestForeignMountsRefused: what would have to change the mounts of others.
func TestForeignMountsRefused(t *testing.T) {
	b := ours(t, "true")
	b.spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.UserNamespace}}
	mapped := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings, b.spec.Hostname = mapped, mapped, ""
	b.write()
	b.fails("linux.namespaces: unsupported: a user namespace without a new mount namespace", "run", "c")
}

// TestRemount: mount(8)'s remount changes what is asked for and leaves the rest.
func TestRemount(t *testing.T) {
	b := ours(t, "cat /proc/self/mountinfo; echo >/data/late && echo written; ls /data")
	b.spec.Mounts = append(b.spec.Mounts,
		specs.Mount{Destination: "/data", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=64k"}},
		specs.Mount{Destination: "/data/below", Type: "tmpfs", Source: "tmpfs"},
		specs.Mount{Destination: "/data", Options: []string{"remount", "ro", "noexec", "size=128k"}},
		specs.Mount{Destination: "/volume", Source: t.TempDir(), Options: []string{"bind", "nodev", "ro"}},
		specs.Mount{Destination: "/volume", Options: []string{"remount", "bind", "rw", "noatime"}},
		specs.Mount{Destination: "/", Options: []string{"remount", "nodev"}},
		specs.Mount{Destination: "/counted", Type: "tmpfs", Source: "tmpfs", Options: []string{"iversion", "nosuid", "nodev", "ro", "noatime", "lazytime"}},
		specs.Mount{Destination: "/counted", Options: []string{"remount", "iversion", "noexec", "nolazytime"}},
	)
	b.write()
	got := b.ok("run", "c")
	for at, want := range map[string]string{
		" / ": " ro,nodev,", " /data ": " ro,nosuid,noexec,relatime -", " /volume ": " rw,nodev,noatime -", " /counted ": " ro,nosuid,nodev,noexec,noatime -",
	} {
		line := "none"
		for l := range strings.Lines(got) {
			if strings.Contains(l, at) && strings.Count(l[:strings.Index(l, at)], " ") == 3+strings.Count(at, " /data/") {
				line = l
			}
		}
		if !strings.Contains(line, want) || at == " /data " && !strings.Contains(line, "size=128k") {
			t.Errorf("%s is %s; want it%s", at, line, want)
		}
	}
	if !strings.Contains(got, "below") || strings.Contains(got, "written") {
		t.Errorf("output %s; want the mount that was made before, and nothing written", got)
	}
}

// TestPropagatingBind: a bind that propagates both ways is listed where it stands in the specification, and what is mounted
// below its source on the host stays mounted there.
func TestPropagatingBind(t *testing.T) {
	b := ours(t, "cut -d' ' -f5 /proc/self/mountinfo; ls /both/below; mount -t tmpfs x /both/out; read x")
	for _, a := range []string{"cut", "mount"} {
		b.applet(a)
	}
	both := t.TempDir()
	mount := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
			t.Fatalf("mount %v: %v: %s", args, err, out)
		}
	}
	mount("--bind", both, both)
	mount("--make-shared", both)
	t.Cleanup(func() { syscall.Unmount(both, syscall.MNT_DETACH) })
	for _, d := range []string{"below", "out"} {
		if err := os.Mkdir(filepath.Join(both, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount("-t", "tmpfs", "x", filepath.Join(both, "below"))
	if err := os.WriteFile(filepath.Join(both, "below/here"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b.spec.Linux.RootfsPropagation = "rshared"
	b.spec.Mounts = append(b.spec.Mounts,
		specs.Mount{Destination: "/first", Type: "tmpfs", Source: "tmpfs"},
		specs.Mount{Destination: "/both", Source: both, Options: []string{"rbind", "rshared"}},
		specs.Mount{Destination: "/last", Type: "tmpfs", Source: "tmpfs"})
	caps := b.spec.Process.Capabilities
	for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted} {
		*set = append(*set, "CAP_SYS_ADMIN")
	}
	b.write()
	cmd := b.command("run", "c")
	cmd.Stdin = nil
	r := b.runCommand(cmd)
	at := func(what string) int { return strings.Index(r.out, what) }
	if !(at("/first\n") >= 0 && at("/first\n") < at("/both\n") && at("/both\n") < at("/both/below\n") && at("/both/below\n") < at("/last\n")) {
		t.Errorf("mounted in the order of\n%s%s; want /first, /both, /both/below, /last", r.out, r.errs)
	}
	if !strings.Contains(r.out, "\nhere\n") {
		t.Errorf("the container does not see what is mounted below: %s", r.out)
	}
	mounts := mountsOf(t, "self")
	for dir, want := range map[string]int{"below": 1, "out": 1} {
		if got := strings.Count(mounts, fmt.Sprintf(" %s/%s ", both, dir)); got != want {
			t.Errorf("%s is mounted %d times on the host; want %d:\n%s", dir, got, want, mounts)
		}
	}
	syscall.Unmount(filepath.Join(both, "out"), syscall.MNT_DETACH)
	syscall.Unmount(filepath.Join(both, "below"), syscall.MNT_DETACH)
}

// TestCgroupMount: on cgroup v1 each hierarchy is there with the container's own group as its root, as in a mount that was
// made in its cgroup namespace, and has the attributes that were asked for, whatever those of the host's mount are.
func TestCgroupMount(t *testing.T) {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		t.Skip("needs cgroup v1")
	}
	testtools.NeedPrivate(t)
	for options, want := range map[string]string{
		"ro,nosuid,nodev,noexec": "ro,nosuid,nodev,noexec,relatime", "nosuid,strictatime": "rw,nosuid",
	} {
		const pids = "/sys/fs/cgroup/pids"
		const remount = syscall.MS_REMOUNT | syscall.MS_BIND
		if err := syscall.Mount("", pids, "", remount|syscall.MS_NODEV|syscall.MS_NOATIME, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Mount("", pids, "", remount, "") })
		b := ours(t, "cat /proc/self/mountinfo /proc/self/cgroup; echo 0 >/sys/fs/cgroup/pids/tasks && echo entered")
		b.spec.Mounts = append(slices.DeleteFunc(b.spec.Mounts, func(m specs.Mount) bool { return m.Type == "cgroup" }),
			specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: strings.Split(options, ",")})
		b.write()
		r := b.run("run", "c")
		mounted := 0
		for line := range strings.Lines(r.out) {
			if f := strings.Fields(line); strings.Contains(line, " - cgroup ") {
				mounted++
				if f[3] != "/" || f[5] != want || f[6] != "-" || !strings.HasPrefix(f[4], "/sys/fs/cgroup/") {
					t.Errorf("%s: mounted %s; want its root to be /, its options %s, and no propagation", options, line, want)
				}
			}
		}
		groups := 0
		for line := range strings.Lines(r.out) {
			if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[1] != "" && f[2] == "/" {
				groups++
			}
		}
		if mounted == 0 || mounted < groups {
			t.Errorf("%s: %d hierarchies are mounted, of %d:\n%s%s", options, mounted, groups, r.out, r.errs)
		}
		if entered := strings.Contains(r.out, "entered"); entered != strings.HasPrefix(want, "rw") {
			t.Errorf("%s: a file of the group was written: %v; %s", options, entered, r.errs)
		}
	}
}
