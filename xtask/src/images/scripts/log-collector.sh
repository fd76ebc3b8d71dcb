#!/bin/sh
# Follows /data/app.log, which another container of the Pod writes.
trap 'exit 0' TERM INT
echo "collecting /data/app.log"
while [ ! -f /data/app.log ]; do
    sleep 1 &
    wait $!
done
tail -n +1 -F /data/app.log | sed -u 's/^/collected: /' &
wait $!
