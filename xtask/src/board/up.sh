#!/bin/sh
# Brings the network up as QEMU's user network has it: the host's loopback is 10.0.2.2.
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0 2>/dev/null
ip route add default via 10.0.2.2 2>/dev/null
echo "nameserver 10.0.2.3" >/etc/resolv.conf
