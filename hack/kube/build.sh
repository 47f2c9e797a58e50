#!/bin/bash
# build.sh NAME...: builds kubelet, kubectl, kube-apiserver, kube-controller-manager, kube-scheduler,
# kube-proxy, etcd or coredns, in the version that go.mod names, into $CRI_SHIM_KUBE (default
# ~/.cache/cri-shim-kube), and prints each one's path. What was built from the same go.mod, go.sum and Go
# release is kept: all together take 3 to 6 minutes on two cores the first time. A program named by an
# environment variable ($KUBELET, $KUBE_APISERVER, ...) or, with CRI_SHIM_KUBE_PATH=1, found on the PATH, is
# taken instead.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
out=${CRI_SHIM_KUBE:-${HOME:-/root}/.cache/cri-shim-kube}
mkdir -p "$out"
cd "$here"

package() {
  case $1 in
    kubelet | kubectl | kube-apiserver | kube-controller-manager | kube-scheduler | kube-proxy) echo "k8s.io/kubernetes/cmd/$1" ;;
    etcd) echo go.etcd.io/etcd/server/v3 ;;
    coredns) echo github.com/coredns/coredns ;;
    *) echo "build.sh: $1: not one of kubelet kubectl kube-apiserver kube-controller-manager kube-scheduler kube-proxy etcd coredns" >&2; return 2 ;;
  esac
}

build() { # NAME PACKAGE
  local kubernetes flags
  kubernetes=$(awk '$1 == "k8s.io/kubernetes" && $2 ~ /^v/ { print $2 }' go.mod)
  flags="-s -w -X k8s.io/component-base/version.gitVersion=$kubernetes"
  flags+=" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<< "$kubernetes")"
  CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -ldflags "$flags" -o "$out/$1.tmp" "$2"
  mv "$out/$1.tmp" "$out/$1"
}

for name in "$@"; do
  variable=$(tr a-z- A-Z_ <<< "$name")
  if [ -n "${!variable-}" ]; then
    echo "${!variable}"
    continue
  fi
  if [ -n "${CRI_SHIM_KUBE_PATH-}" ] && command -v "$name"; then
    continue
  fi
  package=$(package "$name")
  if ! command -v go > /dev/null; then # a test guest: what the host has built is all there is
    [ -x "$out/$name" ] || { echo "build.sh: no go command, and no $out/$name" >&2; exit 1; }
    echo "$out/$name"
    continue
  fi
  stamp=$({ cat go.mod go.sum "$here/build.sh"; go version; } | sha256sum | cut -d' ' -f1)
  exec 9> "$out/$name.lock"
  flock 9 # two builds at once wait for each other; the loser finds it done
  if [ ! -x "$out/$name" ] || [ "$(cat "$out/$name.stamp" 2> /dev/null)" != "$stamp" ]; then
    build "$name" "$package"
    echo "$stamp" > "$out/$name.stamp"
  fi
  exec 9>&-
  echo "$out/$name"
done
