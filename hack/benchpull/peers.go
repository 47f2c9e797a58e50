package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/cri-shim/cri-shim/internal/sys"
)

// peer is a program that pulls. start returns what stops its daemon, and the daemon's process ID or 0.
type peer struct {
	name  string
	start func(dir string) (stop func(), pid int, err error)
	// pull returns when the images could be used; a process may have something to finish after that.
	pull func(dir string, refs []string) (time.Time, error)
}

func noDaemon(string) (func(), int, error) { return func() {}, 0, nil }

// newPeer returns nil for what is not installed. CONTAINERD_BIN names the folder of containerd and ctr.
func newPeer(name string) *peer {
	find := func(program string) string {
		path, err := exec.LookPath(filepath.Join(os.Getenv("CONTAINERD_BIN"), program))
		if err != nil {
			path, _ = exec.LookPath(program)
		}
		return path
	}
	switch name {
	case "cri-shim":
		return &peer{name, noDaemon, func(dir string, refs []string) (time.Time, error) {
			return pullOurs(filepath.Join(dir, "images"), refs)
		}}
	case "containerd":
		if daemon, ctr := find("containerd"), find("ctr"); daemon != "" && ctr != "" {
			return &peer{name, func(dir string) (func(), int, error) { return startContainerd(daemon, ctr, dir) },
				func(dir string, refs []string) (time.Time, error) {
					return each(refs, func(ref string) error {
						return command(ctr, "--address", filepath.Join(dir, "sock"), "images", "pull", "--plain-http", ref)
					})
				}}
		}
	case "podman":
		if podman, err := exec.LookPath(name); err == nil {
			return &peer{name, noDaemon, func(dir string, refs []string) (time.Time, error) {
				return each(refs, func(ref string) error {
					return command(podman, "--root", dir+"/root", "--runroot", dir+"/run", "--storage-driver", "overlay",
						"pull", "--quiet", "--tls-verify=false", ref)
				})
			}}
		}
	case "skopeo":
		if skopeo, err := exec.LookPath(name); err == nil {
			return &peer{name, noDaemon, func(dir string, refs []string) (time.Time, error) {
				return each(refs, func(ref string) error {
					return command(skopeo, "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "docker://"+ref,
						fmt.Sprintf("containers-storage:[overlay@%[1]s/root+%[1]s/run]%[2]s", dir, ref))
				})
			}}
		}
	}
	return nil
}

func each(refs []string, f func(string) error) (time.Time, error) {
	for _, ref := range refs {
		if err := f(ref); err != nil {
			return time.Time{}, err
		}
	}
	return time.Now(), nil
}

// pullOurs runs this program again, which says a line when it has pulled.
func pullOurs(root string, refs []string) (time.Time, error) {
	cmd := exec.Command("/proc/self/exe", append([]string{"pull-into", root}, refs...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var text bytes.Buffer
	cmd.Stderr = &text
	out, err := cmd.StdoutPipe()
	if err != nil {
		return time.Time{}, err
	}
	if err := cmd.Start(); err != nil {
		return time.Time{}, err
	}
	_, err = out.Read(make([]byte, 1))
	at := time.Now()
	if err = errors.Join(err, cmd.Wait()); err != nil {
		return at, fmt.Errorf("%w: %s", err, text.String())
	}
	return at, nil
}

func command(name string, args ...string) error {
	var out bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interruption is ours to handle
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(name), err, out.String())
	}
	return nil
}

// startContainerd runs a daemon with folders of its own, and as many unpacks at a time as there are downloads.
func startContainerd(daemon, ctr, dir string) (func(), int, error) {
	config := fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
[grpc]
address = %[3]q
[plugins.'io.containerd.transfer.v1.local']
max_concurrent_downloads = 3
max_concurrent_unpacks = 3
`, dir+"/root", dir+"/state", dir+"/sock")
	path := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, 0, err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return nil, 0, err
	}
	defer log.Close()
	cmd := exec.Command(daemon, "--config", path)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, 0, err
	}
	stop := func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if command(ctr, "--address", dir+"/sock", "version") == nil {
			return stop, cmd.Process.Pid, nil
		}
		if time.Now().After(deadline) {
			stop()
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			return nil, 0, fmt.Errorf("containerd does not answer: %s", text)
		}
	}
}

type usage struct {
	cpu     time.Duration
	written int64
}

// usageOf adds up what the ended children of this process took, and a daemon with its own children.
func usageOf(daemon int) (usage, error) {
	var u usage
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &ru); err != nil {
		return u, err
	}
	u.cpu = time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	pids := []string{"self"}
	if daemon != 0 {
		pids = append(pids, strconv.Itoa(daemon))
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", daemon))
		if err != nil {
			return u, err
		}
		// After the name, which may have anything in it: state is field 3; utime, stime, cutime, cstime are 14 to 17.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		for _, f := range fields[11:15] {
			ticks, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				return u, err
			}
			u.cpu += time.Duration(ticks) * (time.Second / 100) // USER_HZ
		}
	}
	for _, pid := range pids {
		text, err := os.ReadFile("/proc/" + pid + "/io")
		if err != nil {
			return u, err
		}
		for line := range strings.Lines(string(text)) {
			k, v, _ := strings.Cut(strings.TrimSpace(line), ": ")
			n, _ := strconv.ParseInt(v, 10, 64)
			switch k {
			case "write_bytes":
				u.written += n
			case "cancelled_write_bytes":
				u.written -= n
			}
		}
	}
	return u, nil
}

func syncfs(f *os.File) error { return sys.Syncfs(f) }

// diskUse counts blocks, those of hard links once. What is mounted below is not on this disk.
func diskUse(dir string) (int64, error) {
	var total int64
	var top syscall.Stat_t
	if err := syscall.Stat(dir, &top); err != nil {
		return 0, err
	}
	seen := map[uint64]bool{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return nil //nolint:nilerr // gone meanwhile
		}
		if st.Dev != top.Dev {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if !seen[st.Ino] {
			total += st.Blocks * 512
		}
		seen[st.Ino] = true
		return nil
	})
	return total, err
}

// unmountBelow takes away what a program left mounted in its store.
func unmountBelow(dir string) {
	all, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return
	}
	for _, m := range slices.Backward(all) {
		_ = syscall.Unmount(m.Mountpoint, syscall.MNT_DETACH) // the directory that stays tells
	}
}
