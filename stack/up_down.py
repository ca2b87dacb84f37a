"""`aicli stack up` and `down`: bring the stack from any state to completely ready, or completely stopped."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shared import addresses, config, errors
from stack import control, features, initialization, logs, ports, probes, processes, settings, stack_plan
from stack import stack_home as homes
from stack.control import ControlAnswer
from stack.settings import StackSettings
from stack.stack_home import StackHome

#: Give up starting after this long without progress. A busy machine or a cold disk is slow, but makes progress.
_STALL_SECONDS = 180.0
_START_SECONDS = 3600.0
#: All stages of stopping with their grace periods, and a margin.
_STOP_SECONDS = 180.0
#: A living supervisor answers sooner, even on a busy machine.
_CONTROL_SECONDS = 60.0
#: A new stack writes half of it in its first minute, most of it PostgreSQL's.
_MIN_DISK_BYTES = 256 << 20
_LOOK_SECONDS = 0.15
#: How often to say what is still missing.
_TELL_SECONDS = 20.0
#: A program that crashes this often while we wait will not become ready.
_PATIENCE_CRASHES = 3
_TAIL_LINES = 15
#: Name up to this many new secrets, because lost ones are worth knowing about.
_FEW = 5

SUPERVISOR = "supervisor"

ReportProgress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class WaitProgress:
    """The programs that are ready, and why the others are not."""

    ready: frozenset[str]
    reasons: dict[str, str]
    lack_model: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StateBefore:
    """The state before the start: earlier crashes are no reason to give up, and earlier log lines explain nothing."""

    crashes: dict[str, int]
    log_ends: dict[str, int]


async def up(
    home: StackHome,
    environment: Mapping[str, str],
    folder: Path,
    report: ReportProgress,
    prepare: Callable[[StackSettings], Awaitable[object]],
) -> StackSettings:
    """Return when everything is ready. Call ``prepare`` as soon as everything but the workers is ready, which load their models first.
    Raises AimeshError, after printing the end of the log that explains it."""
    if sys.platform != "linux":
        raise errors.BadSettings("the embedded stack runs on Linux only", hint="use compose.yaml instead")
    features.ensure_may_start(home)
    if not (home.run.is_dir() and processes.has_supervisor(home)):
        _require_disk(home.root)
    made = initialization.ensure(home, environment, folder)
    if made.made:
        what = ", ".join(made.made) if len(made.made) < _FEW else f"{len(made.made)} secrets and node keys"
        report(f"created {what} in {home.root}")
    for warning in _find_warnings(home, environment, made):
        report(f"warning: {warning}")
    planned = stack_plan.make(home, made.settings, made.recorded, os.environ)
    running = await _find_running(home)
    if running is not None and running.fingerprint != planned.fingerprint:
        report("settings or code changed; restarting")
        await down(home, report)
        running = None
    log_ends = logs.ends(home.logs)
    if running is None:
        features.ensure_may_start(home, planned.postgres)
        _launch(home, made.settings)
        report(f"starting {', '.join(program.name for program in planned.programs)}")
    elif await _runs_already(running, planned):
        report("everything is already running")
        await prepare(made.settings)
        return made.settings
    else:
        await _repair(home, running, report)
    old_crashes = {program.name: program.crashes for program in running.programs} if running else {}
    before = StateBefore(old_crashes, log_ends)
    noted = len(features.notes(home, made.recorded))
    services = _services(planned)
    remote = {name: services.pop(name) for name in stack_plan.REMOTE_WORKERS if name in services}
    first = {name: url for name, url in services.items() if name not in stack_plan.WORKERS}
    ready = await until_ready(home, first, before, report)
    for note in features.notes(home, made.recorded)[noted:]:
        report(note)
    await prepare(made.settings)
    await until_ready(home, services, before, report, known=ready)
    for name, reason in (await _look({**services, **remote})).reasons.items():
        # A worker may get its first model later, and another stack's server may start later.
        report(f"{name} is not ready yet: {reason}")
    return made.settings


def _find_warnings(home: StackHome, environment: Mapping[str, str], made: initialization.InitializedStack) -> Iterator[str]:
    yield from config.find_misspelled_names(settings.known_names(), {**environment, **made.recorded})
    if missing := stack_plan.find_missing_models(home, made.settings, made.recorded):
        yield missing
    if made.settings.host not in addresses.LOOPBACK and made.settings.tls_cert_file is None:
        yield f"gateway and web on {made.settings.host} have no TLS, so others on the network can read keys and prompts"


async def _find_running(home: StackHome) -> ControlAnswer | None:
    """Return the supervisor's status, or None if none lives. Raises Internal if one lives and does not answer for a minute."""
    deadline = time.monotonic() + _CONTROL_SECONDS
    while True:
        answer = await control.send(home.control_socket, control.StatusRequest())
        if answer is not None or not home.run.is_dir() or not processes.has_supervisor(home):
            return answer
        if time.monotonic() > deadline:
            raise errors.Internal(
                f"the supervisor has not answered for {_CONTROL_SECONDS:.0f} s",
                hint="try again, or end its process (python -m stack.supervisor) and run aicli stack up",
            )
        await asyncio.sleep(_LOOK_SECONDS)


