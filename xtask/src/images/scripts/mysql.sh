#!/bin/sh
# Shows what environment it got, and insists on a password as the real one does.
trap 'exit 0' TERM INT
if [ -z "$MYSQL_ROOT_PASSWORD" ]; then
    echo "MYSQL_ROOT_PASSWORD is not set" >&2
    exit 1
fi
env | sort
echo "ready for connections"
while :; do
    sleep 3600 &
    wait $!
done
