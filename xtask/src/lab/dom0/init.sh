#!/bin/busybox sh
# Process 1 of the lab's dom0: mounts, modules, the agent. All else is started by xtask through the agent,
# so that what fails is reported with its output.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin:/usr/lib/xen-4.17/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
# xenconsoled gives each guest's console a pty.
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
# Saved domains: as large as dom0's memory allows. All else, files from xtask included, is on the root file system,
# which takes half of the memory at most.
mount -t tmpfs -o size=95% tmpfs /var/lib/xen
while read -r module; do
    insmod "/lab/modules/$module.ko" || echo "lab: cannot load the module $module"
done < /lab/modules/order
mount -t xenfs xenfs /proc/xen
ip link set lo up
cd /root
tries=0
while [ ! -e "$1" ] && [ $tries -lt 100 ]; do
    usleep 50000
    tries=$((tries + 1))
done
echo "lab: starting the agent"
/lab/agent "$@" < /dev/null &
# Process 1 must also reap what daemons leave to it; waiting for one child does that for all.
wait $!
echo "lab: the agent has ended"
poweroff -f
