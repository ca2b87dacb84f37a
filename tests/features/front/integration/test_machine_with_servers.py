"""A machine with two servers at a whole stack: one Enter shares both, and what becomes of a third one and of a dead worker."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shared.identity.certificates import MACHINE_LABEL
from tests import outside
from tests.cli.machines.test_model_offer import at_a_terminal
from tests.features.front import other_ports
from tests.features.front.openai_standin import STUDIO_MODEL, VLLM_MODEL
from tests.outside import Machine
from tests.people import Person
from tests.stacks import RunningStack, until

LLAMA = "llama3.2"


@pytest.fixture
async def box() -> AsyncIterator[Machine]:
    with outside.machine() as machine:
        yield machine


async def says(stack: RunningStack, person: Person, model: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": "one two three"}]}
    async with stack.http(person.key.secret) as http:
        answer = await http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"]).strip()


async def rows_of(stack: RunningStack, *models: str) -> list[dict[str, Any]]:
    """Return the workers of these models, in their order, as soon as all are usable."""

    async def find() -> list[dict[str, Any]] | None:
        rows = (await stack.aicli("nodes", "--json")).json()
        found = [row for model in models for row in rows if row["usable"] and model in row["models"]]
        return found if len(found) == len(models) else None

    return await until(find, seconds=40, what=f"{models} are served")


def worker_of(supervisor: int, kind: str) -> int:
    """Return the process ID of the worker of a server."""
    wanted = f"servers/{kind}/server.json".encode()
    (found,) = [child for child in outside.children_of(supervisor) if wanted in Path(f"/proc/{child}/environ").read_bytes()]
    return found


@pytest.mark.nightly("long")
async def test_a_machine_shares_its_servers_and_tells_what_came_later(stack: RunningStack, ann: Person, box: Machine) -> None:
    ports, environment = other_ports.choose(box.home)
    ticket = await outside.ticket(stack, "worker")
    with ExitStack() as servers:
        servers.enter_context(other_ports.standin("ollama_standin", ports["ollama"]))
        servers.enter_context(other_ports.standin("openai_standin", ports["vllm"], "vllm"))
        command = [sys.executable, "-m", "cli.main", "worker", "--join", "-", "--no-serve", "--state", str(box.state)]
        given = {"PATH": os.environ["PATH"], "HOME": str(box.home), **environment}
        shown = at_a_terminal(command, given, ticket.encode(), b"\n", question=b"] ").decode()
        assert "Share these 5 models with the mesh? [Y/n] " in shown

        # As a service: nobody is at a terminal.
        worker = box.start_worker(**environment)
        first, second = await rows_of(stack, LLAMA, VLLM_MODEL)
        assert second["labels"][MACHINE_LABEL] == first["id"]
        assert [await says(stack, ann, model) for model in (LLAMA, VLLM_MODEL)] == ["one two three"] * 2
        refused = await box.aicli("worker", "--state", str(box.state), **environment)
        assert "a worker already uses" in refused.err

        servers.enter_context(other_ports.standin("openai_standin", ports["lm_studio"], "lm_studio"))

        async def told() -> str | None:
            status = await box.aicli("worker", "status", "--state", str(box.state), **environment)
            return status.out if "LM Studio runs here and isn't shared" in status.out else None

        status = await until(told, seconds=90, what="the third server is told")
        assert f"serving 1 model: {VLLM_MODEL}" in status.partition("vllm:")[2]
        (first,) = await rows_of(stack, LLAMA)
        assert first["notice"] == "Not shared yet: LM Studio. See aicli worker status there"
        assert STUDIO_MODEL not in (await stack.aicli("models", "--json")).out

        os.kill(worker_of(worker.process.pid, "vllm"), signal.SIGKILL)
        assert await says(stack, ann, LLAMA) == "one two three"
        await rows_of(stack, VLLM_MODEL)
        assert await says(stack, ann, VLLM_MODEL) == "one two three"

        # All of the machine is paused, and all of it ends.
        assert (await box.aicli("worker", "pause", "--state", str(box.state))).status == 0

        async def are_paused() -> bool:
            rows = {row["id"]: row["why_not"] for row in (await stack.aicli("nodes", "--json")).json()}
            return {rows[first["id"]], rows[second["id"]]} == {"paused by its owner"}

        await until(are_paused, what="both are paused")
        assert await worker.interrupt(seconds=40) == 0
        gone = await box.aicli("uninstall", "--yes", "--state", str(box.state))
        assert gone.status == 0, gone.err
        states = {row["id"]: row["state"] for row in (await stack.aicli("admin", "nodes", "list", "--json")).json()}
        assert {states[first["id"]], states[second["id"]]} == {"revoked"}
