"""The site's lease, on a real PostgreSQL: what gateways refuse after another site has taken over."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import httpx
import pytest

from services.gateway import store
from services.gateway.billing.ledger_store import LedgerStore
from services.gateway.billing.reservations import GrantedReservation
from services.gateway.site_lease import SiteGate
from shared import errors
from shared.api.gateway import InferenceRequest
from shared.api.recovery import SetSiteLease, SiteLease, SiteLeaseState
from shared.node import lifecycle
from shared.stores.database import Database
from shared.types import RequestId, UserId
from tests.services.gateway import fakes
from tests.services.gateway.billing.test_ledger_store import GATEWAY, Books
from tests.stacks import until

BACKUP = fakes.rpc_call(fakes.OWNER)
ACTIVE, SUSPENDED, ENDED = SiteLeaseState.ACTIVE, SiteLeaseState.SUSPENDED, SiteLeaseState.ENDED


class Site:
    """A database, and gateways that use it."""

    def __init__(self, opened: Database, url: str) -> None:
        self.database, self.url = opened, url
        self.ledger = LedgerStore(opened)
        self.gate = SiteGate(opened)

    async def set(self, state: SiteLeaseState, term: int = 1, *, seconds: float | None = None, by: SiteGate | None = None) -> SiteLease:
        gate = by or self.gate
        since = None
        if seconds is not None:
            request = SetSiteLease(term=term, site="oslo", state=state, seconds=1)
            since = (await gate.set(request, None)).now  # type: ignore[arg-type]
        other = ("rome", "https://rome.example") if state is ENDED else (None, None)
        request = SetSiteLease(
            term=term, site="oslo", state=state, seconds=seconds, since=since, replaced_by=other[0], replaced_url=other[1]
        )
        return await gate.set(request, BACKUP)

    async def reserve(self, owner: UserId | None = None) -> None:
        wanted = Books.wanted(owner or UserId(uuid4()), RequestId(uuid4()))
        (answer,) = await self.ledger.reserve([wanted], gateway=GATEWAY, lease_seconds=90)
        assert isinstance(answer, GrantedReservation)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
        try:
            yield connection
        finally:
            await connection.close()

    async def execute(self, sql: str) -> None:
        async with self.connection() as connection:
            await connection.execute(sql)

    async def is_waiting(self, mode: str) -> bool:
        async with self.connection() as connection:
            return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = $1", mode))


@pytest.fixture
async def site(plain_url: str) -> AsyncIterator[Site]:
    async with store.opened(plain_url) as opened:
        found = Site(opened, plain_url)
        await found.ledger.ensure_default_price(1, 1)
        yield found


async def refused(asking: Callable[[], Awaitable[object]]) -> errors.AimeshError:
    with pytest.raises((errors.SiteReplaced, errors.SiteSuspended), match="this site") as caught:
        await asking()
    return caught.value


async def test_without_a_lease_nothing_is_refused(site: Site) -> None:
    await site.reserve()
    await site.gate.reload()
    await site.gate.ensure_open()
    clock_only = await site.gate.set(SetSiteLease(term=1, site="oslo", state=ACTIVE, seconds=45), BACKUP)
    assert abs(clock_only.now - datetime.now(UTC)) < timedelta(seconds=30)
    await site.gate.reload()
    assert site.gate.find_refusal() is None


async def test_a_gateway_that_was_paused_while_another_site_took_over_runs_nothing(site: Site) -> None:
    """The paused gateway gets no notification: no task of it listens, as after SIGSTOP."""
    now = [1000.0]
    paused, other = SiteGate(site.database, lambda: now[0]), SiteGate(site.database)
    await site.set(ACTIVE, by=other)
    await paused.reload()
    await site.reserve()
    await site.set(ENDED, by=other)
    assert paused.find_refusal() is None, "it does not know yet"
    error = await refused(site.reserve)
    assert error.code == "site_replaced"
    assert error.status == 503
    assert error.retryable
    assert error.message.startswith("this site was replaced by rome (https://rome.example) at 20")
    now[0] += 3600
    assert (await refused(paused.ensure_open)).code == "site_replaced", "also what reserves nothing"


async def test_a_lease_ends_by_the_clock_of_postgresql_with_nobody_left_to_say_so(site: Site) -> None:
    await site.set(ACTIVE, seconds=45)
    await site.reserve()
    await site.execute("UPDATE site_lease SET ends_at = clock_timestamp() - interval '1 ms'")
    assert (await refused(site.reserve)).code == "site_suspended"
    await site.set(ACTIVE, seconds=45)
    await site.reserve()
    await site.execute("UPDATE site_lease SET changed_at = clock_timestamp() + interval '1 hour', ends_at = now() + interval '2 hours'")
    assert (await refused(site.reserve)).code == "site_suspended", "the clock was set back"
    await site.execute("UPDATE site_lease SET ends_at = NULL")
    await site.reserve()


async def test_a_late_message_extends_nothing(site: Site) -> None:
    await site.set(ACTIVE, seconds=45)
    sent = datetime.now(UTC) - timedelta(hours=1)
    late = SetSiteLease(term=1, site="oslo", state=ACTIVE, seconds=45, since=sent)
    assert (await site.gate.set(late, None)).state is SUSPENDED  # type: ignore[arg-type]
    await refused(site.reserve)
    for nothing in (None, datetime.now(UTC) + timedelta(hours=1)):
        # The caller doesn't know the database's clock, or the clock was set back since.
        request = SetSiteLease(term=1, site="oslo", state=ACTIVE, seconds=45, since=nothing)
        assert (await site.gate.set(request, BACKUP)).state is SUSPENDED
        await refused(site.reserve)


async def test_a_term_only_rises_and_its_end_is_final(site: Site) -> None:
    await site.set(ACTIVE, 3)
    with pytest.raises(errors.BadRequest, match="oslo can't set term 2 to active: term 3 of oslo is active"):
        await site.set(ACTIVE, 2)
    await site.set(SUSPENDED, 3)
    await site.set(ACTIVE, 3)
    await site.set(ENDED, 3)
    assert (await site.set(ENDED, 3)).state is ENDED
    for state in (ACTIVE, SUSPENDED):
        with pytest.raises(errors.BadRequest, match=f"oslo can't set term 3 to {state}: term 3 of oslo is ended"):
            await site.set(state, 3)
    await refused(site.reserve)
    await site.set(ACTIVE, 4)
    await site.reserve()


async def test_of_an_end_and_an_activation_at_once_the_end_wins(site: Site) -> None:
    for term in range(1, 11):
        await site.set(ACTIVE, term)
        await asyncio.gather(site.set(ENDED, term), *(site.set(ACTIVE, term) for _ in range(3)), return_exceptions=True)
        await refused(site.reserve)


async def test_the_end_waits_for_reservations_that_began_before(site: Site) -> None:
    await site.set(ACTIVE)
    ada = UserId(uuid4())
    await site.reserve(ada)
    async with site.connection() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT FROM accounts WHERE owner = $1 FOR UPDATE", ada)
        reserving = asyncio.create_task(site.reserve(ada))
        await until(lambda: site.is_waiting("ShareLock"), what="the reservation waits for the account")
        ending = asyncio.create_task(site.set(ENDED))
        await until(lambda: site.is_waiting("ExclusiveLock"), what="the end waits for the reservation")
        assert not ending.done()
        await transaction.commit()
    await reserving
    await ending
    await refused(site.reserve)


async def test_every_gateway_learns_of_a_change_within_a_second(site: Site) -> None:
    gates = [SiteGate(site.database) for _ in range(3)]
    async with lifecycle.background() as tasks:
        for gate in gates:
            tasks.create_task(gate.watch())
        for state, refuses in ((ACTIVE, False), (SUSPENDED, True), (ACTIVE, False), (ENDED, True)):
            await site.set(state)

            async def all_know(refuses: bool = refuses) -> bool:
                return all((gate.find_refusal() is not None) is refuses for gate in gates)

            await until(all_know, seconds=5, what=f"all know of {state}")


async def test_a_lease_that_ends_here_is_not_believed_to_have_begun_again(site: Site) -> None:
    """PostgreSQL's clock was set back, so the lease in the database still seems to have time left."""
    now = [1000.0]
    gate = SiteGate(site.database, lambda: now[0])
    await site.set(ACTIVE, seconds=45)
    await gate.reload()
    now[0] += 46
    await gate.reload()
    assert isinstance(gate.find_refusal(), errors.SiteSuspended)
    await site.set(ACTIVE, seconds=45)
    await gate.reload()
    assert gate.find_refusal() is None


