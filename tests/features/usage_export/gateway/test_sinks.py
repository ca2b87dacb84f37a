"""The sinks: CloudEvents over HTTP, to a receiver that fails at random, and the file."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import msgspec
import pytest

from features.usage_export.gateway.file_sink import FileSink
from features.usage_export.gateway.sinks import CloudEventsSink, NotSent
from features.usage_export.rules.usage_events import UsageData, UsageEvent, UsageSum
from shared.types import MicroCredits, ModelName, TenantId
from tests.features.usage_export.gateway import exports as exports_
from tests.features.usage_export.gateway.exports import SOURCE

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ADA = TenantId(UUID(int=1))


class Receiver:
    """A server for batches of CloudEvents that ignores ids that it has, and does one of its faults with each request."""

    FAULTS = ("", "", "500 after it stored", "200 and closes", "429", "500", "slow", "dropped", "dropped after it stored", "401")

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.faults: tuple[str, ...] = self.FAULTS
        self.stored: dict[UUID, UsageEvent] = {}
        self.repeats = 0
        self.heads: list[str] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/events"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = self.rng.choice(self.faults)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = next(int(line.split(":")[1]) for line in head.splitlines() if line.lower().startswith("content-length"))
            body = await reader.readexactly(length)
            self.heads.append(head)
            if fault in ("", "500 after it stored", "200 and closes", "dropped after it stored"):
                for event in msgspec.json.decode(body, type=list[UsageEvent]):
                    self.repeats += event.id in self.stored
                    self.stored.setdefault(event.id, event)
            if fault == "slow":
                # Until the caller gives up.
                await reader.read()
            if not fault.startswith("dropped"):
                status = {"429": "429 Too Many Requests\r\nretry-after: 7", "401": "401 Unauthorized"}.get(fault)
                status = status or ("500 Oops" if fault.startswith("500") else "200 OK")
                after = "" if fault == "200 and closes" else "content-length: 0\r\n"
                writer.write(f"HTTP/1.1 {status}\r\n{after}\r\n".encode())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@pytest.mark.parametrize("seed", range(4))
async def test_a_receiver_that_fails_at_random_agrees_with_the_ledger_to_the_token(
    plain_url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.usage_export.gateway.sinks._SECONDS", 0.2)
    receiver = Receiver(seed)
    async with exports_.opened_exports(plain_url) as exports, receiver.serving() as url:
        sink = CloudEventsSink(url, None)
        sink.batch = 9
        requests = []
        for _ in range(10):
            requests += await exports.settle_some(20)
            await exports.ledger.revert(requests[-3], "")
            async with exports.sending(sink) as (export, session):
                for _ in range(8):
                    await export.step(session)
        await exports.send_all(sink)
        found = [(event.subject, event.data.tokens, event.data.cost_micro) for event in receiver.stored.values()]
        totals = await exports.ledger_totals()
    assert receiver.repeats > 0
    for owner in exports.owners:
        assert sum(tokens for subject, tokens, _ in found if subject == owner) == totals[f"{owner} tokens"]
        assert sum(micro for subject, _, micro in found if subject == owner) == totals[str(owner)]


def event(number: int = 1, *, at: datetime = NOON) -> UsageEvent:
    return UsageEvent(UUID(int=number), ADA, at, UsageData(ModelName("smollm2"), None, 1, 7, 3, 4, 0, MicroCredits(50)), SOURCE)


async def test_a_batch_is_cloudevents_1_0_with_the_token_of_a_file(tmp_path: Path) -> None:
    receiver, token = Receiver(0), tmp_path / "token"
    receiver.faults = ("",)
    token.write_text("s3cret\n")
    async with receiver.serving() as url:
        sink = CloudEventsSink(url, token)
        async with sink.opened():
            await sink.send([event()])
            token.write_text("rotated")
            await sink.send([event()])
    assert [line for head in receiver.heads for line in head.splitlines() if line.startswith(("content-type", "authorization"))] == [
        "content-type: application/cloudevents-batch+json; charset=utf-8",
        "authorization: Bearer s3cret",
        "content-type: application/cloudevents-batch+json; charset=utf-8",
        "authorization: Bearer rotated",
    ]
    assert msgspec.to_builtins(receiver.stored[UUID(int=1)]) == {
        "specversion": "1.0", "type": "aimesh.usage", "source": SOURCE, "id": str(UUID(int=1)), "subject": str(ADA),
        "time": "2026-01-02T12:00:00Z",
        "data": {
            "model": "smollm2", "key_id": None, "requests": 1, "tokens": 7, "prompt_tokens": 3, "completion_tokens": 4, "covered_tokens": 0,
            "cost_micro": 50, "uncovered_tokens": 0, "service_tier": "default",
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "message", "may_be_stored", "retry_after"),
    [
        ("429", "returned 429", False, 7),
        ("401", "returned 401", False, 0),
        ("500", "returned 500", True, 0),
        ("dropped", "no answer: RemoteProtocolError", True, 0),
    ],
)
async def test_what_a_failure_means(fault: str, message: str, *, may_be_stored: bool, retry_after: float) -> None:
    receiver = Receiver(0)
    receiver.faults = (fault,)
    async with receiver.serving() as url:
        sink = CloudEventsSink(url, None)
        async with sink.opened():
            with pytest.raises(NotSent) as failed:
                await sink.send([event()])
    assert (str(failed.value), failed.value.may_be_stored, failed.value.retry_after_seconds) == (message, may_be_stored, retry_after)


async def test_a_server_that_is_down_or_a_missing_token_stores_nothing(tmp_path: Path) -> None:
    async with Receiver(0).serving() as url:
        pass
    for sink, message in (
        (CloudEventsSink(url, None), "no connection: ConnectError"),
        (CloudEventsSink(url, tmp_path / "none"), "USAGE_EXPORT_TOKEN_FILE can't be used: FileNotFoundError"),
    ):
        async with sink.opened():
            with pytest.raises(NotSent) as failed:
                await sink.send([event()])
        assert (str(failed.value), failed.value.may_be_stored) == (message, False)


# --- the file ---------------------------------------------------------------------------------------------------------


def lines_of(folder: Path) -> list[UsageEvent]:
    text = b"".join(path.read_bytes() for path in (*full_files(folder), folder / "usage.jsonl") if path.exists())
    return [msgspec.json.decode(line, type=UsageEvent) for line in text.splitlines()]


def full_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("usage.jsonl.2*"))


async def test_the_file_has_one_line_per_event_and_rotates_between_batches(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "usage.jsonl", full_bytes=1000)
    async with sink.opened():
        for number in range(0, 30, 2):
            await sink.send([event(number), event(number + 1)])
    assert [one.id.int for one in lines_of(tmp_path)] == list(range(30))
    assert len(full_files(tmp_path)) > 3
    assert all(path.read_bytes().endswith(b"\n") for path in full_files(tmp_path))


async def test_a_line_that_a_crash_has_cut_is_written_again_whole(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    sink = FileSink(path)
    async with sink.opened():
        await sink.send([event(1), event(2), event(3)])
        for cut in range(1, 400):
            whole = path.read_bytes()
            path.write_bytes(whole[:-cut] if cut < len(whole) else b"")
            stored = await sink.find_stored([event(1), event(2), event(3)])
            assert stored is not None
            await sink.send([one for one in (event(1), event(2), event(3)) if one.id not in stored])
            assert [one.id.int for one in lines_of(tmp_path)] == [1, 2, 3]


async def test_the_file_is_asked_also_after_it_was_rotated(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "usage.jsonl", full_bytes=1)
    async with sink.opened():
        await sink.send([event(1), event(2)])
        assert await sink.find_stored([event(2), event(3)]) == {UUID(int=2)}
        await sink.send([event(3)])
        assert await sink.find_stored([event(2), event(3)]) == {UUID(int=2), UUID(int=3)}


async def test_the_file_s_sums_are_by_account_and_day(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "usage.jsonl", full_bytes=1500)
    noon = datetime.now(UTC).replace(hour=12)
    async with sink.opened():
        for number in range(9):
            await sink.send([event(number, at=noon - timedelta(days=number % 3))])
        yesterday = noon.date() - timedelta(days=1)
        right = {(ADA, noon.date()): UsageSum(21, 150), (ADA, yesterday): UsageSum(21, 150)}
        for _ in range(2):
            assert await sink.find_difference(right, yesterday) == (0, 0)
        assert await sink.find_difference(right | {(ADA, yesterday): UsageSum(14, 100)}, yesterday) == (7, 50)
        assert await sink.find_difference({}, yesterday) == (42, 300)
        assert await sink.find_difference({}, date(2100, 1, 1)) == (0, 0)


async def test_two_gateways_of_a_machine_never_write_the_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.stores.file_lock.PATIENCE_SECONDS", 0)
    first, second = (FileSink(tmp_path / "usage.jsonl") for _ in range(2))
    async with first.opened():
        with pytest.raises(NotSent, match="another gateway"):
            async with second.opened():
                pass
    async with second.opened():
        await second.send([event(uuid4().int >> 1)])


async def test_a_full_disk_loses_nothing(tmp_path: Path, plain_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write fails after some of its lines."""
    sink = FileSink(tmp_path / "usage.jsonl")
    write, rng = FileSink._append, random.Random(0)

    def fail(self: FileSink, lines: bytes) -> None:
        if rng.random() < 0.4:
            write(self, lines)
            return
        write(self, lines[: rng.randint(0, len(lines))])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileSink, "_append", fail)
    async with exports_.opened_exports(plain_url) as exports:
        sink.batch = 9
        requests = await exports.settle_some(60)
        await exports.send_all(sink)
        await exports_.compare(exports, sink)
    assert sorted(one.id for one in lines_of(tmp_path)) == sorted(requests)
