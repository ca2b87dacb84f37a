"""Requests in the journal of a killed gateway: a gateway that shares the volume settles them once."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.gateway.billing.journal import FindUnknown, Journal, OrphanedJournals, held_journal
from services.gateway.billing.usage_recorder import UsageRecorder
from services.gateway.facts.request_record import RequestRow
from shared.identity import node_keys
from shared.stores import file_lock, replica_files
from shared.telemetry import Metrics
from shared.types import NodeId, RequestId
from tests.services.gateway import fakes
from tests.services.gateway.billing.test_ledger_store import Books, books, new_owner, new_request
from tests.services.gateway.billing.test_ledger_store import row as priced_row
from tests.services.gateway.billing.test_usage_recorder import row
from tests.services.gateway.fakes import FakeStore

__all__ = ["books"]

#: A gateway that writes a row to its journal for each line of its input, and runs until it is killed.
OWNER = """
import asyncio, sys
from pathlib import Path
from typing import Any
import msgspec
from services.gateway.billing.journal import held_journal
from services.gateway.facts.request_record import RequestRow

async def nothing(ids):
    return set()

async def main():
    async with held_journal(Path(sys.argv[1]), sys.argv[2], nothing) as journal:
        journal.append(msgspec.msgpack.decode(bytes.fromhex(sys.argv[3]), type=list[RequestRow]))
        print("written", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


def new_node() -> NodeId:
    return node_keys.NodeKey(node_keys.new_seed()).id


@asynccontextmanager
async def owner(template: Path, *rows: RequestRow) -> AsyncIterator[tuple[NodeId, asyncio.subprocess.Process]]:
    node = new_node()
    text = msgspec.msgpack.encode(rows).hex()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", OWNER, str(template), node, text, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"written\n"
        yield node, process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def know_all(_ids: object) -> set[RequestId]:
    return set()


@asynccontextmanager
async def gateway(
    template: Path, store: Any, find_unknown: FindUnknown = know_all, *, capacity: int = 100
) -> AsyncIterator[OrphanedJournals]:
    node, metrics = new_node(), Metrics("gateway")
    async with (
        held_journal(template, node, find_unknown) as journal,
        UsageRecorder(store, journal, metrics.usage_queue_rows, metrics.settle_failures, capacity=capacity).running() as recorder,
    ):
        yield OrphanedJournals(template, node, find_unknown, recorder.take_over, fakes.new_items())


@pytest.fixture
def template(tmp_path: Path) -> Path:
    return tmp_path / "{node}" / "gateway.journal"


def folders(template: Path) -> set[str]:
    return {path.name for path in template.parent.parent.iterdir()}


async def test_the_journal_of_a_killed_gateway_is_settled_once_by_one_of_two_peers(books: Books, template: Path) -> None:
    ann, requests = new_owner(), [new_request() for _ in range(3)]
    for request in requests:
        await books.reserve(ann, request=request)
    async with (
        owner(template, *(priced_row(ann, request, 100) for request in requests)) as (killed, process),
        gateway(template, books.requests, books.requests.find_unknown) as one,
        gateway(template, books.requests, books.requests.find_unknown) as two,
    ):
        await one.adopt()
        assert killed in folders(template), "a live owner's folder was adopted"
        process.kill()
        await process.wait()
        await asyncio.gather(one.adopt(), two.adopt(), one.adopt())
        assert killed not in folders(template)
    assert await books.account(ann) == (-300, 0)
    assert len(await books.log(ann)) == 3
    assert (await books.report()).findings == ()
    assert folders(template) == set()


async def test_adopted_rows_outlive_the_adopter_too(template: Path) -> None:
    store, rows = FakeStore(away=True), [row(), row()]
    async with owner(template, *rows) as (killed, process):
        process.kill()
        await process.wait()
        async with gateway(template, store) as one:
            await one.adopt()
            # PostgreSQL is down: the rows are in the adopter's journal, on the same volume.
            (adopter,) = folders(template) - {killed}
            assert folders(template) == {adopter}
            assert Journal(replica_files.path_of(template, NodeId(adopter))).read() == rows
    store.away = False
    async with gateway(template, store) as two:
        await two.adopt()
    assert list(store.rows.values()) == rows
    assert folders(template) == set()


async def test_a_journal_waits_for_a_gateway_with_room_and_a_working_disk(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, rows = FakeStore(), [row() for _ in range(3)]
    async with owner(template, *rows) as (killed, process):
        process.kill()
        await process.wait()
    async with gateway(template, store, capacity=2) as small:
        await small.adopt()
        assert killed in folders(template)
    async with gateway(template, store) as other:
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "append", _full)
            await other.adopt()
        assert killed in folders(template)
        assert store.rows == {}
        await other.adopt()
    assert list(store.rows.values()) == rows


async def test_the_journal_of_the_version_without_folders_is_adopted(template: Path) -> None:
    store, rows, old = FakeStore(), [row()], replica_files.without_folder(template)
    Journal(old).append(rows)
    async with gateway(template, store) as one:
        async with file_lock.hold(old):  # the old gateway still runs
            await one.adopt()
            assert old.exists()
        await one.adopt()
    assert list(store.rows.values()) == rows
    assert folders(template) == set()


async def test_a_row_that_the_database_does_not_know_is_reported_beside_the_folders(template: Path) -> None:
    store, mine = FakeStore(), priced_row(new_owner(), new_request(), 100)

    async def know_nothing(ids: object) -> set[RequestId]:
        return {mine.id}

    async with owner(template, mine) as (_, process):
        process.kill()
        await process.wait()
    async with gateway(template, store, know_nothing) as one:
        await one.adopt()
    assert folders(template) == {"gateway.journal.unknown.jsonl"}


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


async def test_of_two_adopters_at_once_one_takes_the_rows(template: Path) -> None:
    taken: list[RequestRow] = []

    async def take_over(rows: Sequence[RequestRow]) -> bool:
        taken.extend(rows)
        await asyncio.sleep(0)
        return True

    rows = [row(), row()]
    async with owner(template, *rows) as (_, process):
        process.kill()
        await process.wait()
    await asyncio.gather(*(OrphanedJournals(template, new_node(), know_all, take_over, fakes.new_items()).adopt() for _ in range(5)))
    assert taken == rows
