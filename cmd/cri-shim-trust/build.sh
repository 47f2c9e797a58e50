#!/bin/bash
# build.sh FILE [PACKAGE]: builds cri-shim-trust, or another program of this module, as FILE. It is a module of its own,
# so that what it depends on is none of the daemon's. What was built from the same files and Go release is kept.
# Without cgo there is no GPGME: containers_image_openpgp is the implementation in Go.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
out=${1:?usage: build.sh FILE [PACKAGE]}
package=${2:-.}
mkdir -p "$(dirname "$out")"
out=$(realpath "$(dirname "$out")")/$(basename "$out")
cache=$here/../../.cache/trust
mkdir -p "$cache"
cached=$(realpath "$cache")/$(basename "$(realpath "$here/$package")")
cd "$here"

if ! command -v go > /dev/null; then # a test guest: what the host has built is all there is
  [ -x "$cached" ] || { echo "build.sh: no go command, and no $cached" >&2; exit 1; }
else
  # Two builds at once wait for each other; the loser finds it done.
  exec 9> "$cached.lock"
  flock 9
  stamp=$({ find . -type f | LC_ALL=C sort | xargs cat; go version; } | sha256sum | cut -d' ' -f1)
  if [ ! -x "$cached" ] || [ "$(cat "$cached.stamp" 2> /dev/null)" != "$stamp" ]; then
    CGO_ENABLED=0 GOFLAGS=-mod=readonly go build -buildvcs=false -trimpath -tags containers_image_openpgp \
      -ldflags '-s -w' -o "$cached.tmp" "./$package"
    mv "$cached.tmp" "$cached"
    echo "$stamp" > "$cached.stamp"
  fi
fi
cp -f "$cached" "$out.tmp"
mv "$out.tmp" "$out"
