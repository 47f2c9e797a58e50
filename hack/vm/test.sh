#!/bin/bash
# test.sh [PACKAGE...]: the packages' tests (default ./...) in the guest of run.sh: cgroup v2 alone, systemd
# as PID 1, AppArmor. They are compiled here; the guest, which has no Go, sees this checkout through the
# share, with bin/, .cache/tools and .cache/vm-bin on its path. The last line counts: N passed, N failed, N skipped.
#   TEST_FLAGS, TEST_TIMEOUT   as hack/run-tests.sh takes them (TEST_TIMEOUT default 30m: emulation is slow)
#   CRI_SHIM_VM_...            as run.sh takes them
set -euo pipefail
here=$(dirname "$(realpath "$0")")
cd "$here/../.."

"$here/build.sh"
make -s payload
[ ! -d cmd/cri-shim ] || make -s build
hack/cniplugins/build.sh .cache/cni-bin
for tool in crictl critest; do hack/tools/build.sh $tool; done
mkdir -p .cache
CGO_ENABLED=0 go build -tags nri_no_wasm -o .cache/vm-bin/ ./hack/nriplugin
cmd/cri-shim-trust/build.sh .cache/vm-bin/trust-testtool ./testtool # which leaves it where the tests find it without Go
work=$(mktemp -d "$PWD/.cache/vm.XXXXXX")
trap 'rm -rf "$work"' EXIT
hack/testbin.sh "$work/bin" "$@"
go build -o "$work/testsum" ./hack/testsum

guest=${work#"$PWD/"}
command="export PATH=/mnt/host/bin:/mnt/host/.cache/tools:/mnt/host/.cache/vm-bin:\$PATH CRI_SHIM_LIBEXEC=/mnt/host/internal/payload/files
export TEST_TIMEOUT=${TEST_TIMEOUT:-30m} TEST_FLAGS=$(printf %q "${TEST_FLAGS-}") TMPDIR=/tmp
hack/leakcheck.sh snapshot /run/before
hack/run-tests.sh $guest/bin . $guest/guest
hack/leakcheck.sh compare /run/before"
status=0
CRI_SHIM_VM_SHARE=$PWD CRI_SHIM_VM_TIMEOUT=${CRI_SHIM_VM_TIMEOUT:-3600} "$here/run.sh" "$command" || status=$?
"$work/testsum" -check "guest and leftovers=$status" "$work/guest"
