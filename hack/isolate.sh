#!/bin/bash
# isolate.sh COMMAND...: runs COMMAND, as root, below cgroups and in mount, network, IPC, UTS, PID and cgroup
# namespaces of its own, which end with it: a daemon, a kubelet or a cluster in there changes nothing of the machine.
# /sys/fs/cgroup shows the same hierarchies as outside, from the new groups downwards. The status is COMMAND's.
set -euo pipefail
self=$(realpath "$0")

# The cgroup mounts of this mount namespace: mount point, type, options of the file system.
cgroup_mounts() {
  awk '{ for (i = 7; $i != "-"; i++); if ($(i + 1) ~ /^cgroup2?$/) print $5, $(i + 1), $(i + 3) }' /proc/self/mountinfo
}

# PID 1 of the new namespaces.
inside() {
  local mounts root where type options
  mounts=$(cgroup_mounts)
  root=$(awk '{ for (i = 7; $i != "-"; i++); if ($5 == "/sys/fs/cgroup") print $(i + 1) }' /proc/self/mountinfo | tail -n 1)
  if [ "$root" = cgroup2 ]; then
    umount -R /sys/fs/cgroup
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
  else
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    while read -r where type options; do
      mkdir -p "$where"
      if [ "$type" = cgroup2 ]; then
        mount -t cgroup2 cgroup2 "$where"
      else
        options=${options#rw,}
        mount -t cgroup -o "${options/#name=/none,name=}" cgroup "$where"
      fi
    done <<< "$mounts"
  fi
  "$@" # not exec: somebody has to be PID 1 and reap
}

if [ "${1-}" = --inside ]; then
  inside "${@:2}"
  exit
fi
[ $# -gt 0 ] || { sed -n '2,4s/^# \{0,1\}//p' "$self" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "isolate.sh: needs root" >&2; exit 1; }

name=isolate-$$
groups=()
leaves=
child=
cleanup() {
  local status=$? g
  if [ -n "$child" ]; then
    kill -KILL "$child" 2> /dev/null || true # its namespaces' PID 1 ends with it
    wait "$child" 2> /dev/null || true
  fi
  for g in "${groups[@]}"; do
    # The last processes of a killed PID namespace may still be on their way out.
    for _ in $(seq 50); do
      find "$g" -depth -type d -exec rmdir {} + 2> /dev/null && break
      sleep 0.1
    done
    [ ! -d "$g" ] || { echo "isolate.sh: left behind: $g" >&2; status=1; }
  done
  exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

while read -r mount type _; do
  g=$mount/$name
  mkdir "$g"
  groups+=("$g")
  if [ "$type" = cgroup2 ]; then # there a group with processes cannot pass controllers on
    mkdir "$g/runner"
    leaves+=" $g/runner"
  fi
  for f in cpuset.cpus cpuset.mems; do # a new v1 cpuset has none
    [ ! -e "$mount/$f" ] || cat "$mount/$f" > "$g/$f"
  done
done < <(cgroup_mounts)

# The subshell enters the groups, so that they are the roots of the cgroup namespace that is made next.
export LEAVES=$leaves
(
  for g in "${groups[@]}"; do echo "$BASHPID" > "$g/cgroup.procs"; done
  # shellcheck disable=SC2016 # for the shell in the cgroup namespace
  exec unshare --cgroup bash -c 'for g in $LEAVES; do echo $$ > "$g/cgroup.procs"; done
    exec unshare --mount --net --ipc --uts --pid --fork --kill-child --mount-proc "$@"' bash "$self" --inside "$@"
) &
child=$!
status=0
wait $child || status=$?
child=
exit $status
