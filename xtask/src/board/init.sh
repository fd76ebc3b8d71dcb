#!/bin/sh
# Process 1 of the emulated board: what a small device's init does before it starts the agent, and a console.
#
# Words of the kernel's command line that it knows:
#   board.data=DEVICE     the disk that survives (default /dev/vda)
#   board.options=LIST    more options to mount it with
#   board.token=TOKEN     join a fleet with this at the first start, and run the agent at every start
#   board.offline         leave the network alone; `up` brings it up later
#   board.without=MODULE  neither this kernel module nor those after it that need it
#   cgroup_v1             control groups of version 1
export PATH=/bin HOME=/root TERM=vt102

# pivot_root, which every container needs, is refused on the kernel's own first root: move to a tmpfs.
if [ "$1" != moved ]; then
    mount -t tmpfs -o mode=755 tmpfs /new
    cp -a /bin /etc /lib /root /sbin /init /up /new/
    mkdir -p /new/proc /new/sys /new/dev /new/run /new/tmp /new/data /new/var
    exec switch_root /new /init moved
fi

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=755,size=64m tmpfs /run
word() { sed -n "s/.*board\.$1=\([^ ]*\).*/\1/p" /proc/cmdline; }

without=$(word without)
for module in $(cat /lib/modules/order); do
    [ "$module" = "$without" ] && continue
    insmod /lib/modules/$module.ko 2>/run/insmod || [ -n "$without" ] || echo "board: no module $module"
done
if grep -q cgroup_v1 /proc/cmdline; then
    mount -t tmpfs cgroup /sys/fs/cgroup
    for controller in $(sed -n 's/^\([a-z_]*\)\t.*\t1$/\1/p' /proc/cgroups); do
        mkdir /sys/fs/cgroup/$controller
        mount -t cgroup -o $controller cgroup /sys/fs/cgroup/$controller || rmdir /sys/fs/cgroup/$controller
    done
else
    mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
fi
ip link set lo up
hostname board
for _ in $(seq 100); do [ -e /sys/class/net/eth0 ] && break; usleep 50000; done
grep -q board.offline /proc/cmdline || /up

disk=$(word data)
disk=${disk:-/dev/vda}
more=$(word options)
for _ in $(seq 100); do [ -b "$disk" ] && break; usleep 50000; done
mount -t ext4 -o "noatime,errors=remount-ro${more:+,$more}" "$disk" /data || echo "board: no disk"

token=$(word token)
if [ -n "$token" ]; then
    mkdir -p /etc/skiff
    printf 'state_dir = "/data/skiff"\nreserved_memory = 33554432\n' >/etc/skiff/agent.toml
    [ -e /data/skiff/identity ] || echo "$token" | skiff-agent join -
    while :; do
        skiff-agent run >>/run/agent.log 2>&1
        sleep 1
    done &
fi
# Lines of the kernel would fall into what a command prints.
dmesg -n 1
cd /root
echo "board: up $(cut -d' ' -f1 /proc/uptime)"
while :; do
    setsid -c sh -l <>/dev/console >&0 2>&1
done
