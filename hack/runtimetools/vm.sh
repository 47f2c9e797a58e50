#!/bin/bash
# vm.sh [PROGRAM...]: run.sh in the guest of hack/vm: cgroup v2 alone, with runc of Debian 12. The output of programs
# that fail is in OUT, a folder below the current one (default .cache/validate-oci-vm).
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
hack/vm/build.sh
hack/runtimetools/build.sh .cache/tools/runtime-tools
command="export RUNTIMETOOLS_INSIDE=1 OUT=$(printf %q "${OUT:-.cache/validate-oci-vm}")
unshare --mount --net --propagation private hack/runtimetools/run.sh $*"
CRI_SHIM_VM_SHARE=$PWD CRI_SHIM_VM_TIMEOUT=${CRI_SHIM_VM_TIMEOUT:-3600} hack/vm/run.sh "$command"
