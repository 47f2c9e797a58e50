#!/bin/bash
# lint.sh: formatting, go vet, staticcheck, shell syntax. Prints what is wrong and nothing else.
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/.."
status=0
complain() { echo "lint: $1"; status=1; }

mapfile -t go_files < <(git ls-files -co --exclude-standard '*.go' | while read -r f; do [ -e "$f" ] && echo "$f"; done)
unformatted=$(gofmt -l "${go_files[@]}") || complain "gofmt"
[ -z "$unformatted" ] || complain "gofmt -w these: ${unformatted//$'\n'/ }"
go vet ./... || complain "go vet"
hack/tools/build.sh staticcheck && .cache/tools/staticcheck ./... || complain "staticcheck"
# A module of its own.
(cd cmd/cri-shim-trust && go vet -tags containers_image_openpgp ./... && ../../.cache/tools/staticcheck -tags containers_image_openpgp ./...) ||
  complain "cmd/cri-shim-trust"
while read -r f; do
  head -1 "$f" | grep -q '^#!.*sh' || continue
  bash -n "$f" || complain "$f: bash -n"
  [ -x "$f" ] || complain "$f: a script that is not executable"
done < <(git ls-files -co --exclude-standard | while read -r f; do [ -f "$f" ] && echo "$f"; done)
exit $status
