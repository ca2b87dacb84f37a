"""The rows of `aicli stack status`: the supervisor's view of each program, combined with the program's own."""

import asyncio
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from shared import errors
from shared.types import Moment
from stack import control, features, probes, settings, stack_plan
from stack.control import ControlAnswer, ProgramStatus
from stack.features import StackSite
from stack.servers.program import CommandProbe, DatagramProbe, Probe, SocketProbe
from stack.stack_home import StackHome

_RESTART_SECONDS = 60.0
_LOOK_SECONDS = 0.1


class StatusRow(msgspec.Struct, frozen=True):
    name: str
    state: str
    ready: bool
    since: Moment
    pid: int | None
    crashes: int
    url: str | None
    why: str


async def collect(home: StackHome) -> list[StatusRow]:
    """Return one row per program; none if nothing is running."""
    answer = await control.send(home.control_socket, control.StatusRequest())
    if answer is None:
        return []
    recorded = settings.read_recorded(home)
    stack = settings.load(recorded)
    workers = [f"inference-{backend}" for backend in stack_plan.more_workers(stack)]
    urls = {name: stack_plan.url_of(name, stack) for name in (*stack_plan.SERVICES, *workers)}
    probes_by_name = {server.name: server.probe for server in stack_plan.servers(home, stack, os.environ)}
    site = StackSite(home=home, settings=stack, recorded=recorded)
    probes_by_name |= {program.name: program.probe for program in features.programs(site)}
    return list(await asyncio.gather(*(_row(each, urls.get(each.name), probes_by_name.get(each.name)) for each in answer.programs)))


async def _row(program: ProgramStatus, url: str | None, probe: Probe | None) -> StatusRow:
    runs = program.state == "running"
    health = probes.Health(runs, "")
    if runs and url is not None:
        health = await probes.health_of(url)
    elif runs and probe is not None and not await probes.is_ready(probe):
        health = probes.Health(False, f"it does not answer on {_place_of(probe)}")
    return StatusRow(
        name=program.name,
        state="ready" if health.ready else "not ready" if runs else program.state,
        ready=health.ready,
        since=datetime.fromtimestamp(program.since, UTC),
        pid=program.pid,
        crashes=program.crashes,
        url=url,
        why=program.why or health.why,
    )


def _place_of(probe: Probe) -> str:
    match probe:
        case DatagramProbe(host, ports):
            return f"UDP {', '.join(str(port) for port in ports)} of {host}"
        case SocketProbe(Path() as place):
            return str(place)
        case SocketProbe(port):
            return f"port {port}"
        case CommandProbe():
            return "its socket, or is still starting"


async def until_restarted(home: StackHome, name: str, before: ControlAnswer | None) -> StatusRow:
    """Wait until another process than that of ``before`` is ready; an engine loads its model first.

    Raises Internal if it does not start, or not within a minute.
    """
    old = before.program(name) if before else None
    deadline = time.monotonic() + _RESTART_SECONDS
    why = "it has not been started"
    while time.monotonic() < deadline:
        now = next((row for row in await collect(home) if row.name == name), None)
        if now is not None and now.ready and (old is None or now.pid != old.pid):
            return now
        if now is not None and now.state == "down" and now.crashes > (old.crashes if old else 0):
            raise errors.Internal(f"{name} does not start: {now.why}", hint=f"aicli stack logs {name}")
        why = now.why if now is not None else why
        await asyncio.sleep(_LOOK_SECONDS)
    raise errors.Internal(f"{name} is not ready after {_RESTART_SECONDS:.0f} s: {why}", hint=f"aicli stack logs {name}")
