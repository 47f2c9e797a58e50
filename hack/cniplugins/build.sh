#!/bin/sh
# Builds the CNI plugins that the tests of package cni run into the folder $1.
# Does nothing when the folder already holds those of this go.sum and Go release.
set -eu

out=${1:?usage: build.sh OUTDIR}
plugins="main/bridge main/loopback main/ptp ipam/host-local ipam/static
meta/bandwidth meta/firewall meta/portmap meta/tuning"

here=$(cd "$(dirname "$0")" && pwd)
if ! command -v go >/dev/null; then # a test guest: what the host has built is all there is
	[ -e "$out/.stamp" ] && exit 0
	echo "build.sh: no go command, and $out holds no plugins" >&2
	exit 1
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here"

# Test binaries of several packages may ask for the plugins at the same time.
exec 9>"$out/.lock"
flock 9

stamp=$( (go env GOVERSION GOARCH; cat go.mod go.sum build.sh) | sha256sum)
if [ "$(cat "$out/.stamp" 2>/dev/null)" = "$stamp" ]; then
	exit 0
fi
rm -f "$out/.stamp"
for p in $plugins; do
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w' -o "$out/${p#*/}" \
		"github.com/containernetworking/plugins/plugins/$p"
done
printf '%s\n' "$stamp" >"$out/.stamp"
