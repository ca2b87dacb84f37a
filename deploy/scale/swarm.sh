#!/bin/sh
# Hook of a pool: sets the replicas of a service of Docker Swarm, on a manager.
#   hook: {exec: [/path/to/deploy/scale/swarm.sh, aimesh_inference]}
# Swarm chooses the tasks that it stops. Their workers finish their answers within the service's stop_grace_period.
set -eu
wanted=$(sed -n 's/.*"wanted":\([0-9]*\),"drain".*/\1/p')
[ -n "$wanted" ] || { echo "not the request of a pool's hook" >&2; exit 2; }
exec docker service update --detach --quiet --replicas "$wanted" "$1"
