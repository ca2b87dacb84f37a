"""The outbox and its delivery, on a real PostgreSQL."""

import asyncio
import contextlib
import random
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest
from asyncpg.transaction import Transaction

from features.usage_export.gateway import export as export_
from features.usage_export.gateway.export import PACE_SECONDS
from features.usage_export.gateway.store import OutboxFence, OutboxStore, Unit, UsageClaim
from services.gateway.billing.ledger_store import AlreadyReverted
from services.gateway.store import GatewayStore
from shared.types import RequestId, TenantId
from tests.features.usage_export.gateway import exports as exports_
from tests.features.usage_export.gateway.exports import Exports, MemorySink, totals_of
from tests.services.gateway.billing.test_ledger_store import new_owner, new_request, row
from tests.testnet import until


@pytest.fixture
async def exports(plain_url: str) -> AsyncIterator[Exports]:
    async with exports_.opened_exports(plain_url) as found:
        yield found


async def test_settled_requests_and_refunds_are_exported_once_with_the_ledger_s_sums(exports: Exports) -> None:
    sink = MemorySink()
    requests = await exports.settle_some(20)
    free = await exports.settle_some(2, cost=0)
    await exports.send_all(sink)
    assert set(sink.stored) == {*requests, *free}
    owner = await exports.ledger.revert(requests[0], "wrong answer")
    await exports.settle_some(1)
    await exports.send_all(sink)
    refund = next(event for event in sink.stored.values() if event.data.cost_micro < 0)
    assert (refund.subject, refund.data.requests, refund.total, refund.data.model) == (owner, 0, (0, -30), "smollm2")
    assert totals_of(sink.stored.values()) == await exports.ledger_totals()
    (state,) = await exports.outbox.list_sinks(["memory"])
    assert (state.waiting, state.lag_seconds, state.error, state.doubtful_since) == (0, 0, None, None)


async def test_events_say_whether_a_request_ran_behind_live_ones(exports: Exports, plain_url: str) -> None:
    """A biller could not tell tokens at half the price from others."""
    ada, live, flex = new_owner(), new_request(), new_request()
    await exports.outbox.add_sinks(["request", "minute"])
    for request in (live, flex):
        await exports.reserve(ada, request=request, tokens=30)
    rows = [msgspec.structs.replace(row(ada, request, 30), is_batch=request == flex) for request in (live, flex)]
    await exports.requests.write_requests(rows)
    await exports.ledger.revert(flex, "wrong answer")
    async with connected(plain_url) as connection:
        await connection.execute("UPDATE usage_outbox SET settled_at = date_trunc('minute', now()) - interval '3 minutes'")
    units: dict[Unit, list[tuple[str, int, int]]] = {
        "request": [("default", 1, 30), ("flex", 0, -30), ("flex", 1, 30)],
        "minute": [("default", 1, 30), ("flex", 1, 0)],
    }
    for unit, expected in units.items():
        sink = MemorySink()
        sink.name = unit
        await exports.send_all(sink, unit)
        data = [event.data for event in sink.stored.values()]
        assert sorted((one.service_tier, one.requests, one.cost_micro) for one in data) == expected


async def test_without_an_export_nothing_is_written(exports: Exports, plain_url: str) -> None:
    ada, request = new_owner(), new_request()
    await exports.reserve(ada, request=request)
    await GatewayStore(exports.outbox._database).write_requests([row(ada, request, 30)])
    assert (await exports.count("request_logs", str(ada)), await exports.count("usage_outbox", "*")) == (1, 0)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
    try:
        yield connection
    finally:
        await connection.close()


ADD_ROWS = """
INSERT INTO usage_outbox (id, owner, model, prompt_tokens, completion_tokens, cost_micro, created_at, settled_at)
SELECT gen_random_uuid(), $1, 'smollm2', 3, 4, 50, now(), coalesce($3, now()) FROM generate_series(1, $2) RETURNING id
"""


async def test_a_row_that_commits_after_later_rows_is_not_skipped(exports: Exports, plain_url: str) -> None:
    sink = MemorySink()
    async with connected(plain_url) as late, exports.sending(sink) as (export, session):
        transaction = late.transaction()
        await transaction.start()
        first = await late.fetchval(ADD_ROWS, exports.owners[0], 1, None)
        later = [(await exports.settle_some())[0] for _ in range(3)]
        for _ in range(4):
            await export.step(session)
        # It waits for the first, whose number is lower.
        assert not sink.stored
        await transaction.commit()
        for _ in range(4):
            await export.step(session)
        assert [event.id for event in sink.order] == [first, *later]


