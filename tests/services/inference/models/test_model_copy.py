"""Copies between real sidecars on loopback: whole ones, and with peers that lie, are silent, send too much, or die."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from pyhyperswarm import dht, find_node
from pyhyperswarm.block_copies import BLOCK_BYTES, BlockCopies, CopyFile, Ending, WholeFile

from services.inference.models import model_copy
from services.inference.models.model_copy import CopyPeer, DownloadRate, ModelCopy
from shared.models import copy_plan
from shared.node.lifecycle import background
from shared.timing.backoff import Backoff
from tests.services.inference.models import killed_worker
from tests.services.inference.models.copying import (
    PATIENCE_SECONDS,
    MemoryOrigin,
    Source,
    Worker,
    WorkerOrigin,
    finish,
    make_source,
    worker,
)
from tests.testnet import until

HOSTILE = Path(__file__).parent / "hostile_peer.js"


async def test_a_worker_copies_a_file_from_another_one_without_the_origin(tmp_path: Path) -> None:
    source = make_source(tmp_path, 8.3)
    origin = MemoryOrigin(source, is_away=True)
    async with worker("holder", tmp_path) as holder, worker("reader", tmp_path) as reader:
        holder.offers(source.whole)
        reader.peers = [holder.key]
        await finish(reader.copy(source, origin), source)
        assert reader.progress[-1].bytes == reader.progress[-1].from_peers == len(source.body)
        assert not reader.reports
        await until(lambda: not reader.swarm.connections and not holder.swarm.connections, seconds=PATIENCE_SECONDS)


async def test_three_workers_read_each_block_once_from_the_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine, workers may need longer to find each other.
    monkeypatch.setattr(copy_plan, "ORPHAN_SECONDS", 3600.0)
    monkeypatch.setattr(model_copy, "FIND_BACKOFF", Backoff(first_seconds=0.1, longest_seconds=1.0))
    source = make_source(tmp_path, 16)
    origin = MemoryOrigin(source)
    async with AsyncExitStack() as stack:
        workers = [await stack.enter_async_context(worker(f"w{number}", tmp_path)) for number in range(3)]
        for each in workers:
            each.offers(None)
            each.peers = [other.key for other in workers if other is not each]

        async def get(each: Worker) -> None:
            await finish(each.copy(source, origin), source)
            # As a worker does: the slowest may need some blocks of those that are done.
            each.offers(WholeFile(each.file(source).partial, len(source.body)))

        async with asyncio.TaskGroup() as tasks:
            for each in workers:
                tasks.create_task(get(each))
    assert sorted(origin.sent) == list(range(source.count))
    assert sum(each.progress[-1].from_peers for each in workers) == 2 * len(source.body)


@pytest.fixture
def found_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """New peers are found at once."""
    monkeypatch.setattr(model_copy, "FIND_BACKOFF", Backoff(first_seconds=0.1, longest_seconds=0.1))
    monkeypatch.setattr(model_copy, "ORIGIN_SECONDS", 0.1)


@pytest.mark.parametrize("elsewhere", ["a worker", "the origin"])
@pytest.mark.usefixtures("found_soon")
async def test_a_liar_is_dropped_and_its_block_comes_from_elsewhere(tmp_path: Path, elsewhere: str) -> None:
    source = make_source(tmp_path)
    origin = MemoryOrigin(source, is_away=True)
    async with worker("liar", tmp_path) as liar, worker("holder", tmp_path) as holder, worker("reader", tmp_path) as reader:
        liar.offers(source.flipped())
        holder.offers(source.whole)
        reader.peers = [liar.key]

        def reported() -> None:
            origin.is_away = elsewhere == "a worker"
            reader.peers = [liar.key] if elsewhere == "the origin" else [liar.key, holder.key]

        reader.on_report = reported
        await finish(reader.copy(source, origin), source)
        assert set(reader.reports) == {(liar.key, "wrong hash")}
        assert set(reader.dropped) == {liar.key}
        assert sorted(origin.sent) == (list(range(source.count)) if elsewhere == "the origin" else [])


@asynccontextmanager
async def hostile_peer(fault: str, blocks: int) -> AsyncIterator[bytes]:
    """Run a peer of our protocol that breaks it; yield its key."""
    command = [str(HOSTILE), str(dht.SIDECAR / "node_modules"), str(dht.shared()[0].port), fault, str(blocks)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(str(find_node()), *command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield bytes.fromhex((await process.stdout.readline()).decode())
    finally:
        process.stdin.close()
        await process.wait()


@pytest.mark.parametrize(
    "fault",
    [
        "another block",
        "another file",
        "a long slice",
        "empty slices",
        "a block beyond the end",
        "another bitmap",
        "a flood of news",
        "a flood of refusals",
        "half a message",
    ],
)
@pytest.mark.usefixtures("found_soon")
async def test_a_peer_that_breaks_the_protocol_is_dropped(tmp_path: Path, fault: str) -> None:
    source = make_source(tmp_path, 3)
    origin = MemoryOrigin(source, is_away=True)
    async with hostile_peer(fault, source.count) as key, worker("reader", tmp_path) as reader:
        reader.peers = [key]

        def reported() -> None:
            origin.is_away = False

        reader.on_report = reported
        await finish(reader.copy(source, origin), source)
        assert set(reader.reports) == {(key, "broke the protocol")}


@pytest.mark.usefixtures("found_soon")
async def test_a_silent_peer_is_left_for_a_while_and_not_reported(tmp_path: Path) -> None:
    source = make_source(tmp_path, 3)
    origin = MemoryOrigin(source, is_away=True)
    async with hostile_peer("silent", source.count) as key, worker("reader", tmp_path) as reader:
        reader.peers = [key]
        copying = asyncio.create_task(finish(reader.copy(source, origin), source))
        await until(lambda: key in reader.dropped, seconds=PATIENCE_SECONDS)
        origin.is_away = False
        await copying
        assert not reader.reports


@pytest.mark.usefixtures("found_soon")
async def test_pauses_of_a_silent_peer_grow_until_it_sends_a_block_or_is_reported(tmp_path: Path) -> None:
    source, key, now, reports = make_source(tmp_path, 1), b"k" * 32, 0.0, list[str]()
    origin, watched = WorkerOrigin(MemoryOrigin(source), "reader"), asyncio.Queue[bytes]()

    class Copies(BlockCopies):
        def watch(self, digest: bytes, key: bytes, grant: bytes) -> None:
            watched.put_nowait(key)

    async def find_peers() -> list[CopyPeer]:
        return [CopyPeer(key, b"please")]

    async def read_never(block: int, size: int) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    origin.read = read_never  # type: ignore[method-assign]
    copy = ModelCopy(
        copies=Copies(),
        file=CopyFile(source.digest, len(source.body), tmp_path / "blocks", tmp_path / "partial"),
        origin=origin,
        find_peers=find_peers,
        rate=DownloadRate(None),
        report=lambda key, why: reports.append(why),
        clock=lambda: now,
    )

    async def silence() -> float:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await watched.get()
        for _ in range(2):  # two requests
            copy.peer_ended(key, Ending.SILENT, "silent")
        return copy.dropped[key] - now

    async with background() as tasks:
        tasks.create_task(copy.run())
        pauses = []
        for _ in range(8):
            pauses.append(await silence())
            assert len(reports) == max(0, len(pauses) - 6)
            now += pauses[-1]
        assert pauses == [5, 10, 20, 40, 80, 160, 300, 300]
        copy.block_stored(key, 0)
        assert (copy._count_silence(key), set(reports)) == (5, {"silent"})


async def test_a_killed_sidecar_costs_at_most_16_blocks(tmp_path: Path) -> None:
    source = make_source(tmp_path, 40)
    async with worker("holder", tmp_path) as holder, worker("reader", tmp_path) as reader:
        holder.offers(source.whole)
        holder.copies.set_rate(32 * BLOCK_BYTES)
        reader.peers = [holder.key]
        copying = asyncio.create_task(finish(reader.copy(source, MemoryOrigin(source, is_away=True)), source))
        while (await reader.has_moved()).bytes < 30 * BLOCK_BYTES:
            pass
        os.kill((await reader.swarm.stats()).pid, signal.SIGKILL)
        await copying
        again = reader.progress[-1].from_peers - len(source.body)
        assert 0 <= again <= 16 * BLOCK_BYTES
        assert not reader.reports


async def test_a_worker_that_is_killed_again_and_again_repeats_few_blocks(tmp_path: Path) -> None:
    source, kills, sent = make_source(tmp_path, 72), 0, 0
    async with worker("holder", tmp_path) as holder:
        holder.offers(source.whole)
        holder.copies.set_rate(32 * BLOCK_BYTES)
        words = "-m", killed_worker.__name__, str(tmp_path), str(dht.shared()[0].port), holder.key.hex()
        is_whole = False
        while not is_whole:
            process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
            assert process.stdout is not None
            read = 0
            async with asyncio.timeout(PATIENCE_SECONDS):
                while read < 24 * BLOCK_BYTES and (line := await process.stdout.readline()):
                    read = int(line)
            if line:
                process.kill()
                kills += 1
                read = max(read, *map(int, (await process.stdout.read()).split()), 0)
            is_whole = await process.wait() == 0
            assert is_whole or line, "it failed by itself"
            sent += read
    assert kills > 1
    assert (tmp_path / "killed" / "partial").read_bytes() == source.body
    assert sent - len(source.body) <= 16 * BLOCK_BYTES * kills


async def test_a_canceled_copy_continues_with_what_it_has(tmp_path: Path) -> None:
    source = make_source(tmp_path, 16)
    async with worker("holder", tmp_path) as holder, worker("reader", tmp_path) as reader:
        holder.offers(source.whole)
        holder.copies.set_rate(16 * BLOCK_BYTES)
        reader.peers = [holder.key]
        copying = asyncio.create_task(reader.copy(source, MemoryOrigin(source, is_away=True)).run())
        while (await reader.has_moved()).bytes < 5 * BLOCK_BYTES:
            pass
        copying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await copying
        copied = reader.progress[-1].bytes
        await finish(reader.copy(source, MemoryOrigin(source, is_away=True)), source)
        assert reader.progress[-1].from_peers <= len(source.body) - copied
        # Nothing is left to do, and nobody is asked.
        reader.peers = []
        await finish(reader.copy(source, MemoryOrigin(source, is_away=True)), source)


async def test_a_peer_whose_owner_has_paused_it_is_not_taken_for_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, news = make_source(tmp_path, 4), 0
    async with worker("holder", tmp_path) as holder, worker("reader", tmp_path) as reader:
        holder.offers(source.whole)
        holder.copies.set_rate(0)
        reader.peers = [holder.key]
        copy = reader.copy(source, MemoryOrigin(source, is_away=True))
        heard = asyncio.Event()

        def count_news(key: bytes, blocks: int, queue: int) -> None:
            nonlocal news
            news += 1
            if news > 6:  # one a second, for longer than the limit of silence
                heard.set()
            ModelCopy.peer_has(copy, key, blocks, queue)

        monkeypatch.setattr(copy, "peer_has", count_news)
        copying = asyncio.create_task(finish(copy, source))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await heard.wait()
        assert not reader.progress
        holder.copies.set_rate(None)
        await copying
        assert not reader.reports


@pytest.mark.usefixtures("found_soon")
async def test_wrong_blocks_of_the_origin_are_not_stored(tmp_path: Path) -> None:
    source = make_source(tmp_path, 2)
    wrong = Source(tmp_path, source.flipped().path.read_bytes(), source.digest)
    origin = MemoryOrigin(wrong)
    async with worker("holder", tmp_path) as holder, worker("reader", tmp_path) as reader:
        holder.offers(source.whole)
        copying = asyncio.create_task(finish(reader.copy(source, origin), source))
        await until(lambda: len(origin.sent) == source.count, seconds=PATIENCE_SECONDS)
        reader.peers = [holder.key]
        await copying
        assert reader.progress[-1].from_origin == 0


async def test_a_wrong_list_of_blocks_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path, 2)
    (tmp_path / "blocks").write_bytes(bytes(32))
    async with worker("reader", tmp_path) as reader:
        with pytest.raises(ValueError, match="digests of 2 blocks"):
            await reader.copy(source, MemoryOrigin(source)).run()


async def test_a_full_disk_ends_the_copy(tmp_path: Path) -> None:
    source = make_source(tmp_path, 2)
    async with worker("holder", tmp_path) as holder, worker("reader", tmp_path) as reader:
        holder.offers(source.whole)
        reader.peers = [holder.key]
        (reader.folder / "partial").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"ENOSPC|Invalid argument"):
            await reader.copy(source, MemoryOrigin(source, is_away=True)).run()


def test_a_rate_lets_a_burst_pass_and_then_one_block_after_the_other() -> None:
    rate = DownloadRate(2 * BLOCK_BYTES)
    waits = []
    for _ in range(5):
        waits.append(rate.wait_seconds(100.0))
        rate.spend(100.0)
    assert waits == pytest.approx([0, 0, 0.5, 1.0, 1.5])
    rate.give_back()
    assert rate.wait_seconds(100.0) == pytest.approx(1.5)
    assert rate.wait_seconds(200.0) == 0
    rate.bytes_per_second = None
    assert rate.wait_seconds(100.0) == 0
    rate.spend(100.0)
    assert rate.wait_seconds(100.0) == 0
