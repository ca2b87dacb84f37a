import asyncio
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from services.gateway.money import recorder as recorders
from services.gateway.money.recorder import Recorder
from services.gateway.money.request_row import RequestRow
from shared import errors
from shared.telemetry import Metrics
from shared.types import ModelName, RequestId, RequestStatus
from tests.services.gateway.fakes import USER, FakeJournal, FakeStore


def row() -> RequestRow:
    return RequestRow(
        id=RequestId(uuid4()), user_id=USER, api_key_id=None, prompt_hash="0" * 64, model_used=ModelName("m"), response_time_ms=1,
        prompt_tokens=2, completion_tokens=3, status=RequestStatus.SUCCESS, error_code=None, created_at=datetime.now(UTC),
    )  # fmt: skip


def recorder(store: FakeStore, journal: FakeJournal | None = None, **more: int) -> Recorder:
    return Recorder(store, journal or FakeJournal(), Metrics("gateway").usage_queue_rows, **more)


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "_FIRST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(recorders, "_LONGEST_BACKOFF_SECONDS", 0.002)


async def test_a_row_is_written_before_its_request_ends() -> None:
    store = FakeStore()
    async with recorder(store).running() as records:
        records.reserve()
        await records.written(records.add(row()))
        assert len(store.rows) == 1


async def test_many_rows_take_few_statements() -> None:
    store = FakeStore()
    async with recorder(store).running() as records:
        for _ in range(400):
            records.reserve()
        await asyncio.gather(*(records.written(records.add(row())) for _ in range(400)))
    assert len(store.rows) == 400
    assert store.writes <= 2


async def test_rows_wait_on_disk_while_the_store_is_away() -> None:
    store, journal = FakeStore(away=True), FakeJournal()
    async with recorder(store, journal).running() as records:
        records.reserve()
        first = records.add(row())
        while not store.writes:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            records.reserve()
            await records.written(records.add(row()))
        assert not first.written.is_set()
        # What its caller was told of is on the disk by now.
        assert records.journal_rows == len(journal.rows) == 2
        store.away = False
        await first.written.wait()
    assert len(store.rows) == 2
    assert records.journal_rows == len(journal.rows) == 0


async def test_a_full_queue_refuses_new_requests_and_loses_nothing() -> None:
    store = FakeStore(away=True)
    async with recorder(store, capacity=3).running() as records:
        for _ in range(3):
            records.reserve()
        with pytest.raises(errors.Unavailable):
            records.reserve()
        for _ in range(3):
            records.add(row())
        with pytest.raises(errors.Unavailable):
            records.reserve()
        store.away = False
    assert len(store.rows) == 3


async def test_shutdown_waits_for_the_row_of_a_request_that_is_being_cut_off() -> None:
    store = FakeStore()
    records = recorder(store)
    async with records.running():
        records.reserve()
        asyncio.get_running_loop().call_later(0.01, lambda: records.add(row()))
    assert len(store.rows) == 1


async def test_shutdown_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorders, "DRAIN_SECONDS", 0.02)
    store, journal = FakeStore(away=True), FakeJournal()
    async with recorder(store, journal).running() as records:
        records.reserve()
        records.add(row())
    assert not store.rows
    assert len(journal.rows) == 1


async def test_the_next_run_writes_what_the_last_one_left() -> None:
    store, journal = FakeStore(), FakeJournal([row(), row()])
    async with recorder(store, journal).running() as records:
        assert len(records.waiting) == 2
        assert records.journal_rows == 2
        records.reserve()
        await records.written(records.add(row()))
    assert len(store.rows) == 3
    assert not journal.rows


async def test_a_store_that_is_slow_costs_a_request_a_quarter_of_a_second() -> None:
    store, journal = FakeStore(), FakeJournal()
    store.stalled.clear()
    async with recorder(store, journal).running() as records:
        records.reserve()
        pending = records.add(row())
        async with asyncio.timeout(10):
            await records.written(pending)
        assert (pending.in_journal, pending.written.is_set()) == (True, False)
        store.stalled.set()
    assert (len(store.rows), journal.rows) == (1, [])


async def test_where_neither_takes_rows_no_new_request_begins() -> None:
    store, journal = FakeStore(away=True), FakeJournal(full=True)
    async with recorder(store, journal).running() as records:
        records.reserve()
        await records.written(records.add(row()))
        with pytest.raises(errors.Unavailable):
            records.reserve()
        journal.full = False
        while not journal.rows:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        records.reserve()
        records.add(row())
        store.away = False
    assert len(store.rows) == 2
