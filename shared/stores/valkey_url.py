"""Parses the URL of a server (redis://, rediss:// or unix://), as redis-py does. Errors do not quote it: it may contain a password."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

_OPTIONS = frozenset({"db", "username", "password", "ssl_ca_certs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ValkeyUrl:
    path: str | None = None
    host: str = "localhost"
    port: int = 6379
    tls: bool = False
    ca_file: Path | None = None
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)


def parse(url: str) -> ValkeyUrl:
    """Raises ValueError with a message that does not quote the URL."""
    try:
        parts = urlsplit(url)
        options = {name: values[0] for name, values in parse_qs(parts.query).items()}
        host, port = unquote(parts.hostname or "localhost"), parts.port or 6379
        if "\0" in host.encode("idna").decode():
            raise ValueError
    except ValueError:
        # The original error would quote the password.
        raise ValueError("its host or port is invalid") from None
    if parts.scheme not in {"redis", "rediss", "unix"}:
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
    database = options.get("db") or parts.path.strip("/") or "0"
    ca_file = Path(options["ssl_ca_certs"]) if "ssl_ca_certs" in options else None
    tls = parts.scheme == "rediss"
    return ValkeyUrl(host=host, port=port, tls=tls, ca_file=ca_file, database=_number(database), username=username, password=password)


def _number(database: str) -> int:
    if not (database.isascii() and database.isdigit()):
        raise ValueError("its database is not a number")
    return int(database)
