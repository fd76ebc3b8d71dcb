#!/bin/sh
# Counts in redis, once a second: the number goes to stdout and is served over HTTP on port 3000.
trap 'exit 0' TERM INT
: "${REDIS_HOST:?is not set: the name of the machine that redis runs on}"
port="${REDIS_PORT:-6379}"
www=/tmp/www
mkdir -p "$www"
echo "waiting" > "$www/index.html"
httpd -f -p 3000 -h "$www" &

while :; do
    count=$(printf 'INCR count\r\nQUIT\r\n' | nc -w 2 "$REDIS_HOST" "$port" 2>/dev/null | tr -d '\r' | sed -n 's/^:\([0-9]*\)$/\1/p')
    if [ -n "$count" ]; then
        echo "count $count"
        echo "$count" > "$www/index.html"
    else
        echo "no answer from redis at $REDIS_HOST:$port" >&2
    fi
    # In the background, because a shell handles a signal only when its foreground child has ended.
    sleep 1 &
    wait $!
done
