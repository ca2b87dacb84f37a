#!/bin/sh
# Starts Alertmanager with the addresses of alertmanager.env in its configuration. Arguments are passed to Alertmanager.
#
# ALERTMANAGER      the program (in Debian: prometheus-alertmanager)
# ALERTMANAGER_ENV  another file with addresses
# CONFIG_OUT        path of the generated configuration; it contains the addresses, so only its owner can read it
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
addresses=${ALERTMANAGER_ENV:-$here/alertmanager.env}
out=${CONFIG_OUT:-/tmp/alertmanager.yml}

if [ -f "$addresses" ]; then
  set -a
  # shellcheck disable=SC1090 # the operator's own file
  . "$addresses"
  set +a
fi

# Escapes what sed treats specially. Quotes and blanks would break the YAML and are refused.
put() {
  [ -n "$2" ] || return 0
  case $2 in
    http://*|https://*) ;;
    *) echo "$1: an address that begins with http:// or https:// is needed" >&2; exit 1 ;;
  esac
  case $2 in
    *[\'\"\ ]*) echo "$1: the address has quotes or blanks in it; write them as %27, %22 and %20" >&2; exit 1 ;;
  esac
  printf 's|http://%s.invalid/|"%s"|\n' "$3" "$(printf %s "$2" | sed 's/[\\&|]/\\&/g')"
}

script=$(
  put PAGE_WEBHOOK_URL "${PAGE_WEBHOOK_URL:-}" page
  put CRITICAL_WEBHOOK_URL "${CRITICAL_WEBHOOK_URL:-}" critical
  put WARNING_WEBHOOK_URL "${WARNING_WEBHOOK_URL:-}" warning
  put TICKET_WEBHOOK_URL "${TICKET_WEBHOOK_URL:-}" ticket
  put WATCHDOG_WEBHOOK_URL "${WATCHDOG_WEBHOOK_URL:-}" watchdog
)
umask 077
sed "$script" "$here/alertmanager.yml" > "$out"
exec "${ALERTMANAGER:-alertmanager}" --config.file="$out" "$@"
