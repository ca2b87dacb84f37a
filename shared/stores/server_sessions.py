"""Opens sessions with the settings that stores rely on, and checks at startup that the server keeps them.

They are set by a statement, not when connecting, because PgBouncer refuses or drops unknown startup parameters. In session mode settings
are kept. In transaction mode each transaction may use another server process, without our settings or with somebody else's, and prepared
statements, locks and notifications do not work.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from shared import errors
from shared.stores import queries

_CONNECT_SECONDS = 5
#: In PostgreSQL's own notation, because they are compared.
_SETTINGS = {
    # A caller that gave up leaves its statement running. The server ends it after this time, so that it does not hold locks.
    "statement_timeout": "1min",
    "idle_in_transaction_session_timeout": "1min",
    # For row-level security: a service itself sees all tenants, ``bound`` sees one, and a session without this setting, such as that of
    # somebody with a stolen password, sees none.
    "aimesh.tenant": "*",
}
_FOR_EVER = "0"
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
#: We are on another server process than our prepared statements, or on one with somebody else's.
_MIXED_UP = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """Where to connect, and as which schema."""

    url: str
    schema: str

    async def connect(self, *, statement_timeout: str = _SETTINGS["statement_timeout"], **driver: Any) -> asyncpg.Connection:
        """Open a session with our settings. ``driver`` are a pool's arguments for the driver."""
        connection = await asyncpg.connect(self.url, timeout=_CONNECT_SECONDS, server_settings={"application_name": "aimesh"}, **driver)
        try:
            wanted = self.settings(statement_timeout)
            await connection.execute(_SQL["set"].text, list(wanted), list(wanted.values()), timeout=_CONNECT_SECONDS)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def settings(self, statement_timeout: str) -> dict[str, str]:
        return _SETTINGS | {"search_path": self.schema, "statement_timeout": statement_timeout}


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
