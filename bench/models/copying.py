"""Workers that copy a file from an origin and from each other, with a sidecar each and all plans in this process, also far apart and behind
NATs; a model of a public source; answers beside a copy; one peer without a limit, against the raw stream of Node; and a file of 40 GB."""

import asyncio
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median

from pyhyperswarm import PeerAddress, find_node
from pyhyperswarm.block_copies import BLOCK_BYTES, CopyFile, WholeFile
from pyhyperswarm.dht import HOST, dht

from bench import processes, report, swarm
from bench.report import Options, Rows
from services.inference.models.model_copy import DownloadRate
from shared.node.lifecycle import background
from tests.nat import dht as far_dht
from tests.nat import topology
from tests.nat.topology import Machine, Nat
from tests.services.inference.exchange_site import Blobs, Site
from tests.services.inference.models import copying, fake_hub
from tests.services.inference.models.copying import MemoryOrigin, Source, Worker, make_source
from tests.services.inference.models.ranged_server import model_bytes
from tests.swarmnet import swarmnet
from tests.testnet import until

RATE = 2.0 * BLOCK_BYTES
#: From so many MiB on, such as the 200 MB of a night, the beginning and the end of a copy count for less.
MANY_MIB = 190
#: Each way; the round trip is twice that.
DELAY_MS = 25.0
PAIR_MIB = 256
#: MiB of a public source, and its MB/s. Copying 50 MB/s to two workers takes 3 cores in all, so a smaller machine needs the other row.
PULLERS, SOURCES = 3, ((1024, 50), (256, 10))
#: Answers, and a copy at the rate that a worker leaves itself beside them.
STREAMS, TOKEN_SECONDS, TOKEN_BYTES = 8, 0.02, 200
BESIDE_MIB, BESIDE_RATE = 128, 25e6
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


async def _spread(
    bootstrap: Sequence[PeerAddress], count: int, mib: int, *, are_faulty: bool = False, machines: Sequence[Machine] = ()
) -> tuple[float, float]:
    """Return the seconds of the slowest worker, and how many copies the origin sent. ``are_faulty``: one lies and one leaves. The sidecars
    run on the ``machines``, if there are any."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        source = make_source(folder, mib)
        origin, took, began = SlowOrigin(source), list[float](), time.perf_counter()
        workers = []
        for number in range(count):
            node = _node_on(machines[number % len(machines)], folder) if machines else None
            host = None if machines else HOST
            workers.append(await stack.enter_async_context(copying.worker(f"w{number}", folder, list(bootstrap), host, node)))
        names = {each.key: each.name for each in workers}
        for each in workers:
            each.copies.set_rate(RATE)
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


def _node_on(machine: Machine, folder: Path) -> Path:
    """Return a program that runs Node on a machine."""
    program = folder / f"node-{machine.place}"
    if not program.exists():
        program.write_text(f'#!/bin/sh\nexec ip netns exec {machine.place} {find_node()} "$@"\n')
        program.chmod(0o700)
    return program


def _add_spread(rows: Rows, options: Options, words: str, found: tuple[float, float], most_copies: float = 1.0) -> None:
    claim, (seconds, copies) = f"{options.workers} workers copy {options.mib} MiB, 2 MiB/s each way{words}", found
    most = 1.15 if options.mib >= MANY_MIB else 1.2
    rows.against(f"{claim}: the slowest", seconds, "s", "size / rate", options.mib * BLOCK_BYTES / RATE, at_most=most)
    rows.alone(f"{claim}: copies that the origin sends", copies, "copies", at_most=most_copies)


async def measure_spread(rows: Rows, _shared: object, options: Options) -> None:
    async with dht() as bootstrap:
        _add_spread(rows, options, "", await _spread(bootstrap, options.workers, options.mib))
        found = await _spread(bootstrap, options.workers, options.mib, are_faulty=True)
        _add_spread(rows, options, ", one lies, one leaves at 50 %", found, 1.1)


async def measure_far(rows: Rows, _shared: object, options: Options) -> None:
    """Needs network namespaces. A program delays the packets, because not every kernel has netem."""
    if why := topology.why_not():
        print(why, file=sys.stderr)
        return
    bootstrap = [PeerAddress.parse(text) for text in far_dht.BOOTSTRAP]
    async with topology.internet(is_far=True) as net:
        machines = [await net.host(f"m{number}") for number in range(options.workers)]
        async with net.connected(DELAY_MS), far_dht.dht(net.public):
            found = await _spread(bootstrap, options.workers, options.mib, machines=machines)
        _add_spread(rows, options, f", {2 * DELAY_MS:g} ms round trip", found)
    for is_far in (False, True):
        async with topology.internet(is_far=is_far) as net, AsyncExitStack() as stack:
            houses = [await net.house(name, Nat.PORT_PRESERVING) for name in ("box", "cafe")]
            if is_far:
                await stack.enter_async_context(net.connected(DELAY_MS))
            await stack.enter_async_context(far_dht.dht(net.public))
            found = await _spread(bootstrap, options.workers, options.mib, machines=houses)
            between = f", {2 * DELAY_MS:g} ms round trip" if is_far else ""
            _add_spread(rows, options, f", half of them behind each of two NATs{between}", found)


async def _gap(bootstrap: Sequence[PeerAddress], *, copies: bool) -> float:
    """Return the 95th percentile of the gaps between tokens of a worker's streams, in milliseconds, also while its sidecar copies."""
    topic, came = os.urandom(32), [list[float]() for _ in range(STREAMS)]
    with tempfile.TemporaryDirectory() as name:
        source = make_source(Path(name), BESIDE_MIB)
        async with AsyncExitStack() as stack:
            holder, worker, client = [
                await stack.enter_async_context(copying.worker(each, Path(name), list(bootstrap)))
                for each in ("holder", "worker", "client")
            ]
            holder.offers(source.whole)
            holder.copies.set_rate(BESIDE_RATE)
            worker.peers = [holder.key]
            for each in (worker, client):
                await each.swarm.join(topic)
            await until(lambda: worker.key in client.connections and client.key in worker.connections, seconds=30)
            client.connections[worker.key].on_message = lambda message: came[message[0]].append(time.perf_counter())

            async def stream(number: int) -> None:
                due = time.perf_counter() + number * TOKEN_SECONDS / STREAMS
                while True:
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    worker.connections[client.key].send(bytes([number]) + bytes(TOKEN_BYTES))
                    due += TOKEN_SECONDS

            async with background() as tasks:
                for number in range(STREAMS):
                    tasks.create_task(stream(number))
                if copies:
                    copying_ = tasks.create_task(worker.copy(source, MemoryOrigin(source, is_away=True), DownloadRate(BESIDE_RATE)).run())
                    await worker.has_moved()
                    for times in came:
                        times.clear()
                    await copying_
                else:
                    await asyncio.sleep(BESIDE_MIB * BLOCK_BYTES / BESIDE_RATE)
    return report.percentile([1000 * (now - last) for times in came for last, now in pairwise(times)], 0.95)