def _require_disk(folder: Path) -> None:
    """Raises BadSettings if PostgreSQL would not get far: its own messages name no disk."""
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if free < _MIN_DISK_BYTES:
        raise errors.BadSettings(
            f"the disk of {folder} is full: {free >> 20} MB are free and the stack needs {_MIN_DISK_BYTES >> 20} MB",
            hint="free some space, or set AIMESH_HOME to a folder on a larger disk",
        )


def _launch(home: StackHome, chosen: StackSettings) -> None:
    """Start a supervisor with the lock that we hold, after ending what a killed one left, because that holds our ports."""
    # Processes that only check whether a supervisor lives hold the lock for a moment.
    with processes.only_supervisor(home, patience_seconds=2.0) as lock:
        if lock is None:
            return  # another `up` was faster, and its supervisor serves this one too
        processes.clear_leftovers(home)
        ports.check(stack_plan.ports_wanted(chosen))
        _spawn(home, lock)


def _spawn(home: StackHome, lock: int) -> None:
    """Start the supervisor in its own session, without a parent: it outlives us and gets none of our signals.

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


async def _repair(home: StackHome, running: ControlAnswer, report: ReportProgress) -> None:
    for program in running.programs:
        if program.state in ("down", "waiting"):
            report(f"{program.name} was down ({program.why}); starting it now")
            await control.send(home.control_socket, control.Restart(program.name))


async def _runs_already(running: ControlAnswer, planned: stack_plan.StackPlan) -> bool:
    services = {name: url for name, url in _services(planned).items() if name not in stack_plan.REMOTE_WORKERS}
    return _all_run(running) and len((await _look(services)).ready) == len(services)


async def until_ready(
    home: StackHome,
    services: Mapping[str, str],
    before: StateBefore,
    report: ReportProgress,
    *,
    known: Collection[str] = (),
    stall_seconds: float = _STALL_SECONDS,
) -> frozenset[str]:
    """Wait until all ``services`` (name -> address) are ready or lack only a model, and return the names of the ready ones. ``known`` were
    reported before. Raises Internal with the reason if there is no progress, or if waiting cannot help."""
    started = moved = told = time.monotonic()
    seen = {(name, "ready") for name in known}
    waiting = WaitProgress(frozenset(), {})
    while time.monotonic() - moved < stall_seconds and time.monotonic() - started < _START_SECONDS:
        answer = await control.send(home.control_socket, control.StatusRequest())
        if (hopeless := _find_start_failure(home, answer, before)) is not None:
            raise _failure(home, hopeless, before, report)
        if answer is not None:
            waiting = await _look(services)
            facts = {*waiting.reasons.items(), *((name, "ready") for name in waiting.ready)}
            facts |= {(program.name, program.state) for program in answer.programs}
            for name in sorted(name for name in waiting.ready if (name, "ready") not in seen):
                report(f"{name} is ready ({time.monotonic() - started:.1f} s)")
            if not facts <= seen or any(part.is_preparing(home) for part in features.parts()):
                seen |= facts
                moved = time.monotonic()
            if _all_run(answer) and len(waiting.ready | waiting.lack_model) == len(services):
                return waiting.ready
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                for name, reason in waiting.reasons.items():
                    report(f"waiting for {name}: {reason}")
        await asyncio.sleep(_LOOK_SECONDS)
    late = "; ".join(f"{name}: {reason}" for name, reason in waiting.reasons.items()) or "the supervisor does not answer"
    late_one = StartFailure(next(iter(waiting.reasons), SUPERVISOR), f"not ready after {time.monotonic() - started:.0f} s: {late}")
    raise _failure(home, late_one, before, report)


def _services(planned: stack_plan.StackPlan) -> dict[str, str]:
    return {program.name: program.url for program in planned.programs if program.url is not None}


def _all_run(answer: ControlAnswer) -> bool:
    """Check the servers too: a service does not notice for a while that its server has died."""
    return all(program.state == "running" for program in answer.programs)


async def _look(services: Mapping[str, str]) -> WaitProgress:
    found = dict(zip(services, await asyncio.gather(*(probes.health_of(url) for url in services.values())), strict=True))
    return WaitProgress(
        frozenset(name for name, health in found.items() if health.ready),
        {name: health.why for name, health in found.items() if not health.ready},
        frozenset(name for name, health in found.items() if health.lacks_model),
    )


@dataclass(frozen=True, slots=True)
class StartFailure:
    """A program that waiting longer cannot help."""

    name: str
    why: str


def _find_start_failure(home: StackHome, answer: ControlAnswer | None, before: StateBefore) -> StartFailure | None:
    if answer is None:
        # Check the process, because on a busy machine it can live for minutes before it answers.
        return None if processes.has_supervisor(home) else StartFailure(SUPERVISOR, "the supervisor has ended")
    for program in answer.programs:
        crashes = program.crashes - before.crashes.get(program.name, 0)
        if program.state != "running" and crashes >= (1 if program.state == "down" else _PATIENCE_CRASHES):
            return StartFailure(program.name, f"{program.name} does not start: {program.why}")
    return None


def _failure(home: StackHome, failed: StartFailure, before: StateBefore, report: ReportProgress) -> errors.Internal:
    """Return the error, after printing the end of the log that explains it."""
    for line in logs.tail(home.log(failed.name), _TAIL_LINES, before.log_ends.get(failed.name, 0)):
        report(f"{failed.name} | {line}")
    forget = "; to remove a saved setting: NAME= make up" if "settings" in failed.why else ""
    return errors.Internal(failed.why, hint=f"aicli stack logs {failed.name}{forget}")


async def down(home: StackHome, report: ReportProgress) -> bool:
    """Stop everything and return whether anything ran. Raises Internal if it takes more than 3 minutes."""
    answer = await _find_running(home)
    if answer is None:
        if home.run.is_dir():
            with processes.only_supervisor(home) as lock:
                if lock is not None:
                    processes.clear_leftovers(home)
        return False
    await control.send(home.control_socket, control.Stop())
    started = time.monotonic()
    last = ""
    while time.monotonic() - started < _STOP_SECONDS:
        if not processes.has_supervisor(home):
            return True
        now = await control.send(home.control_socket, control.StatusRequest())
        stopping = ", ".join(each.name for each in now.programs if each.state == "stopping") if now else ""
        if stopping and stopping != last and time.monotonic() - started > 1:
            report(f"waiting up to 30 s for {stopping} to finish running requests")
            last = stopping
        await asyncio.sleep(_LOOK_SECONDS)
    raise errors.Internal(f"the supervisor (pid {answer.pid}) doesn't stop", hint="aicli stack logs supervisor")
