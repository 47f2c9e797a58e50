#!/bin/bash
# build.sh OUTDIR: builds the 58 validation programs of opencontainers/runtime-tools, in the version that go.mod
# names, and what they run in a container, into OUTDIR. What was built from the same go.mod, go.sum and Go release
# is kept.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
out=$(realpath -m "${1:?usage: build.sh OUTDIR}")
if ! command -v go > /dev/null; then # a test guest: what the host has built is all there is
  [ -e "$out/.stamp" ] && exit 0
  echo "build.sh: no go command, and $out holds no programs" >&2
  exit 1
fi
cd "$here"
stamp=$({ cat go.mod go.sum build.sh; go env GOVERSION GOARCH; } | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/.stamp" 2>/dev/null)" = "$stamp" ] && exit 0
mkdir -p "$out/programs"
module=github.com/opencontainers/runtime-tools
CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -ldflags "-s -w" -o "$out/programs/" "$module/validation/..."
CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -trimpath -ldflags "-s -w" -o "$out/runtimetest" "$module/cmd/runtimetest"
install -m 0644 "$(go list -m -f '{{.Dir}}' "$module")/rootfs-$(go env GOARCH).tar.gz" "$out/"
echo "$stamp" > "$out/.stamp"
