#!/bin/bash
# run.sh COMMAND...: boots the guest that build.sh made, runs COMMAND there as root in /mnt/host (the
# shared folder of this machine, read-write), streams its output and exits with its status. COMMAND is
# one line for the shell, as with ssh. What the guest writes outside the share is thrown away.
#   CRI_SHIM_VM_SHARE    folder to share (default: the current one); what changes in it here while the guest runs may
#                        not be seen there
#   CRI_SHIM_VM_TIMEOUT  seconds for the whole run (default 900)
#   CRI_SHIM_VM_MEMORY, CRI_SHIM_VM_CPUS   (default 4G, 2)
#   CRI_SHIM_VM_ACCEL    qemu accelerator (default: emulation, which works in any machine; kvm is faster)
#   CRI_SHIM_VM_APPEND   more kernel arguments
#   CRI_SHIM_VM_CONSOLE  file that keeps the kernel's console
# Status 124: ran past the time; 125: the guest ended without handing back a status.
set -uo pipefail

dir=${CRI_SHIM_VM:-${HOME:-/root}/.cache/cri-shim-vm}
share=$(realpath "${CRI_SHIM_VM_SHARE:-.}")
memory=${CRI_SHIM_VM_MEMORY:-4G}
accel=${CRI_SHIM_VM_ACCEL:-tcg,thread=multi}
work=$(mktemp -d)
console=${CRI_SHIM_VM_CONSOLE:-$work/console}

if [ $# -eq 0 ]; then
  sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
if [ ! -e "$dir/rootfs.ext4" ]; then
  echo "run.sh: $dir/rootfs.ext4 is not there: run hack/vm/build.sh first" >&2
  exit 2
fi
for virtiofsd in /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd; do
  [ -x $virtiofsd ] && break
done

children=()
finish() {
  kill "${children[@]}" 2>/dev/null
  wait
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# Under emulation the guest reads this machine's TSC, but has to find out its frequency; on a busy machine it
# gets that wrong by a factor, and then every timeout in the guest with it. The clock of a CPU that is virtual
# itself is the TSC's.
tsc=
if [[ $accel == tcg* ]] && grep -qw hypervisor /proc/cpuinfo && ! grep -qw aperfmperf /proc/cpuinfo; then
  tsc=$(awk -F: '/^cpu MHz/ { printf "tsc_early_khz=%d", $2 * 1000; exit }' /proc/cpuinfo)
fi

printf '%s\n' "$*" > "$work/command"
mkfifo "$work/out"
cat "$work/out" &
copier=$!

# With cache=auto each open throws away what the guest has read of the file, and each start of a program reads it anew.
$virtiofsd --socket-path="$work/fs" -o source="$share" -o sandbox=chroot -o cache=always,xattr \
  > "$work/virtiofsd" 2>&1 &
children+=($!)
for _ in {1..50}; do
  [ -S "$work/fs" ] && break
  sleep 0.1
done

arguments=(
  -nodefaults -no-user-config -display none -no-reboot
  -M q35,memory-backend=memory -accel "$accel" -cpu max
  -smp "${CRI_SHIM_VM_CPUS:-2}" -m "$memory"
  -object "memory-backend-memfd,id=memory,size=$memory,share=on" # virtiofs shares the guest's memory
  -kernel "$dir/vmlinuz" -initrd "$dir/initrd.img"
  -append "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable $tsc systemd.show_status=0 ${CRI_SHIM_VM_APPEND-}"
  -serial "file:$console"
  -drive "if=none,id=root,file=$dir/rootfs.ext4,format=raw,snapshot=on" -device virtio-blk-pci,drive=root
  -chardev "socket,id=fs,path=$work/fs" -device vhost-user-fs-pci,chardev=fs,tag=host
  -device virtio-rng-pci -device virtio-serial-pci
  -chardev "file,id=out,path=$work/out" -device virtserialport,chardev=out,name=out
  -chardev "file,id=rc,path=$work/rc" -device virtserialport,chardev=rc,name=rc
  -fw_cfg "name=opt/guest/command,file=$work/command"
)
timeout -k 5 "${CRI_SHIM_VM_TIMEOUT:-900}" qemu-system-x86_64 "${arguments[@]}" \
  < /dev/null > "$work/qemu" 2>&1 &
children+=($!)
wait $!
qemu=$?

if [ -s "$work/rc" ]; then
  wait $copier
  exit "$(cat "$work/rc")"
fi
children+=("$copier")
case $qemu in
  124 | 137) echo "run.sh: stopped after ${CRI_SHIM_VM_TIMEOUT:-900} seconds" >&2; exit 124 ;;
esac
echo "run.sh: the guest ended without handing back a status:" >&2
tail -n 20 "$console" "$work/qemu" "$work/virtiofsd" >&2
exit 125
