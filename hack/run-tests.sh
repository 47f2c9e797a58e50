#!/bin/bash
# run-tests.sh BINDIR SOURCES LOGDIR: runs what testbin.sh compiled into BINDIR, each in its folder below
# SOURCES, and leaves NAME.log, NAME.status and the list in LOGDIR for hack/testsum. Needs no Go; the status is
# testsum's to judge. Prints a line per package.
#   RUN_AS_NOBODY=1  as the user nobody, without capabilities and with nothing of the environment
#   JOBS             packages at a time (default 1: tests that change the machine do not meet)
#   TEST_TIMEOUT     for one package (default 10m)
#   TEST_FLAGS       more flags for the test binaries, such as -test.run=...
set -uo pipefail
bin=$(realpath "$1")
sources=$(realpath "$2")
logs=$3
mkdir -p "$logs"
logs=$(realpath "$logs")
cp "$bin/list" "$logs/list"

run_one() { # FOLDER NAME
  local command start=$EPOCHREALTIME status
  command=("$bin/$2" -test.v=test2json -test.timeout="${TEST_TIMEOUT:-10m}")
  # shellcheck disable=SC2206 # several flags
  command+=(${TEST_FLAGS-})
  if [ -n "${RUN_AS_NOBODY-}" ]; then
    # No Go on the path: the module cache is root's. Tests that need it say so and skip.
    command=(setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all
      env -i PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME="$HOME" TMPDIR="$TMPDIR"
      CRI_SHIM_LIBEXEC="${CRI_SHIM_LIBEXEC-}" "${command[@]}")
  fi
  (cd "$sources/$1" && exec "${command[@]}") > "$logs/$2.log" 2>&1 < /dev/null
  status=$?
  echo $status > "$logs/$2.status"
  awk -v status=$status -v name="$1" -v from="$start" -v to="$EPOCHREALTIME" \
    'BEGIN { printf "%-4s %s (%.1f s)\n", status ? "FAIL" : "ok", name, to - from }'
}

jobs=${JOBS:-1}
while IFS=$'\t' read -r _ folder name; do
  while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
  run_one "$folder" "$name" &
done < "$bin/list"
wait
