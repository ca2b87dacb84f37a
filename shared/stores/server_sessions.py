"""Opens sessions with the settings that stores rely on, and checks at startup that the server keeps them.

They are set by a statement, not when connecting, because PgBouncer refuses or drops unknown startup parameters. In session mode settings
are kept. In transaction mode each transaction may use another server process, without our settings or with another client's, and prepared
statements, locks and notifications do not work.
"""

import asyncio
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import asyncpg

from shared import errors
from shared.stores import queries

_CONNECT_SECONDS = 5
#: For one of several hosts, so that a host that hangs leaves time for two others.
_HOST_SECONDS = 1.5
#: In PostgreSQL's own notation, because they are compared.
_SETTINGS = {
    # A caller that gave up leaves its statement running. The server ends it after this time, so that it does not hold locks.
    "statement_timeout": "1min",
    "idle_in_transaction_session_timeout": "1min",
    # For row-level security: a service itself sees all tenants, ``bound`` sees one, and a session without this setting, such as that of
    # someone with a stolen password, sees none.
    "aimesh.tenant": "*",
}
_FOR_EVER = "0"
_PREFER = "prefer-standby"
_SQL = queries.load(Path(__file__).with_name("server_sessions.sql"))

#: The settings are wrong; waiting does not help.
_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
    # A parameter in the URL that PostgreSQL does not know, or an invalid value.
    asyncpg.UndefinedObjectError,
    asyncpg.InvalidParameterValueError,
    asyncpg.CantChangeRuntimeParamError,
)
#: PgBouncer uses one code for all errors, including temporary ones. These texts mean permanent ones.
_POOLER_REFUSES = ("unsupported startup parameter", "authentication failed", "does not exist", "no such")
#: We are on another server process than our prepared statements, or on one with another client's.
_MIXED_UP = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """Where to connect, and as which schema."""

    #: With several hosts, it leads to the primary, unless it has another ``target_session_attrs``.
    url: str
    schema: str
    #: The URL that was reached last.
    _reached: list[str] = field(default_factory=list, repr=False, compare=False)

    async def connect(self, *, statement_timeout: str = _SETTINGS["statement_timeout"], **driver: Any) -> asyncpg.Connection:
        """Open a session with our settings. ``driver`` are a pool's arguments for the driver."""
        connection = await self._connect(**driver)
        try:
            wanted = self.settings(statement_timeout)
            await connection.execute(_SQL["set"].text, list(wanted), list(wanted.values()), timeout=_CONNECT_SECONDS)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _connect(self, **driver: Any) -> asyncpg.Connection:
        """Try the hosts in turn, beginning with the last that was reached. Raises what the last attempt raises."""
        urls = sorted(urls_of(self.url), key=lambda url: url not in self._reached)
        seconds = _CONNECT_SECONDS if len(urls) == 1 else _HOST_SECONDS
        for url in urls:
            try:
                found = await asyncpg.connect(url, timeout=seconds, server_settings={"application_name": "aimesh"}, **driver)
            except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError):
                if url == urls[-1]:
                    raise
            else:
                self._reached[:] = [url]
                return found
        raise AssertionError("the last attempt returns or raises")

    def settings(self, statement_timeout: str) -> dict[str, str]:
        return _SETTINGS | {"search_path": self.schema, "statement_timeout": statement_timeout}


def urls_of(url: str) -> list[str]:
    """Return a URL for each host. Hosts are in front of the path, or in the parameters ``host`` and ``port``, as sockets are."""
    base, parts = url.partition("?")[0], urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    names = (hosts or options.get("host", "")).split(",")
    if len(names) == 1:
        return [url]
    options.setdefault("target_session_attrs", "read-write")
    if hosts:
        return [f"{base.replace(parts.netloc, login + at + name, 1)}?{urlencode(options)}" for name in names]
    ports = islice(cycle(options.pop("port", "5432").split(",")), len(names))
    return [f"{base}?{urlencode({**options, 'host': name, 'port': port})}" for name, port in zip(names, ports, strict=True)]


def standby_url(url: str) -> str:
    """Return a URL of several hosts that leads to standbys only. Asked host by host, prefer-standby would take the first primary."""
    base, parts = url.partition("?")[0], urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if len(urls_of(url)) == 1:
        return url
    if options.get("target_session_attrs", _PREFER) == _PREFER:
        options["target_session_attrs"] = "standby"
    return f"{base}?{urlencode(options)}"


async def open_first(place: ServerPlace) -> asyncpg.Connection:
    """Open a session without a statement timeout, after checking that sessions keep their settings. Raises BadSettings if they do not or
    if we are refused, and the driver's error if the server is unreachable."""
    try:
        first = await place.connect(statement_timeout=_FOR_EVER)
        try:
            await _compare(place, first)
        except BaseException:
            first.terminate()
            raise
    except _MIXED_UP as error:
        raise _not_kept() from error
    except _REFUSED as error:
        raise errors.BadSettings(f"PostgreSQL refuses the connection: {error}", hint="check DATABASE_URL") from error
    except asyncpg.ProtocolViolationError as error:
        if not any(words in str(error) for words in _POOLER_REFUSES):
            raise
        hint = "check DATABASE_URL: remove parameters that the pooler does not know; aimesh sets what it needs itself"
        raise errors.BadSettings(f"the pooler in front of PostgreSQL refuses the connection: {error}", hint=hint) from error
    return first


async def _compare(place: ServerPlace, first: asyncpg.Connection) -> None:
    """Compare with a second session. This order exposes a pooler that does not keep sessions, whether it reuses the latest server process
    or takes each in turn."""
    second = await place.connect()
    try:
        wanted = {first: place.settings(_FOR_EVER), second: place.settings(_SETTINGS["statement_timeout"])}
        processes: dict[asyncpg.Connection, set[int]] = {first: set(), second: set()}
        async with asyncio.timeout(_CONNECT_SECONDS):
            for session in (first, first, second, first, second):
                found = await session.fetchrow(_SQL["look"].text, list(wanted[session]))
                assert found is not None  # an aggregate without GROUP BY always returns a row
                if found["settings"] != list(wanted[session].values()):
                    raise _not_kept()
                processes[session].add(found["process"])
    finally:
        second.terminate()
    if len(processes[first]) > 1 or processes[first] & processes[second]:
        raise _not_kept()


def _not_kept() -> errors.BadSettings:
    return errors.BadSettings(
        "the database does not keep session settings: a pooler gives each transaction another session",
        hint="set pool_mode = session in PgBouncer, or connect DATABASE_URL directly to PostgreSQL",
    )
