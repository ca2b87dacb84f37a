"""The migrations of each service's schema, for `aicli stack migrate` and before an upgrade.

It reads the services' folders by path, because the stack imports no service, and connects as the role that owns the schema.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from shared import errors
from shared.stores import migrations, server_sessions
from shared.stores.migrations import SchemaStatus
from shared.stores.server_sessions import ServerPlace
from stack import secret_files, settings, stack_plan
from stack import stack_home as homes
from stack.secret_files import DATABASE_ROLES
from stack.servers.postgres import Postgres
from stack.stack_home import StackHome

if TYPE_CHECKING:
    from shared.api.gateway import NodeRow

_READ_SECONDS = 30
_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?P<suffix>.*)")


def database_urls(home: StackHome, environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return service -> URL of its database: from the environment, the saved settings, or the embedded server. Raises BadSettings."""
    recorded = settings.merge(settings.read_recorded(home), environment, folder)
    chosen = settings.load(recorded)
    urls: dict[str, str] = {}
    for service in DATABASE_ROLES:
        url = getattr(chosen, f"{service}_database_url") or chosen.database_url
        embedded = stack_plan.service_environment(home, chosen, recorded, service).get("DATABASE_URL_FILE")
        try:
            if url or embedded:
                urls[service] = url or Path(str(embedded)).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise errors.BadSettings(f"there is no stack in {home.root}", hint="start it with make up, or set DATABASE_URL") from error
    return urls


async def read(urls: Mapping[str, str]) -> list[SchemaStatus]:
    """Raises Unavailable, and BadSettings for a migration that was edited after it ran."""
    found = []
    for schema, url in urls.items():
        async with _session(schema, url) as connection, asyncio.timeout(_READ_SECONDS):
            found.append(await migrations.read_status(connection, schema, _known(schema)))
    return found


async def will_change_tables(home: StackHome, server: Postgres) -> bool:
    """Return whether services that start now would migrate tables that exist. Raises as ``read``."""
    urls = {role: server.url(role, secret_files.read(home, f"postgres_{role}")) for role in DATABASE_ROLES}
    return any(status.applied and status.pending_pre for status in await read(urls))


async def run_post(urls: Mapping[str, str]) -> list[str]:
    """Run the pending ``post`` migrations of all schemas that are here, and return their names. They may rewrite large tables, so this has
    no deadline. Raises Unavailable, BadSettings while ``pre`` migrations are pending, and Internal if one fails: then run it again."""
    return await _run(urls, [status.schema for status in await read(urls) if status.applied and status.pending_post], post=True)


async def run_pre(urls: Mapping[str, str]) -> list[str]:
    """Run the pending ``pre`` migrations of all schemas, as services do at start, and return their names. Raises as ``run_post``."""
    return await _run(urls, [status.schema for status in await read(urls) if status.pending_pre], post=False)


async def _run(urls: Mapping[str, str], schemas: Iterable[str], *, post: bool) -> list[str]:
    done = []
    for schema in schemas:
        async with _session(schema, urls[schema]) as connection:
            try:
                ran = await migrations.run(connection, schema, _known(schema), post=post)
            except asyncpg.PostgresError as error:
                raise errors.Internal(f"a migration of {schema} failed: {error}", hint="fix the cause, and run it again") from error
        done += [f"{schema} {name}" for name in ran]
    return done


def refuse_older(nodes: Iterable["NodeRow"], version: str) -> None:
    """Raises BadSettings if a node that is alive announces an older version, or a version that can't be compared. Pure."""
    older = [
        f"{node.service} {node.id[:9]} ({node.version or 'unknown'})" for node in nodes if node.alive and is_older(node.version, version)
    ]
    if older:
        raise errors.BadSettings(
            f"older versions than {version} still run: {', '.join(sorted(older))}", hint="upgrade or stop these nodes, then run this again"
        )


def is_older(version: str, than: str) -> bool:
    """Return whether ``version`` is older, or not comparable. A pre-release such as 0.3.0rc1 is older than 0.3.0."""
    order = _order(version)
    return order is None or (version != than and order <= (_order(than) or (0, 0, 0, False)))


def _order(version: str) -> tuple[int, int, int, bool] | None:
    match = _VERSION.fullmatch(version)
    return match and (int(match[1]), int(match[2]), int(match[3] or 0), match["suffix"] == "")


def _known(schema: str) -> list[migrations.Migration]:
    return migrations.read_all(homes.checkout() / "services" / schema / "migrations", schema)


@asynccontextmanager
async def _session(schema: str, url: str) -> AsyncIterator[asyncpg.Connection]:
    try:
        connection = await server_sessions.open_first(ServerPlace(url, schema))
        try:
            yield connection
        finally:
            connection.terminate()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise errors.Unavailable(f"the database of {schema} does not answer", hint="start it with: make up") from error