async def test_a_row_that_was_rolled_back_holds_nothing_up(exports: Exports, plain_url: str) -> None:
    sink = MemorySink()
    async with connected(plain_url) as late:
        transaction = late.transaction()
        await transaction.start()
        await late.execute(ADD_ROWS, exports.owners[0], 1, None)
        later = (await exports.settle_some())[0]
        await transaction.rollback()
    await exports.send_all(sink)
    assert [event.id for event in sink.order] == [later]


@pytest.mark.parametrize("seed", range(12))
async def test_no_row_is_skipped_while_many_transactions_commit_in_any_order(exports: Exports, plain_url: str, seed: int) -> None:
    rng, sink = random.Random(seed), MemorySink()
    async with contextlib.AsyncExitStack() as stack, exports.sending(sink) as (export, session):
        idle = [await stack.enter_async_context(connected(plain_url)) for _ in range(6)]
        running: list[tuple[asyncpg.Connection, Transaction]] = []
        kept = 0
        for _ in range(80):
            match rng.choice(["begin", "begin", "end", "end", "step"]):
                case "begin" if idle:
                    connection = idle.pop()
                    transaction = connection.transaction()
                    await transaction.start()
                    await connection.execute(ADD_ROWS, rng.choice(exports.owners), rng.randint(1, 3), None)
                    running.append((connection, transaction))
                case "end" if running:
                    connection, transaction = running.pop(rng.randrange(len(running)))
                    idle.append(connection)
                    await (transaction.rollback() if rng.random() < 0.2 else transaction.commit())
                case "step":
                    await export.step(session)
        for _, transaction in running:
            await transaction.commit()
        kept = await exports.count("usage_outbox", "*")
        for _ in range(kept + 3):
            await export.step(session)
    assert len(sink.stored) == kept


class Killed(Exception):
    pass


class CrashingStore(OutboxStore):
    """Dies before or after one of its steps, sometimes."""

    def __init__(self, store: OutboxStore, rng: random.Random) -> None:
        super().__init__(store._database, store._source)
        self.rng = rng

    def may_die(self) -> None:
        if self.rng.random() < 0.12:
            raise Killed

    async def claim(self, *args: Any) -> UsageClaim | None:
        self.may_die()
        found = await super().claim(*args)
        self.may_die()
        return found

    async def acknowledge(self, *args: Any) -> None:
        self.may_die()
        await super().acknowledge(*args)
        self.may_die()

    async def record_error(self, *args: Any, **more: Any) -> None:
        self.may_die()
        await super().record_error(*args, **more)
        self.may_die()


@pytest.mark.parametrize("unit", ["request", "minute"])
@pytest.mark.parametrize("seed", range(15))
async def test_every_token_arrives_once_whatever_dies_between_any_two_steps(
    exports: Exports, plain_url: str, seed: int, unit: Unit
) -> None:
    rng, sink = random.Random(seed), MemorySink()
    crashing = CrashingStore(exports.outbox, rng)
    settled: list[RequestId] = []
    for _ in range(12):
        settled += await exports.settle_some(rng.randint(1, 9))
        if rng.random() < 0.4:
            with contextlib.suppress(AlreadyReverted):
                await exports.ledger.revert(rng.choice(settled), "")
        # Minutes that have ended.
        await exports.execute(
            "UPDATE usage_outbox SET settled_at = settled_at - interval '2 minutes' WHERE settled_at > now() - interval '1 minute'"
        )
        sink.faults = [rng.choice(["", "refused", "lost", "all stored", "partly stored"]) for _ in range(4)]
        chosen: Unit = rng.choice(["request", "minute"]) if unit == "minute" else unit
        with contextlib.suppress(Killed):
            async with exports.sending(sink, chosen) as (_, session):
                export = exports_.new_export(crashing, sink, chosen)
                for _ in range(rng.randint(1, 8)):
                    await export.step(session)
    sink.faults = []
    await exports.send_all(sink, unit)
    assert totals_of(sink.stored.values()) == await exports.ledger_totals()
    (acknowledged,) = (await exports.outbox.list_acknowledged(sink.name, date(2000, 1, 1))).values()
    assert acknowledged.tokens == sum(event.total.tokens for event in sink.stored.values())
    assert acknowledged.cost_micro == sum(event.data.cost_micro for event in sink.stored.values())
    if unit == "request":
        async with connected(plain_url) as connection:
            rows = await connection.fetch("SELECT owner, id FROM usage_outbox ORDER BY number")
        for owner in exports.owners:
            assert [event.id for event in sink.order if event.subject == owner] == [row["id"] for row in rows if row["owner"] == owner]


