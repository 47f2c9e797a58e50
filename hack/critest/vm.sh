#!/bin/bash
# vm.sh: run.sh in the guest of hack/vm: cgroup v2 alone, systemd as PID 1, AppArmor. Takes the same variables.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
hack/vm/build.sh
hack/critest/run.sh build
command="export PREBUILT=1 TMPDIR=/tmp"
for v in FOCUS SKIP SEED PARALLEL TIMEOUT CGROUP_DRIVER; do
  command+=" $v=$(printf %q "${!v-}")"
done
CRI_SHIM_VM_SHARE=$PWD CRI_SHIM_VM_TIMEOUT=${CRI_SHIM_VM_TIMEOUT:-3600} hack/vm/run.sh "$command
hack/critest/run.sh"
