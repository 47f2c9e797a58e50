#!/bin/bash
# run.sh: runs the CRI validation suite (critest) against bin/cri-shim, in namespaces and cgroups that end with it,
# with stand-ins for its images. Needs root. The images are made of Debian packages, downloaded once into
# .cache/critest/debs. Writes .cache/critest/report.json and .cache/critest/daemon.log.
#   FOCUS, SKIP   regular expressions of specifications
#   SEED          order of the specifications
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
name=${work##*/}
groups=()
leaves=
cleanup() {
  local status=$? g
  cp "$work/daemon.log" "$work/ginkgo.json" "$cache/" 2>/dev/null || true
  for g in "${groups[@]}"; do
    # The last processes of a killed PID namespace may still be on their way out.
    for _ in $(seq 50); do
      find "$g" -depth -type d -exec rmdir {} + 2>/dev/null && break
      sleep 0.1
    done
    [ ! -d "$g" ] || echo "critest: left behind: $g"
  done
  rm -rf --one-file-system "$work" || echo "critest: left behind: $work"
  exit $status
}
trap cleanup EXIT
mkdir "$work/tmp" "$work/bin"
# The AppArmor specifications load their profiles with sudo.
command -v sudo >/dev/null || { printf '#!/bin/sh\nexec "$@"\n' > "$work/bin/sudo" && chmod +x "$work/bin/sudo"; }

while read -r mount type; do
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
done < <(awk '{ for (i = 7; $i != "-"; i++); if ($(i + 1) ~ /^cgroup2?$/) print $5, $(i + 1) }' /proc/self/mountinfo)

export LEAVES=$leaves CACHE=$cache TMPDIR=$work/tmp PATH=$PWD/.cache/tools:$work/bin:$PATH
# The subshell enters the groups, so that they are the roots of the cgroup namespace that is made next.
(
  for g in "${groups[@]}"; do echo "$BASHPID" > "$g/cgroup.procs"; done
  # shellcheck disable=SC2016 # for the shell in the cgroup namespace
  exec unshare --cgroup bash -c 'for g in $LEAVES; do echo $$ > "$g/cgroup.procs"; done
    exec unshare --mount --net --ipc --uts --pid --fork --kill-child --mount-proc "$@"' bash "$here/inside.sh" \
    -work "$work" -cri-shim "$PWD/bin/cri-shim" -critest "$PWD/.cache/tools/critest" -plugins "$PWD/.cache/cni-bin" \
    -debs "$cache/debs" -nonewprivs "$cache/nonewprivs" -known $here/known-failures.txt -excluded $here/excluded.txt \
    -report "$cache/report.json" -focus "${FOCUS:-}" -skip "${SKIP:-}" -seed "${SEED:-}" \
    -parallel "${PARALLEL:-1}" -timeout "${TIMEOUT:-1h}"
)
