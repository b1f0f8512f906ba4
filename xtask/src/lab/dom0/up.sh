#!/bin/sh
# Starts the toolstack's daemons in dom0; ends with 0 when xl can be used.
set -e
grep -q control_d /proc/xen/capabilities || { echo "this is no control domain"; exit 1; }
xenstored --pid-file /run/xenstored.pid
tries=0
until xenstore-exists / 2> /dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { echo "xenstored does not answer"; exit 1; }
    usleep 50000
done
xen-init-dom0
xenconsoled --log=guest --log-dir="$1" --pid-file=/run/xenconsoled.pid
xl list
