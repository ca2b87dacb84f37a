#!/bin/bash
# Prepare the mesh machine at each start: disk, Docker, the NFS folder of the gateways' journals, NATS's certificate.
set -euo pipefail
disk=/dev/disk/by-id/google-mesh
blkid "$disk" || mkfs.ext4 -q "$disk"
grep -q ' /srv ' /etc/fstab || echo "$disk /srv ext4 defaults 0 2" >>/etc/fstab
mountpoint -q /srv || mount /srv
install -d /etc/docker /etc/nfs.conf.d
echo '{"data-root": "/srv/docker"}' >/etc/docker/daemon.json
printf '[mountd]\nport=20048\n' >/etc/nfs.conf.d/aimesh.conf
install -d -m 0700 -o 10001 -g 10001 /srv/journal /srv/tls
for range in ${connectors}; do
  echo "/srv/journal $range(rw,sync,no_subtree_check,all_squash,anonuid=10001,anongid=10001)"
done >/etc/exports
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy docker.io docker-compose-v2 nfs-kernel-server
exportfs -ra
if [ ! -e /srv/tls/nats.key ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=nats \
    -addext "subjectAltName=IP:${address},DNS:nats" -keyout /srv/tls/nats.key -out /srv/tls/nats.pem
  chown 10001:10001 /srv/tls/*
fi
