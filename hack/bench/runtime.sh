#!/bin/bash
# runtime.sh [NAME=COMMAND...]: what `make bench-runtime` runs: cri-shim's low-level runtime in-process, bin/cri-shim-oci
# if it was built, and the runtimes with runc's command line that are named or, without arguments, crun and runc where
# they are installed. In folders, a cgroup, a mount and a network namespace of its own.
#   ROUNDS (50)
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
if [ "${INSIDE-}" != 1 ]; then
  mkdir -p .cache/bin
  go build -buildvcs=false -tags payload -o .cache/bin/bench-runtime ./hack/bench/runtime
  INSIDE=1 exec unshare --net --mount --propagation private -- "$0" "$@"
fi

targets=("$@")
if [ $# = 0 ]; then
  for name in crun runc; do
    if path=$(command -v $name); then
      targets+=("$name=$path")
    else
      echo "without $name: it is not installed" >&2
    fi
  done
fi
[ ! -x bin/cri-shim-oci ] || targets=("cri-shim-oci=$PWD/bin/cri-shim-oci" "${targets[@]}")

# crun refuses a node with both versions of control groups; here, in a mount namespace of our own, it is one of v1 only.
if [ ! -e /sys/fs/cgroup/cgroup.controllers ] && mountpoint -q /sys/fs/cgroup/unified; then
  umount /sys/fs/cgroup/unified
  mount -t tmpfs bench /sys/fs/cgroup/unified # it makes folders there all the same
fi

# On a tmpfs, as /run is, where runtimes keep their state.
work=$(mktemp -d /run/cri-shim-bench.XXXXXX)
name=${work##*/}
groups=/sys/fs/cgroup
finish() {
  local status=$? dir
  trap - EXIT
  for dir in $(find $groups -depth -type d -path "*/$name*" ! -path "*/$name/bench" ! -path "*/$name"); do
    [ ! -e "$dir/cgroup.procs" ] || xargs -r kill -KILL < "$dir/cgroup.procs" 2>/dev/null || true
  done
  echo 0 > "$home"
  for dir in $(find $groups -depth -type d -path "*/$name*"); do
    rmdir "$dir" 2>/dev/null || true
  done
  rm -rf --one-file-system "$work"
  exit $status
}
if [ -e $groups/cgroup.controllers ]; then
  cpu=$groups/$name/cpu.stat
  home=$groups$(sed -n 's/^0:://p' /proc/self/cgroup)/cgroup.procs
  mkdir -p "$groups/$name/bench"
  echo 0 > "$groups/$name/bench/cgroup.procs"
else
  cpu=$groups/cpuacct/$name/cpuacct.usage
  home=$groups/cpuacct$(sed -n 's/^[0-9]*:\([^:]*,\)\?cpuacct\(,[^:]*\)\?://p' /proc/self/cgroup)/cgroup.procs
  mkdir -p "$groups/cpuacct/$name/bench"
  echo 0 > "$groups/cpuacct/$name/bench/cgroup.procs"
fi
trap finish EXIT
echo "load average: $(cut -d' ' -f1-3 /proc/loadavg), $(nproc) CPUs, Linux $(uname -r)"
.cache/bin/bench-runtime -n "${ROUNDS:-50}" -dir "$work" -cgroup "/$name/c" -cpu "$cpu" "${targets[@]}"
