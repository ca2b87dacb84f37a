"""`--watch`: rounds repeat until Ctrl-C, on a terminal and in a pipe."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cli import profile
from cli.output import watching
from cli.output.exit_codes import ExitCode
from cli.profile import Profile
from shared import errors
from shared.api import gateway
from tests import stopwatch
from tests.cli.fake_mesh import Shell
from tests.cli.test_listings import WORKER

ROOT = Path(watching.__file__).parents[2]
ROWS = gateway.NodeRows((WORKER,))


@pytest.fixture
def rounds(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[gateway.NodeRows | BaseException]]:
    """The reply of each round."""
    monkeypatch.setattr(watching, "EVERY_SECONDS", 0.0)
    left: list[gateway.NodeRows | BaseException] = []

    def answer(request: gateway.ListNodes) -> gateway.NodeRows:
        found = left.pop(0)
        if isinstance(found, BaseException):
            raise found
        return found

    shell.mesh.answer(gateway.list_nodes, answer)
    yield left
    assert left == []


def test_rounds_follow_each_other_in_a_pipe_until_ctrl_c(shell: Shell, rounds: list[gateway.NodeRows | BaseException]) -> None:
    rounds += [ROWS, ROWS, KeyboardInterrupt()]
    result = shell("nodes", "--watch")
    assert result.exit_code == ExitCode.INTERRUPTED
    first, second = result.stdout.split("\n\n")
    assert first.splitlines() == second.splitlines()
    assert first.startswith("NODE")


def test_data_is_one_document_a_round(shell: Shell, rounds: list[gateway.NodeRows | BaseException]) -> None:
    rounds += [ROWS, ROWS, KeyboardInterrupt()]
    lines = shell("nodes", "--watch", "--json").stdout.splitlines()
    assert [json.loads(line)[0]["id"] for line in lines] == [WORKER.id] * 2
    rounds += [ROWS, ROWS, KeyboardInterrupt()]
    documents = list(yaml.safe_load_all(shell("nodes", "--watch", "-o", "yaml").stdout))
    assert [rows[0]["id"] for rows in documents] == [WORKER.id] * 2


def test_an_error_that_passes_is_shown_meanwhile(shell: Shell, rounds: list[gateway.NodeRows | BaseException]) -> None:
    rounds += [ROWS, errors.Unavailable("the gateway restarts"), ROWS, errors.NotAllowed("no longer")]
    result = shell("nodes", "--watch")
    assert result.exit_code == ExitCode.FAILED
    assert result.stdout.count("NODE") == 2
    assert result.stderr.splitlines() == ["error: the gateway restarts – trying again", "error: no longer"]


def test_the_first_error_ends_it(shell: Shell, rounds: list[gateway.NodeRows | BaseException]) -> None:
    rounds += [errors.Unavailable("no gateway")]
    result = shell("nodes", "--watch")
    assert (result.exit_code, result.stdout) == (ExitCode.NOTHING_SERVES, "")


def test_a_group_that_lists_does_not_watch_before_its_command(shell: Shell) -> None:
    shell.mesh.answer(gateway.list_models, errors.Unavailable("once"))
    result = shell("models", "--watch", "list")
    assert (result.exit_code, result.stderr) == (ExitCode.NOTHING_SERVES, "error: once\n")


@pytest.fixture
def profiles(tmp_path: Path) -> dict[str, str]:
    """The environment of a user with one profile."""
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config"), "TERM": "xterm"}
    folder = profile.folder_of_user(environment)
    folder.mkdir(parents=True)
    profile.write(folder / "lab.toml", Profile(node_key_file=Path("k")))
    return environment


def read_until(descriptor: int, end: bytes, times: int) -> bytes:
    """Read until ``end`` has occurred that many times."""
    text, deadline = b"", stopwatch.now() + stopwatch.patience(60)
    while text.count(end) < times:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - stopwatch.now()))
        assert ready, f"only {text!r}"
        text += os.read(descriptor, 65536)
    return text


def test_a_terminal_is_redrawn_until_ctrl_c(profiles: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        # The terminal sends Ctrl-C as a signal only to a process that it controls.
        ["setsid", "--ctty", "--wait", sys.executable, "-m", "cli.main", "profile", "list", "--watch"],
        cwd=ROOT, env=profiles, stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        try:
            text = read_until(ours, b"\x1b[J", 2).decode()
            first, second = text.split("\x1b[J")[:2]
            assert first == second
            assert first.startswith("\x1b[H")
            assert re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", first).split() == [
                "PROFILE",
                "CONNECTS",
                "TO",
                "ACCOUNT",
                "DEFAULT",
                "lab",
                "mesh",
                "home",
                "–",
            ]
            os.write(ours, b"\x03")
            assert process.wait(stopwatch.patience(60)) == ExitCode.INTERRUPTED
        finally:
            process.kill()
            os.close(ours)


def test_a_pipe_is_interrupted_too(profiles: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "cli.main", "profile", "list", "--watch", "--json"],
        cwd=ROOT, env=profiles, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            text = read_until(process.stdout.fileno(), b"\n", 2)
            assert [json.loads(line)[0]["name"] for line in text.splitlines()] == ["lab", "lab"]
            process.send_signal(signal.SIGINT)
            assert process.wait(stopwatch.patience(60)) == ExitCode.INTERRUPTED
            assert json.loads(process.stderr.read())["error"]["code"] == "interrupted"
        finally:
            process.kill()
