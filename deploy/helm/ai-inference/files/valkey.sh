# Starts Valkey, or with the argument `sentinel` its Sentinel. With SENTINELS=true, the Sentinels say which of the three servers is the primary.
set -eu
VALKEYCLI_AUTH="$(cat /run/aimesh/valkey_password)"
export VALKEYCLI_AUTH REDISCLI_AUTH="$VALKEYCLI_AUTH"
me="$POD_NAME.$PLACE"
primary=""
if [ "$SENTINELS" = true ]; then
  for i in 0 1 2; do
    [ -n "$primary" ] || primary="$(timeout 2 valkey-cli -h "$SET-$i.$PLACE" -p 26379 sentinel get-master-addr-by-name main 2>/dev/null | head -n 1)" || true
  done
  [ -n "$primary" ] || primary="$SET-0.$PLACE"
fi
umask 077
if [ "${1:-}" = sentinel ]; then
  cat >/tmp/sentinel.conf <<CONF
port 26379
dir /tmp
requirepass $VALKEYCLI_AUTH
sentinel sentinel-pass $VALKEYCLI_AUTH
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $me
sentinel monitor main $primary 6379 2
sentinel auth-pass main $VALKEYCLI_AUTH
sentinel down-after-milliseconds main 5000
sentinel failover-timeout main 30000
CONF
  exec valkey-sentinel /tmp/sentinel.conf
fi
cat >/tmp/valkey.conf <<CONF
port 6379
dir /var/lib/aimesh
requirepass $VALKEYCLI_AUTH
masterauth $VALKEYCLI_AUTH
appendonly yes
appendfsync everysec
save ""
maxmemory 512mb
maxmemory-policy noeviction
CONF
[ "$SENTINELS" != true ] || echo "replica-announce-ip $me" >>/tmp/valkey.conf
[ -z "$primary" ] || [ "$primary" = "$me" ] || echo "replicaof $primary 6379" >>/tmp/valkey.conf
exec valkey-server /tmp/valkey.conf