async def test_a_minute_is_one_event_per_account_and_model_and_rows_that_come_late_are_another(exports: Exports, plain_url: str) -> None:
    sink, (owner, other) = MemorySink(), map(TenantId, exports.owners[:2])
    minute = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=3)
    async with connected(plain_url) as connection:
        await connection.execute(ADD_ROWS, owner, 30, minute + timedelta(seconds=5))
        await connection.execute(ADD_ROWS, other, 2, minute + timedelta(seconds=50))
        await connection.execute(ADD_ROWS, owner, 4, minute + timedelta(seconds=65))
        # Of a minute that has not ended.
        await connection.execute(ADD_ROWS, owner, 9, None)
        async with exports.sending(sink, "minute") as (export, session):
            for _ in range(4):
                await export.step(session)
        assert [(event.subject, event.data.requests, event.time) for event in sink.order] == [
            (owner, 30, minute), (other, 2, minute), (owner, 4, minute + timedelta(minutes=1)),
        ]  # fmt: skip
        await connection.execute("UPDATE usage_outbox SET settled_at = $1 WHERE settled_at > now() - interval '1 minute'", minute)
    await exports.send_all(sink, "minute")
    assert [(event.data.requests, event.time) for event in sink.order[3:]] == [(9, minute)]
    assert len(sink.stored) == 4


async def test_events_that_the_sink_may_have_and_forgotten_are_held_unless_it_can_be_asked(exports: Exports) -> None:
    sink = MemorySink(timedelta(hours=24))
    requests = await exports.settle_some(5)
    sink.faults = ["all stored"]
    async with exports.sending(sink) as (export, session):
        for _ in range(3):
            await export.step(session)
        assert (len(sink.stored), sink.sends) == (5, 2)
        # It has answered the second time. The same with an answer that is missing for too long:
        sink.faults = ["all stored"]
        requests += await exports.settle_some(5)
        for _ in range(2):
            await export.step(session)
            if not sink.faults:
                break
        sink.remembers = False
        await exports.execute("UPDATE usage_sinks SET doubtful_since = now() - interval '24 hours'")
        for _ in range(3):
            await export.step(session)
        (state,) = await exports.outbox.list_sinks(["memory"])
        assert (sink.sends, state.error) == (3, "held: it may have events whose ids it has forgotten")
        sink.can_be_asked = True
        for _ in range(3):
            await export.step(session)
    (state,) = await exports.outbox.list_sinks(["memory"])
    assert (set(sink.stored), state.error, state.waiting) == (set(requests), None, 0)


async def test_a_sink_that_was_down_for_a_day_gets_everything_at_a_steady_pace(exports: Exports, plain_url: str) -> None:
    """With Stripe's window, and a clock of our own; 30,000 rows stand for the 8,640,000 of a day."""
    sink, now = MemorySink(timedelta(hours=24)), 0.0
    sink.batch = 1000
    rows, day = 30_000, 24 * 3600.0
    async with connected(plain_url) as connection:
        await connection.execute(ADD_ROWS, exports.owners[0], rows, None)
    await exports.outbox.add_sinks([sink.name])
    async with exports.outbox.leadership(sink.name) as session:
        await session.take()
        export, attempts = exports_.new_export(exports.outbox, sink, clock=lambda: now), 0
        while now < day:
            sink.faults = ["refused"]
            now += await export.step(session)
            attempts += 1
        # It answers after at most five minutes, and isn't flooded with attempts before.
        assert 24 * 12 <= attempts <= 24 * 12 * 2.2
        sink.faults = []
        tracemalloc.start()
        began, most_memory = now, 0
        while len(sink.stored) < rows:
            sink.order.clear()
            now += await export.step(session)
            assert now - began < 3600
            # What the sink itself keeps is not the export's.
            current, peak = tracemalloc.get_traced_memory()
            most_memory = max(most_memory, peak - current)
            tracemalloc.reset_peak()
        tracemalloc.stop()
    assert rows / (now - began) <= 1000 / PACE_SECONDS + 1
    assert most_memory < 4 * 2**20


async def test_a_sink_that_is_added_later_gets_what_is_settled_from_then_on(exports: Exports) -> None:
    first, second = MemorySink(), MemorySink()
    second.name = "second"
    await exports.settle_some(3)
    await exports.outbox.add_sinks(["memory"])
    await exports.outbox.add_sinks(["memory", "second"])
    later = await exports.settle_some(2)
    await exports.send_all(first)
    await exports.send_all(second)
    assert (len(first.stored), set(second.stored)) == (5, set(later))


