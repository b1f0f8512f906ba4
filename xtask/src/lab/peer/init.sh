#!/bin/busybox sh
# The Linux peer's only process: counts, so that a reader of the console sees a gap or a repeat.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
echo "peer: up cpus=$(grep -c ^processor /proc/cpuinfo)"
beat=0
while :; do
    echo "peer: beat $beat"
    beat=$((beat + 1))
    usleep 200000
done
