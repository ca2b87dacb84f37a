"""Parses REDIS_URL: one server, or the Sentinels or servers that know the others. Errors do not quote it: it may contain a password.

    unix:///path, redis://[user:password@]host:port/db, rediss://…
    redis+sentinel://[user:password@]sentinel1,sentinel2:26379/name?db=0
    redis+cluster://[user:password@]host1,host2:6379

``rediss+sentinel`` and ``rediss+cluster`` use TLS.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

_OPTIONS = frozenset({"db", "username", "password", "ssl_ca_certs", "sentinel_password"})
_SCHEMES = frozenset({"unix", "redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster"})
_SENTINEL_PORT = 26379
_PORT = 6379


@dataclass(frozen=True, slots=True, kw_only=True)
class ValkeyUrl:
    path: str | None = None
    host: str = "localhost"
    port: int = _PORT
    tls: bool = False
    ca_file: Path | None = None
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    #: The name under which Sentinels know the primary; None without Sentinel.
    primary: str | None = None
    is_cluster: bool = False
    #: The Sentinels, or some servers of the cluster.
    nodes: tuple[tuple[str, int], ...] = ()
    sentinel_password: str | None = field(default=None, repr=False)


def parse(url: str) -> ValkeyUrl:
    """Raises ValueError with a message that does not quote the URL."""
    try:
        # urlsplit refuses an IPv6 address behind the first host, so it gets the first host only.
        start, slashes, rest = url.partition("://")
        authority = re.split("[/?#]", rest, maxsplit=1)[0]
        login, at, servers = authority.rpartition("@")
        hosts = servers.split(",") if "+" in start else [servers]
        parts = urlsplit(f"{start}{slashes}{login}{at}{hosts[0]}{rest[len(authority) :]}")
        scheme, _, kind = parts.scheme.partition("+")
        options = {name: values[0] for name, values in parse_qs(parts.query).items()}
        nodes = tuple(_node(each, _SENTINEL_PORT if kind == "sentinel" else _PORT) for each in hosts)
    except ValueError:
        # The original error would quote the password.
        raise ValueError("its host or port is invalid") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError("its scheme is not supported")
    if unknown := options.keys() - _OPTIONS:
        raise ValueError(f"it has an unknown option: {min(unknown)}")
    username = unquote(parts.username or "") or options.get("username")
    password = unquote(parts.password or "") or options.get("password")
    if parts.scheme == "unix":
        path, database = unquote(parts.path), options.get("db", "0")
        if not path or "\0" in path:
            raise ValueError("it has no socket path")
        return ValkeyUrl(path=path, database=_number(database), username=username, password=password)
    name = parts.path.strip("/")
    if kind == "sentinel" and not name:
        raise ValueError("it has no name of the primary: redis+sentinel://host1,host2/name")
    number = _number(options.get("db") or (name if kind != "sentinel" else "") or "0")
    if kind == "cluster" and number:
        raise ValueError("it has a database, and a cluster has only number 0")
    host, port = nodes[0]
    return ValkeyUrl(
        host=host, port=port, tls=scheme == "rediss", database=number, username=username, password=password,
        ca_file=Path(options["ssl_ca_certs"]) if "ssl_ca_certs" in options else None,
        primary=unquote(name) if kind == "sentinel" else None, is_cluster=kind == "cluster", nodes=nodes if kind else (),
        sentinel_password=options.get("sentinel_password"),
    )  # fmt: skip


def _node(text: str, port: int) -> tuple[str, int]:
    """Raises ValueError."""
    found = urlsplit(f"//{text}")
    host = unquote(found.hostname or "localhost")
    if "\0" in host.encode("idna").decode():
        raise ValueError
    return host, found.port or port


def _number(database: str) -> int:
    if not (database.isascii() and database.isdigit()):
        raise ValueError("its database is not a number")
    return int(database)
