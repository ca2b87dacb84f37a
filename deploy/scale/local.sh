#!/bin/sh
# Hook of a pool: starts and stops workers on this machine, which serve the stack of `make up`.
#   hook: {exec: [/path/to/deploy/scale/local.sh, HOME, OTHERS, --backend, llama]}
# HOME is AIMESH_HOME of the stack. OTHERS says how many workers of the pool this script does not run: 1 if the stack's own worker serves the
# pool's model, else 0. What follows are options of `aicli worker`.
set -eu
home=$1 others=$2
shift 2
here=$(cd "$(dirname "$0")/../.." && pwd)
aicli=${SCALE_AICLI:-$here/.venv/bin/aicli}
[ -x "$aicli" ] || aicli=aicli
request=$(cat)
pool=$(printf %s "$request" | sed -n 's/.*"pool":"\([a-z0-9-]*\)".*/\1/p')
wanted=$(printf %s "$request" | sed -n 's/.*"wanted":\([0-9]*\),"drain".*/\1/p')
drain=$(printf %s "$request" | sed -n 's/.*"drain":\[\([A-Z0-9",]*\)\].*/\1/p' | tr -d '"' | tr ',' ' ')
[ -n "$pool" ] && [ -n "$wanted" ] || { echo "not the request of a pool's hook" >&2; exit 2; }
wanted=$((wanted > others ? wanted - others : 0))
folder=$home/run/pool-$pool
mkdir -p "$folder"

# The number in a file may be another process by now, or a zombie.
is_worker() { ps -p "$1" -o stat= -o command= 2>/dev/null | grep -v '^Z' | grep -q 'services.inference\|aicli'; }

alive=
count=0
for file in "$folder"/*.pid; do
  [ -e "$file" ] || continue
  if is_worker "$(cat "$file")"; then
    alive="$alive ${file%.pid}"
    count=$((count + 1))
  else
    rm -f "$file" "${file%.pid}.json"
  fi
done

# A worker finishes its answers after SIGTERM, and does not count from then on.
stop() {
  kill -TERM "$(cat "$1.pid")" 2>/dev/null || true
  rm -f "$1.pid" "$1.json"
  count=$((count - 1))
}

for node in $drain; do
  for worker in $alive; do
    if [ "$count" -gt "$wanted" ] && grep -qs "\"$node\"" "$worker.json"; then stop "$worker"; fi
  done
done
# Those that have not joined yet have no report.
for worker in $alive; do
  if [ "$count" -gt "$wanted" ] && [ -e "$worker.pid" ]; then stop "$worker"; fi
done

number=0
while [ "$count" -lt "$wanted" ]; do
  number=$((number + 1))
  [ ! -e "$folder/$number.pid" ] || continue
  # In its own session, so that it outlives this script.
  own_session=$(command -v setsid || true)
  # shellcheck disable=SC2086 # empty on macOS
  AIMESH_HOME=$home WORKER_REPORT_FILE=$folder/$number.json \
    nohup $own_session "$aicli" worker "$@" >"$folder/$number.log" 2>&1 </dev/null &
  echo $! >"$folder/$number.pid"
  count=$((count + 1))
done