async def test_a_gateway_of_a_replaced_site_does_not_start_and_a_running_one_ends(site: Site) -> None:
    now = [0.0]
    running = SiteGate(site.database, lambda: now[0])
    await site.set(ENDED, 3)

    async def start(term: int) -> SiteGate:
        async with lifecycle.background() as tasks:
            return await SiteGate.start(site.database, term, tasks)

    for term in (0, 3):
        with pytest.raises(errors.SiteReplaced, match="replaced by rome"):
            await start(term)
    watching = asyncio.create_task(running.watch())

    async def knows() -> bool:
        return running.find_refusal() is not None

    await until(knows, what="it knows")
    now[0] += 61
    with pytest.raises(errors.SiteReplaced, match="replaced by rome"):
        await watching
    # The database was restored at another site, and contains the end of the old site's term.
    gate = await start(4)
    assert isinstance(gate.find_refusal(), errors.SiteSuspended)
    await site.set(ACTIVE, 4)
    await site.reserve()
    assert (await start(4)).find_refusal() is None


async def test_running_requests_end_with_a_retryable_error_and_have_their_rows(site: Site) -> None:
    async with fakes.running_service() as service:
        service.worker.hangs_after = 1
        pipeline = service.new_pipeline(replace(service.admission, while_open=site.gate.while_open))
        await site.set(ACTIVE)

        async def ask() -> None:
            async with pipeline.run(fakes.OWNER, InferenceRequest(prompt="hi"), seconds=30) as running:
                async for _ in running:
                    pass

        asking = asyncio.create_task(ask())
        await service.worker.is_hanging.wait()
        await site.set(ENDED)
        error = await refused(lambda: asyncio.wait_for(asking, 10))
        assert error.retryable
        row = service.store.only_row
        assert (row.status, row.error_code, row.completion_tokens) == ("error", "site_replaced", 1)
        assert (await refused(ask)).code == "site_replaced", "and no other begins"
        assert service.worker.left_early == 1


async def test_http_routes_are_refused_except_the_documentation(site: Site) -> None:
    async with fakes.running_service() as service:
        app = service.app(ensure_open=site.gate.ensure_open)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as http:
            headers = {"authorization": f"Bearer {fakes.KEY}"}
            assert (await http.get("/v1/models", headers=headers)).status_code == 200
            await site.set(ENDED)
            for verb, path in (
                ("GET", "/v1/models"),
                ("POST", "/v1/chat/completions"),
                ("POST", "/v1/embeddings"),
                ("POST", "/api/auth/login"),
            ):
                answer = await http.request(verb, path, headers=headers, content=b"{}")
                assert (answer.status_code, answer.json()["error"]["code"]) == (503, "site_replaced"), path
                assert "https://rome.example" in answer.json()["error"]["message"]
                assert answer.headers["retry-after"] == "10"
            assert (await http.get("/docs")).status_code == 200
