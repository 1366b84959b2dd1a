#!/bin/busybox sh
# The first program of a node of tests/cluster. Sets it up, starts containerd, and obeys the test on the virtio-serial port `control`: one
# command a line, answered with its output and a line with its status. The port `cri` leads to containerd's socket.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /var/lib/containerd
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs run /run
/bin/busybox --install -s /bin
mount -t cgroup2 cgroup /sys/fs/cgroup
while read -r module; do
    insmod "$module" || echo "node: $module cannot be loaded"
done </modules
ip link set lo up
ip link set eth0 up
# From the kernel's command line: its address.
# shellcheck disable=SC2154
ip address add "$node" dev eth0
mount -t ext4 /dev/vda /var/lib/containerd
containerd --config /etc/containerd/config.toml >/var/lib/containerd/log 2>&1 &
for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name"
    ln -s "${port##*/}" "/dev/$name"
done
while ! ctr version >/run/version 2>&1; do
    sleep 1
done
# A port can be opened once only.
nc.openbsd -U /run/containerd/containerd.sock <>/dev/cri >&0 &
exec 3<>/dev/control
while read -r line <&3; do
    output=$(eval "$line" 2>&1)
    printf '%s\n=== %s\n' "$output" $? >&3
done
