#!/bin/bash
# systemd.sh SHARED PYTHON, as a guest's first process: over this machine's read-only files a root that can be written
# and that outlives a reboot (the scratch disk of serial `root`), Debian's units without the ones enabled here, and
# systemd as PID 1.
# systemd.sh agent SHARED PYTHON, as a unit: what the tests need, then the agent.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
here=$(dirname "$0")
top=$(cd "$here/../.." && pwd)

port() { # NAME: the device node of a virtio-serial port; QEMU tells of it a while after the driver is there
    until each=$(grep -lx "$1" /sys/class/virtio-ports/*/name 2>/dev/null); do
        sleep 0.1
    done
    echo "/dev/$(basename "$(dirname "$each")")"
}

if [ "$1" = agent ]; then
    modprobe -a virtio_console virtio_net dm-mod
    for nic in /sys/class/net/e*; do
        [ -e "$nic" ] && ip address add 10.0.2.15/24 dev "$(basename "$nic")" && ip link set "$(basename "$nic")" up
    done
    dmesg -n 1
    exec "$3" "$here/agent.py" "$(port agent)"
fi

install_project() { # as its packages do; the interpreter is that of the tests
    for program in tcmu-retry:cli.main tcmu-retryd:retryd; do
        printf '#!%s\nimport sys\nfrom tcmu_retry.%s import main\nsys.exit(main())\n' "$python" "${program#*:}" \
            > "$new/usr/bin/${program%:*}"
        chmod +x "$new/usr/bin/${program%:*}"
    done
    cp "$top"/packaging/systemd/*.service "$new/usr/lib/systemd/system/"
    mkdir -p "$new/usr/lib/systemd/catalog"
    cp "$top"/packaging/systemd/*.catalog "$new/usr/lib/systemd/catalog/"
    cp "$top"/packaging/dbus/*.conf "$new/usr/share/dbus-1/system.d/"
    [ -d "$top/packaging/polkit" ] && cp "$top"/packaging/polkit/*.policy "$new/usr/share/polkit-1/actions/"
}

shared=$1 python=$2
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
echo "/bin/false" > /proc/sys/kernel/modprobe # what asks for modules now would look among this machine's
modprobe -d "$top/build/vm/kernel" -a virtio_blk ext4 overlay
for disk in /sys/block/vd*; do
    [ "$(cat "$disk/serial")" = root ] && root=/dev/$(basename "$disk")
done
mount -t tmpfs tmpfs /mnt
mkdir /mnt/disk /mnt/new /mnt/host
mount -t 9p -o ro,version=9p2000.L,trans=virtio,access=any,cache=loose,msize=512000 host /mnt/host || exec sleep 5
mount "$root" /mnt/disk || exec sleep 5
mkdir -p /mnt/disk/upper /mnt/disk/work
mount -t overlay -o lowerdir=/mnt/host,upperdir=/mnt/disk/upper,workdir=/mnt/disk/work root /mnt/new
new=/mnt/new
mkdir -p "$new/lib/modules/$(uname -r)" "$new/$shared"
mount --bind "$top/build/vm/kernel/lib/modules/$(uname -r)" "$new/lib/modules/$(uname -r)"
mount -t 9p -o version=9p2000.L,trans=virtio,access=any,msize=512000 shared "$new/$shared"
mount -t tmpfs -o mode=1777 tmpfs "$new/tmp"

if [ ! -e "$new/etc/made-for-tests" ]; then
    units=$new/etc/systemd/system
    rm -rf "$units"/* "$new/var/lib/systemd" "$new/var/log/journal" "$new/etc/target" \
        "$new"/etc/rtslib-fb-target/[!b]* "$new"/etc/rtslib-fb-target/backup/* # what targetcli saved, as apt leaves it
    rm -f "$new/.dockerenv" # of this machine; a systemd that takes itself for a container's leaves things out
    : > "$new/etc/fstab"
    # Each is a process at boot and at every daemon-reload, and makes units for this machine.
    mkdir -p "$new/etc/systemd/system-generators" "$new/etc/systemd/network"
    for each in "$new"/usr/lib/systemd/system-generators/*; do
        ln -s /dev/null "$new/etc/systemd/system-generators/${each##*/}"
    done
    ln -s /dev/null "$new/etc/systemd/network/99-default.link" # eth0 stays eth0
    echo 11112222333344445555666677778888 > "$new/etc/machine-id"
    echo guest > "$new/etc/hostname"
    for each in systemd-udev-trigger systemd-hwdb-update systemd-sysusers systemd-update-done systemd-pcrphase-sysinit \
        systemd-random-seed systemd-binfmt systemd-update-utmp systemd-journal-catalog-update systemd-firstboot \
        systemd-journal-flush e2scrub_reap; do
        ln -s /dev/null "$units/$each.service"
    done
    for each in swap cryptsetup integritysetup veritysetup; do
        ln -s /dev/null "$units/$each.target"
    done
    mkdir -p "$units/lab.target.wants" "$new/etc/systemd/system.conf.d"
    printf '[Manager]\nLogLevel=notice\nDefaultTimeoutStartSec=180\n' > "$new/etc/systemd/system.conf.d/lab.conf"
    printf '[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\nWants=dbus.socket\n' > "$units/lab.target"
    cat > "$units/agent.service" <<END
[Unit]
After=basic.target
[Service]
ExecStart=/bin/bash $top/tests/vm/systemd.sh agent $shared $2
Environment=HOME=/root
StandardOutput=append:$shared/agent.log
StandardError=inherit
END
    ln -s ../agent.service "$units/lab.target.wants/"
    mkdir -p "$new/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=persistent\nRateLimitBurst=0\n' > "$new/etc/systemd/journald.conf.d/lab.conf"

    # shellcheck disable=SC1091
    . "$shared/prepare.sh"
    touch "$new/etc/made-for-tests"
fi
echo /sbin/modprobe > /proc/sys/kernel/modprobe
exec switch_root "$new" /usr/lib/systemd/systemd --unit=lab.target
