#!/bin/bash
# inside.sh ARGUMENTS...: the part of run.sh that is PID 1 of the new namespaces. Shows the machine's cgroup
# hierarchies from the groups made for this run downwards, then runs the runner.
set -euo pipefail

mounts=$(awk '{ for (i = 7; $i != "-"; i++); if ($(i + 1) ~ /^cgroup2?$/) print $5, $(i + 1), $(i + 3) }' /proc/self/mountinfo)
read -r root _ < <(awk '{ for (i = 7; $i != "-"; i++); if ($5 == "/sys/fs/cgroup") print $(i + 1) }' /proc/self/mountinfo | tail -n 1)
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
"$CACHE/runner" "$@"
