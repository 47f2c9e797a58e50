#!/bin/bash
# testbin.sh OUTDIR [PACKAGE...]: compiles each package's tests (default ./...) into OUTDIR, so that they
# run as another user or on a machine without Go. OUTDIR/list gets a line per package with tests:
#   import path <tab> folder from the repository's root <tab> binary's name
set -euo pipefail
out=$(realpath -m "${1:?usage: testbin.sh OUTDIR [PACKAGE...]}")
shift
cd "$(dirname "$(realpath "$0")")/.."
mkdir -p "$out"
root=$PWD

with_tests='{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{"\t"}}{{.Dir}}{{end}}'
go list -f "$with_tests" "${@:-./...}" | while IFS=$'\t' read -r package dir; do
  folder=${dir#"$root"}
  folder=${folder#/}
  printf '%s\t%s\t%s\n' "$package" "${folder:-.}" "$(tr / _ <<< "${folder:-root}").test"
done > "$out/list"

# One go command links one binary after another; two keep two processors busy.
cut -f1,3 "$out/list" | xargs -r -P "${JOBS:-2}" -L1 \
  bash -c 'go test -c -vet=off ${RACE:+-race} -o "$0/$2" "$1"' "$out"
