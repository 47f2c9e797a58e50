#!/bin/bash
# test-cluster.sh: a Kubernetes of one node on bin/cri-shim, and what people do with one, by the real kubectl; then
# cluster.sh up and down, and a look for what they left behind. Programs are built once (build.sh). Needs root;
# everything runs in namespaces and cgroups that end with it.
#   TEST_FLAGS    flags of the test binary, such as -test.run=TestService
#   TEST_TIMEOUT  default 30m
#   KEEP_LOGS     folder that gets the logs of all parts (default .cache/cluster/logs)
#   PREBUILT=1    take what an earlier run, or `test-cluster.sh build`, has built
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
source hack/kube/parts.sh
cache=$PWD/.cache/cluster
export KEEP_LOGS=${KEEP_LOGS:-$cache/logs}
mkdir -p "$cache" "$KEEP_LOGS"

if [ -z "${PREBUILT-}" ]; then
  hack/kube/cluster.sh build
  (cd hack/kube && CGO_ENABLED=0 go test -c -trimpath -o "$cache/cluster.test" ./cluster)
fi
[ "${1-}" != build ] || exit 0
work=$(mktemp -d "${TMPDIR:-/tmp}/kt.XXXXXX") # short: a socket's path has 107 bytes
trap 'rm -rf --one-file-system "$work"' EXIT
tunables() { sysctl -a 2> /dev/null | grep -E '^(vm\.|kernel\.(panic|keys)|net\.netfilter\.nf_conntrack_max|net\.ipv4\.ip_forward|net\.bridge)' || true; }
tunables > "$work/tunables"
hack/leakcheck.sh snapshot "$work/before"

failed=0
(
  use_parts "$cache" "$work"
  # shellcheck disable=SC2086 # several flags
  hack/isolate.sh "$PWD/hack/kube/inside.sh" "$work" env -C hack/kube/cluster "$cache/cluster.test" \
    -test.v -test.timeout="${TEST_TIMEOUT:-30m}" ${TEST_FLAGS-}
) || failed=1

# The way of a person, from the machine's own network namespace.
by_hand() {
  local kubeconfig
  # shellcheck disable=SC1091 # written by cluster.sh build
  source "$cache/programs"
  kubeconfig=$(PREBUILT=1 hack/kube/cluster.sh up | sed -n 's/^export KUBECONFIG=//p')
  "$KUBECTL" --kubeconfig "$kubeconfig" --cache-dir "$work/kubectl" run by-hand --image 127.0.0.1:5000/kube/test:1 --restart=Never \
    --attach --quiet --command -- /bin/echo from inside | tee "$work/said"
  grep -qx 'from inside' "$work/said"
}
if [ -z "${TEST_FLAGS-}" ]; then
  if by_hand; then echo "--- PASS: cluster.sh up"; else echo "--- FAIL: cluster.sh up"; failed=1; fi
  hack/kube/cluster.sh down || failed=1
fi
rm -rf --one-file-system "${work:?}"/{tmp,rootfs,proc,sysctl,kubectl}
if ! tunables | diff "$work/tunables" -; then echo "--- FAIL: kernel settings changed"; failed=1; fi
hack/leakcheck.sh compare "$work/before" || failed=1
exit $failed
