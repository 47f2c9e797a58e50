#!/bin/bash
# gpu-e2e.sh pack FILE.tar.gz: builds all that the test needs, on a machine with Go, gcc and Debian's C library: cri-shim, the
#   test, CNI plugins (which its pods do not call), a static busybox, a CUDA program and the C library that it runs with.
# gpu-e2e.sh run: where that was unpacked (hack/gpu-e2e.sh in it), or in a checkout, as root on a machine with an NVIDIA GPU and its driver. Needs nothing else
#   of it than bash, coreutils, util-linux, Linux 5.12, and cgroup v1 or v2; no toolkit, compiler, systemd or network.
#   GPU_DRIVER_ROOT: where the driver's libraries are, / by default; /usr/local/nvidia and other usual folders are found.
# gpu-e2e.sh fake: run, on a fake driver; what the test itself is tested with.
#
# A pod with one GPU runs nvidia-smi and a program of CUDA's driver API (query, alloc, copy, a kernel that the driver compiles
# from PTX), and keeps the GPU after an update, daemon-reload where systemd is, and a kill of the daemon; a pod without must
# not open it. The output has lines "gpu-e2e: WHAT: TEXT", and others that do not matter:
#   gpu-e2e: machine: KERNEL, cgroup VERSION        gpu-e2e: gpu ls: TABLE              gpu-e2e: gpu check: FINDING
#   gpu-e2e: nvidia-smi: GPU 0: MODEL (UUID: UUID)  gpu-e2e: cuda, WHEN: N device(s), MODEL, MEMORY, API VERSION: alloc, copy and kernel right
#   gpu-e2e: without a GPU: ...: Operation not permitted, and 0, the number of NVIDIA's nodes
#   gpu-e2e: start: TIME without a GPU, TIME with one; the shortest of thirty
# and ends with "gpu-e2e: result: PASS", "FAIL" (with the daemon's log before it) or "SKIP: WHY"; the status is 0, 1 or 77.
set -euo pipefail
here=$(dirname "$(dirname "$(realpath "$0")")")

say() { printf 'gpu-e2e: %s\n' "$*"; }
skip() { say "result: SKIP: $*"; exit 77; }

pack() { # FILE
  local file
  file=$(realpath -m "$1")
  out=$(mktemp -d)
  trap 'rm -rf "$out"' EXIT
  cd "$here"
  make -s build
  hack/cniplugins/build.sh .cache/cni-bin
  mkdir -p "$out"/{bin,hack/e2e,.cache/cni-bin,root/bin}
  cp bin/cri-shim "$out/bin/"
  for plugin in bridge host-local portmap bandwidth; do cp ".cache/cni-bin/$plugin" "$out/.cache/cni-bin/"; done
  CGO_ENABLED=0 go test -c -ldflags '-s -w' -o "$out/bin/e2e.test" ./hack/e2e
  cp "$(command -v busybox)" "$out/root/bin/busybox"
  (cd hack/e2e && GPU_E2E_PACK=$out/root "$out/bin/e2e.test" -test.run '^TestPackGPU$' -test.count=1 >/dev/null)
  [ -x "$out/root/bin/cuda" ] || { echo "gpu-e2e.sh: no CUDA program was made: gcc and Debian's C library are needed" >&2; exit 1; }
  cp go.mod "$out/" # the test looks for its tree by it
  cp hack/gpu-e2e.sh "$out/hack/"
  tar -C "$out" -czf "$file" .
  ls -lh "$file"
}

# delegate makes a cgroup v2 group pass its controllers on, as a container's outermost one does not while it has processes.
delegate() {
  local top=/sys/fs/cgroup controllers c
  [ -e $top/cgroup.controllers ] || return 0
  controllers=$(sed 's/[^ ]*/+&/g' $top/cgroup.controllers)
  if ! echo "$controllers" > $top/cgroup.subtree_control 2>/dev/null && [ -s $top/cgroup.procs ]; then
    mkdir -p $top/gpu-e2e.self
    while read -r c; do echo "$c" > $top/gpu-e2e.self/cgroup.procs 2>/dev/null || true; done < $top/cgroup.procs
    echo "$controllers" > $top/cgroup.subtree_control || say "machine: no controllers of cgroup v2: $controllers"
  fi
}

# inside runs in a mount namespace of its own.
inside() {
  local groups=v1
  if ! awk '$5 ~ "^/sys/fs/cgroup"' /proc/self/mountinfo | grep -q cgroup; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup || skip "there are no cgroups"
  fi
  awk '$5 ~ "^/sys/fs/cgroup" && / - cgroup2? / && $6 ~ /^ro/ { print $5 }' /proc/self/mountinfo | while read -r at; do mount -o remount,rw "$at"; done
  [ ! -e /sys/fs/cgroup/cgroup.controllers ] || groups=v2
  delegate
  say "machine: $(uname -sr), cgroup $groups"
  # A root file system cannot be made of layers on overlayfs, and the state is made for a tmpfs.
  export TMPDIR=$work/tmp
  mkdir "$TMPDIR"
  mount -t tmpfs -o mode=755 gpu-e2e "$TMPDIR"
  cd "$here/hack/e2e"
  status=0
  "$here/bin/e2e.test" -test.v -test.run '^TestRealGPU$' -test.count=1 -test.timeout=9m > "$work/out" 2>&1 || status=$?
  grep '^gpu-e2e: ' "$work/out" || true
  if [ $status != 0 ]; then
    grep -v '^gpu-e2e: ' "$work/out" || true
    say "result: FAIL"
    exit 1
  fi
  if grep -q -e '^--- SKIP' "$work/out"; then
    skip "$(grep -A1 -e '^--- SKIP' "$work/out" | tail -n 1 | sed 's/^ *//')"
  fi
  say "result: PASS"
}

run() {
  local top=/sys/fs/cgroup c
  [ "$(id -u)" = 0 ] || skip "needs root"
  [ -n "${GPU_E2E_FAKE-}" ] || [ -e /proc/driver/nvidia/version ] || skip "/proc/driver/nvidia/version is not there: no NVIDIA driver"
  if [ -d "$here/root" ]; then
    export GPU_E2E_ROOT=$here/root CRI_SHIM_LIBEXEC=$here/bin PATH=$here/root/bin:$PATH
  elif [ ! -x "$here/bin/e2e.test" ]; then
    (cd "$here" && CGO_ENABLED=0 go test -c -o bin/e2e.test ./hack/e2e)
  fi
  work=$(mktemp -d)
  export work
  trap 'rm -rf "$work"' EXIT
  status=0
  unshare --mount --propagation private -- "$0" inside || status=$?
  if [ -d $top/gpu-e2e.self ]; then
    # The group above takes its processes back once it passes nothing on.
    sed 's/[^ ]*/-&/g' $top/cgroup.controllers > $top/cgroup.subtree_control 2>/dev/null || true
    while read -r c; do echo "$c" > $top/cgroup.procs 2>/dev/null || true; done < $top/gpu-e2e.self/cgroup.procs
    rmdir $top/gpu-e2e.self 2>/dev/null || true
  fi
  exit $status
}

case ${1-} in
  pack) pack "${2:?usage: gpu-e2e.sh pack FILE.tar.gz}" ;;
  run) run ;;
  fake) export GPU_E2E_FAKE=1; run ;;
  inside) inside ;;
  *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
