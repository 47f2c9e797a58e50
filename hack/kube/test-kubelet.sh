#!/bin/bash
# test-kubelet.sh: an unmodified kubelet, without a cluster, on bin/cri-shim: static pods, looked at through the kubelet's
# own API. The kubelet is $KUBELET, else built once from its Go module (build.sh). Needs root; everything
# runs in namespaces and cgroups that end with it.
#   TEST_FLAGS    flags of the test binary, such as -test.run=TestVolumes
#   TEST_TIMEOUT  default 20m
#   KEEP_LOGS     folder that gets kubelet.log and daemon.log (default .cache/kubelet)
#   PREBUILT=1    take what an earlier run, or `test-kubelet.sh build`, has built
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
source hack/kube/parts.sh
cache=$PWD/.cache/kubelet
export KEEP_LOGS=${KEEP_LOGS:-$cache}
mkdir -p "$cache" "$KEEP_LOGS"

if [ -z "${PREBUILT-}" ]; then
  build_parts "$cache" kubelet
  (cd hack/kube && CGO_ENABLED=0 go test -c -trimpath -o "$cache/kubelet.test" ./kubelet)
fi
[ "${1-}" != build ] || exit 0
work=$(mktemp -d "${TMPDIR:-/tmp}/kl.XXXXXX") # short: a socket's path has 107 bytes
trap 'rm -rf --one-file-system "$work"' EXIT
use_parts "$cache" "$work"
export TEST_VOLUME=$work/volume
mkdir "$work/volume"
echo "from the image" > "$work/volume/content"
# shellcheck disable=SC2086 # several flags
hack/isolate.sh "$PWD/hack/kube/inside.sh" "$work" env -C hack/kube/kubelet "$cache/kubelet.test" \
  -test.v -test.timeout="${TEST_TIMEOUT:-20m}" -test.parallel=8 ${TEST_FLAGS-}
