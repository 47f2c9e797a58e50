#!/bin/bash
# fuzz.sh [PACKAGE...]: runs every fuzz target, FUZZTIME (default 20s) each. A crash stays under the
# package's testdata/fuzz, to be committed with the repair.
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/.."
status=0
out=$(mktemp)
trap 'rm -f "$out"' EXIT
# go test also fails when its workers do not notice the end of the time at once, as on a busy machine.
late() {
  grep -qx '    context deadline exceeded' "$out" && ! grep -q 'Failing input' "$out"
}
fuzz() {
  local package target
  while read -r package; do
    while read -r target; do
      echo "== $package $target"
      # Without a bound on minimizing, one interesting input can eat all of the time.
      go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-20s}" -fuzzminimizetime 100x "$package" | tee "$out"
      [ "${PIPESTATUS[0]}" = 0 ] || late || status=1
    done < <(go test -list '^Fuzz' "$package" | grep '^Fuzz')
  done < <(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' "${@:-./...}")
}
fuzz "$@"
# A module of its own.
(($# > 0)) || { cd cmd/cri-shim-trust && GOFLAGS=-tags=containers_image_openpgp fuzz; }
exit $status
