#!/bin/bash
# leakcheck.sh snapshot FILE: notes what on this machine a container runtime could leave behind.
# leakcheck.sh compare FILE: names what has come since, and fails if anything has. What is still going
# away gets LEAKCHECK_GRACE seconds (default 5).
set -uo pipefail
usage="usage: leakcheck.sh snapshot|compare FILE"

# Processes of ours, orphans that stayed in this checkout (where tests run), and all that live in other
# namespaces than this script: a container's. One find for all links: a fork per process would take half a
# minute in an emulated guest.
processes() {
  local -A link
  local path target pid comm exe stat fields what space root
  root=$(realpath "${BASH_SOURCE[0]%/*}/..")
  while read -r path target; do
    link[$path]=$target
  done < <(find /proc/[0-9]*/{exe,cwd} /proc/[0-9]*/ns/{pid,mnt,net} /proc/self/ns/{pid,mnt,net} -maxdepth 0 -printf '%p %l\n')
  for pid in /proc/[0-9]*; do
    exe=${link[$pid/exe]-}
    # Kernel threads have no executable.
    [ -n "$exe" ] && read -r comm < "$pid/comm" && read -r stat < "$pid/stat" || continue
    # Behind the name's closing bracket: the state is the first field, the parent the second, the start
    # time the 20th. A process id alone may come again.
    read -r -a fields <<< "${stat##*) }"
    what=
    case $comm:$exe in
      cri-shim* | *:*cri-shim-* | *:*/cri-shim) what=ours ;;
      systemd-udevd:* | *:/usr/bin/udevadm) ;; # the system's, which comes with devices and stays a while
      *)
        [[ ${fields[1]} != 1 || ${link[$pid/cwd]-}/ != "$root"/* ]] || what="an orphan in ${link[$pid/cwd]}"
        for space in pid mnt net; do
          [ "${link[$pid/ns/$space]-}" = "${link[/proc/self/ns/$space]}" ] || what="another $space namespace"
        done
        ;;
    esac
    [ -n "$what" ] || continue
    echo "process ${pid#/proc/} $comm $exe ($what, started at tick ${fields[19]})"
  done
} 2>/dev/null

# Neighbours of this script's own cgroup come and go with whoever made it (systemd's services, the jobs of
# a build machine); they count only if their names are ours.
cgroups() {
  find /sys/fs/cgroup -mindepth 1 -type d | awk -F: '
    NR == FNR { own = $0; sub(/^[^:]*:[^:]*:/, "", own); if (own ~ /^\/[^\/]+\//) owns[own]; next }
    {
      foreign = 0
      for (own in owns) {
        near = own; sub(/[^\/]*$/, "", near)
        at = index($0, near)
        rest = substr($0, at + length(near))
        if (at && rest != "" && index($0 "/", own "/") == 0 && $0 !~ /cri-shim|kubepods/) foreign = 1
      }
      if (!foreign) print "cgroup " $0
    }' /proc/self/cgroup -
}

list() { # PREFIX: one line per input line
  sed "s|^|$1 |"
}

snapshot() {
  processes
  # /run/netns itself becomes a mount with the first network namespace, and stays (ip-netns(8)).
  awk '$5 != "/run/netns" { i = index($0, " - "); split(substr($0, i + 3), rest, " "); print "mount " $5 " (" rest[1] ")" }' /proc/self/mountinfo
  cgroups
  find /run/netns -mindepth 1 -maxdepth 1 -printf 'network namespace %p\n'
  ip -o link show | awk -F': ' '{ sub(/@.*/, "", $2); print "link " $2 }'
  ip -o address show | awk '{ print "address " $2 " " $4 }'
  ip route show table all | list route
  nft -s list ruleset | grep -v '^}*$' | list nftables
  iptables-legacy-save 2>/dev/null | grep '^-A' | list iptables-legacy
  ip6tables-legacy-save 2>/dev/null | grep '^-A' | list ip6tables-legacy
  losetup -n -O NAME,BACK-FILE | list "loop device"
  ls -d /run/cri-shim* /var/lib/cri-shim* /var/run/cri-shim* | list path
  find "${TMPDIR:-/tmp}" -mindepth 1 -maxdepth 1 -printf 'path %p\n'
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
