"""Many answers in progress while a worker is lost, each compared with what it would have been without the loss.

async with streams.running(stack, person, count=50) as told:
    …
told.wrong == []
"""

import asyncio
import itertools
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from shared import errors
from shared.api import gateway
from shared.api.gateway import InferenceRequest
from shared.node.client_node import ClientNode
from shared.types import ModelName
from tests import stacks
from tests.people import Person
from tests.stacks import RunningStack, until

MODEL = ModelName("echo")
#: Words of an answer: some seconds at the speed of a worker started by hand.
WORDS = 60
LOST_SECONDS = 2.5
#: Chunks after which an answer has begun.
_BEGUN = 3
#: A lost worker is noticed after 3 s of silence; the rest is reserve for overloaded machines.
DEADLINE_SECONDS = 60.0


@dataclass(slots=True)
class Told:
    """What the callers saw."""

    #: Complete answers with exactly the expected text.
    exact: int = 0
    #: What each other answer was, and why that is wrong.
    wrong: list[str] = field(default_factory=list)
    #: The longest pause between two chunks of each complete answer.
    pauses: list[float] = field(default_factory=list)
    #: Answers in progress -> the chunks received so far.
    running: dict[int, int] = field(default_factory=dict)
    #: Answers that continued after a pause that only the loss of a worker causes.
    went_on: set[int] = field(default_factory=set)
    #: Set when no more answers are to begin.
    is_over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class Worker:
    """A worker that is started by hand, as on a machine that someone lends."""

    process: asyncio.subprocess.Process
    port: int

    async def busy(self) -> float:
        async with httpx.AsyncClient(trust_env=False) as http:
            text = (await http.get(f"http://127.0.0.1:{self.port}/metrics")).text
        return stacks.total(text, "ai_platform_worker_slots", state="busy")

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)


@asynccontextmanager
async def worker(stack: RunningStack, *options: str, **variables: str) -> AsyncIterator[Worker]:
    """Start a worker, wait until it is ready, and kill it at the end."""
    variables = {"LOG_FORMAT": "json", "LOG_LEVEL": "info", "WORKER_STATUS": "off", **variables}
    process = await stack.start_aicli("worker", "--backend", variables.pop("backend", "echo"), *options, **variables)
    try:
        assert process.stdout is not None
        said: dict[str, Any] = {"event": ""}
        async with asyncio.timeout(60):
            while said["event"] != "ready":
                line = await process.stdout.readline()
                assert line, f"the worker ended before it was ready: {await _rest_of(process)}"
                # Before that come the sentences of joining.
                said = json.loads(line) if line.startswith(b"{") else said
        yield Worker(process, said["port"])
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _rest_of(process: asyncio.subprocess.Process) -> str:
    assert process.stderr is not None
    return (await process.stderr.read()).decode()[-2000:]


@asynccontextmanager
async def running(stack: RunningStack, person: Person, *, count: int) -> AsyncIterator[Told]:
    """Keep ``count`` streams running, half over RPC and half over HTTP; at the end, wait for the running ones."""
    told = Told()
    async with (
        stack.client() as mesh,
        stack.http(person.key.secret, timeout_seconds=DEADLINE_SECONDS) as http,
        asyncio.TaskGroup() as tasks,
    ):
        numbers = itertools.count(1)

        async def caller(place: int) -> None:
            while not told.is_over.is_set():
                await _one(mesh if place % 2 else http, person, next(numbers), told)

        for place in range(count):
            tasks.create_task(caller(place))
        try:
            yield told
        finally:
            told.is_over.set()


