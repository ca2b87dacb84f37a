"""Compare the memory of a stack's processes after 10,000 mixed requests with that after 500.

    python -m tests.soak.soak [--quick] [--requests 10000] [--json FILE]

The requests come from mixture.py, 16 at a time: echo and the real model, streams and whole answers, formats, errors, and clients that
disconnect. Memory is read after some idle time: the resident set (RSS), and the process's own part of it (USS), which excludes pages of
files. A process that was restarted in between is an error, because its memory started again.
"""

import argparse
import asyncio
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

from bench import processes, report
from bench.http_load import Client
from bench.report import Rows
from shared.types import Tier
from tests import people
from tests.soak import mixture
from tests.soak.mixture import Entrance, Tally
from tests.stacks import RunningStack, stack, until

#: By then every path has run at full concurrency, and everything that is created once exists.
FIRST_REQUESTS = 500
AT_ONCE = 16
MAX_GROWTH = 1.05
RIVAL = f"after {FIRST_REQUESTS}"
#: Time to release the memory of the last requests; meanwhile engines announce themselves, metrics are read, and writers flush.
IDLE_SECONDS = 8.0
READINGS = 5
READING_SECONDS = 1.0
START_SECONDS = 30.0

SERVICES = ("auth", "gateway", "metrics", "web", "inference", "inference-echo")
#: Text in the command of a child process -> its name.
CHILDREN = {"engine.engine_process": "engine", "sidecar": "sidecar"}
#: How many errors are shown.
MAX_SHOWN = 20


class Reading(NamedTuple):
    """The memory of a process, in MB."""

    pid: int
    rss: float
    uss: float


def read(pid: int) -> Reading:
    sizes = dict.fromkeys(("Rss", "Private_Clean", "Private_Dirty"), 0)
    # proc_pid_smaps(5): counted over all mappings at this moment; the kernel's counters in statm lag behind.
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, _, rest = line.partition(":")
        if name in sizes:
            sizes[name] = int(rest.split()[0]) * 1024
    return Reading(pid, sizes["Rss"] / 1e6, (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1e6)


async def pids_of(running: RunningStack) -> dict[str, int]:
    """Return the processes of the services and their children, by name."""
    pids, found = await running.pids(), dict[str, int]()
    for service in SERVICES:
        pid = found[service] = pids[service] or 0
        assert pid, f"{service} does not run"
        for child, command in processes.children_of(pid).items():
            kind = next((kind for mark, kind in CHILDREN.items() if mark in command), command)
            found[f"{service}: {kind}"] = child
    return found


async def read_all(running: RunningStack) -> dict[str, Reading]:
    """Return the median of some readings of each process, by name, after some idle time."""
    await asyncio.sleep(IDLE_SECONDS)
    pids = await pids_of(running)
    found: dict[str, list[Reading]] = {name: [] for name in pids}
    for _ in range(READINGS):
        for name, pid in pids.items():
            found[name].append(read(pid))
        await asyncio.sleep(READING_SECONDS)
    return {name: median(readings) for name, readings in found.items()}


def median(readings: Sequence[Reading]) -> Reading:
    return Reading(readings[0].pid, statistics.median(each.rss for each in readings), statistics.median(each.uss for each in readings))


async def _ask_all(entrances: Mapping[Entrance, tuple[Client, str]], numbers: range, tally: Tally) -> None:
    waiting = iter(numbers)

    async def caller() -> None:
        for number in waiting:
            await mixture.ask(entrances, number, tally)
            if number % 1000 == 999:
                print(f"{number + 1} asked, {len(tally.wrong)} of them ended otherwise than they should", file=sys.stderr)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(caller())


async def _knows_all_workers(running: RunningStack, key: str) -> bool:
    """Return False while the gateway has just started and can't know yet that no worker serves a model."""
    asked = {"model": "nobody-serves-this", "messages": [{"role": "user", "content": "hello"}]}
    async with running.http(key) as http:
        return (await http.post("/v1/chat/completions", json=asked)).status_code == HTTPStatus.NOT_FOUND


async def _measure(rows: Rows, _shared: None, options: argparse.Namespace) -> None:
    assert options.requests > FIRST_REQUESTS, f"more than the {FIRST_REQUESTS} that they are compared with"
    settings = {
        "AIMESH_ECHO": "1",
        "ECHO_TOKEN_MS": "1",
        "ENGINE_SLOTS": str(AT_ONCE),
        "TIER_PRO": "requests_per_hour=unlimited,requests_per_minute=unlimited,concurrency=unlimited",
        "RESPONSE_CACHE": "off",
    }
    tally = Tally()
    async with stack(**settings) as running, people.api_client(running) as api_client:
        key = (await api_client.register("soak", Tier.PRO)).key.secret
        await until(lambda: _knows_all_workers(running, key), seconds=START_SECONDS, what="the gateway knows all workers")
        gateway, web = (Client(int(running.environment[f"{name}_SERVICE_PORT"])) for name in ("GATEWAY", "WEB"))
        stranger = "aip_live_" + "x" * 49
        entrances = {Entrance.GATEWAY: (gateway, key), Entrance.WEB: (web, key), Entrance.STRANGER: (gateway, stranger)}
        began = time.monotonic()
        await _ask_all(entrances, range(FIRST_REQUESTS), tally)
        first = await read_all(running)
        await _ask_all(entrances, range(FIRST_REQUESTS, options.requests), tally)
        last = await read_all(running)
        seconds = time.monotonic() - began
    compare(rows, first, last)
    rows.alone(f"of {tally.asked.total():,} requests, ended otherwise than they should", len(tally.wrong), "requests", at_most=0)
    rows.alone("the whole run", seconds / 60, "min")
    print(*tally.wrong[:MAX_SHOWN], sep="\n", file=sys.stderr)


def compare(rows: Rows, first: Mapping[str, Reading], last: Mapping[str, Reading]) -> None:
    """Compare each process by name. A new or restarted process makes its figures meaningless. Pure."""
    for name in sorted(first.keys() | last.keys()):
        before, after = first.get(name), last.get(name)
        if before is not None and after is not None and before.pid == after.pid:
            rows.against(f"{name}: RSS", after.rss, "MB", RIVAL, before.rss, at_most=MAX_GROWTH)
            rows.against(f"{name}: USS", after.uss, "MB", RIVAL, before.uss)
        else:
            rows.append(report.Row(f"{name}: is not the process it was", math.nan, "MB", RIVAL, target="it lives", met=False))


if __name__ == "__main__":
    report.run(__doc__, {"memory": _measure}, limits=(3 * 3600.0, 1800.0), requests=(10_000, 1_500))
