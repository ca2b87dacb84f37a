"""kill -9 of the process that holds the real model: its worker lives, and what ran on it gets one clear error."""

import os
import signal
import time
from pathlib import Path

import pytest

from shared import errors
from shared.api import gateway
from shared.api.gateway import InferenceRequest
from shared.types import ModelName
from tests.chaos import judging, load
from tests.chaos.oracle import Fault
from tests.people import Desk, Person
from tests.stacks import RunningStack, until

MODEL = ModelName("smollm2")
#: The engine's own first pause is 1 s; then the model is loaded, on cores that the load has a share of.
BACK_WITHIN_SECONDS = 10.0


def _engine_of(worker: int) -> int:
    """The process id of the engine among a worker's children; the other is its sidecar."""
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text(encoding="ascii").split()
    (engine,) = [child for child in children if b"engine.process" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return int(engine)


async def _ask(desk: Desk, person: Person, *, max_tokens: int, kill: int | None = None) -> int:
    """The number of chunks; kills a process after the second."""
    request = InferenceRequest(prompt="Tell me a long story about a bridge.", model=MODEL, max_tokens=max_tokens, temperature=0.0)
    asked = gateway.ProcessInferenceRequest(request)
    chunks = 0
    async with desk.mesh.rpc.stream(gateway.process_inference_request, asked, credential=person.key.secret, deadline_seconds=20) as answer:
        async for _ in answer:
            chunks += 1
            if chunks == 2 and kill is not None:
                os.kill(kill, signal.SIGKILL)
    return chunks


async def test_a_killed_engine_is_one_clear_error_and_comes_back(stack: RunningStack, desk: Desk, ann: Person) -> None:
    bob = await desk.register("bob")
    before = await stack.pids()
    worker = before["inference"]
    assert worker is not None
    engine = _engine_of(worker)
    async with load.running(stack, ann) as history:
        await history.until_each_door_succeeds(3)
        killed_at = time.monotonic()
        with pytest.raises(errors.ModelCrashed):
            await _ask(desk, bob, max_tokens=400, kill=engine)

        async def answers() -> bool:
            return await _ask(desk, bob, max_tokens=4) > 0

        not_yet = (errors.NotReachable, errors.Unavailable, errors.ModelCrashed)
        await until(answers, seconds=BACK_WITHIN_SECONDS, what="the model answers again", ignoring=not_yet)
        print(f"CHAOS engine: answers {time.monotonic() - killed_at:.2f} s after its kill")
    assert await stack.pids() == before
    assert _engine_of(worker) != engine
    # The echo worker's callers have nothing to do with it.
    await judging.judge(stack, ann, history, Fault(began=killed_at, over=killed_at, doors=frozenset(), codes=frozenset()))
    async with stack.database("gateway") as database:
        rows = await database.fetch("SELECT status, error_code, completion_tokens FROM request_logs WHERE user_id = $1", bob.id)
    crashed = [row for row in rows if row["error_code"] == "model_crashed"]
    assert len(crashed) == 1
    assert (crashed[0]["status"], crashed[0]["completion_tokens"] >= 2) == ("error", True)
