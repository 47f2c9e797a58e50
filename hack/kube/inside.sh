#!/bin/bash
# inside.sh WORK COMMAND...: runs COMMAND, in the namespaces that hack/isolate.sh made, where a kubelet can run
# without changing anything of the machine; WORK is a folder for it.
set -euo pipefail
work=$1
shift
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
exec "$@"
