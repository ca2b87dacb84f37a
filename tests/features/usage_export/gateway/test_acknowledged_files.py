"""What receivers have acknowledged outlives a restore of the database, and the state says how much more they have than it knows."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import asyncpg
import msgspec
import pytest

from features.usage_export import instruments
from features.usage_export.contract import SinkExcess
from features.usage_export.gateway import acknowledged_files
from features.usage_export.gateway.acknowledged_files import AcknowledgedFiles
from features.usage_export.gateway.export import UsageExport
from features.usage_export.gateway.store import AcknowledgedSum, OutboxStore
from services.gateway.facts.request_record import RequestRow
from shared.stores.database import Database, DatabaseRow
from shared.telemetry import Metrics
from shared.types import NodeId, RequestId, UserId
from tests.features.usage_export.gateway import exports as exports_
from tests.features.usage_export.gateway.exports import Exports, MemorySink
from tests.servers import PostgresServer
from tests.services.gateway.billing.test_ledger_store import new_owner, new_request, row
from tests.services.gateway.recovery.restoring import RestorableGateway
from tests.testnet import until


class RestorableExports(RestorableGateway):
    """Its sink stays as it is when the database is replaced."""

    sink = MemorySink()

    @asynccontextmanager
    async def exporting(self, node: str = "one") -> AsyncIterator[Exports]:
        """Run a gateway until it has written its files."""
        async with self.running(), exports_.opened_exports(self.url) as exports:
            files = AcknowledgedFiles(exports.outbox, self.log_dir, NodeId(node))
            await files.read()
            yield exports
            await files.write()

    async def excess(self, exports: Exports) -> SinkExcess | None:
        await exports.outbox.add_sinks([self.sink.name])
        (state,) = await exports.outbox.list_sinks([self.sink.name])
        return state.excess


@pytest.fixture
def stored(plain_url: str, valkey_url: str, postgres: PostgresServer, tmp_path: Path) -> RestorableExports:
    found = RestorableExports(plain_url, valkey_url, postgres, tmp_path)
    found.sink = MemorySink(timedelta(0), can_be_asked=True)
    found.sink.remembers = False
    return found


class CountedDatabase:
    """Counts the rows that are listed."""

    def __init__(self, opened: Database) -> None:
        self._opened, self.read = opened, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._opened, name)

    async def rows(self, *query: Any, **more: Any) -> list[DatabaseRow]:
        found = await self._opened.rows(*query, **more)
        self.read += len(found)
        return found


def sums_in(folder: Path, node: str = "one") -> list[AcknowledgedSum]:
    lines = [line for path in folder.glob(f"usage_export-{node}-*.jsonl") for line in path.read_bytes().splitlines()]
    return [msgspec.json.decode(line, type=AcknowledgedSum) for line in lines]


def row_of(owner: UserId, cost: int, request: RequestId) -> RequestRow:
    """One of 7 tokens."""
    return msgspec.structs.replace(row(owner, request, cost), prompt_tokens=5, completion_tokens=2)


async def settle(exports: Exports, owner: UserId, cost: int) -> RequestId:
    request = new_request()
    await exports.reserve(owner, request=request, tokens=cost)
    await exports.requests.write_requests([row_of(owner, cost, request)])
    return request


async def test_after_a_restore_the_state_lists_what_the_receiver_has_more(stored: RestorableExports) -> None:
    ann, bob, eve = new_owner(), new_owner(), new_owner()
    async with stored.exporting() as exports:
        await settle(exports, ann, 30)
        await settle(exports, eve, 30)
        await exports.send_all(stored.sink)
    backup = await stored.restore_point()
    async with stored.exporting() as exports:
        await settle(exports, ann, 40)
        await settle(exports, ann, 50)
        refunded = await settle(exports, bob, 60)
        await settle(exports, bob, 20)
        await exports.ledger.revert(refunded, "wrong answer")
        await exports.send_all(stored.sink)
        assert await stored.excess(exports) is None, "nothing was restored"
    stored.url = backup
    for _ in range(2):  # also after the next start
        async with stored.exporting() as exports:
            found = await stored.excess(exports)
            assert found is not None
            assert (found.events, found.tokens, found.uncovered_tokens, found.cost_micro) == (5, 28, 21, 110)
            accounts = [(one.owner, one.events, one.tokens, one.uncovered_tokens, one.cost_micro) for one in found.accounts]
            assert accounts == [(ann, 2, 14, 14, 90), (bob, 3, 14, 7, 20)]
            assert all(one.since <= one.acknowledged_at < found.found_at for one in found.accounts)
            # What is asked for after the restore is in both.
            for owner in (ann, bob, eve):
                await settle(exports, owner, 30)
            await exports.send_all(stored.sink)
            assert await stored.excess(exports) == found


async def test_what_a_restored_database_settles_and_sends_again_is_no_excess(stored: RestorableExports) -> None:
    ann, running = new_owner(), new_request()
    async with stored.exporting() as exports:
        await settle(exports, ann, 10)
        await exports.send_all(stored.sink)
        await settle(exports, ann, 20)
        await exports.reserve(ann, request=running, tokens=30)
    journaled = row_of(ann, 30, running)
    backup = await stored.restore_point()
    async with stored.exporting() as exports:
        await exports.requests.write_requests([journaled])
        await exports.send_all(stored.sink)
    stored.url = backup
    async with stored.exporting() as exports:
        found = await stored.excess(exports)
        assert found is not None
        assert found.cost_micro == 50
        (state,) = await exports.outbox.list_sinks([stored.sink.name])
        assert state.doubtful_since == state.sent_at, "it is asked which of the next events it has"
        await exports.requests.write_requests([journaled])
        await exports.send_all(stored.sink)
        assert await stored.excess(exports) is None
        assert sorted(event.data.cost_micro for event in stored.sink.order) == [10, 20, 30]


@pytest.mark.parametrize("was_sent", [False, True])
async def test_a_refund_that_the_recovery_log_repeats_is_exported(stored: RestorableExports, was_sent: bool) -> None:
    ann = new_owner()
    async with stored.exporting() as exports:
        refunded = await settle(exports, ann, 30)
        await exports.send_all(stored.sink)
        # The first hour is compared with nothing.
        await exports.execute("UPDATE usage_sinks SET created_at = created_at - interval '2 hours'")
    backup = await stored.restore_point()
    async with stored.exporting() as exports:
        await exports.ledger.revert(refunded, "wrong answer")
        if was_sent:
            await exports.send_all(stored.sink)
    stored.url = backup
    async with stored.exporting() as exports:
        await exports.send_all(stored.sink)
        await exports_.compare(exports, stored.sink)
        assert [event.data.cost_micro for event in stored.sink.order] == [30, -30]
        assert await stored.excess(exports) is None


async def test_a_second_restore_keeps_what_the_first_has_found(stored: RestorableExports) -> None:
    ann = new_owner()
    async with stored.exporting() as exports:
        await settle(exports, ann, 10)
        await exports.send_all(stored.sink)
    first = await stored.restore_point()
    async with stored.exporting() as exports:
        await settle(exports, ann, 20)
        await exports.send_all(stored.sink)
    stored.url = first
    async with stored.exporting() as exports:
        assert (found := await stored.excess(exports)) is not None
        assert found.cost_micro == 20
    second = await stored.restore_point()
    async with stored.exporting() as exports:
        await settle(exports, ann, 40)
        await exports.send_all(stored.sink)
    stored.url = second
    async with stored.exporting() as exports:
        assert (found := await stored.excess(exports)) is not None
        assert (found.events, found.cost_micro) == (2, 60)


async def test_a_database_that_is_replaced_while_the_gateway_runs_loses_nothing(stored: RestorableExports) -> None:
    ann = new_owner()
    async with stored.running(), exports_.opened_exports(stored.url) as exports:
        files = AcknowledgedFiles(exports.outbox, stored.log_dir, NodeId("one"))
        await settle(exports, ann, 20)
        await exports.send_all(stored.sink)
        await files.write()
        await exports.execute("DELETE FROM usage_sink_accounts")
        for _ in range(2):
            await files.write()
            assert (found := await stored.excess(exports)) is not None
            assert found.cost_micro == 20


async def test_the_newest_file_counts_and_one_that_cannot_be_read_hides_no_other(stored: RestorableExports) -> None:
    ann = new_owner()
    async with stored.exporting():
        pass
    backup = await stored.restore_point()
    for number, node in ((1, "older"), (2, "newer")):
        async with stored.exporting(node) as exports:
            await settle(exports, ann, 10)
            await exports.send_all(stored.sink)
            assert await stored.excess(exports) is None, number
    assert stored.log_dir is not None
    (stored.log_dir / "usage_export-broken.jsonl").write_text("[{")
    stored.url = backup
    async with stored.exporting() as exports:
        assert (found := await stored.excess(exports)) is not None
        assert (found.events, found.cost_micro) == (2, 20)


async def test_a_full_disk_stops_nothing_and_what_it_lacks_is_written_later(stored: RestorableExports, tmp_path: Path) -> None:
    ann, folder = new_owner(), tmp_path / "later"
    async with stored.running(), exports_.opened_exports(stored.url) as exports:
        files = AcknowledgedFiles(exports.outbox, folder, NodeId("one"))
        for _ in range(2):
            await settle(exports, ann, 30)
            await exports.send_all(stored.sink)
            await files.write()  # the folder is missing
        folder.mkdir()
        await files.write()
        assert [(one.owner, one.events) for one in sums_in(folder)] == [(ann, 2)]


async def test_the_files_are_written_after_each_batch(stored: RestorableExports, tmp_path: Path) -> None:
    ann = new_owner()
    async with stored.running(), exports_.opened_exports(stored.url) as exports:
        files = AcknowledgedFiles(exports.outbox, tmp_path, NodeId("one"))
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(files.run())
            await asyncio.wait_for(files.has_read.wait(), 30)
            export = UsageExport(exports.outbox, [stored.sink], "request", files, Metrics("gateway"))
            await settle(exports, ann, 30)
            async with exports.sending(stored.sink) as (_, session):
                while not stored.sink.stored:
                    await export.exports[0].step(session)
            await until(lambda: any(str(ann) in path.read_text() for path in tmp_path.glob("usage_export-*")))
            running.cancel()


async def test_a_round_reads_and_writes_only_what_has_changed(stored: RestorableExports, tmp_path: Path) -> None:
    folder, ann = tmp_path / "counted", new_owner()
    folder.mkdir()
    async with stored.running(), exports_.opened_exports(stored.url) as exports:
        await exports.execute(
            "INSERT INTO usage_sink_accounts (sink, owner, since, events, tokens, uncovered_tokens, cost_micro)"
            " SELECT 'memory', derive_id('', gen_random_uuid()), date_trunc('day', now(), 'UTC') - days * interval '1 day', 1, 7, 7, 30"
            " FROM generate_series(1, 300) AS number, generate_series(0, 2) AS days"
        )
        database = CountedDatabase(exports.outbox._database)
        files = AcknowledgedFiles(OutboxStore(cast("Database", database), exports_.SOURCE), folder, NodeId("one"))

        async def count(round_: Awaitable[None]) -> tuple[int, list[int]]:
            before, database.read = {path: path.stat() for path in folder.iterdir()}, 0
            await round_
            after = {path: path.stat() for path in folder.iterdir()}
            changed = [path for path, facts in after.items() if path not in before or facts.st_mtime_ns > before[path].st_mtime_ns]
            grown = [path for path in changed if path in before and after[path].st_ino == before[path].st_ino]
            return database.read, [after[path].st_size - (before[path].st_size if path in grown else 0) for path in changed]

        read, written = await count(files.write())
        assert (read, len(written)) == (900, 3)
        assert await count(files.write()) == (0, [])
        await settle(exports, ann, 30)
        await exports.send_all(stored.sink)
        read, written = await count(files.write())
        assert (read, len(written)) == (1, 1)
        assert written[0] < 300
        assert await count(files.write()) == (0, [])
        # Its next start compares, and writes nothing that the files have.
        files = AcknowledgedFiles(OutboxStore(cast("Database", database), exports_.SOURCE), folder, NodeId("one"))
        assert await count(files.write()) == (901, [])


async def test_a_change_that_commits_after_a_later_one_is_written(stored: RestorableExports, tmp_path: Path) -> None:
    add = (
        "INSERT INTO gateway.usage_sink_accounts (sink, owner, since, events, tokens, uncovered_tokens, cost_micro)"
        " VALUES ('memory', $1, now(), 1, 7, 7, 30)"
    )
    ann, bob = new_owner(), new_owner()
    async with stored.running(), exports_.opened_exports(stored.url) as exports:
        files = AcknowledgedFiles(exports.outbox, tmp_path, NodeId("one"))
        await files.write()
        late = await asyncpg.connect(stored.url, server_settings={"aimesh.tenant": "*"})
        try:
            async with late.transaction():
                await late.execute(add, ann)
                await exports.execute(add, bob)
                await files.write()
                assert {one.owner for one in sums_in(tmp_path)} == {bob}
        finally:
            await late.close()
        await files.write()
        assert {one.owner for one in sums_in(tmp_path)} == {ann, bob}


async def test_each_of_three_gateways_has_all_and_a_file_is_written_anew_when_it_has_grown(
    stored: RestorableExports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acknowledged_files, "_GROWN_BYTES", 500)
    ann, nodes = new_owner(), ("one", "two", "three")
    async with stored.running(), exports_.opened_exports(stored.url) as exports:
        gateways = [AcknowledgedFiles(exports.outbox, tmp_path, NodeId(node)) for node in nodes]
        for _ in range(6):
            await settle(exports, ann, 30)
            await exports.send_all(stored.sink)
            for files in gateways:
                await files.write()
        for node in nodes:
            sums = sums_in(tmp_path, node)
            assert max(one.events for one in sums) == 6, node
            assert len(sums) < 6, "the older ones are gone"


async def test_a_gateway_that_was_killed_while_it_wrote_goes_on(stored: RestorableExports) -> None:
    ann = new_owner()
    async with stored.exporting():
        pass
    backup = await stored.restore_point()
    async with stored.exporting() as exports:
        await settle(exports, ann, 10)
        await exports.send_all(stored.sink)
    assert stored.log_dir is not None
    (file,) = stored.log_dir.glob("usage_export-*.jsonl")
    with file.open("a") as torn:
        torn.write('{"events":2,"tok')
    left = file.with_name(f".{file.name}.x1y2")
    left.write_text("{")
    old = file.with_name(file.name.replace(file.stem[-10:], "2026-01-02"))
    old.write_text(file.read_text())
    async with stored.running(), exports_.opened_exports(stored.url) as exports, asyncio.TaskGroup() as tasks:
        files = AcknowledgedFiles(exports.outbox, stored.log_dir, NodeId("one"))
        await settle(exports, ann, 20)
        await exports.send_all(stored.sink)
        running = tasks.create_task(files.run())
        await until(lambda: '"events":2,"tokens"' in file.read_text())
        running.cancel()
    assert not left.exists()
    assert not old.exists(), "its day is no longer counted"
    stored.url = backup
    async with stored.exporting() as exports:
        assert (found := await stored.excess(exports)) is not None
        assert (found.events, found.cost_micro) == (2, 30)


async def test_the_alert_s_measurements_end_after_seven_days(stored: RestorableExports) -> None:
    ann, metrics = new_owner(), Metrics("gateway")
    async with stored.exporting():
        pass
    backup = await stored.restore_point()
    async with stored.exporting() as exports:
        await settle(exports, ann, 30)
        await exports.send_all(stored.sink)
    stored.url = backup
    async with stored.exporting() as exports:
        export = UsageExport(exports.outbox, [stored.sink], "request", AcknowledgedFiles(exports.outbox, None, NodeId("one")), metrics)
        measured = []
        await exports.outbox.add_sinks([stored.sink.name])
        for days in (0, 6, 2):
            await exports.execute(f"UPDATE usage_sink_accounts SET found_at = found_at - interval '{days} days'")
            await export.measure()
            gauges = (metrics.gauge(instruments.EXCESS_MICRO), metrics.gauge(instruments.EXCESS_TOKENS))
            measured.append(tuple(gauge.labels(sink=stored.sink.name)._value.get() for gauge in gauges))
        assert measured == [(30, 7), (30, 7), (0, 0)]
        assert await stored.excess(exports) is not None
