"""A real PostgreSQL primary becomes a standby under load, and its standby the primary, behind one address. For a while the address leads
to a read-only server, and the connections to that server stay open when the address changes its target."""

import contextlib
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import pytest

from services.gateway.facts import tiers
from stack import stack_plan
from stack.secret_files import LOGIN_ROLES
from stack.servers import postgres
from tests import people, stacks
from tests.chaos import judging, load
from tests.chaos.load import History
from tests.chaos.oracle import Door, Fault
from tests.servers import PostgresServer
from tests.stacks import RunningStack, until
from tests.switch import Switch

SETTINGS = {
    "AIMESH_ECHO": "1",
    "ECHO_TOKEN_MS": "20",
    "RESPONSE_CACHE": "off",
    "DEFAULT_RATE_LIMIT": "1000000",
    "TIER_FREE": ",".join(f"{name}=unlimited" for name in tiers.NUMBERS),
}
#: A request waits two seconds for its reservation before it is refused.
REFUSED = frozenset({"ledger_unavailable"})
#: Time from the switch until every request succeeds.
USED_WITHIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Place:
    """The stack and its PostgreSQL servers."""

    stack: RunningStack
    primary: PostgresServer
    standby: PostgresServer
    switch: Switch


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with contextlib.AsyncExitStack() as opened:
        folders = [Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="aimesh-", ignore_cleanup_errors=True))) for _ in range(3)]
        primary = PostgresServer(folders[0])
        primary.start()
        opened.callback(primary.stop)
        passwords = {role: secrets.token_urlsafe(16) for role in LOGIN_ROLES}
        postgres.provision(primary.server, passwords)
        standby = PostgresServer(folders[1], primary=primary)
        standby.start()
        opened.callback(standby.stop)
        await _wait_for_each_other(primary)
        address = postgres.Postgres(folders[2], folders[2], "", folders[2])
        urls = {role: address.url(role, password) for role, password in passwords.items()}
        switch = await opened.enter_async_context(Switch(folders[2] / primary.socket.name, primary.socket))
        settings = {f"{role.upper()}_DATABASE_URL": url for role, url in urls.items()}
        stack = await opened.enter_async_context(stacks.stack(**SETTINGS, **settings))
        # The judge reads the URL there.
        stack_plan.database_url_file(stack.place, "gateway").write_text(urls["gateway"])
        yield Place(stack, primary, standby, switch)


async def _wait_for_each_other(primary: PostgresServer) -> None:
    """Make every commit wait until both servers have it."""
    connection = await asyncpg.connect(primary.url())
    try:
        await connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


@pytest.mark.timeout(300)
async def test_a_promoted_standby_is_used_and_no_service_ends(place: Place) -> None:
    stack = place.stack
    before = await stack.pids()
    async with people.api_client(stack) as api_client:
        ann = await api_client.register("ann")
        async with load.running(stack, ann) as history:
            await history.until_each_door_succeeds(5)
            fault_at = time.monotonic()
            await place.primary.demote()
            await until(lambda: _says_why(stack), what="the gateway says that PostgreSQL is read-only", ignoring=(httpx.TransportError,))
            await until(lambda: _were_refused(history), what="requests are refused")
            await place.standby.promote()
            place.switch.target = place.standby.socket
            over_at = time.monotonic()
            await history.until_each_door_succeeds(5, since=over_at, seconds=USED_WITHIN_SECONDS)
        used_at = max(history.last_failure(), over_at)
        print(f"used {used_at - over_at:.2f} s after the switch; {history.outcomes()}")
        fault = Fault(began=fault_at, over=over_at + USED_WITHIN_SECONDS, doors=frozenset(Door), codes=REFUSED)
        await judging.judge(stack, ann, history, fault)
    assert await stack.pids() == before
    assert await stack.metric("gateway", "ai_platform_settle_failures_total", reason="unavailable") > 0
    assert stack.log("gateway").count("request rows are waiting") == 1
    await judging.check_the_books(stack)


async def _says_why(stack: RunningStack) -> bool:
    async with stack.http() as http:
        ready, told = await http.get("/readyz"), await http.get("/dependencies")
    return ready.status_code == 200 and "read-only" in told.text


async def _were_refused(history: History) -> bool:
    return sum(attempt.ends == ("ledger_unavailable",) for attempt in list(history.attempts)) >= 5
