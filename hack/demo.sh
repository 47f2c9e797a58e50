#!/bin/bash
# demo.sh: starts the daemon and runs a pod in it, step by step, with crictl as the client. Everything is the
# demonstration's own: folders, cgroups, a network namespace, a registry with images made on the spot; at the
# end all is removed, and looked for. Takes about a minute after `make build`; fails if a step does not do what it
# should. Needs root, Go and Debian's packages (which it installs).
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."

if [ "$(id -u)" != 0 ]; then
  echo "demo.sh: needs root: it makes namespaces, mounts and cgroups" >&2
  exit 1
fi
if [ "${1-}" != inside ]; then
  hack/packages.sh demo
  hack/cniplugins/build.sh .cache/cni-bin
  hack/tools/build.sh crictl
  mkdir -p .cache/bin
  go build -buildvcs=false -o .cache/bin/registry ./hack/registry/cmd/registry
  exec unshare --net --mount --propagation private -- "$0" inside
fi

work=$(mktemp -d /tmp/cri-shim-demo.XXXXXX)
name=${work##*/}
socket=$work/cri-shim.sock
export CONTAINER_RUNTIME_ENDPOINT=unix://$socket IMAGE_SERVICE_ENDPOINT=unix://$socket CRI_SHIM_ENDPOINT=unix://$socket
export PATH=$PWD/bin:$PWD/.cache/tools:$PATH
registry_pid='' daemon_pid=''

bold='' plain=''
[ ! -t 1 ] || bold=$'\033[1m' plain=$'\033[0m'
heading() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
show() { echo "\$ $*"; "$@"; }
crictl() { command crictl --config /dev/null "$@"; }
fail() {
  echo "demo.sh: $*" >&2
  echo "the end of the daemon's log:" >&2
  tail -n 20 "$work/daemon.log" >&2
  exit 1
}
expect() { # WHAT GOT PATTERN
  [[ $2 =~ $3 ]] || fail "$1: got '$2'; want '$3'"
}
until_true() { # WHAT COMMAND...
  local i
  for ((i = 0; i < 200; i++)); do
    "${@:2}" > /dev/null 2>&1 && return
    sleep 0.05
  done
  fail "after 10 seconds not yet: $1"
}

start_daemon() {
  bin/cri-shim serve --config "$work/config.toml" >> "$work/daemon.log" 2>&1 &
  daemon_pid=$!
  until_true "the daemon answers" crictl version
}
stop_daemon() {
  kill -TERM "$daemon_pid"
  wait "$daemon_pid" || fail "the daemon ended with $?"
  daemon_pid=
}
# What is in the demonstration's cgroups, in any hierarchy.
processes() { find /sys/fs/cgroup -path "*/$name*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u; }
cgroups() { find /sys/fs/cgroup -depth -type d -path "*/$name*"; }

finish() {
  local status=$? pid
  trap - EXIT
  # Only what a failure left; a run that succeeds has removed all.
  [ -z "$daemon_pid" ] || kill "$daemon_pid" 2>/dev/null || true
  [ -z "$registry_pid" ] || kill "$registry_pid" 2>/dev/null || true
  for pid in $(processes); do kill -KILL "$pid" 2>/dev/null || true; done
  sleep 0.2
  awk -v dir="$work/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r umount -l 2>/dev/null || true
  cgroups | xargs -r rmdir 2>/dev/null || true
  rm -rf --one-file-system "$work"
  exit $status
}
trap finish EXIT

ip link set lo up
mkdir -p "$work/net.d"
cat > "$work/config.toml" <<END
root = "$work/root"
state = "$work/state"
listen = "$socket"
netns_dir = "$work/netns"
cni_conf_dir = "$work/net.d"
cni_bin_dirs = ["$PWD/.cache/cni-bin"]
supervisor_cgroup = "/$name/supervisors"
pids_limit = 64
END
cat > "$work/net.d/10-demo.conflist" <<END
{"cniVersion": "1.1.0", "name": "demo", "plugins": [
  {"type": "bridge", "bridge": "demo0", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "dataDir": "$work/ipam", "ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}}]}
END
cat > "$work/pod.json" <<END
{"metadata": {"name": "shop", "uid": "demo-1", "namespace": "default"}, "hostname": "shop", "log_directory": "$work/logs",
 "port_mappings": [{"container_port": 8080, "host_port": 8088}],
 "linux": {"cgroup_parent": "/$name/shop", "security_context": {"namespace_options": {"pid": 1}}}}
END
mkfifo "$work/registry"
.cache/bin/registry -listen 127.0.0.1:0 -root "$work/images" -busybox demo/busybox:1 -web demo/web:1 > "$work/registry" &
registry_pid=$!
read -r host < "$work/registry"
cat > "$work/web.json" <<END
{"metadata": {"name": "web"}, "image": {"image": "$host/demo/web:1"}, "log_path": "web.log",
 "labels": {"io.kubernetes.pod.name": "shop", "io.kubernetes.pod.namespace": "default"},
 "linux": {"resources": {"memory_limit_in_bytes": 67108864, "cpu_period": 100000, "cpu_quota": 50000},
  "security_context": {"namespace_options": {"pid": 1}, "seccomp": {"profile_type": 0}}}}
END
cat > "$work/counter.json" <<END
{"metadata": {"name": "counter"}, "image": {"image": "$host/demo/busybox:1"}, "log_path": "counter.log",
 "labels": {"io.kubernetes.pod.name": "shop", "io.kubernetes.pod.namespace": "default"},
 "command": ["/bin/sh", "-c", "i=0; while :; do echo \$i; i=\$((i+1)); usleep 5000; done"],
 "linux": {"security_context": {"namespace_options": {"pid": 1}, "seccomp": {"profile_type": 0}}}}
END

heading "The daemon is one program"
show ls -lh bin/cri-shim
start_daemon
show crictl version
conditions=$(crictl info -o go-template --template '{{range .status.conditions}}{{.type}}={{.status}} {{end}}')
echo "conditions: $conditions"
expect "the node's conditions" "$conditions" 'RuntimeReady=true NetworkReady=true'

heading "It pulls images (from a registry in this demonstration)"
show crictl pull "$host/demo/busybox:1"
show crictl pull "$host/demo/web:1"
show crictl images

heading "A pod with two containers"
pod=$(crictl runp "$work/pod.json")
web=$(crictl create "$pod" "$work/web.json" "$work/pod.json")
counter=$(crictl create "$pod" "$work/counter.json" "$work/pod.json")
crictl start "$web" "$counter" > /dev/null
show crictl pods
show crictl ps
expect "running containers" "$(crictl ps -q --state running | wc -l)" '^2$'

heading "Its limits, as the container sees them"
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  limits='memory.max cpu.max pids.max' want='67108864 50000 100000 64'
else
  limits='memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us pids/pids.max'
  want='67108864 50000 100000 64'
fi
show crictl exec -s "${web:0:13}" sh -c "cd /sys/fs/cgroup && grep . $limits"
expect "limits" "$(crictl exec -s "$web" sh -c "cd /sys/fs/cgroup && cat $limits" | xargs)" "^$want$"

heading "It answers, at the pod's address and through a port of the node"
address=$(crictl inspectp -o go-template --template '{{.status.network.ip}}' "$pod")
get() { timeout 5 busybox wget -q -O - "http://$1/"; }
until_true "the web server answers" get "$address:8080"
for at in "$address:8080" "127.0.0.1:8088"; do
  echo "http://$at/ says: $(get "$at")"
  expect "http://$at/" "$(get "$at")" '^hello from a pod$'
done

heading "Logs and exec"
show crictl logs --tail 3 "${counter:0:13}"
show crictl exec -s "${web:0:13}" sh -c 'hostname; id; grep Seccomp: /proc/self/status'
expect "exec" "$(crictl exec -s "$web" hostname)" '^shop$'

heading "The daemon may go: pods do not notice"
first() { crictl exec -s "$counter" sh -c 'cut -d" " -f22 /proc/1/stat'; } # when PID 1 began, in ticks
began=$(first)
lines=$(wc -l < "$work/logs/counter.log")
stop_daemon
echo "no daemon now; http://$address:8080/ says: $(get "$address:8080")"
sleep 1
grown=$(($(wc -l < "$work/logs/counter.log") - lines))
echo "lines that the counter has logged without a daemon: $grown"
((grown > 20)) || fail "the log did not go on without a daemon"
start_daemon
expect "the beginning of the counter's process" "$(first)" "^$began\$"
echo "a new daemon (process $daemon_pid), the same pod: its process began at tick $began, as before"
show crictl pods
gaps=$(awk '$4 != n++ { print "line " NR ": " $4; exit }' <(sed '$d' "$work/logs/counter.log"))
expect "gaps in the log" "$gaps" '^$'
echo "the log counts from 0 to $(tail -n 2 "$work/logs/counter.log" | awk 'NR == 1 { print $4 }') without a gap"

heading "Where the milliseconds went"
show bin/cri-shim timeline

heading "Everything is removed"
show crictl stop --timeout 1 "${web:0:13}" "${counter:0:13}"
show crictl stopp "${pod:0:13}"
show crictl rmp "${pod:0:13}"
expect "pods" "$(crictl pods -q)" '^$'
stop_daemon
kill "$registry_pid" && wait "$registry_pid" || true
registry_pid=

heading "Nothing is left"
nothing() { # WHAT LIST
  printf '%-28s %s\n' "$1" "${2:-none}"
  [ -z "$2" ] || fail "left behind: $1"
}
rmdir_parents() { cgroups | grep -E "/$name(/shop|/supervisors)?\$" | xargs -r rmdir; } # what the demonstration named
nothing "processes in its cgroups" "$(processes)"
nothing "cgroups of containers" "$(cgroups | grep -vE "/$name(/shop|/supervisors)?\$" || true)"
rmdir_parents || fail "its own cgroups cannot be removed"
nothing "mounts" "$(awk -v dir="$work/" 'index($5, dir) == 1 && $5 != dir "netns" { print $5 }' /proc/self/mountinfo)"
nothing "network namespaces" "$(ls "$work/netns")"
nothing "links of pods" "$(ip -o link show master demo0)"
nothing "addresses of pods" "$(find "$work/ipam" -name '10.88.*')"
nothing "rules for the pod" "$(iptables-save | grep -E -- "${pod:0:16}|$address" || true)"
nothing "files of pods" "$(find "$work/root" "$work/state" -name "*${pod:0:16}*" -o -name "*${web:0:16}*")"
umount "$work/netns" # as /run/netns, it stays a mount
printf '\nAll steps did what they should.\n'