async def measure_beside(rows: Rows, _shared: object, options: Options) -> None:
    async with dht() as bootstrap:
        ways = {copies: partial(_gap, bootstrap, copies=copies) for copies in (False, True)}
        quiet, beside = (await report.take_turns(ways, options.pairs)).values()
    claim = f"gap between tokens, p95, of {STREAMS} streams of a worker that copies with half of MODEL_COPY_RATE"
    rows.paired(claim, beside, "ms", "without the copy", quiet, at_most=1.15)


async def _pull_public(count: int, body: bytes, rate: float) -> tuple[float, int]:
    """Return the seconds until so many workers have a public model, and how often it was downloaded."""
    with fake_hub.serving() as hub, tempfile.TemporaryDirectory() as name:
        hub.add_repository("org/public", {"m-Q4_0.gguf": body})
        hub.rate = rate
        async with swarmnet() as net:
            site = Site(net, Path(name), Blobs())
            await site.add_gateway()
            workers = [await site.add_worker() for _ in range(count)]
            began = time.perf_counter()
            async with asyncio.TaskGroup() as tasks:
                for worker in workers:
                    tasks.create_task(worker.order(hub))
            return time.perf_counter() - began, sum("/resolve/" in path for path in hub.paths())


async def measure_public(rows: Rows, _shared: object, _options: Options) -> None:
    """The mesh's store has no part in it, however slow its line is."""
    for mib, rate in SOURCES:
        body = model_bytes(mib * BLOCK_BYTES)
        alone, _ = await _pull_public(1, body, rate * 1e6)
        seconds, downloads = await _pull_public(PULLERS, body, rate * 1e6)
        claim = f"{PULLERS} workers get {mib} MiB of a public source with {rate} MB/s"
        rows.against(f"{claim}: the slowest", seconds, "s", "one worker", alone, at_most=1.2)
        rows.alone(f"{claim}: downloads", downloads, "downloads", at_most=1)


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
