#!/bin/bash
# Boots a systemd on an overlay of this machine's root. Runs inside of namespaces of its own (see machine.py):
#   boot.sh DIRECTORY CHECKOUT ENVIRONMENT INTERPRETER_PREFIX VERSION
# Nothing that happens in there is seen outside: what is written goes into a tmpfs, and the network is a loopback.
set -eu
cat  # until machine.py has left the cgroup to us
directory=$1 checkout=$2 environment=$3 prefix=$4 version=$5

mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$directory"
mkdir "$directory"/{upper,work,root,lib-upper,lib-work}
mount -t overlay overlay -o "lowerdir=/,upperdir=$directory/upper,workdir=$directory/work" "$directory/root"
cd "$directory/root"

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mkdir -p sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null zero full random urandom tty; do
    touch dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp

# The checkout and its environment where a service may see them: ProtectHome= hides whatever lies below a home.
mkdir -p opt/checkout opt/python opt/claude-daemon/bin opt/claude-daemon/lib
mount --bind "$checkout" opt/checkout
mount -o remount,bind,ro opt/checkout
mount -t overlay overlay \
    -o "lowerdir=$environment/lib,upperdir=$directory/lib-upper,workdir=$directory/lib-work" opt/claude-daemon/lib
mount --bind "$prefix" opt/python
mount -o remount,bind,ro opt/python
echo /opt/python/lib > etc/ld.so.conf.d/python.conf
chroot . ldconfig
printf 'home = /opt/python/bin\ninclude-system-site-packages = false\n' > opt/claude-daemon/pyvenv.cfg
ln -s "/opt/python/bin/python$version" opt/claude-daemon/bin/python
packages=opt/claude-daemon/lib/python$version/site-packages
rm -f "$packages"/__editable__*.pth
printf '/opt/checkout\n/opt/checkout/ctl\n' > "$packages/checkout.pth"
for program in claude-daemon:claude_daemon.cli claudectl:claudectl.main; do
    printf '#!/opt/claude-daemon/bin/python\nfrom %s import main\n\nmain()\n' "${program#*:}" > "opt/claude-daemon/bin/${program%:*}"
    chmod 755 "opt/claude-daemon/bin/${program%:*}"
done

# Of this machine's own services none is to run, none of its mounts to be made, and no module of its kernel loaded.
rm -rf etc/systemd/system/* etc/systemd/user/*
mount -t tmpfs -o ro tmpfs lib/systemd/system-generators
for unit in systemd-sysctl systemd-udevd systemd-modules-load systemd-remount-fs systemd-resolved systemd-networkd \
    systemd-timesyncd systemd-random-seed systemd-binfmt kmod-static-nodes modprobe@ getty@tty1 console-getty cron ssh \
    nginx redis-server caddy postgresql docker containerd; do
    ln -s /dev/null "etc/systemd/system/$unit.service"
done
for unit in systemd-udevd-kernel.socket systemd-udevd-control.socket systemd-journald-audit.socket apt-daily.timer \
    apt-daily-upgrade.timer proc-sys-fs-binfmt_misc.automount sys-fs-fuse-connections.mount sys-kernel-config.mount \
    sys-kernel-debug.mount sys-kernel-tracing.mount; do
    ln -s /dev/null "etc/systemd/system/$unit"
done
echo 0123456789abcdef0123456789abcdef > etc/machine-id
mkdir -p etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nRateLimitBurst=0\n' > etc/systemd/journald.conf.d/test.conf
ip link set lo up

mkdir -p old
mount --make-rprivate /
pivot_root . old
mount --make-rshared /  # or directories of credentials come up empty
umount -l /old
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal </dev/null
