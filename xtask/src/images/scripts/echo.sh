#!/bin/sh
# Answers 200 on port 3000.
trap 'exit 0' TERM INT
www=/tmp/www
mkdir -p "$www"
echo "Hello from $(hostname)" > "$www/index.html"
echo "listening on 3000"
httpd -f -vv -p 3000 -h "$www" &
wait $!
