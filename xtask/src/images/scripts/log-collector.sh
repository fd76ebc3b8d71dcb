#!/bin/sh
# Follows /data/app.log, which another container of the Pod writes.
trap 'exit 0' TERM INT
echo "collecting /data/app.log"
while [ ! -f /data/app.log ]; do
    sleep 1 &
    wait $!
done
# Line by line, because busybox' sed holds back what it writes to a pipe.
tail -n +1 -F /data/app.log | while read -r line; do echo "collected: $line"; done &
wait $!