async def test_the_comparison_finds_what_a_sink_lacks_has_twice_or_never_got(exports: Exports, plain_url: str) -> None:
    sink = MemorySink(can_be_asked=True)
    await exports.settle_some(8)
    await exports.send_all(sink)

    async def differences() -> tuple[int, int]:
        await exports_.new_export(exports.outbox, sink).compare()
        (state,) = await exports.outbox.list_sinks([sink.name])
        return state.difference_tokens, state.difference_micro

    assert await differences() == (0, 0)
    lost = sink.stored.pop(sink.order[2].id)
    assert await differences() == (lost.total.tokens, 30)
    sink.stored[lost.id] = lost
    # A row behind the cursor, as if it had been skipped. The sink can't be asked.
    sink.can_be_asked = False
    async with connected(plain_url) as connection:
        number = await connection.fetchval("DELETE FROM usage_outbox WHERE id = $1 RETURNING number", lost.id)
        await connection.execute(
            "INSERT INTO usage_outbox (number, id, owner, prompt_tokens, completion_tokens, cost_micro, created_at)"
            " OVERRIDING SYSTEM VALUE VALUES ($1, gen_random_uuid(), $2, 100, 0, 500, now())", number, exports.owners[0],
        )  # fmt: skip
    assert await differences() == (100 - lost.total.tokens, 470)
    # Requests of a gateway without the export, after the first hour.
    await exports.execute(
        "DELETE FROM usage_outbox; DELETE FROM usage_sink_days; UPDATE usage_sinks SET created_at = now() - interval '2 hours'"
    )
    assert await differences() == (0, 8 * 30)


async def test_rows_are_deleted_after_40_days_once_all_sinks_have_them(exports: Exports) -> None:
    sink = MemorySink()
    await exports.settle_some(4)
    await exports.send_all(sink)
    await exports.execute("UPDATE usage_outbox SET settled_at = now() - interval '41 days' WHERE number <= 3")
    unsent = await exports.settle_some(2)
    await exports.execute("UPDATE usage_outbox SET settled_at = now() - interval '41 days' WHERE number > 4")
    await exports.outbox.delete_old(["memory"])
    assert await exports.count("usage_outbox", "*") == 1 + len(unsent)


async def test_a_tenant_sees_only_its_own_rows(exports: Exports) -> None:
    await exports.settle_some(6)
    assert await exports.count("usage_outbox", str(exports.owners[0])) == 2
    assert await exports.count("usage_outbox", "") == 0


def test_a_fence_opens_when_all_transactions_before_it_have_ended() -> None:
    fence = OutboxFence()
    fence.observe(5, xid=100, ended_before=98)
    assert fence.decided == 0
    # Later fences don't replace the first, or a busy database would never reach one.
    fence.observe(9, xid=101, ended_before=99)
    assert fence.decided == 0
    fence.observe(12, xid=102, ended_before=100)
    assert fence.decided == 5
    fence.observe(20, xid=110, ended_before=102)
    assert fence.decided == 12


async def test_another_gateway_takes_over_when_one_is_cut_off_from_postgresql(
    exports: Exports, plain_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("POLL_SECONDS", "PACE_SECONDS", "ELECTION_SECONDS"):
        monkeypatch.setattr(export_, name, 0.02)
    sink = MemorySink()
    async with asyncio.TaskGroup() as tasks:
        gateways = [tasks.create_task(exports_.new_export(exports.outbox, sink).run()) for _ in range(2)]
        for _ in range(6):
            await exports.settle_some(10)
            await exports.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        settled = await exports.count("usage_outbox", "*")
        await until(lambda: len(sink.stored) == settled == 60)
        gateways[0].cancel()
        await exports.settle_some(10)
        await until(lambda: len(sink.stored) == 70)
        gateways[1].cancel()
    assert totals_of(sink.stored.values()) == await exports.ledger_totals()


async def test_a_gateway_that_lost_the_lock_neither_moves_the_cursor_back_nor_counts_twice(exports: Exports) -> None:
    sink = MemorySink()
    await exports.settle_some(20)
    async with exports.sending(sink) as (export, session):
        claims = []
        while len(claims) < 2:
            claim = await exports.outbox.claim(session, sink.name, export._fence, "request", sink.batch)
            if claim is not None:
                claims.append(claim)
                for late in (claim, *claims):
                    await exports.outbox.acknowledge(session, late)
        acknowledged = await exports.outbox.list_acknowledged(sink.name, date(2000, 1, 1))
        (state,) = await exports.outbox.list_sinks([sink.name])
    assert sum(day.cost_micro for day in acknowledged.values()) == 14 * 30
    assert state.waiting == 20 - 14
