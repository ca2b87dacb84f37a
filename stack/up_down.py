"""`aicli stack up` and `down`: from whatever the stack's state is to all of it ready, or all of it stopped."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared import addresses, config, errors
from stack import control, initialization, logs, ports, probes, settings, stack_plan, supervisor
from stack import stack_home as homes
from stack.control import ControlAnswer
from stack.settings import StackSettings
from stack.stack_home import StackHome

#: Starting fails when nothing new has happened for this long. A busy machine or a cold disk is slow, but it moves.
_STALL_SECONDS = 180.0
#: The most that starting may take, however much it moves.
_START_SECONDS = 3600.0
#: Stages of stopping, each with its grace, and then some.
_STOP_SECONDS = 180.0
#: A supervisor that lives answers sooner, even on a busy machine.
_CONTROL_SECONDS = 60.0
_LOOK_SECONDS = 0.15
#: A program that crashed this often while we wait will not come by waiting longer.
_PATIENCE_CRASHES = 3
_TAIL_LINES = 15
#: So many new secrets are named one by one: that some were lost is worth knowing.
_FEW = 5

SUPERVISOR = "supervisor"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class WaitProgress:
    """Who is not ready yet, and in whose own words why."""

    ready: frozenset[str]
    reasons: dict[str, str]


@dataclass(frozen=True, slots=True)
class Before:
    """How things were when we came: crashes of then are no reason to give up, and log lines of then explain nothing."""

    crashes: dict[str, int]
    log_ends: dict[str, int]


async def up(home: StackHome, environment: Mapping[str, str], folder: Path, say: Say) -> StackSettings:
    """Everything of this stack is ready when this returns. Raises AimeshError; the end of the log that explains it was said."""
    _require_linux()
    made = initialization.ensure(home, environment, folder)
    if made.made:
        what = ", ".join(made.made) if len(made.made) < _FEW else f"{len(made.made)} secrets and node keys"
        say(f"made {what} in {home.root}")
    for warning in config.find_misspelled_names(settings.known_names(), {**environment, **made.recorded}):
        say(f"warning: {warning}")
    if made.settings.host not in addresses.LOOPBACK and made.settings.tls_cert_file is None:
        say(f"warning: gateway and web on {made.settings.host} have no TLS, so others on the network can read keys and prompts")
    planned = stack_plan.make(home, made.settings, made.recorded, os.environ)
    running = await _find_running(home)
    if running is not None and running.fingerprint != planned.fingerprint:
        say("settings or code changed; restarting")
        await down(home, say)
        running = None
    log_ends = logs.ends(home.logs)
    if running is None:
        _launch(home, made.settings)
        say(f"starting {', '.join(program.name for program in planned.programs)}")
    elif await _runs_already(running, planned):
        say("everything is already running")
        return made.settings
    else:
        await _repair(home, running, say)
    old_crashes = {program.name: program.crashes for program in running.programs} if running else {}
    await until_ready(home, planned, Before(old_crashes, log_ends), say)
    return made.settings


async def _find_running(home: StackHome) -> ControlAnswer | None:
    """Return the supervisor's status, or None if none lives. Raises Internal if one lives and does not answer for a minute."""
    give_up_at = time.monotonic() + _CONTROL_SECONDS
    while True:
        answer = await control.ask(home.control_socket, control.StatusRequest())
        if answer is not None or not home.run.is_dir() or not supervisor.is_alive(home):
            return answer
        if time.monotonic() > give_up_at:
            raise errors.Internal(
                f"the supervisor has not answered for {_CONTROL_SECONDS:.0f} s",
                hint="try again, or end its process (python -m stack.supervisor) and run aicli stack up",
            )
        await asyncio.sleep(_LOOK_SECONDS)


def _require_linux() -> None:
    if sys.platform != "linux":
        raise errors.BadSettings("the embedded stack runs on Linux only", hint="use compose.yaml instead")


def _launch(home: StackHome, chosen: StackSettings) -> None:
    """Start a supervisor that already holds the lock, after ending what a killed one left: that holds our ports."""
    # Others who only look whether a supervisor lives have the lock for a moment.
    with supervisor.only_one(home, patience_seconds=2.0) as lock:
        if lock is None:
            return  # another `up` was faster, and its supervisor serves this one too
        supervisor.clear_leftovers(home)
        ports.check(stack_plan.ports_wanted(chosen))
        _spawn(home, lock)


def _spawn(home: StackHome, lock: int) -> None:
    """Start the supervisor in its own session and as nobody's child: it outlives us and gets none of our signals.

    It inherits the lock as its standard input, so the lock is held exactly as long as the process lives.
    """
    environment = {**os.environ, "AIMESH_HOME": str(home.root)}
    home.log(SUPERVISOR).touch(mode=0o600)
    with home.log(SUPERVISOR).open("ab") as log:
        subprocess.run(
            ["setsid", "--fork", sys.executable, "-m", "stack.supervisor"],  # noqa: S607 - util-linux, wherever it is
            env=environment,
            cwd=homes.checkout(),
            stdin=lock,
            stdout=log,
            stderr=log,
            check=True,
            timeout=10,
        )


