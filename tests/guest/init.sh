#!/bin/busybox sh
# The first process of a guest: from here to a root that is the host's, read-only, with what is written kept in memory.
# In /job: variables for inside.sh.
/bin/busybox mkdir -p /proc /dev /lower /memory /root
/bin/busybox --install -s /bin
export PATH=/bin

fail() {
    echo "the guest has no root: $1"
    poweroff -f
    exit 1
}

mount -t proc proc /proc || fail proc
for module in /modules/*; do insmod "$module" || fail "$module"; done
# nothing there changes for a guest that asks again; a page at a time would be slow
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /lower || fail 9p
mount -t tmpfs -o mode=0755 tmpfs /memory || fail tmpfs
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work overlay /root || fail overlay
. /job
umount /proc
exec switch_root /root /bin/bash "$CHECKOUT/tests/guest/inside.sh"
