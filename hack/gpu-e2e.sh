#!/bin/bash
# gpu-e2e.sh: runs a pod with one GPU and a pod without on a machine that has one, as root, without any toolkit. Where there
# is no Go, carry the tree with bin/cri-shim (make build), .cache/cni-bin (hack/cniplugins/build.sh) and bin/e2e.test
# (go test -c -o bin/e2e.test ./hack/e2e). gcc and Debian's C library are needed. GPU_DRIVER_ROOT is where the
# driver's libraries are, / by default.
#
# Output: that of go test -v for TestRealGPU. Lines of interest are "gpu ls:" with the table, "nvidia-smi:" with one
# line a GPU, "cuda:" with "N device(s), NAME: there and back", then "--- PASS: TestRealGPU"; the exit status is go test's.
# "--- SKIP" says what the machine lacks.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/.."
[ -x bin/e2e.test ] || go test -c -o bin/e2e.test ./hack/e2e
program=$PWD/bin/e2e.test
cd hack/e2e
exec "$program" -test.v -test.run '^TestRealGPU$' -test.count=1
