# What a guest does, as its first process, once it has a root: the rest of the system's mounts, a loopback, cgroups whose
# controllers are handed down, as systemd does it; then COMMAND, in CHECKOUT, and its exit status to the second port.
# WARM: a file that is read beforehand.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -m 1777 /run/tmp
export TMPDIR=/run/tmp HOME=/run/home
mkdir -m 0700 "$HOME"
for port in /dev/ttyS0 /dev/ttyS1; do stty -F $port raw -echo; done
ip link set lo up
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo '+memory +pids' > /sys/fs/cgroup/cgroup.subtree_control

cd "$CHECKOUT" || exit
cat "$WARM" > /dev/null
uname -sr
eval "$COMMAND" < /dev/null 2>&1 | cat  # a pipe is no terminal to be drawn on
echo "${PIPESTATUS[0]}" > /dev/ttyS1
for port in /dev/ttyS0 /dev/ttyS1; do stty -F $port raw; done  # which waits until all is out
echo o > /proc/sysrq-trigger
sleep infinity
