"""Workers that copy a file from an origin and from each other, with a sidecar each and all plans in this process; one peer without a limit,
against the raw stream of Node; and a file of 40 GB."""

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

from bench import processes, report, swarm
from bench.report import Options, Rows
from services.inference.models.model_copy import DownloadRate
from shared.node.lifecycle import background
from shared.transports.hyperswarm import BLOCK_BYTES, CopyFile, PeerAddress, WholeFile
from tests.dht import dht
from tests.services.inference.models import copying
from tests.services.inference.models.copying import MemoryOrigin, Source, Worker, make_source

RATE = 2.0 * BLOCK_BYTES
PAIR_MIB = 256
MAX_CPU_SECONDS, MAX_GROWTH_MB = 0.015, 48 * processes.MIB
HUGE_BYTES, HUGE_RATE, HUGE_SECONDS = 40 * 10**9, 32.0 * BLOCK_BYTES, 10.0


class SlowOrigin(MemoryOrigin):
    """Has a line of the same rate as each worker."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._line = asyncio.Lock()

    async def give(self, block: int) -> bytes:
        async with self._line:
            await asyncio.sleep(BLOCK_BYTES / RATE)
        return await super().give(block)


async def _spread(bootstrap: Sequence[PeerAddress], count: int, mib: int, *, are_faulty: bool) -> tuple[float, float]:
    """Return the seconds of the slowest worker, and how many copies the origin sent. ``are_faulty``: one lies and one leaves."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = make_source(folder, mib)
        origin, took, began = SlowOrigin(source), list[float](), time.perf_counter()
        workers = [await stack.enter_async_context(copying.worker(f"w{number}", folder, list(bootstrap))) for number in range(count)]
        names = {each.key: each.name for each in workers}
        for each in workers:
            each.swarm.copies.set_rate(RATE)
            each.offers(None)
            each.peers = [other.key for other in workers if other is not each]

        async def copy(each: Worker) -> None:
            def tell_gateway(key: bytes, _why: str) -> None:
                origin.leases.report(names[key], each.name)

            made = each.copy(source, origin, DownloadRate(RATE))
            made.report = tell_gateway
            await made.run()
            took.append(time.perf_counter() - began)

        async def leave(each: Worker) -> None:
            async with background() as tasks:
                tasks.create_task(copy(each))
                while (await each.has_moved()).bytes < len(source.body) / 2:
                    pass
            origin.leases.gone(each.name)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            if are_faulty:
                workers[0].offers(source.flipped())
                tasks.create_task(leave(workers[1]))
            for each in workers[2 if are_faulty else 0 :]:
                tasks.create_task(copy(each))
        return max(took), len(origin.sent) / source.count


async def measure_spread(rows: Rows, _shared: object, options: Options) -> None:
    async with dht() as bootstrap:
        for are_faulty, words in ((False, ""), (True, ", one lies, one leaves at 50 %")):
            seconds, copies = await _spread(bootstrap, options.workers, options.mib, are_faulty=are_faulty)
            claim = f"{options.workers} workers copy {options.mib} MiB, 2 MiB/s each way{words}"
            rows.against(f"{claim}: the slowest", seconds, "s", "size / rate", options.mib * BLOCK_BYTES / RATE, at_most=1.2)
            rows.alone(f"{claim}: copies that the origin sends", copies, "copies", at_most=1.1 if are_faulty else 1.0)


class _Sidecars:
    """What the sidecars of a holder and a reader spend."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._spent = [processes.spent_ms(pid) for pid in pids]

    def seconds(self) -> float:
        """Return the processor time of the one that spent more."""
        return max(processes.spent_ms(pid) - before for pid, before in zip(self._pids, self._spent, strict=True)) / 1000


async def _copy_alone(bootstrap: Sequence[PeerAddress], mib: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        source = make_source(Path(name), mib)
        async with (
            copying.worker("holder", Path(name), list(bootstrap)) as holder,
            copying.worker("reader", Path(name), list(bootstrap)) as reader,
        ):
            holder.offers(source.whole)
            reader.peers = [holder.key]
            copy = reader.copy(source, MemoryOrigin(source, is_away=True))
            pids = [(await each.swarm.stats()).pid for each in (holder, reader)]
            async with background() as tasks:
                running = tasks.create_task(copy.run())
                await reader.has_moved()
                spent, began = _Sidecars(pids), time.perf_counter()
                left = source.count - reader.progress[-1].bytes // BLOCK_BYTES
                await running
                seconds = time.perf_counter() - began
                return {"mib": left / seconds, "cpu": spent.seconds() / left}


async def measure_pair(rows: Rows, _shared: object, options: Options) -> None:
    topic = os.urandom(32)
    async with (
        dht() as bootstrap,
        swarm.run_node("echo", swarm.write_options(bootstrap, topic)),
        swarm.run_node("ask", swarm.write_options(bootstrap, topic, size=swarm.BIG, total=PAIR_MIB << 20)) as raw,
    ):
        ways: dict[str, Callable[[], object]] = {"raw": raw.ask, "copy": lambda: _copy_alone(bootstrap, PAIR_MIB)}
        streamed, copied = report.by_name(await report.take_turns(ways, options.pairs)).values()  # type: ignore[arg-type]
    raw_mib = [each * swarm.BIG / BLOCK_BYTES for each in streamed["messages_per_second"]]
    rows.paired("one peer copies", copied["mib"], "MiB/s", "raw stream of Node", raw_mib, at_least=0.7)
    rows.alone("processor time of a sidecar for a MiB, the larger of both sides", median(copied["cpu"]), "s", at_most=MAX_CPU_SECONDS)


async def measure_huge(rows: Rows, _shared: object, _options: Options) -> None:
    """Copy some of a sparse file, whose blocks are all the same."""
    async with dht() as bootstrap:
        with tempfile.TemporaryDirectory() as name:
            folder, count = Path(name), -(-HUGE_BYTES // BLOCK_BYTES)
            (folder / "whole").touch()
            os.truncate(folder / "whole", count * BLOCK_BYTES)
            (folder / "blocks").write_bytes(hashlib.sha256(bytes(BLOCK_BYTES)).digest() * count)
            async with (
                copying.worker("holder", folder, list(bootstrap)) as holder,
                copying.worker("reader", folder, list(bootstrap)) as reader,
            ):
                pids = [(await each.swarm.stats()).pid for each in (holder, reader)]
                before = [processes.resident_mb(pid) for pid in (*pids, os.getpid())]
                holder.offers(WholeFile(folder / "whole", count * BLOCK_BYTES))
                reader.peers = [holder.key]
                source = Source(folder, b"", bytes(32))
                copy = reader.copy(source, MemoryOrigin(source, is_away=True), DownloadRate(HUGE_RATE))
                copy.file = CopyFile(source.digest, count * BLOCK_BYTES, folder / "blocks", reader.folder / "partial")
                async with AsyncExitStack() as stack:
                    readings = [await stack.enter_async_context(processes.watching_memory(pid, 0.1)) for pid in (*pids, os.getpid())]
                    async with background() as tasks:
                        tasks.create_task(copy.run())
                        await asyncio.sleep(HUGE_SECONDS)
                assert reader.progress[-1].bytes > 4 * BLOCK_BYTES
                for who, read, idle in zip(
                    ("the holder's sidecar", "the reader's sidecar", "the reader's Python"), readings, before, strict=True
                ):
                    rows.alone(f"memory that copying 40 GB adds to {who}", max(read) - idle, "MB", at_most=MAX_GROWTH_MB)
