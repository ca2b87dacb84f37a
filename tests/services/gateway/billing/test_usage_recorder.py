import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from services.gateway.billing import usage_recorder as recorders
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.facts.request_record import RequestRow
from shared import errors
from shared.telemetry import Metrics
from shared.timing.backoff import Backoff
from shared.types import ModelName, RequestId, RequestStatus
from tests.services.gateway.fakes import USER, FakeJournal, FakeStore
from tests.services.gateway.fakes import new_recorder as recorder
from tests.services.gateway.log_lines import Lines


def row() -> RequestRow:
    return RequestRow(
        id=RequestId(uuid4()), user_id=USER, api_key_id=None, prompt_hash="0" * 64, model_used=ModelName("m"), response_time_ms=1,
        prompt_tokens=2, completion_tokens=3, status=RequestStatus.SUCCESS, error_code=None, created_at=datetime.now(UTC),
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "_BACKOFF", Backoff(0.001, 0.002))
    monkeypatch.setattr(recorders, "_REFUSED_SECONDS", 0.002)


async def test_a_row_is_written_before_its_request_ends() -> None:
    store = FakeStore()
    async with recorder(store).running() as records:
        records.reserve()
        await records.wait_until_saved(records.add(row()))
        assert len(store.rows) == 1


async def test_many_rows_take_few_statements() -> None:
    store = FakeStore()
    async with recorder(store).running() as records:
        for _ in range(400):
            records.reserve()
        await asyncio.gather(*(records.wait_until_saved(records.add(row())) for _ in range(400)))
    assert len(store.rows) == 400
    assert store.writes <= 2


async def test_rows_go_to_disk_while_postgresql_is_down() -> None:
    store, journal = FakeStore(away=True), FakeJournal()
    async with recorder(store, journal).running() as records:
        records.reserve()
        first = records.add(row())
        while not store.writes:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            records.reserve()
            await records.wait_until_saved(records.add(row()))
        assert not first.written.is_set()
        # Both requests are on disk before their callers know the end.
        assert records.journal_rows == len(journal.rows) == 2
        store.away = False
        await first.written.wait()
    assert len(store.rows) == 2
    assert records.journal_rows == len(journal.rows) == 0


async def test_a_full_queue_refuses_new_requests_without_losing_rows() -> None:
    store = FakeStore(away=True)
    async with recorder(store, capacity=3).running() as records:
        for _ in range(3):
            records.reserve()
        with pytest.raises(errors.Unavailable, match="usage can't be recorded: 3 requests run, and the rows of 0 ended ones wait"):
            records.reserve()
        for _ in range(3):
            records.add(row())
        while not store.writes:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(errors.Unavailable, match="PostgreSQL has been down for too long, and the rows of 3 requests wait"):
            records.reserve()
        store.away = False
    assert len(store.rows) == 3


async def test_shutdown_waits_for_rows_of_canceled_requests() -> None:
    store = FakeStore()
    records = recorder(store)
    async with records.running():
        records.reserve()
        asyncio.get_running_loop().call_later(0.01, lambda: records.add(row()))
    assert len(store.rows) == 1


async def test_shutdown_does_not_wait_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "DRAIN_SECONDS", 0.02)
    store, journal = FakeStore(away=True), FakeJournal()
    async with recorder(store, journal).running() as records:
        records.reserve()
        records.add(row())
    assert not store.rows
    assert len(journal.rows) == 1


async def test_the_next_process_writes_the_rows_left_by_the_last() -> None:
    store, journal = FakeStore(), FakeJournal([row(), row()])
    async with recorder(store, journal).running() as records:
        assert len(records.waiting) == 2
        assert records.journal_rows == 2
        records.reserve()
        await records.wait_until_saved(records.add(row()))
    assert len(store.rows) == 3
    assert not journal.rows


async def test_a_slow_store_delays_a_request_by_a_quarter_of_a_second() -> None:
    store, journal = FakeStore(), FakeJournal()
    store.stalled.clear()
    async with recorder(store, journal).running() as records:
        records.reserve()
        pending = records.add(row())
        async with asyncio.timeout(30):
            await records.wait_until_saved(pending)
        assert (pending.in_journal, pending.written.is_set()) == (True, False)
        store.stalled.set()
    assert (len(store.rows), journal.rows) == (1, [])


async def test_no_request_starts_if_neither_store_nor_journal_accepts_rows() -> None:
    store, journal = FakeStore(away=True), FakeJournal(full=True)
    async with recorder(store, journal).running() as records:
        records.reserve()
        await records.wait_until_saved(records.add(row()))
        with pytest.raises(errors.Unavailable, match="the journal can't be written: No space left on device") as refused:
            records.reserve()
        assert "make room" in refused.value.hint
        journal.full = False
        while not journal.rows:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        records.reserve()
        records.add(row())
        store.away = False
    assert len(store.rows) == 2


async def test_a_refused_row_does_not_block_others_and_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines(monkeypatch)
    store, journal = FakeStore(), FakeJournal()
    rows = [row() for _ in range(100)]
    bad = {rows[30].id, rows[70].id}
    store.refuses = set(bad)
    metrics = Metrics("gateway")
    records = UsageRecorder(store, journal, metrics.usage_queue_rows, metrics.settle_failures)
    async with asyncio.timeout(30), records.running():
        for _ in rows:
            records.reserve()
        pending = [records.add(one) for one in rows]
        await asyncio.gather(*(records.wait_until_saved(one) for one in pending))
        assert store.rows.keys() == {one.id for one in rows} - bad
        assert set(records.waiting) == bad == {one.id for one in journal.rows} & bad
        assert metrics.settle_failures.labels(reason="refused")._value.get() >= 2
        assert metrics.usage_queue_rows._value.get() == 2
        later = row()
        records.reserve()
        await records.wait_until_saved(records.add(later))
        assert later.id in store.rows
        assert len(lines.of("PostgreSQL refused a request row; keeping it for retries")) == 1
        # The problem is fixed.
        store.refuses.clear()
        await asyncio.gather(*(one.written.wait() for one in pending))
    assert len(store.rows) == 101
    assert journal.rows == []


async def test_rows_refused_at_shutdown_stay_in_the_journal() -> None:
    store, journal = FakeStore(), FakeJournal()
    one = row()
    store.refuses = {one.id}
    async with asyncio.timeout(recorders.DRAIN_SECONDS / 2), recorder(store, journal).running() as records:
        records.reserve()
        await records.wait_until_saved(records.add(one))
    assert [kept.id for kept in journal.rows] == [one.id]


async def test_if_every_row_is_refused_none_is_lost_and_all_are_written_once_fixed() -> None:
    store, journal = FakeStore(), FakeJournal()
    rows = [row() for _ in range(20)]
    store.refuses = {one.id for one in rows}
    async with asyncio.timeout(30), recorder(store, journal).running() as records:
        for one in rows:
            records.reserve()
            records.add(one)
        while len(journal.rows) < 20:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)
        assert not store.rows
        store.refuses.clear()
        while len(store.rows) < 20:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert journal.rows == []
