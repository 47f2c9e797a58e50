#!/bin/bash
# test.sh [unit]: what `make test` runs. As root: lint; all tests as the user nobody; all tests as root, those of the
# image store once more with layers as directories; a look for what they left behind. Otherwise, or with "unit": the
# tests as an unprivileged user alone. A test counts as skipped where it was skipped every time. The last line counts:
# N passed, N failed, N skipped.
#   PACKAGES     what to test (default ./...)
#   TEST_FLAGS   more flags for the test binaries, such as -test.run=...
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/.."
mode=${1:-all}
unset CRI_SHIM_LIBEXEC

# Readable by all: user namespaces and the user nobody must get through.
work=$(mktemp -d "${TMPDIR:-/tmp}/cst.XXXXXX")
chmod 0755 "$work"
trap 'rm -rf --one-file-system "$work"' EXIT
checks=()
check() { # NAME COMMAND...
  echo "== $1"
  "${@:2}"
  local status=$?
  checks+=("-check" "$1=$status")
  return $status
}

build() {
  make -s payload || return
  [ ! -d cmd/cri-shim ] || make -s build || return
  # shellcheck disable=SC2086 # several patterns
  hack/testbin.sh "$work/bin" ${PACKAGES:-./...}
}

as_nobody() {
  if [ "$(id -u)" != 0 ]; then
    JOBS=2 hack/run-tests.sh "$work/bin" . "$work/nobody"
    return
  fi
  # A copy: the checkout may lie in a folder that only root may enter.
  mkdir -p "$work/src" "$work/libexec" "$work/nobody-home"
  git ls-files -co --exclude-standard -z | xargs -0 -r ls -d 2>/dev/null | cpio -pdm --quiet "$work/src"
  cp internal/payload/files/cri-shim-* "$work/libexec/" 2>/dev/null
  chmod -R a+rX "$work/src" "$work/libexec" "$work/bin"
  mkdir -p "$work/nobody-tmp"
  chown 65534:65534 "$work/nobody-tmp" "$work/nobody-home"
  RUN_AS_NOBODY=1 JOBS=2 HOME=$work/nobody-home TMPDIR=$work/nobody-tmp CRI_SHIM_LIBEXEC=$work/libexec \
    hack/run-tests.sh "$work/bin" "$work/src" "$work/nobody"
}

as_root() {
  # TMPDIR stays as it is: a folder of our own would make socket paths too long (107 bytes).
  CRI_SHIM_LIBEXEC=$PWD/internal/payload/files hack/run-tests.sh "$work/bin" . "$work/root"
}

# The store once more with layers as directories, which it keeps where the kernel cannot use images.
as_directories() {
  mkdir -p "$work/bin-directories" "$work/directories"
  awk -F '\t' '$2 == "image"' "$work/bin/list" > "$work/bin-directories/list"
  [ -s "$work/bin-directories/list" ] || return 0
  ln -s ../bin/image.test "$work/bin-directories/image.test"
  CRI_SHIM_TEST_LAYER_FORMAT=directory CRI_SHIM_LIBEXEC=$PWD/internal/payload/files \
    hack/run-tests.sh "$work/bin-directories" . "$work/directories"
  runs+=("$work/directories")
}

no_leftovers() {
  local status=0 left
  hack/leakcheck.sh compare "$work/before" || status=1
  left=$(find "$work/nobody-tmp" -mindepth 1 -maxdepth 1)
  [ -z "$left" ] || { echo "left by nobody: ${left//$work\//}"; status=1; }
  return $status
}

if [ "$mode" = all ] && [ "$(id -u)" != 0 ]; then
  echo "not root: only the tests that an unprivileged user can run"
  mode=unit
fi
runs=("$work/nobody")
[ "$mode" = unit ] || check lint hack/lint.sh
if check build build; then
  [ "$mode" = unit ] || hack/leakcheck.sh snapshot "$work/before"
  echo "== tests, unprivileged"
  as_nobody
  if [ "$mode" = all ]; then
    echo "== tests, as root"
    as_root
    runs+=("$work/root")
    echo "== tests of the image store, as root, layers as directories"
    as_directories
    check leftovers no_leftovers
  fi
else
  runs=()
fi
if [ "$mode" = all ]; then
  echo "== not run here, because they take long"
  echo "make test-vm    the same tests on cgroup v2 with systemd and AppArmor, in an emulated guest (over 20 minutes)"
  echo "make validate-oci  the OCI's validation programs against cri-shim-oci and runc (3 minutes)"
  echo "make test-soak  pods come and go for SOAK (10m)"
  echo "make test-kubelet  an unmodified kubelet with static pods (6 minutes)"
  echo "make test-cluster  a Kubernetes of one node, by kubectl (3 minutes)"
  echo "make critest    the CRI validation suite (a minute; critest-vm in the guest: over 30)"
fi
# Not `go run`: its status is always 1.
go build -o "$work/testsum" ./hack/testsum || exit 1
"$work/testsum" "${checks[@]}" "${runs[@]}"
