#!/bin/sh
# Writes a line a second to /data/app.log, for a sidecar to collect, and serves HTTP on port 8080.
trap 'exit 0' TERM INT
mkdir -p /data /tmp/www
echo "ENVIRONMENT=${ENVIRONMENT:-(not set)}"
echo "my-app" > /tmp/www/index.html
httpd -f -p 8080 -h /tmp/www &
line=0
while :; do
    line=$((line + 1))
    echo "line $line" >> /data/app.log
    sleep 1 &
    wait $!
done
