import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.inference.receipts import ReceiptKeeper
from shared import errors
from shared.api import inference
from shared.api.generation import GenerationEnd, Usage
from shared.api.inference import Chunk, Receipt
from shared.context import new_request_id
from shared.identity import node_keys
from shared.node.lifecycle import background
from shared.types import FinishReason, RequestId
from tests.services.inference.standins import Reader, until

KEY = node_keys.NodeKey(node_keys.new_seed())
NOW = datetime(2026, 1, 1, tzinfo=UTC)
STOP = GenerationEnd(FinishReason.STOP, Usage(7, 2))


def read(receipts: ReceiptKeeper, request_id: RequestId) -> Receipt | None:
    """Return the receipt, after checking its signature."""
    found = receipts.read((request_id,))
    for signed in found:
        assert node_keys.verify(KEY.id, "receipt", signed.text, signed.signature)
    return msgspec.msgpack.decode(found[0].text, type=Receipt) if found else None


async def work(receipts: ReceiptKeeper, *, tokens: int = 2, delivered: int = 0, request_id: RequestId | None = None) -> RequestId:
    """Complete one answer."""
    request_id = request_id or new_request_id()
    with receipts.meter(request_id, delivered, Reader()) as running:
        running.accept(7)
        for token in range(tokens):
            await running.send(Chunk("a", (token,)))
        running.finished(STOP)
    return request_id


