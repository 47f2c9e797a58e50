#!/bin/bash
# leakcheck.sh snapshot FILE: notes what on this machine a container runtime could leave behind.
# leakcheck.sh compare FILE: names what has come since, and fails if anything has. What is still going
# away gets LEAKCHECK_GRACE seconds (default 5).
set -uo pipefail
usage="usage: leakcheck.sh snapshot|compare FILE"

# Processes of ours, and all that live in other namespaces than this script: a container's.
processes() {
  local self_pid self_mnt self_net pid comm exe start what
  self_pid=$(readlink /proc/self/ns/pid) self_mnt=$(readlink /proc/self/ns/mnt) self_net=$(readlink /proc/self/ns/net)
  for pid in /proc/[0-9]*; do
    read -r comm < "$pid/comm" || continue
    exe=$(readlink "$pid/exe")
    what=
    case $comm:$exe in
      cri-shim* | *:*cri-shim-* | *:*/cri-shim) what=ours ;;
      *)
        [ "$(readlink "$pid/ns/pid")" = "$self_pid" ] || what="another pid namespace"
        [ "$(readlink "$pid/ns/mnt")" = "$self_mnt" ] || what="another mount namespace"
        [ "$(readlink "$pid/ns/net")" = "$self_net" ] || what="another network namespace"
        # Kernel threads show no executable and no namespaces.
        [ -n "$exe" ] || what=
        ;;
    esac
    [ -n "$what" ] || continue
    # Behind the command's closing bracket: state is field 1, the start time field 20.
    start=$(sed 's/.*) //' "$pid/stat" | cut -d' ' -f20) || continue
    [ -n "$start" ] && echo "process ${pid#/proc/} $comm $exe ($what, started at tick $start)"
  done
} 2>/dev/null

list() { # PREFIX: one line per input line
  sed "s|^|$1 |"
}

snapshot() {
  processes
  # /run/netns itself becomes a mount with the first network namespace, and stays (ip-netns(8)).
  awk '$5 != "/run/netns" { i = index($0, " - "); split(substr($0, i + 3), rest, " "); print "mount " $5 " (" rest[1] ")" }' /proc/self/mountinfo
  find /sys/fs/cgroup -mindepth 1 -type d -printf 'cgroup %p\n'
  find /run/netns -mindepth 1 -maxdepth 1 -printf 'network namespace %p\n'
  ip -o link show | awk -F': ' '{ sub(/@.*/, "", $2); print "link " $2 }'
  ip -o address show | awk '{ print "address " $2 " " $4 }'
  ip route show table all | list route
  nft -s list ruleset | grep -v '^}*$' | list nftables
  iptables-legacy-save 2>/dev/null | grep '^-A' | list iptables-legacy
  ip6tables-legacy-save 2>/dev/null | grep '^-A' | list ip6tables-legacy
  losetup -n -O NAME,BACK-FILE | list "loop device"
  ls -d /run/cri-shim* /var/lib/cri-shim* /var/run/cri-shim* | list path
  find "${TMPDIR:-/tmp}" /tmp -mindepth 1 -maxdepth 1 \( -name 'cri-shim*' -o -name 'Test*' -o -name 'Fuzz*' -o -name 'Benchmark*' \) -printf 'path %p\n'
  sed 's/ .*//' /sys/kernel/security/apparmor/profiles | list "AppArmor profile"
  ipcs -m -q -s | grep '^0x' | cut -d' ' -f1,2 | list "System V IPC"
} 2>/dev/null

case ${1-} in
  snapshot) snapshot | sort -u > "${2:?$usage}" ;;
  compare)
    for ((i = 0; ; i++)); do
      left=$(snapshot | sort -u | comm -13 "${2:?$usage}" -)
      [ -n "$left" ] || exit 0
      ((i < ${LEAKCHECK_GRACE:-5})) || break
      sleep 1
    done
    echo "left behind:"
    sed 's/^/  /' <<< "$left"
    exit 1
    ;;
  *) echo "$usage" >&2; exit 2 ;;
esac
