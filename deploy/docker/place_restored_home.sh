#!/bin/sh
# Move what `aicli stack restore` restored to /state/restored into the volumes of compose.yaml: docs/howto/recovery.md, Containers.
set -e
cd /handed/backup/restored
cp -a secrets keys nats stack.env /state/
chown -R 0:0 /state
sed -i 's#=/state/restored/#=/state/#' /state/stack.env
cp -a recovery_log/. /handed/recovery-data/
# The term of this site, for the agent.
mkdir -p -m 700 /handed/backup/run
cp -a run/site.json /handed/backup/run/
chown -R 10001:10001 /handed/backup/run
# Where the image of PostgreSQL 18 keeps its files in this volume.
mkdir -p /pg/18/docker
cp -a postgres/data/. /pg/18/docker/
chown -R 999:999 /pg
chmod 700 /pg/18/docker
rm -r /handed/backup/restored
