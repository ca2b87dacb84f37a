#!/bin/sh
# certbot's deploy hook for nginx and HAProxy: puts certificate and key into one file and reloads the proxy. Open streams continue.
#   certbot certonly … --deploy-hook '/etc/aimesh/renewed.sh haproxy'
set -eu
umask 077
site=${SITE_PEM:-/etc/aimesh/tls/site.pem}
cat "$RENEWED_LINEAGE/fullchain.pem" "$RENEWED_LINEAGE/privkey.pem" >"$site.new"
mv "$site.new" "$site"
${RELOAD:-systemctl reload "$1"}
