"""The worker processes of a machine: each is kept running, and all end together."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.output.exit_codes import ExitCode
from tests.services.inference.standins import until
from tests.stopwatch import HANG_SECONDS

#: Runs each word, a shell's script, as one program. Each start adds a line with its process ID to a file.
SUPERVISE = """
import os, sys
from cli.machines import supervisor
words = dict(word.split("=", 1) for word in sys.argv[1:])
programs = {name: (("/bin/sh", "-c", f"echo $$ >> {name}; {script}"), dict(os.environ)) for name, script in words.items()}
sys.exit(supervisor.supervise(programs))
"""
SERVES = "exec sleep 600"

Supervise = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    started: list[subprocess.Popen[bytes]] = []

    def start(**scripts: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", SUPERVISE, *(f"{name}={script}" for name, script in scripts.items())]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL))
        return started[0]

    yield start
    for process in started:
        process.terminate()
        process.wait(HANG_SECONDS)


def starts(folder: Path, name: str) -> list[int]:
    file = folder / name
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_a_worker_that_dies_is_started_again_and_the_others_work_on(tmp_path: Path, supervise: Supervise) -> None:
    supervise(first=SERVES, other=SERVES)
    await until(lambda: starts(tmp_path, "first") and starts(tmp_path, "other"))
    os.kill(starts(tmp_path, "other")[0], signal.SIGKILL)
    await until(lambda: len(starts(tmp_path, "other")) == 2)
    (first,) = starts(tmp_path, "first")
    assert lives(first)


async def test_sigterm_ends_all(tmp_path: Path, supervise: Supervise) -> None:
    process = supervise(first=SERVES, other=SERVES)
    await until(lambda: starts(tmp_path, "first") and starts(tmp_path, "other"))
    process.terminate()
    assert process.wait(HANG_SECONDS) == 0
    assert not [pid for name in ("first", "other") for pid in starts(tmp_path, name) if lives(pid)]


@pytest.mark.parametrize("status", [ExitCode.REVOKED, ExitCode.USAGE])
async def test_all_end_with_the_machines_own_worker_if_no_start_helps_it(tmp_path: Path, supervise: Supervise, status: int) -> None:
    process = supervise(first=f"while test ! -s other; do sleep 0.02; done; exit {status}", other=SERVES)
    assert process.wait(HANG_SECONDS) == status
    (other,) = starts(tmp_path, "other")
    assert not lives(other)


async def test_another_worker_that_no_start_helps_stays_down_alone(tmp_path: Path, supervise: Supervise) -> None:
    process = supervise(first=SERVES, revoked=f"exit {ExitCode.REVOKED}", unusable=f"exit {ExitCode.USAGE}", crashing="exit 1")
    await until(lambda: len(starts(tmp_path, "crashing")) == 3)
    assert [len(starts(tmp_path, name)) for name in ("first", "revoked", "unusable")] == [1, 1, 1]
    assert process.poll() is None
