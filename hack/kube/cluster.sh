#!/bin/bash
# cluster.sh up|down|status|build: a Kubernetes of one node on bin/cri-shim, in namespaces and cgroups of its own; one per
# checkout. up builds what is missing (build.sh), waits until the node and CoreDNS are ready, and prints the KUBECONFIG
# to use: the API server is forwarded to a port of 127.0.0.1. down ends it and leaves nothing. Needs root.
#   LISTEN        address for the API server (default 127.0.0.1:0, any free port)
#   PREBUILT=1    take what an earlier run has built
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
source hack/kube/parts.sh
cache=$PWD/.cache/cluster
current=$cache/current # its process, when that started, and its folder

build() {
  build_parts "$cache" kubelet kubectl kube-apiserver kube-controller-manager kube-scheduler kube-proxy etcd coredns
  (cd hack/kube && CGO_ENABLED=0 go build -trimpath -o "$cache/cluster" ./cmd/cluster)
}

# The start time of a process; a process id alone may come again.
started() {
  local stat fields
  stat=$(cat "/proc/$1/stat" 2> /dev/null) || return
  read -r -a fields <<< "${stat##*) }"
  echo "${fields[19]}"
}

# running sets pid and dir.
running() {
  local when
  [ -e "$current" ] && read -r pid when dir < "$current" && [ "$(started "$pid")" = "$when" ]
}

how_to_use() {
  # shellcheck disable=SC1091 # written by build_parts
  source "$cache/programs"
  cat <<TEXT
export KUBECONFIG=$dir/kubeconfig
  kubectl:  $KUBECTL
  crictl:   $PWD/.cache/tools/crictl --runtime-endpoint unix://$dir/sock
  images:   bin/cri-shim image import --endpoint unix://$dir/sock ARCHIVE (no registry outside can be reached)
  logs:     $dir/*.log
TEXT
}

up() {
  if running; then
    how_to_use
    return
  fi
  [ "$(id -u)" = 0 ] || { echo "cluster.sh: needs root" >&2; return 1; }
  rm -f "$current"
  [ -n "${PREBUILT-}" ] || build
  dir=$(mktemp -d "${TMPDIR:-/tmp}/kc.XXXXXX") # short: a socket's path has 107 bytes
  use_parts "$cache" "$dir"
  setsid "$cache/cluster" -dir "$dir" -listen "${LISTEN:-127.0.0.1:0}" hack/isolate.sh hack/kube/inside.sh > "$dir/cluster.log" 2>&1 < /dev/null &
  pid=$!
  echo "$pid $(started "$pid") $dir" > "$current"
  until [ -e "$dir/ready" ]; do
    if ! running; then
      echo "cluster.sh: the cluster ended:" >&2
      tail -n 40 "$dir/cluster.log" >&2
      down
      return 1
    fi
    sleep 0.2
  done
  how_to_use
}

down() {
  [ -e "$current" ] || { echo "cluster.sh: no cluster" >&2; return; }
  if running; then
    kill -TERM "$pid"
    while running; do sleep 0.1; done
  fi
  read -r _ _ dir < "$current"
  rm -rf --one-file-system "$dir"
  rm -f "$current"
}

case ${1-} in
  build) build ;;
  up) up ;;
  down) down ;;
  status)
    if ! running; then
      echo "cluster.sh: no cluster" >&2
      exit 1
    fi
    how_to_use
    # shellcheck disable=SC1091 # written by build_parts
    source "$cache/programs"
    "$KUBECTL" --kubeconfig "$dir/kubeconfig" --cache-dir "$dir/kubectl-cache" get nodes,pods --all-namespaces -o wide
    ;;
  *) sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
