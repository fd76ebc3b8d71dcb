#!/bin/sh
# Shows who it runs as, its variable and its configuration, and answers /healthz on port 80.
trap 'exit 0' TERM INT
www=/tmp/www
mkdir -p "$www"
echo ok > "$www/healthz"
echo "myapp" > "$www/index.html"
echo "running as uid $(id -u) gid $(id -g) groups $(id -G)"
echo "ENV_VAR=${ENV_VAR:-(not set)}"
for file in /config/*; do
    [ -f "$file" ] || continue
    echo "--- $file"
    cat "$file"
done
httpd -f -p 80 -h "$www" &
server=$!
sleep 1
if ! kill -0 "$server" 2>/dev/null; then
    # A node may keep ports below 1024 for root, and this runs as another user.
    echo "cannot listen on port 80 as uid $(id -u): going on without HTTP" >&2
fi
while :; do
    sleep 3600 &
    wait $!
done
