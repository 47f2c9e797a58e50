#!/bin/bash
# run.sh [NAME=SOCKET...]: what `make bench-pod` runs. Without arguments it measures bin/cri-shim, in folders, cgroups
# and a network namespace of its own; with arguments, the runtimes that listen there (then IMAGE must be one that
# all can pull, unless they can reach this machine's 127.0.0.1).
#   ROUNDS (30), PODS (50), NETWORK (host,cni), IDLE_NETWORK (host), IMAGE
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
flags=(-n "${ROUNDS:-30}" -pods "${PODS:-50}" -network "${NETWORK:-host,cni}" -idle-network "${IDLE_NETWORK:-host}")
[ -z "${IMAGE-}" ] || flags+=(-image "$IMAGE")

if [ "${1-}" != inside ]; then
  mkdir -p .cache/bin
  go build -buildvcs=false -o .cache/bin/bench ./hack/bench
  [ $# -eq 0 ] || exec .cache/bin/bench "${flags[@]}" "$@"
  hack/cniplugins/build.sh .cache/cni-bin
  exec unshare --net --mount --propagation private -- "$0" inside
fi

# Not below /tmp: it may be a tmpfs, and where it is none it is full of what was just deleted, whose inodes ext4 avoids.
work=$(mktemp -d /var/tmp/cri-shim-bench.XXXXXX)
name=${work##*/}
# As installed: what only matters while the kernel is up is on a tmpfs.
state=/run/$name
export TMPDIR=$work
daemon=''
finish() {
  local status=$? dir
  trap - EXIT
  if [ -n "$daemon" ]; then
    kill "$daemon" && wait "$daemon" || status=1
  fi
  # What a failure left.
  for dir in $(find /sys/fs/cgroup -depth -type d -path "*/$name*"); do
    xargs -r kill -KILL < "$dir/cgroup.procs" 2>/dev/null || true
    rmdir "$dir" 2>/dev/null || true
  done
  awk -v dir="$work/" -v state="$state/" 'index($5, dir) == 1 || index($5, state) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r umount -l 2>/dev/null || true
  [ $status = 0 ] || tail -n 20 "$work/log/daemon.log" >&2
  rm -rf --one-file-system "$work" "$state"
  exit $status
}
trap finish EXIT

ip link set lo up
mkdir "$work/net.d" "$work/log" # a log beside net.d would wake who watches that
cat > "$work/config.toml" <<END
root = "$work/root"
state = "$state"
listen = "$work/sock"
netns_dir = "$state/netns"
cni_conf_dir = "$work/net.d"
cni_bin_dirs = ["$PWD/.cache/cni-bin"]
supervisor_cgroup = "/$name/supervisors"
END
cat > "$work/net.d/10-bench.conflist" <<END
{"cniVersion": "1.1.0", "name": "bench", "plugins": [
  {"type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "dataDir": "$work/ipam", "ranges": [[{"subnet": "10.89.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}
END
bin/cri-shim serve --config "$work/config.toml" > "$work/log/daemon.log" 2>&1 &
daemon=$!
for ((i = 0; i < 200; i++)); do
  [ -S "$work/sock" ] && break
  sleep 0.05
done
.cache/bin/bench "${flags[@]}" -cgroup-parent "/$name/pods" "cri-shim=$work/sock"
