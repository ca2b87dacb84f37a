"""kill -9 of the process that runs the real model: its worker survives, restarts it, and resumes its answers."""

import os
import signal
import time
from pathlib import Path

from shared.api import gateway
from shared.api.gateway import InferenceRequest
from shared.types import ModelName
from tests import outside
from tests.chaos import judging, load
from tests.chaos.oracle import Fault
from tests.people import ApiClient, Person
from tests.stacks import RunningStack

MODEL = ModelName("smollm2")
TOKENS = 60


def _engine_of(worker: int) -> int:
    """Return the process ID of the engine among a worker's children; another child is its sidecar."""
    commands = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in outside.children_of(worker)}
    (engine,) = [child for child, command in commands.items() if b"engine.engine_process" in command]
    return engine


async def _tell(api_client: ApiClient, person: Person, *, kill: int | None = None) -> str:
    """Return the text of an answer of TOKENS tokens; kill a process after the second chunk."""
    request = InferenceRequest(prompt="Tell me a long story about a bridge.", model=MODEL, max_tokens=TOKENS, seed=7, ignore_eos=True)
    asked = gateway.ProcessInferenceRequest(request)
    chunks: list[str] = []
    async with api_client.mesh.rpc.stream(
        gateway.process_inference_request, asked, credential=person.key.secret, deadline_seconds=60
    ) as answer:
        async for chunk in answer:
            chunks.append(chunk.text)
            if len(chunks) == 2 and kill is not None:
                os.kill(kill, signal.SIGKILL)
        assert answer.end.usage.completion_tokens == TOKENS
    return "".join(chunks)


async def test_a_killed_engine_comes_back_and_its_answer_goes_on(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    bob = await api_client.register("bob")
    before = await stack.pids()
    worker = before["inference"]
    assert worker is not None
    undisturbed = await _tell(api_client, bob)
    engine = _engine_of(worker)
    async with load.running(stack, ann) as history:
        await history.until_each_door_succeeds(3)
        killed_at = time.monotonic()
        assert await _tell(api_client, bob, kill=engine) == undisturbed
        print(f"CHAOS engine: the answer is whole {time.monotonic() - killed_at:.2f} s after its beginning")
        await history.until_each_door_succeeds(3, since=killed_at)
    assert await stack.pids() == before
    assert _engine_of(worker) != engine
    # Callers of the echo worker must not be affected.
    await judging.judge(stack, ann, history, Fault(began=killed_at, over=killed_at, doors=frozenset(), codes=frozenset()))
    async with stack.database("gateway") as database:
        rows = await database.fetch("SELECT status, completion_tokens FROM request_logs WHERE user_id = $1", bob.id)
    assert [tuple(row) for row in rows] == [("success", TOKENS)] * 2
