package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestPodman lets podman run containers with this runtime, in a mount namespace with a /run of its own.
func TestPodman(t *testing.T) {
	if _, err := exec.LookPath("podman"); err != nil {
		t.Skip("needs podman")
	}
	b := ours(t, "")
	if err := os.Mkdir(filepath.Join(b.bundle, "rootfs/etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"run", "var/tmp"} {
		if err := os.MkdirAll(filepath.Join(b.bundle, "rootfs", d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Explicit limits: podman's own raise what not every machine may raise.
	const script = `
mount -t tmpfs run /run && mkdir /run/lock || exit 99
podman() { command podman --root "$1/storage" --runroot /run/storage --tmpdir /run/libpod --storage-driver vfs --cgroup-manager cgroupfs \
  --events-backend none --runtime "$2" "${@:3}"; }
p() { podman "$dir" "$runtime" "$@"; }
limits="--ulimit nofile=1024:1024 --ulimit nproc=1000:1000 --cgroup-parent /cri-shim-oci-test-podman --network none"
dir=$1 runtime=$2
p run --rm $limits --rootfs "$dir/bundle/rootfs" sh -c 'echo run; exit 4'; echo $?
p run --rm $limits -t --rootfs "$dir/bundle/rootfs" tty; echo $?
p run -d --name n $limits --memory 64m --rootfs "$dir/bundle/rootfs" sh -c 'trap "exit 6" TERM; while :; do sleep 0.1; done' > /dev/null; echo $?
p exec n sh -c 'echo exec; exit 5'; echo $?
p pause n > /dev/null && p unpause n > /dev/null; echo $?
p stop n > /dev/null; p inspect n -f '{{.State.ExitCode}}'
p rm -f n > /dev/null; echo $?
umount -R "$1/storage" 2>/dev/null
exit 0`
	dir := filepath.Dir(b.bundle)
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "bash", "-c", script, "bash", dir, b.program)
	r := b.runCommand(cmd)
	want := "run\n4\n/dev/pts/0\n0\n0\nexec\n5\n0\n6\n0\n"
	if got := strings.ReplaceAll(r.out, "\r", ""); r.code != 0 || got != want {
		t.Errorf("podman = %d, %q, %s; want %q", r.code, got, r.errs, want)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} { // podman leaves the parent, with conmon's in it
		left, _ := filepath.Glob(pattern + "/cri-shim-oci-test-podman")
		for _, g := range left {
			waitFor(t, "the end of "+g, func() bool { return removed(g) })
		}
	}
}

// removed removes a control group and those below it, unless a process is still in one.
func removed(group string) bool {
	below, _ := os.ReadDir(group)
	for _, e := range below {
		if e.IsDir() && !removed(filepath.Join(group, e.Name())) {
			return false
		}
	}
	err := os.Remove(group)
	return err == nil || errors.Is(err, os.ErrNotExist)
}
