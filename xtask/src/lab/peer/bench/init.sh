#!/bin/busybox sh
# The Linux peer's only process when it measures: loads our module as the command line says, then powers off. With peer.downtime
# it is the module that measures suspends, and the guest stays.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
names=all
samples=2000
downtime=
read -r line < /proc/cmdline
for word in $line; do
    case $word in
        peer.bench=*) names=${word#*=} ;;
        peer.n=*) samples=${word#*=} ;;
        peer.downtime) downtime=yes ;;
    esac
done
if [ "$downtime" ]; then
    insmod /downtime.ko || echo "peer: downtime-error what=insmod errno=$?"
    while :; do sleep 3600; done
fi
# Only its log says which ABI the kernel took: it falls back when it cannot have the one that it was asked for.
if dmesg | grep -q 'Using FIFO-based ABI'; then abi=fifo; else abi=2l; fi
insmod /bench.ko "bench=$names" "n=$samples" "abi=$abi" || echo "peer: bench-error name=insmod errno=$?"
poweroff -f
