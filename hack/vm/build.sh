#!/bin/bash
# Makes the test guest from Debian packages: systemd as PID 1, a pure cgroup v2 hierarchy, AppArmor.
# As root, once; what is there already is kept (delete the folder to start again).
#   $CRI_SHIM_VM (default ~/.cache/cri-shim-vm): rootfs.ext4, vmlinuz, initrd.img
set -euo pipefail

dir=${CRI_SHIM_VM:-${HOME:-/root}/.cache/cri-shim-vm}
suite=${CRI_SHIM_VM_SUITE:-bookworm}
image=$dir/rootfs.ext4

packages=(
  systemd-sysv dbus kmod procps util-linux mount linux-image-cloud-amd64  # the machine
  apparmor apparmor-utils                                                 # the security module under test
  iproute2 iptables nftables conntrack ipset iputils-ping socat           # networks
  containernetworking-plugins runc crun                                   # peers and plugins
  busybox-static strace jq curl ca-certificates e2fsprogs xfsprogs         # what tests run
)

# Kernel modules the tests meet; loaded at boot so that no test pays for (or races with) the first use.
guest_modules=(
  overlay br_netfilter veth bridge nf_nat nf_tables nft_compat ip_tables
  xt_MASQUERADE xt_comment xt_conntrack
)

# Units that only cost seconds under emulation.
guest_masked=(
  getty.target getty@.service serial-getty@.service systemd-networkd.service systemd-logind.service
  systemd-user-sessions.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
  systemd-journal-flush.service systemd-random-seed.service systemd-sysusers.service
  systemd-binfmt.service systemd-pcrphase.service systemd-pcrphase-sysinit.service
  systemd-machine-id-commit.service systemd-ask-password-console.path systemd-ask-password-wall.path
  modprobe@.service nftables.service conntrackd.service
  e2scrub_reap.service e2scrub_all.timer fstrim.timer apt-daily.timer apt-daily-upgrade.timer
  dpkg-db-backup.timer systemd-tmpfiles-clean.timer
)

need_host_packages() {
  local p missing=()
  for p in "$@"; do
    dpkg -s "$p" >/dev/null 2>&1 || missing+=("$p")
  done
  ((${#missing[@]} == 0)) && return
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

bootstrap() { # ROOT
  local include
  include=$(IFS=,; echo "${packages[*]}")
  mmdebstrap --quiet --variant=minbase --include="$include" \
    --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" "$1"
  find "$1/var/cache/apt/archives" "$1/var/lib/apt/lists" -type f -delete
}

configure() { # ROOT
  local root=$1 unit
  echo guest > "$root/etc/hostname"
  printf '127.0.0.1 localhost guest\n::1 localhost\n' > "$root/etc/hosts"
  : > "$root/etc/fstab"
  od -An -N16 -tx1 /dev/urandom | tr -d ' \n' > "$root/etc/machine-id"
  printf '%s\n' "${guest_modules[@]}" > "$root/etc/modules-load.d/guest.conf"
  printf '%s\n' net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1 > "$root/etc/sysctl.d/guest.conf"
  mkdir -p "$root/etc/systemd/journald.conf.d" "$root/etc/systemd/system/multi-user.target.wants"
  printf '[Journal]\nStorage=volatile\n' > "$root/etc/systemd/journald.conf.d/guest.conf"
  for unit in "${guest_masked[@]}"; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
  done
  install -m 0644 "$here/guest-run.service" "$root/etc/systemd/system/guest-run.service"
  install -m 0755 "$here/guest-run" "$root/usr/local/sbin/guest-run"
  ln -s ../guest-run.service "$root/etc/systemd/system/multi-user.target.wants/guest-run.service"
}

# initrd: busybox and the modules that reach the root file system. A distribution's own takes
# seconds to unpack under emulation.
make_initrd() { # ROOT KERNEL OUT
  local root=$1 kernel=$2 out=$3 tree=$work/initrd module file
  mkdir -p "$tree"/{bin,modules,dev,newroot}
  cp "$root/bin/busybox" "$tree/bin/busybox"
  for module in virtio_pci virtio_blk ext4; do
    chroot "$root" modprobe -S "$kernel" -n --show-depends "$module" | awk '$1 == "insmod" { print $2 }'
  done | awk '!seen[$0]++' | while read -r file; do
    cp "$root$file" "$tree/modules/"
    echo "${file##*/}" >> "$tree/modules/order"
  done
  install -m 0755 "$here/guest-initrd" "$tree/init"
  (cd "$tree" && find . | cpio -o -H newc --quiet | gzip -1) > "$out"
}

build() {
  local root=$work/root kernel
  bootstrap "$root"
  kernel=$(ls "$root/lib/modules")
  cp "$root/boot/vmlinuz-$kernel" "$dir/vmlinuz"
  find "$root/boot" -mindepth 1 -delete
  configure "$root"
  make_initrd "$root" "$kernel" "$dir/initrd.img"
  mke2fs -q -t ext4 -O ^has_journal -m 0 -d "$root" "$work/rootfs.ext4" 8G
  mv "$work/rootfs.ext4" "$image" # last: it says that the others are there
}

[ -e "$image" ] && exit 0
here=$(dirname "$(realpath "$0")")
need_host_packages mmdebstrap e2fsprogs cpio qemu-system-x86
mkdir -p "$dir"
work=$(mktemp -d "$dir/build.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
build
