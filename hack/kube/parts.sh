# parts.sh, for test-kubelet.sh, test-cluster.sh and cluster.sh to source: what they need built, from the root of the
# repository.

# build_parts CACHE NAME...: the programs of Kubernetes, crictl, the CNI plugins, the registry and the test server.
build_parts() {
  local cache=$1 name path
  shift
  [ -x bin/cri-shim ] || { echo "${0##*/}: no bin/cri-shim; make build" >&2; return 1; }
  mkdir -p "$cache"
  for name in "$@"; do
    path=$(hack/kube/build.sh "$name")
    echo "export $(tr a-z- A-Z_ <<< "$name")=${path@Q}"
  done > "$cache/programs"
  hack/tools/build.sh crictl
  hack/cniplugins/build.sh .cache/cni-bin
  CGO_ENABLED=0 go build -trimpath -o "$cache/registry" ./hack/registry/cmd/registry
  (cd hack/kube && CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$cache/testserver" ./testserver)
}

# use_parts CACHE WORK: the environment of the tests and of a cluster, and the root file system of their image in WORK.
use_parts() {
  local cache=$1 work=$2 applet
  # shellcheck disable=SC1091 # written by build_parts
  source "$cache/programs"
  mkdir -p "$work/tmp" "$work/rootfs/bin" "$work/rootfs/tmp" "$work/rootfs/etc"
  chmod 1777 "$work/rootfs/tmp"
  cp "$(command -v busybox)" "$work/rootfs/bin/busybox"
  for applet in $("$work/rootfs/bin/busybox" --list | grep -vx busybox); do ln -s busybox "$work/rootfs/bin/$applet"; done
  cp "$cache/testserver" "$work/rootfs/testserver"
  export CRI_SHIM=$PWD/bin/cri-shim CRICTL=$PWD/.cache/tools/crictl CNI_PLUGINS=$PWD/.cache/cni-bin REGISTRY=$cache/registry
  export TEST_ROOTFS=$work/rootfs TMPDIR=$work/tmp
}
