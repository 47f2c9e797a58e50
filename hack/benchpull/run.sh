#!/bin/bash
# run.sh [FLAG...]: what `make bench-pull` runs. The stores are below /var/tmp (TMPDIR does not count: it may be a
# tmpfs). CONTAINERD_BIN is the folder of containerd and ctr, if they are not in $PATH.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
if [ "$(id -u)" != 0 ]; then
  echo 'bench-pull: needs root: layers have owners' >&2
  exit 1
fi
mkdir -p .cache/bin
go build -buildvcs=false -o .cache/bin/benchpull ./hack/benchpull
exec unshare --mount --propagation private -- .cache/bin/benchpull "$@"
