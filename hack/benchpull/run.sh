#!/bin/bash
# run.sh [FLAG...]: what `make bench-pull` runs. The stores are below /var/tmp (TMPDIR does not count: it may be a
# tmpfs). -help lists the flags; in the environment:
#   ROUNDS (3), CASES (gzip,zstd,layers,shared), PROGRAMS (cri-shim,containerd,podman,skopeo), SIZE (200, in MB)
#   CRI_SHIM, the program (bin/cri-shim); CONTAINERD_BIN, the folder of containerd, if it is not in $PATH
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
if [ "$(id -u)" != 0 ]; then
  echo 'bench-pull: needs root: layers have owners' >&2
  exit 1
fi
mkdir -p .cache/bin
go build -buildvcs=false -o .cache/bin/benchpull ./hack/benchpull
flags=()
for v in ROUNDS=rounds CASES=cases PROGRAMS=programs SIZE=size; do
  name=${v%=*}
  [ -z "${!name-}" ] || flags+=("-${v#*=}" "${!name}")
done
trap 'find /sys/fs/cgroup -depth -type d -path "*/benchpull" -exec rmdir {} + 2> /dev/null || true' EXIT # the daemons' own
# As PID 1 of its namespace it takes everything with it, however it ends.
# shellcheck disable=SC2016 # for the shell in the namespaces
unshare --net --pid --fork --kill-child --mount-proc --mount --propagation private -- \
  bash -c 'ip link set lo up && exec "$@"' bash .cache/bin/benchpull "${flags[@]}" "$@"