async def _one(door: ClientNode | httpx.AsyncClient, person: Person, number: int, told: Told) -> None:
    rng = random.Random(number)
    # Multi-byte characters, and words that occur more than once, so that a repeated or missing word shows.
    prompt = " ".join(rng.choice(("wört", "日本", "one", "😀", f"n{number}", f"p{place}")) for place in range(WORDS))
    text, usage, at, pause = "", (0, 0), time.monotonic(), 0.0
    told.running[number] = 0
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            by = _by_rpc(door, person, prompt) if isinstance(door, ClientNode) else _by_http(door, prompt)
            async for piece, counted in by:
                now = time.monotonic()
                pause, at = max(pause, now - at), now
                if told.running[number] and pause > LOST_SECONDS:
                    told.went_on.add(number)
                text, usage = text + piece, counted or usage
                told.running[number] += 1
    except (errors.AimeshError, httpx.HTTPError, TimeoutError) as error:
        told.wrong.append(f"answer {number} ended with {error!r} behind {len(text.split())} words")
        return
    finally:
        del told.running[number]
    if text != prompt:
        told.wrong.append(f"answer {number} is not what was asked for: {text!r} instead of {prompt!r}")
    elif usage != (WORDS, WORDS):
        told.wrong.append(f"answer {number} has the usage {usage}")
    else:
        told.exact += 1
        told.pauses.append(pause)


async def _by_rpc(mesh: ClientNode, person: Person, prompt: str) -> AsyncIterator[tuple[str, tuple[int, int] | None]]:
    asked = gateway.ProcessInferenceRequest(InferenceRequest(prompt=prompt, model=MODEL, seed=5))
    method = gateway.process_inference_request
    async with mesh.rpc.stream(method, asked, credential=person.key.secret, deadline_seconds=DEADLINE_SECONDS) as answer:
        async for chunk in answer:
            yield chunk.text, None
        yield "", (answer.end.usage.prompt_tokens, answer.end.usage.completion_tokens)


async def _by_http(http: httpx.AsyncClient, prompt: str) -> AsyncIterator[tuple[str, tuple[int, int] | None]]:
    body = {
        "model": MODEL, "messages": [{"role": "user", "content": prompt}], "seed": 5, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise httpx.HTTPError(f"{answer.status_code}: {(await answer.aread())[:500]!r}")
        async for line in answer.aiter_lines():
            said = line.removeprefix("data: ")
            if not line.startswith("data: ") or said == "[DONE]":
                continue
            found = json.loads(said)
            if "error" in found:
                raise httpx.HTTPError(str(found["error"]))
            usage = found.get("usage")
            counted = None if usage is None else (usage["prompt_tokens"], usage["completion_tokens"])
            yield "".join(choice["delta"].get("content") or "" for choice in found["choices"]), counted


async def kill_workers(stack: RunningStack, person: Person, *, kills: int, count: int) -> Told:
    """Kill a worker with SIGKILL in the middle of at least a fifth of ``count`` answers, ``kills`` times. No answer meets two kills: the
    next kill waits until the answers that were running are complete."""
    async with running(stack, person, count=count) as told:
        for _ in range(kills):
            async with worker(stack, ECHO_TOKEN_MS="60") as victim:
                await in_the_middle(told, victim, count // 5)
                victim.kill()
                met = set(told.running)
                await until(lambda met=met: have_ended(told, met), seconds=DEADLINE_SECONDS, what="those that it ran are over")
    return told


async def in_the_middle(told: Told, one: Worker, at_least: int) -> None:
    """Wait until the worker runs this many answers and each has begun: others would be restarted elsewhere instead of resumed."""
    await until(lambda: is_busy(one, at_least), seconds=30, what="the worker runs some of them")
    there = set(told.running)
    await until(lambda: have_begun(told, there), seconds=DEADLINE_SECONDS, what="all that run have begun to come")


async def have_begun(told: Told, numbers: set[int]) -> bool:
    return all(told.running.get(number, _BEGUN) >= _BEGUN for number in numbers)


async def each_is_counted_once(stack: RunningStack, person: Person, told: Told) -> None:
    """Wait until all answers of this person have their rows, which are exact."""

    async def settled() -> bool:
        async with stack.database("gateway") as database:
            rows = await database.fetch("SELECT status, prompt_tokens, completion_tokens FROM request_logs WHERE user_id = $1", person.id)
        assert {tuple(row) for row in rows} <= {("success", WORDS, WORDS)}
        return len(rows) == told.exact

    await until(settled, seconds=10, what="each has its row", ignoring=(httpx.HTTPError,))


async def is_busy(one: Worker, at_least: int) -> bool:
    return await one.busy() >= max(1, at_least)


async def have_ended(told: Told, numbers: set[int]) -> bool:
    return not numbers & told.running.keys()
