"""What receivers have acknowledged outlives a restore of the database, and the state says how much more they have than it knows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from services.gateway.facts.request_record import RequestRow
from services.gateway.usage_export.acknowledged_file import AcknowledgedFile
from services.gateway.usage_export.export import UsageExport
from shared.api.usage_export import SinkExcess
from shared.telemetry import Metrics
from shared.types import NodeId, RequestId, UserId
from tests.servers import PostgresServer
from tests.services.gateway.billing.test_ledger_store import new_owner, new_request, row
from tests.services.gateway.recovery.restoring import RestorableGateway
from tests.services.gateway.usage_export import exports as exports_
from tests.services.gateway.usage_export.exports import Exports, MemorySink
from tests.testnet import until


class RestorableExports(RestorableGateway):
    """Its sink stays as it is when the database is replaced."""

    sink = MemorySink()

    @asynccontextmanager
    async def exporting(self, node: str = "one") -> AsyncIterator[Exports]:
        """Run a gateway until it has written its file."""
        async with self.running(), exports_.opened_exports(self.url) as exports:
            file = AcknowledgedFile(exports.outbox, self.log_dir, NodeId(node))
            await file.read()
            yield exports
            await file.write()

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
        file = AcknowledgedFile(exports.outbox, stored.log_dir, NodeId("one"))
        await settle(exports, ann, 20)
        await exports.send_all(stored.sink)
        await file.write()
        await exports.execute("DELETE FROM usage_sink_accounts")
        for _ in range(2):
            await file.write()
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
    (stored.log_dir / "usage_export-broken.json").write_text("[{")
    stored.url = backup
    async with stored.exporting() as exports:
        assert (found := await stored.excess(exports)) is not None
        assert (found.events, found.cost_micro) == (2, 20)


async def test_the_file_is_written_after_each_batch_and_a_full_disk_stops_nothing(stored: RestorableExports, tmp_path: Path) -> None:
    ann, folder = new_owner(), tmp_path / "later"
    async with stored.running(), exports_.opened_exports(stored.url) as exports:
        file = AcknowledgedFile(exports.outbox, folder, NodeId("one"))
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(file.run())
            await asyncio.wait_for(file.has_read.wait(), 30)
            await file.write()  # the folder is missing
            folder.mkdir()
            export = UsageExport(exports.outbox, [stored.sink], "request", file, Metrics("gateway"))
            await settle(exports, ann, 30)
            async with exports.sending(stored.sink) as (_, session):
                while not stored.sink.stored:
                    await export.exports[0].step(session)
            await until(lambda: any(str(ann) in path.read_text() for path in folder.iterdir()))
            running.cancel()


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
        export = UsageExport(exports.outbox, [stored.sink], "request", AcknowledgedFile(exports.outbox, None, NodeId("one")), metrics)
        measured = []
        await exports.outbox.add_sinks([stored.sink.name])
        for days in (0, 6, 2):
            await exports.execute(f"UPDATE usage_sink_accounts SET found_at = found_at - interval '{days} days'")
            await export.measure()
            gauges = (metrics.usage_export_excess_micro, metrics.usage_export_excess_tokens)
            measured.append(tuple(gauge.labels(sink=stored.sink.name)._value.get() for gauge in gauges))
        assert measured == [(30, 7), (30, 7), (0, 0)]
        assert await stored.excess(exports) is not None
