"""Compare the memory of a stack's processes after 10,000 mixed requests with that after 500.

    python -m bench.soak [--quick] [--requests 10000] [--json FILE]

The requests come from bench/mixture.py, 16 at a time: echo and the real model, streams and whole answers, formats, errors, and clients that
disconnect. Memory is read after some idle time: the resident set (RSS), and the process's own part of it (USS), which excludes pages of
files. A process that was restarted in between is an error, because its memory started again.
"""

import asyncio
import math
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

import httpx

from bench import mixture, report
from bench.mixture import Door, Tally
from shared.types import Tier
from tests import people
from tests.stacks import RunningStack, stack

REQUESTS, QUICK_REQUESTS = 10_000, 1_500
#: By then every path has run at full concurrency, and everything that is created once exists.
FIRST_REQUESTS = 500
AT_ONCE = 16
MOST_GROWTH = 1.05
RIVAL = f"after {FIRST_REQUESTS}"
#: The time to release memory of the last requests; engines announce themselves, metrics are read, writers are flushed.
IDLE_SECONDS = 8.0
READINGS = 5
READING_SECONDS = 1.0
START_SECONDS = 30.0

SERVICES = ("auth", "gateway", "metrics", "web", "inference", "inference-echo")
#: Text in the command of a child process -> its name.
CHILDREN = {b"engine.process": "engine", b"grammar.compiling": "grammars", b"sidecar": "sidecar"}
#: This process may end: it starts with a new grammar and exits after a minute without one.
COMES_AND_GOES = "inference: grammars"
#: How many errors are shown.
MOST_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Process:
    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class Reading:
    """The memory of a process, in MB."""

    pid: int
    rss: float
    uss: float


# --- memory of processes -------------------------------------------------------------------------------------------------


def read(pid: int) -> Reading:
    sizes = dict.fromkeys(("Rss", "Private_Clean", "Private_Dirty"), 0)
    # proc_pid_smaps(5): counted over all mappings at this moment; the kernel's counters in statm lag behind.
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, rest = line.partition(":")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) * 1024
    return Reading(pid, sizes["Rss"] / 1e6, (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1e6)


def children_of(pid: int) -> Iterator[int]:
    # A child belongs to the thread that started it.
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        yield from map(int, listed.read_text(encoding="ascii").split())


def kind_of(child: int) -> str:
    command = Path(f"/proc/{child}/cmdline").read_bytes()
    return next((kind for mark, kind in CHILDREN.items() if mark in command), command.replace(b"\0", b" ").decode(errors="replace"))


async def processes_of(running: RunningStack) -> list[Process]:
    pids = await running.pids()
    found = []
    for service in SERVICES:
        pid = pids[service]
        assert pid is not None, f"{service} does not run"
        found.append(Process(service, pid))
        found += [Process(f"{service}: {kind_of(child)}", child) for child in children_of(pid)]
    return found


async def read_all(running: RunningStack) -> dict[str, Reading]:
    """Return the median of some readings of each process, by name, after some idle time."""
    await asyncio.sleep(IDLE_SECONDS)
    processes = await processes_of(running)
    found: dict[str, list[Reading]] = {process.name: [] for process in processes}
    for _ in range(READINGS):
        for process in processes:
            found[process.name].append(read(process.pid))
        await asyncio.sleep(READING_SECONDS)
    return {name: median(readings) for name, readings in found.items()}


def median(readings: Sequence[Reading]) -> Reading:
    return Reading(readings[0].pid, statistics.median(each.rss for each in readings), statistics.median(each.uss for each in readings))


# --- the run -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _doors(running: RunningStack, key: str) -> AsyncIterator[Mapping[Door, httpx.AsyncClient]]:
    async with AsyncExitStack() as opened:
        clients = {
            Door.GATEWAY: running.http(key),
            Door.WEB: running.http(key, service="web"),
            Door.STRANGER: running.http("aip_live_" + "x" * 49),
        }
        yield {door: await opened.enter_async_context(client) for door, client in clients.items()}


async def _until_it_knows_all_workers(gateway: httpx.AsyncClient) -> None:
    """A gateway that has just started cannot tell yet that no worker serves a model, and says so."""
    asked = {"model": "nobody-serves-this", "messages": [{"role": "user", "content": "hello"}]}
    async with asyncio.timeout(START_SECONDS):
        while True:
            answer = await gateway.post("/v1/chat/completions", json=asked)
            if answer.status_code == HTTPStatus.NOT_FOUND:
                return
            await asyncio.sleep(READING_SECONDS)


async def ask_all(doors: Mapping[Door, httpx.AsyncClient], numbers: range, tally: Tally) -> None:
    waiting = iter(numbers)

    async def caller() -> None:
        for number in waiting:
            await mixture.ask(doors, number, tally)
            if number % 1000 == 999:
                print(f"{number + 1} asked, {len(tally.wrong)} of them ended otherwise than they should", file=sys.stderr)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(caller())


async def measure(table: report.Table, requests: int, tally: Tally) -> None:
    settings = {
        "AIMESH_ECHO": "1",
        "ECHO_TOKEN_MS": "1",
        "ENGINE_SLOTS": str(AT_ONCE),
        "TIER_PRO": "requests_per_hour=unlimited,requests_per_minute=unlimited,concurrency=unlimited",
        "RESPONSE_CACHE": "off",
    }
    async with stack(**settings) as running, people.api_client(running) as api_client:
        person = await api_client.register("soak", Tier.PRO)
        async with _doors(running, person.key.secret) as doors:
            await _until_it_knows_all_workers(doors[Door.GATEWAY])
            began = time.monotonic()
            await ask_all(doors, range(FIRST_REQUESTS), tally)
            first = await read_all(running)
            await ask_all(doors, range(FIRST_REQUESTS, requests), tally)
            last = await read_all(running)
            seconds = time.monotonic() - began
    table.add(compare(first, last))
    claim = f"of {tally.asked.total():,} requests, ended otherwise than they should"
    table.add([report.alone(claim, len(tally.wrong), "requests", at_most=0), report.alone("the whole run", seconds / 60, "min")])


def compare(first: Mapping[str, Reading], last: Mapping[str, Reading]) -> list[report.Row]:
    """Compare each process by name. A new or restarted process makes its figures meaningless. Pure."""
    made = []
    for name in sorted(first.keys() | last.keys()):
        before, after = first.get(name), last.get(name)
        same = before is not None and after is not None and before.pid == after.pid
        if before is not None and after is not None and (same or name == COMES_AND_GOES):
            made.append(report.against(f"{name}: RSS", after.rss, "MB", RIVAL, before.rss, at_most=MOST_GROWTH))
            made.append(report.against(f"{name}: USS", after.uss, "MB", RIVAL, before.uss))
        elif name != COMES_AND_GOES:
            made.append(report.Row(f"{name}: is not the process it was", math.nan, "MB", RIVAL, target="it lives", met=False))
    return made


def main() -> None:
    parser = report.arguments(__doc__, limits=(3 * 3600.0, 1800.0), quick=f"{QUICK_REQUESTS:,} requests")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    options = parser.parse_args()
    requests = QUICK_REQUESTS if options.quick else options.requests
    if requests <= FIRST_REQUESTS:
        parser.error(f"--requests must be more than the {FIRST_REQUESTS} that it is compared with")
    tally = Tally()
    with report.opened(options) as table:
        table.run(measure(table, requests, tally))
    for line in tally.wrong[:MOST_SHOWN]:
        print(line)


if __name__ == "__main__":
    main()
