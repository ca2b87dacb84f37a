"""`aicli stack up` and `down`: from whatever the stack's state is to all of it ready, or all of it stopped."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.stack import control, initialise, logs, plan, ports, probes, supervisor
from cli.stack.control import Answer
from cli.stack.home import Home
from cli.stack.settings import StackSettings
from shared import errors

#: A service may have to load a model from a cold disk; the servers take a second.
_READY_SECONDS = 180.0
#: Stages of stopping, each with its grace, and then some.
_STOP_SECONDS = 180.0
_CONTROL_SECONDS = 15.0
_LOOK_SECONDS = 0.15
#: A program that crashed this often while we wait will not come by waiting longer.
_PATIENCE_CRASHES = 3
_TAIL_LINES = 15

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Who is not ready yet, and in whose own words why."""

    ready: frozenset[str]
    reasons: dict[str, str]


async def up(home: Home, environment: Mapping[str, str], folder: Path, say: Say) -> StackSettings:
    """Everything of this stack is ready when this returns. Raises AimeshError, with the end of the log that says why."""
    _require_linux()
    made = initialise.ensure(home, environment, folder)
    if made.made:
        say(f"made {len(made.made)} secrets and node keys in {home.root}")
    planned = plan.make(home, made.settings, made.recorded, os.environ)
    running = await _find_running(home)
    if running is not None and running.fingerprint != planned.fingerprint:
        say("settings or code have changed: stopping what runs")
        await down(home, say)
        running = None
    if running is None:
        _clear(home)
        ports.check(plan.ports_wanted(made.settings))
        _spawn(home)
        say("starting PostgreSQL, Valkey, NATS and five services" if planned.postgres else "starting the services")
    else:
        await _repair(home, running, say)
    await _until_ready(home, planned, say)
    return made.settings


async def _find_running(home: Home) -> Answer | None:
    """The supervisor of this home, if there is one; one that is just starting is waited for."""
    give_up_at = time.monotonic() + _CONTROL_SECONDS
    while True:
        answer = await control.ask(home.control_socket, control.Status())
        if answer is not None or not home.run.is_dir() or time.monotonic() > give_up_at:
            return answer
        with supervisor.only_one(home) as alone:
            if alone:
                return None
        await asyncio.sleep(_LOOK_SECONDS)


def _require_linux() -> None:
    if sys.platform != "linux":
        raise errors.BadSettings("the embedded stack runs on Linux only", hint="use compose.yaml here")


def _clear(home: Home) -> None:
    """End what a killed supervisor left, because it holds our ports."""
    with supervisor.only_one(home) as alone:
        if alone:
            supervisor.clear_leftovers(home)


def _spawn(home: Home) -> None:
    """Start the supervisor in a session of its own: it outlives the terminal and gets none of its signals."""
    environment = {**os.environ, "AIMESH_HOME": str(home.root)}
    with home.log("supervisor").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "cli.stack.supervisor"],
            env=environment,
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


async def _repair(home: Home, running: Answer, say: Say) -> None:
    for program in running.programs:
        if program.state == "down":
            say(f"{program.name} was down ({program.why}); starting it again")
            await control.ask(home.control_socket, control.Restart(program.name))


async def _until_ready(home: Home, planned: plan.Plan, say: Say) -> None:
    services = {program.name: program.url for program in planned.programs if program.url is not None}
    started = time.monotonic()
    said: frozenset[str] = frozenset()
    waiting = Waiting(frozenset(), {})
    while time.monotonic() - started < _READY_SECONDS:
        answer = await control.ask(home.control_socket, control.Status())
        _give_up_if_hopeless(home, answer, time.monotonic() - started)
        if answer is not None:
            waiting = await _look(services)
            for name in sorted(waiting.ready - said):
                say(f"{name} is ready ({time.monotonic() - started:.1f} s)")
            said |= waiting.ready
            if len(waiting.ready) == len(services):
                return
        await asyncio.sleep(_LOOK_SECONDS)
    late = "; ".join(f"{name}: {reason}" for name, reason in waiting.reasons.items())
    first = next(iter(waiting.reasons), "supervisor")
    raise errors.Internal(f"not ready after {_READY_SECONDS:.0f} s: {late}\n{_tail(home, first)}", hint=f"aicli stack logs {first}")


async def _look(services: Mapping[str, str]) -> Waiting:
    found = dict(zip(services, await asyncio.gather(*(probes.health_of(url) for url in services.values())), strict=True))
    return Waiting(
        frozenset(name for name, health in found.items() if health.ready),
        {name: health.why for name, health in found.items() if not health.ready},
    )


def _give_up_if_hopeless(home: Home, answer: Answer | None, waited: float) -> None:
    """Raises Internal when waiting longer cannot help."""
    if answer is None:
        with supervisor.only_one(home) as alone:
            gone = alone and waited > 2
        if gone or waited > _CONTROL_SECONDS:
            raise errors.Internal(f"the supervisor has ended\n{_tail(home, 'supervisor')}", hint="aicli stack logs supervisor")
        return
    for program in answer.programs:
        if program.state == "down" or (program.state != "running" and program.crashes >= _PATIENCE_CRASHES):
            raise errors.Internal(
                f"{program.name} does not start: {program.why}\n{_tail(home, program.name)}", hint=f"aicli stack logs {program.name}"
            )


def _tail(home: Home, name: str) -> str:
    return "\n".join(f"  {name} | {line}" for line in logs.tail(home.log(name), _TAIL_LINES))


async def down(home: Home, say: Say) -> bool:
    """Stop everything; whether anything ran. The data stays. Raises Internal if it takes more than 3 minutes."""
    answer = await _find_running(home)
    if answer is None:
        if home.run.is_dir():
            _clear(home)
        return False
    await control.ask(home.control_socket, control.Stop())
    started = time.monotonic()
    last = ""
    while time.monotonic() - started < _STOP_SECONDS:
        with supervisor.only_one(home) as alone:
            if alone:
                return True
        now = await control.ask(home.control_socket, control.Status())
        stopping = ", ".join(each.name for each in now.programs if each.state == "stopping") if now else ""
        if stopping and stopping != last and time.monotonic() - started > 1:
            say(f"waiting for {stopping} to finish what runs (at most 30 s)")
            last = stopping
        await asyncio.sleep(_LOOK_SECONDS)
    raise errors.Internal(f"it does not stop; the supervisor is pid {answer.pid}", hint="aicli stack logs supervisor")
