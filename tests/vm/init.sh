#!/bin/sh
# Process 1 of the emulated machine. It is part of the root image, so it only does what never changes: it makes
# the machine look booted, unpacks the checkout from the second disk and hands over to the checkout's guest.sh.
# The initial RAM disk has already mounted /proc, /sys, /dev and /run.

mkdir -p /dev/pts /dev/shm /vagrant
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
hostname "$(. /etc/os-release && echo "$VERSION_CODENAME")"
ulimit -Hn 524288                       # what systemd would give; the kernel gives process 1 only 4096

tar -xf /dev/vdb -C /vagrant && sh /vagrant/tests/vm/guest.sh

sync
echo o >/proc/sysrq-trigger
sleep 60
