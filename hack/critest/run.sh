#!/bin/bash
# run.sh: runs the CRI validation suite (critest) against bin/cri-shim, in namespaces and cgroups that end with it,
# with stand-ins for its images. Needs root. The images are made of Debian packages, downloaded once into
# .cache/critest/debs. Writes .cache/critest/report.json and .cache/critest/daemon.log.
#   FOCUS, SKIP   regular expressions of specifications
#   SEED          order of the specifications
#   HANDLER       have another OCI runtime run the pods, such as runc or crun; the lists are not about what fails with it
#   CGROUP_DRIVER who makes the control groups (cgroupfs; systemd, in a test guest: they are then not of a namespace)
#   PARALLEL      how many at a time (default 1)
#   TIMEOUT       for the whole run (default 1h)
#   PREBUILT=1    take what an earlier run, or `run.sh build`, has built and downloaded
# Status 0: nothing failed but what known-failures.txt lists.
set -euo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
here=hack/critest
cache=$PWD/.cache/critest
packages="busybox util-linux nginx libc6 libcrypt1 libpcre2-8-0 libssl3 zlib1g"

build() {
  local p
  [ -x bin/cri-shim ] || { echo "critest: no bin/cri-shim; make build"; exit 1; }
  mkdir -p "$cache/debs"
  for p in $packages; do
    ls "$cache/debs/${p}"_*.deb >/dev/null 2>&1 && continue
    (cd "$cache/debs" && apt-get -qq -o APT::Sandbox::User=root download "$p") ||
      { echo "critest: cannot download package $p (apt-get update?)"; exit 1; }
  done
  hack/tools/build.sh critest
  [ "${PARALLEL:-1}" = 1 ] || hack/tools/build.sh ginkgo
  hack/cniplugins/build.sh .cache/cni-bin
  CGO_ENABLED=0 go build -trimpath -o "$cache/runner" ./$here
  CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o "$cache/nonewprivs" ./$here/nonewprivs
}

[ -n "${PREBUILT:-}" ] || build
[ "${1:-}" != build ] || exit 0
[ "$(id -u)" = 0 ] || { echo "critest: needs root"; exit 1; }

# Short: a socket's path has 107 bytes.
work=$(mktemp -d "${TMPDIR:-/tmp}/crit.XXXXXX")
cleanup() {
  local status=$?
  cp "$work/daemon.log" "$work/ginkgo.json" "$cache/" 2>/dev/null || true
  rm -rf --one-file-system "$work" || echo "critest: left behind: $work"
  exit $status
}
trap cleanup EXIT
mkdir "$work/tmp" "$work/bin"
# The AppArmor specifications load their profiles with sudo.
command -v sudo >/dev/null || { printf '#!/bin/sh\nexec "$@"\n' > "$work/bin/sudo" && chmod +x "$work/bin/sudo"; }

export TMPDIR=$work/tmp PATH=$PWD/.cache/tools:$work/bin:$PATH
program=()
if [ -n "${HANDLER:-}" ]; then
  program=(-handler "$(command -v "$HANDLER")")
fi
hybrid=/sys/fs/cgroup/unified
if [ "${HANDLER:-}" = crun ] && grep -qs . $hybrid/cgroup.controllers; then
  # It refuses to run beside that. In a mount namespace without it, what a container mounts does not reach the host, so the
  # specification of 'rshared' fails.
  printf '#!/bin/sh\nexec unshare -m --propagation slave sh -c "umount %s && mount -t tmpfs none %s && exec \\"\\$@\\"" sh %s "$@"\n' $hybrid $hybrid "${program[1]}" > "$work/bin/crun"
  chmod +x "$work/bin/crun"
  program=(-handler "$work/bin/crun")
fi
isolate=(hack/isolate.sh)
[ "${CGROUP_DRIVER:-}" != systemd ] || isolate=(unshare --net --mount --propagation private)
"${isolate[@]}" "$cache/runner" "${program[@]}" \
  -work "$work" -cri-shim "$PWD/bin/cri-shim" -critest "$PWD/.cache/tools/critest" -plugins "$PWD/.cache/cni-bin" \
  -debs "$cache/debs" -nonewprivs "$cache/nonewprivs" -known $here/known-failures.txt -excluded $here/excluded.txt \
  -report "$cache/report.json" -focus "${FOCUS:-}" -skip "${SKIP:-}" -seed "${SEED:-}" -cgroup-driver "${CGROUP_DRIVER:-}" \
  -parallel "${PARALLEL:-1}" -timeout "${TIMEOUT:-1h}"