async def _repair(home: StackHome, running: ControlAnswer, say: Say) -> None:
    for program in running.programs:
        if program.state in ("down", "waiting"):
            say(f"{program.name} was down ({program.why}); starting it now")
            await control.ask(home.control_socket, control.Restart(program.name))


async def _runs_already(running: ControlAnswer, planned: stack_plan.StackPlan) -> bool:
    services = _services(planned)
    return _all_run(running) and len((await _look(services)).ready) == len(services)


async def until_ready(
    home: StackHome, planned: stack_plan.StackPlan, before: Before, say: Say, *, stall_seconds: float = _STALL_SECONDS
) -> None:
    """Wait while something new happens; raises Internal with the reason when nothing does, or when waiting cannot help."""
    services = _services(planned)
    started = moved = time.monotonic()
    seen: set[tuple[str, str]] = set()
    waiting = WaitProgress(frozenset(), {})
    while time.monotonic() - moved < stall_seconds and time.monotonic() - started < _START_SECONDS:
        answer = await control.ask(home.control_socket, control.StatusRequest())
        if (hopeless := _find_hopeless(home, answer, before)) is not None:
            raise _failure(home, hopeless, before, say)
        if answer is not None:
            waiting = await _look(services)
            facts = {*waiting.reasons.items(), *((name, "ready") for name in waiting.ready)}
            facts |= {(program.name, program.state) for program in answer.programs}
            for name in sorted(name for name in waiting.ready if (name, "ready") not in seen):
                say(f"{name} is ready ({time.monotonic() - started:.1f} s)")
            if not facts <= seen:
                seen |= facts
                moved = time.monotonic()
            if _all_run(answer) and len(waiting.ready) == len(services):
                return
        await asyncio.sleep(_LOOK_SECONDS)
    late = "; ".join(f"{name}: {reason}" for name, reason in waiting.reasons.items()) or "the supervisor does not answer"
    late_one = Hopeless(next(iter(waiting.reasons), SUPERVISOR), f"not ready after {time.monotonic() - started:.0f} s: {late}")
    raise _failure(home, late_one, before, say)


def _services(planned: stack_plan.StackPlan) -> dict[str, str]:
    return {program.name: program.url for program in planned.programs if program.url is not None}


def _all_run(answer: ControlAnswer) -> bool:
    """The servers too: a service whose server has just died does not know it yet, and says that it is ready."""
    return all(program.state == "running" for program in answer.programs)


async def _look(services: Mapping[str, str]) -> WaitProgress:
    found = dict(zip(services, await asyncio.gather(*(probes.health_of(url) for url in services.values())), strict=True))
    return WaitProgress(
        frozenset(name for name, health in found.items() if health.ready),
        {name: health.why for name, health in found.items() if not health.ready},
    )


@dataclass(frozen=True, slots=True)
class Hopeless:
    """A program for which waiting longer cannot help."""

    name: str
    why: str


def _find_hopeless(home: StackHome, answer: ControlAnswer | None, before: Before) -> Hopeless | None:
    if answer is None:
        # Judge by the process: on a busy machine it may live for minutes before it answers.
        return None if supervisor.is_alive(home) else Hopeless(SUPERVISOR, "the supervisor has ended")
    for program in answer.programs:
        crashes = program.crashes - before.crashes.get(program.name, 0)
        if program.state != "running" and crashes >= (1 if program.state == "down" else _PATIENCE_CRASHES):
            return Hopeless(program.name, f"{program.name} does not start: {program.why}")
    return None


def _failure(home: StackHome, failed: Hopeless, before: Before, say: Say) -> errors.Internal:
    """The error, after the end of the log that explains it; an error itself is one line."""
    for line in logs.tail(home.log(failed.name), _TAIL_LINES, before.log_ends.get(failed.name, 0)):
        say(f"{failed.name} | {line}")
    forget = "; to remove a saved setting: NAME= make up" if "settings" in failed.why else ""
    return errors.Internal(failed.why, hint=f"aicli stack logs {failed.name}{forget}")


async def down(home: StackHome, say: Say) -> bool:
    """Stop everything; whether anything ran. The data stays. Raises Internal if it takes more than 3 minutes."""
    answer = await _find_running(home)
    if answer is None:
        if home.run.is_dir():
            with supervisor.only_one(home) as lock:
                if lock is not None:
                    supervisor.clear_leftovers(home)
        return False
    await control.ask(home.control_socket, control.Stop())
    started = time.monotonic()
    last = ""
    while time.monotonic() - started < _STOP_SECONDS:
        if not supervisor.is_alive(home):
            return True
        now = await control.ask(home.control_socket, control.StatusRequest())
        stopping = ", ".join(each.name for each in now.programs if each.state == "stopping") if now else ""
        if stopping and stopping != last and time.monotonic() - started > 1:
            say(f"waiting up to 30 s for {stopping} to finish running requests")
            last = stopping
        await asyncio.sleep(_LOOK_SECONDS)
    raise errors.Internal(f"the supervisor (pid {answer.pid}) doesn't stop", hint="aicli stack logs supervisor")
