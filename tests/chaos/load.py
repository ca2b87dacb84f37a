"""A steady, bounded load on every endpoint, and its history.

async with load.running(stack, person) as history:
    await history.until_each_door_succeeds(5)
    …
history.attempts
"""

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import httpx

from shared import errors
from shared.api import gateway
from shared.api.gateway import InferenceRequest
from shared.node.client_node import ClientNode
from shared.types import ModelName, RequestId
from tests.chaos.clients import our_code
from tests.chaos.oracle import CONNECTION_LOST, DONE, HANGS, Attempt, Door
from tests.people import Person
from tests.stacks import RunningStack, until

MODEL = ModelName("echo")
#: Requests per second, and the endpoints that they use in turn.
RATE = 20
TURNS = (Door.GATEWAY, Door.RPC, Door.WEB, Door.RPC)
#: The same with a client outside the stack.
TURNS_WITH_OUTSIDE = (Door.GATEWAY, Door.OUTSIDE, Door.RPC, Door.OUTSIDE)
WORDS = 12
#: How long a client waits, unless a test sets another time. After a worker is lost, the gateway is silent for 3 s.
DEADLINE_SECONDS = 15.0


@dataclass(slots=True)
class _Seen:
    """What one caller has received so far."""

    text: str = ""
    ends: list[str] = field(default_factory=list)
    status: int | None = None
    request_id: RequestId | None = None
    usage: tuple[int, int] | None = None


@dataclass(slots=True)
class History:
    turns: tuple[Door, ...] = TURNS
    #: How long each client waits.
    deadline_seconds: float = DEADLINE_SECONDS
    attempts: list[Attempt] = field(default_factory=list)

    async def until_each_door_succeeds(self, times: int, *, since: float = 0, seconds: float = 10) -> None:
        """Wait for this many successes in a row at each endpoint, among the requests that began at ``since`` or later."""

        async def all_doors() -> bool:
            in_a_row: Counter[Door] = Counter()
            for attempt in sorted(self.attempts, key=lambda attempt: attempt.ended):
                if attempt.began >= since:
                    in_a_row[attempt.door] = in_a_row[attempt.door] + 1 if attempt.succeeded else 0
            return all(in_a_row[door] >= times for door in self.turns)

        await until(all_doors, seconds=seconds, what=f"{times} successes in a row at each door")

    def last_failure(self) -> float:
        """Return when the last failed request began; minus infinity if none failed."""
        return max((attempt.began for attempt in self.attempts if not attempt.succeeded), default=float("-inf"))

    def outcomes(self) -> dict[str, int]:
        return dict(Counter(f"{attempt.door}: {'+'.join(attempt.ends) or 'nothing'}" for attempt in self.attempts))


class _Callers:
    """One client of each kind for all requests, because clients keep their connections."""

    def __init__(self, person: Person, http: Mapping[Door, httpx.AsyncClient], mesh: Mapping[Door, ClientNode]) -> None:
        self._person = person
        self._http = http
        self._mesh = mesh

    async def attempt(self, door: Door, prompt: str, history: History) -> None:
        began, seen = time.monotonic(), _Seen()
        try:
            async with asyncio.timeout(history.deadline_seconds):
                if door in self._mesh:
                    await self._by_rpc(self._mesh[door], prompt, history.deadline_seconds - 2, seen)
                else:
                    await self._by_http(self._http[door], prompt, seen)
        except TimeoutError:
            seen.ends.append(HANGS)
        except errors.AimeshError as error:
            seen.ends.append(errors.code_of(error))
        except httpx.TransportError:
            seen.ends.append(CONNECTION_LOST)
        history.attempts.append(
            Attempt(
                door=door,
                prompt=prompt,
                began=began,
                ended=time.monotonic(),
                text=seen.text,
                ends=tuple(seen.ends),
                status=seen.status,
                request_id=seen.request_id,
                usage=seen.usage,
            )
        )

    async def _by_rpc(self, mesh: ClientNode, prompt: str, deadline_seconds: float, seen: _Seen) -> None:
        request = gateway.ProcessInferenceRequest(InferenceRequest(prompt=prompt, model=MODEL))
        credential = self._person.key.secret
        async with mesh.rpc.stream(
            gateway.process_inference_request, request, credential=credential, deadline_seconds=deadline_seconds
        ) as answer:
            async for chunk in answer:
                seen.text += chunk.text
            end = answer.end
        seen.request_id, seen.usage = end.request_id, (end.usage.prompt_tokens, end.usage.completion_tokens)
        seen.ends.append(DONE)

    async def _by_http(self, http: httpx.AsyncClient, prompt: str, seen: _Seen) -> None:
        body = {
            "model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            seen.status = answer.status_code
            if "x-request-id" in answer.headers:
                seen.request_id = RequestId(UUID(answer.headers["x-request-id"]))
            if answer.status_code != 200:
                seen.ends.append(our_code(json.loads(await answer.aread())["error"]))
                return
            async for line in answer.aiter_lines():
                _read_event(line, seen)


def _read_event(line: str, seen: _Seen) -> None:
    if not line.startswith("data: "):
        return
    event = line.removeprefix("data: ")
    if event == "[DONE]":
        seen.ends.append(DONE)
        return
    found = json.loads(event)
    if "error" in found:
        seen.ends.append(our_code(found["error"]))
        return
    if usage := found.get("usage"):
        seen.usage = (usage["prompt_tokens"], usage["completion_tokens"])
    seen.text += "".join(choice["delta"].get("content", "") for choice in found["choices"])


@asynccontextmanager
async def running(
    stack: RunningStack, person: Person, outside: ClientNode | None = None, *, deadline_seconds: float = DEADLINE_SECONDS
) -> AsyncIterator[History]:
    """Send requests at RATE during the block; then wait for the running ones, so that the history is complete. ``outside`` is a client
    that reaches the mesh only over Hyperswarm; with it, web gets no requests."""
    history = History(TURNS if outside is None else TURNS_WITH_OUTSIDE, deadline_seconds)
    async with AsyncExitStack() as opened:
        # Only the deadline ends a request: HTTP's own timeout would look like a lost connection.
        web = await opened.enter_async_context(stack.http(person.key.secret, service="web", timeout_seconds=2 * deadline_seconds))
        direct = await opened.enter_async_context(stack.http(person.key.secret, timeout_seconds=2 * deadline_seconds))
        mesh = {Door.RPC: await opened.enter_async_context(stack.client())}
        if outside is not None:
            mesh[Door.OUTSIDE] = outside
        callers = _Callers(person, {Door.GATEWAY: direct, Door.WEB: web}, mesh)
        async with asyncio.TaskGroup() as tasks:
            pacing = tasks.create_task(_pace(callers, history, tasks))
            yield history
            pacing.cancel()


async def _pace(callers: _Callers, history: History, tasks: asyncio.TaskGroup) -> None:
    began = time.monotonic()
    at_once = 0
    # The number of running requests if none ends before its deadline; above this, the load is no longer steady.
    most_at_once = RATE * history.deadline_seconds

    def ended(_task: asyncio.Task[None]) -> None:
        nonlocal at_once
        at_once -= 1

    for number in itertools.count():
        await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
        assert at_once < most_at_once, "the answers do not keep up with the load"
        prompt = f"request{number} " + " ".join(f"w{position}" for position in range(1, WORDS))
        at_once += 1
        tasks.create_task(callers.attempt(history.turns[number % len(history.turns)], prompt, history)).add_done_callback(ended)
