#!/bin/bash
# Runs as root in the guest, over whose read-only files vng has laid what can be written: starts what the project needs
# and, given a directory for its log and a Python, becomes the agent.
set -u
[ $# -gt 0 ] && exec >"$1/boot.log" 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run/home
# Without udevd, which would read from every new disk whenever it likes; device nodes come from devtmpfs.
pkill -x systemd-udevd
rm -rf /run/udev
mkdir -p /run/home /run/lock /run/dbus /var/target /var/lib/dbus /var/lib/iscsi
modprobe -a virtio_console dm-mod target_core_mod target_core_user iscsi_target_mod tcm_loop iscsi_tcp sd_mod sg loop \
    virtio_net virtio_scsi ext4 tcp_diag inet_diag
mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
ip link set lo up
for nic in /sys/class/net/e*; do
    [ -e "$nic" ] && ip address add 10.0.2.15/24 dev "$(basename "$nic")" && ip link set "$(basename "$nic")" up
done
hostname guest
dmesg -n 1
[ $# -gt 0 ] || exit 0
for port in /sys/class/virtio-ports/*; do
    [ "$(cat "$port/name")" = agent ] && agent=/dev/$(basename "$port")
done
exec "$2" "$(dirname "$0")/agent.py" "$agent"
