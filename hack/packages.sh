#!/bin/bash
# packages.sh [demo]: installs the Debian packages that the tests need (or just those of the demonstration) and that
# are not there yet, without a word unless it fails. As another user than root it does nothing.
set -euo pipefail

packages=(
  procps util-linux mount                   # the scripts
  iproute2 iptables                         # networks
  busybox-static                            # what runs in the containers
)
if [ "${1-}" != demo ]; then
  packages+=(
    make git gcc libc6-dev libseccomp-dev pkg-config # builds; libseccomp is what the compiler of ours is checked against
    kmod cpio jq                                     # the scripts
    nftables conntrack ipset iputils-ping            # networks
    gnupg skopeo openssl                             # signed and encrypted images
    runc crun strace                                 # what tests run, and the peers they compare with
  )
fi
[ "$(id -u)" = 0 ] || exit 0

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
((${#missing[@]} > 0)) || exit 0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -q && apt-get install -q -y --no-install-recommends "${missing[@]}"; } > "$log" 2>&1 < /dev/null; then
  cat "$log" >&2
  exit 1
fi
