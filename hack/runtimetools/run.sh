#!/bin/bash
# run.sh [PROGRAM...]: runs the validation programs of opencontainers/runtime-tools (default: all 58) against
# bin/cri-shim-oci and against runc, where it is installed, and prints one table. Fails where runc passes and
# cri-shim-oci does not, but for what differences.txt explains; also when an explained difference is none any more. One
# with "(before Linux N)" counts on such kernels alone.
# Needs root. Everything runs in mount and network namespaces of its own.
#   OUT   a folder for the programs' output (default: thrown away)
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
if [ "$(id -u)" != 0 ]; then
  echo "run.sh: needs root" >&2
  exit 1
fi
if [ -z "${RUNTIMETOOLS_INSIDE-}" ]; then
  hack/runtimetools/build.sh .cache/tools/runtime-tools || exit
  RUNTIMETOOLS_INSIDE=1 exec unshare --mount --net --propagation private "$0" "$@"
fi
tools=$PWD/.cache/tools/runtime-tools
differences=$PWD/hack/runtimetools/differences.txt
runc=$(PATH=$PATH:/usr/sbin:/sbin command -v runc)
# On a file system of its own: a program that fails may leave mounts in its bundle, and they go with it.
work=$(mktemp -d /tmp/rt.XXXXXX)
# The programs' control groups have these names; empty parents stay behind.
trap 'cd /; umount -R -l "$work"; rmdir "$work"; rmdir /sys/fs/cgroup{,/*}/{testdir/cgrouptest,testdir,cgrouptest} 2> /dev/null' EXIT
mount -t tmpfs -o mode=0700,size=1g rt "$work"
mkdir "$work/tmp"
cp "$tools"/runtimetest "$tools"/rootfs-*.tar.gz "$work/"

runtime() { # NAME COMMAND: the programs call one command, without options
  printf '#!/bin/sh\nexec %q --root %q "$@"\n' "$2" "$work/$1-state" > "$work/$1"
  chmod +x "$work/$1"
}

# A program says "ok" and "not ok" line by line (TAP); one that dies, or never says how many, has failed.
verdict() { # RUNTIME PROGRAM
  local out=${OUT:-$work}/$1.$2.log status
  (cd "$work" && RUNTIME=$work/$1 TMPDIR=$work/tmp timeout 90 "$tools/programs/$2") > "$out" 2>&1 < /dev/null
  status=$?
  if [ $status != 0 ] || grep -q '^not ok' "$out" || ! grep -q '^1\.\.' "$out"; then
    echo FAIL
  elif ! awk 'tolower($0) !~ /# skip/ && /^ok/ { some = 1 } END { exit !some }' "$out"; then
    echo skip # nothing but what it left out
  else
    echo pass
  fi
  for id in $(cd "$work" && "$work/$1" list -q 2>/dev/null); do "$work/$1" delete -f "$id" 2>/dev/null; done
}

runtime ours "$PWD/bin/cri-shim-oci"
[ -z "$runc" ] || runtime runc "$runc"
[ -z "${OUT-}" ] || mkdir -p "$OUT"
failed=0
printf '%-32s %-6s %s\n' program ours runc
for program in "${@:-$(ls "$tools/programs")}"; do for program in $program; do
  [ -x "$tools/programs/$program" ] || { echo "run.sh: no program $program" >&2; exit 2; }
  ours=$(verdict ours "$program")
  theirs=-
  [ -z "$runc" ] || theirs=$(verdict runc "$program")
  note=$(sed -n "s/^$program: //p" "$differences")
  before=$(sed -n "s/.*(before Linux \([0-9.]*\)).*/\1/p" <<< "$note")
  [ -z "$before" ] || [ "$(printf '%s\n' "$before" "$(uname -r)" | sort -V | head -n1)" != "$before" ] || note=
  printf '%-32s %-6s %-6s %s\n' "$program" "$ours" "$theirs" "${note:+($note)}"
  if [ "$ours" = FAIL ] && [ "$theirs" != FAIL ] && [ "$theirs" != - ] && [ -z "$note" ]; then
    echo "run.sh: $program: runc passes" >&2
    failed=1
  elif [ "$ours" != FAIL ] && [ -n "$note" ]; then
    echo "run.sh: $program passes and is in differences.txt" >&2
    failed=1
  fi
done; done
exit $failed