class BusyThread(ThreadPoolExecutor):
    """Its thread starts submitted work only at shutdown."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.leaving = threading.Event()
        self.submitted = 0

    def submit(self, function: Any, *arguments: Any, **named: Any) -> "Future[Any]":
        self.submitted += 1
        super().submit(self.leaving.wait) if self.submitted > 1 else None
        return super().submit(function, *arguments, **named)

    def shutdown(self, *arguments: Any, **named: Any) -> None:
        self.leaving.set()
        super().shutdown(*arguments, **named)


@asynccontextmanager
async def opened(file: Path, now: datetime = NOW, **more: int) -> AsyncIterator[ReceiptKeeper]:
    receipts = ReceiptKeeper(file, KEY, lambda: now, **more)
    async with background() as tasks:
        running = tasks.create_task(receipts.run())
        await asyncio.sleep(0)
        yield receipts
        running.cancel()


async def test_finished_request_has_a_signed_receipt() -> None:
    receipts = ReceiptKeeper(None, KEY, lambda: NOW, lambda: 0.0)
    request_id = await work(receipts, tokens=2, delivered=3)
    assert read(receipts, request_id) == Receipt(request_id, 7, 3, 2, "stop", NOW)
    assert receipts.read((new_request_id(),)) == ()


async def test_only_tokens_of_items_with_credit_are_credited() -> None:
    receipts, request_id, granted = ReceiptKeeper(None, KEY, lambda: NOW, lambda: 0.0), new_request_id(), [0]
    with receipts.meter(request_id, 0, Reader(), lambda: granted[-1]) as running:
        await running.send(Chunk("", (), waiting="loading"))
        for first in range(0, 9, 3):
            await running.send(Chunk("abc", (first, first + 1, first + 2)))
        for items, tokens in ((0, 0), (1, 0), (3, 6)):
            granted.append(items)
            found = read(receipts, request_id)
            assert found is not None
            assert (found.completion_tokens, found.credited_tokens) == (9, tokens)
        # Credit for more than was sent doesn't apply to what comes later.
        granted.append(100)
    found = read(receipts, request_id)
    assert found is not None
    assert (found.completion_tokens, found.credited_tokens) == (9, 9)


async def test_receipt_has_the_duration() -> None:
    ticks = iter((10.0, 12.5))
    receipts = ReceiptKeeper(None, KEY, lambda: NOW, lambda: next(ticks))
    found = read(receipts, await work(receipts))
    assert found is not None
    assert found.seconds == 2.5


async def test_running_request_has_a_receipt_of_what_was_sent() -> None:
    receipts, request_id = ReceiptKeeper(None, KEY, clock=lambda: 0.0), new_request_id()
    with receipts.meter(request_id, 0, Reader()) as running:
        running.accept(7)
        await running.send(Chunk("a", (1, 2)))
        assert read(receipts, request_id) == Receipt(request_id, 7, 0, 2, inference.RUNNING)


@pytest.mark.parametrize(("error", "ended"), [(errors.ModelCrashed("x"), "model_crashed"), (asyncio.CancelledError(), "cancelled")])
async def test_abandoned_request_has_a_receipt(error: BaseException, ended: str) -> None:
    receipts, request_id = ReceiptKeeper(None, KEY, lambda: NOW, lambda: 0.0), new_request_id()
    with pytest.raises(type(error)), receipts.meter(request_id, 0, Reader()) as running:
        running.accept(7)
        await running.send(Chunk("a", (1,)))
        raise error
    assert read(receipts, request_id) == Receipt(request_id, 7, 0, 1, ended, NOW)


async def test_refused_retry_keeps_the_earlier_receipt() -> None:
    receipts = ReceiptKeeper(None, KEY, lambda: NOW, lambda: 0.0)
    request_id = await work(receipts)
    with pytest.raises(errors.Overloaded), receipts.meter(request_id, 2, Reader()):
        raise errors.Overloaded("full")
    assert read(receipts, request_id) == Receipt(request_id, 7, 0, 2, "stop", NOW)
    await work(receipts, request_id=request_id, delivered=2, tokens=4)
    assert read(receipts, request_id) == Receipt(request_id, 7, 2, 4, "stop", NOW)


async def test_backend_without_token_ids_reports_its_count() -> None:
    receipts, request_id = ReceiptKeeper(None, KEY, lambda: NOW, lambda: 0.0), new_request_id()
    with receipts.meter(request_id, 0, Reader()) as running:
        await running.send(Chunk("abc", ()))
        running.finished(STOP)
    assert read(receipts, request_id) == Receipt(request_id, 7, 0, 2, "stop", NOW)


async def test_receipts_survive_a_restart_for_a_day(tmp_path: Path) -> None:
    file = tmp_path / "worker.receipts"
    async with opened(file) as receipts:
        request_id = await work(receipts)
    assert file.stat().st_mode & 0o777 == 0o600
    async with opened(file, NOW + timedelta(hours=23)) as receipts:
        await until(lambda: read(receipts, request_id))
        later = await work(receipts)
    async with opened(file, NOW + timedelta(hours=25)) as receipts:
        await until(lambda: read(receipts, later))
        assert read(receipts, request_id) is None


async def test_a_cancel_does_not_lose_receipts_that_wait_for_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thread: list[BusyThread] = []
    monkeypatch.setattr("services.inference.receipts.ThreadPoolExecutor", lambda *args: thread.append(BusyThread(*args)) or thread[-1])
    async with opened(tmp_path / "receipts") as receipts:
        await until(lambda: thread and thread[0].submitted == 1)
        request_id = await work(receipts)
        await until(lambda: thread[0].submitted == 2)
    monkeypatch.undo()
    async with opened(tmp_path / "receipts") as later:
        await until(lambda: read(later, request_id) is not None)


async def test_file_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "worker.receipts"
    async with opened(file, capacity=10) as receipts:
        ids = [await work(receipts)]
        await until(lambda: file.exists() and file.stat().st_size)
        one = file.stat().st_size
        ids += [await work(receipts) for _ in range(9)]
        for _ in range(20):
            ids += [await work(receipts) for _ in range(5)]
            await asyncio.sleep(0)
        assert [read(receipts, request_id) is not None for request_id in ids] == [False] * 100 + [True] * 10
    assert file.stat().st_size <= one * 20
    async with opened(file, capacity=10) as receipts:
        await until(lambda: read(receipts, ids[-1]))
        assert all(read(receipts, request_id) for request_id in ids[-10:])


async def test_torn_end_of_the_file_loses_only_the_torn_receipt(tmp_path: Path) -> None:
    file = tmp_path / "worker.receipts"
    async with opened(file) as receipts:
        ids = [await work(receipts) for _ in range(3)]
    whole = file.read_bytes()
    for cut in range(len(whole) * 2 // 3 + 1, len(whole)):
        file.write_bytes(whole[:cut])
        receipts = ReceiptKeeper(file, KEY, lambda: NOW)
        receipts._recall(receipts._load())
        assert [read(receipts, request_id) is not None for request_id in ids] == [True, True, False]
    # Well-formed, but not what was written.
    file.write_bytes(whole.replace(b"stop", b"stoq", 1))
    receipts = ReceiptKeeper(file, KEY, lambda: NOW)
    assert receipts._load() == []


async def test_unwritable_receipts_are_kept_in_memory(tmp_path: Path) -> None:
    async with opened(tmp_path / "nowhere" / "worker.receipts") as receipts:
        ids = [await work(receipts) for _ in range(3)]
        assert all(read(receipts, request_id) for request_id in ids)


_ENDLESS = """
import asyncio, sys
from pathlib import Path
from services.inference.receipts import ReceiptKeeper
from shared.identity import node_keys as identity
from tests.services.inference.test_receipts import work

async def run():
    receipts = ReceiptKeeper(Path(sys.argv[1]), identity.NodeKey(identity.new_seed()))
    writing = asyncio.create_task(receipts.run())
    while True:
        print(await work(receipts), flush=True)
        await asyncio.sleep(0.002)

asyncio.run(run())
"""


async def test_kill_9_loses_at_most_the_last_moment(tmp_path: Path) -> None:
    file = tmp_path / "worker.receipts"
    with subprocess.Popen([sys.executable, "-c", _ENDLESS, str(file)], stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
        assert process.stdout is not None
        ended_ids = [process.stdout.readline().strip() for _ in range(100)]
        os.kill(process.pid, signal.SIGKILL)
        ended_ids += process.stdout.read().split()
    receipts = ReceiptKeeper(file, KEY)
    receipts._recall(receipts._load())
    kept = [read(receipts, RequestId(UUID(one))) is not None for one in ended_ids]
    assert kept == sorted(kept, reverse=True), "one in the middle is missing"
    # 50 ms on a busy machine.
    assert kept.count(False) <= 25
