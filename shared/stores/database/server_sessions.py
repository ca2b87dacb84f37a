"""Opens sessions with the settings that stores rely on, and finds out before anything is served whether they hold.

They are set by a statement and not when connecting: PgBouncer refuses to pass unknown startup parameters on, or drops them. In session
mode what is set stays. In transaction mode each transaction may meet another process of the server, without our settings or with those of
somebody else, and neither prepared statements nor locks nor notifications work.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from shared import errors
from shared.stores.database import queries

_CONNECT_SECONDS = 5
#: As PostgreSQL writes them, because they are read back.
_SETTINGS = {
    # A caller that gave up leaves its statement behind; after this the server ends it, so that it holds no lock for ever.
    "statement_timeout": "1min",
    "idle_in_transaction_session_timeout": "1min",
    # What the policies of row-level security compare: the work of a service itself sees all tenants, ``bound`` sees one, and who
    # does not set it, like somebody with a stolen password, sees none.
    "aimesh.tenant": "*",
}
_FOR_EVER = "0"
_SQL = queries.load(Path(__file__).with_name("server_sessions.sql"))

#: The settings are wrong, and waiting will not mend them.
_REFUSED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
    # A parameter in the URL that PostgreSQL does not know, or not with this value.
    asyncpg.UndefinedObjectError,
    asyncpg.InvalidParameterValueError,
    asyncpg.CantChangeRuntimeParamError,
)
#: PgBouncer has one code for whatever is the matter with it, also for what passes. These do not.
_POOLER_REFUSES = ("unsupported startup parameter", "authentication failed", "does not exist", "no such")
#: Our prepared statements are where we are not, or those of others where we are.
_MIXED_UP = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)


@dataclass(frozen=True, slots=True)
class ServerPlace:
    """Where to connect, and as which schema."""

    url: str
    schema: str

    async def connect(self, *, statement_timeout: str = _SETTINGS["statement_timeout"], **driver: Any) -> asyncpg.Connection:
        """A new session with our settings; ``driver`` is what a pool says to the driver."""
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
    """A session whose statements may take as long as they like, once it is certain that sessions keep what is set for them. Raises
    BadSettings where they do not, or where we are refused; and what the driver raises where the server is not there."""
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
        hint = "check DATABASE_URL: take parameters out of it that the pooler does not know; aimesh sets what it needs itself"
        raise errors.BadSettings(f"the pooler before PostgreSQL refuses the connection: {error}", hint=hint) from error
    return first


async def _compare(place: ServerPlace, first: asyncpg.Connection) -> None:
    """With a second session. In this order a pooler that does not keep sessions shows itself, whether it takes the process of the server
    that was used last or each in turn."""
    second = await place.connect()
    try:
        wanted = {first: place.settings(_FOR_EVER), second: place.settings(_SETTINGS["statement_timeout"])}
        processes: dict[asyncpg.Connection, set[int]] = {first: set(), second: set()}
        async with asyncio.timeout(_CONNECT_SECONDS):
            for session in (first, first, second, first, second):
                found = await session.fetchrow(_SQL["look"].text, list(wanted[session]))
                assert found is not None  # an aggregate without GROUP BY always has one row
                if found["settings"] != list(wanted[session].values()):
                    raise _not_kept()
                processes[session].add(found["process"])
    finally:
        second.terminate()
    if len(processes[first]) > 1 or processes[first] & processes[second]:
        raise _not_kept()


def _not_kept() -> errors.BadSettings:
    return errors.BadSettings(
        "the database does not keep what is set for a session: a pooler gives each transaction another one",
        hint="set pool_mode = session in PgBouncer, or let DATABASE_URL lead to PostgreSQL itself",
    )
