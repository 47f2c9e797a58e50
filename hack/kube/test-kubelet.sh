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
cache=$PWD/.cache/kubelet
export KEEP_LOGS=${KEEP_LOGS:-$cache}
mkdir -p "$cache" "$KEEP_LOGS"

build() {
  [ -x bin/cri-shim ] || { echo "test-kubelet: no bin/cri-shim; make build" >&2; exit 1; }
  hack/kube/build.sh kubelet > "$cache/kubelet-path"
  hack/tools/build.sh crictl
  hack/cniplugins/build.sh .cache/cni-bin
  CGO_ENABLED=0 go build -trimpath -o "$cache/registry" ./hack/registry/cmd/registry
  (
    cd hack/kube
    CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$cache/testserver" ./testserver
    CGO_ENABLED=0 go test -c -trimpath -o "$cache/kubelet.test" ./kubelet
  )
}

if [ "${1-}" = --inside ]; then
  work=$2
  mount --make-rshared /
  ip link set lo up
  mount -t tmpfs tmpfs /var/log
  # The kubelet sets these for the whole machine: here it gets files of its own. A second procfs stays untouched,
  # as the kernel mounts one in a user namespace only where the whole of another can be seen.
  mkdir "$work/proc" "$work/sysctl"
  mount -t proc proc "$work/proc"
  for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    cat "/proc/sys/$name" > "$work/sysctl/${name//\//_}"
    mount --bind "$work/sysctl/${name//\//_}" "/proc/sys/$name"
  done
  cd hack/kube/kubelet
  # shellcheck disable=SC2086 # several flags
  exec "$cache/kubelet.test" -test.v -test.timeout="${TEST_TIMEOUT:-20m}" -test.parallel=8 ${TEST_FLAGS-}
fi

[ -n "${PREBUILT-}" ] || build
[ "${1-}" != build ] || exit 0
work=$(mktemp -d "${TMPDIR:-/tmp}/kl.XXXXXX") # short: a socket's path has 107 bytes
trap 'rm -rf --one-file-system "$work"' EXIT
mkdir -p "$work/tmp" "$work/rootfs/bin" "$work/rootfs/tmp" "$work/rootfs/etc" "$work/volume"
chmod 1777 "$work/rootfs/tmp"
cp "$(command -v busybox)" "$work/rootfs/bin/busybox"
for applet in $("$work/rootfs/bin/busybox" --list | grep -vx busybox); do ln -s busybox "$work/rootfs/bin/$applet"; done
cp "$cache/testserver" "$work/rootfs/testserver"
echo "from the image" > "$work/volume/content"

export KUBELET=${KUBELET:-$(cat "$cache/kubelet-path")} CRI_SHIM=$PWD/bin/cri-shim CRICTL=$PWD/.cache/tools/crictl
export CNI_PLUGINS=$PWD/.cache/cni-bin REGISTRY=$cache/registry TEST_ROOTFS=$work/rootfs TEST_VOLUME=$work/volume
export TMPDIR=$work/tmp
hack/isolate.sh "$PWD/hack/kube/test-kubelet.sh" --inside "$work"
