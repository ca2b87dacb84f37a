"""Clients of several tenants, over HTTP and RPC: each sends one request after another, and records what it receives."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from uuid import UUID

import httpx

from shared import errors
from shared.api import gateway
from shared.api.gateway import InferenceRequest
from shared.node.client_node import ClientNode
from shared.types import ModelName, RequestId
from tests.chaos.history import LEFT, Call, Piece
from tests.chaos.oracle import CONNECTION_LOST, DONE, GAVE_UP, HANGS, Door
from tests.people import Person
from tests.stacks import RunningStack, until

MODEL = ModelName("echo")
DOORS = (Door.GATEWAY, Door.RPC)
#: How long a client waits for one answer.
DEADLINE_SECONDS = 30.0
#: Wait before a retry if the error asks for none, as of the connection.
RETRY_SECONDS = 1.0
#: Pause before a client reconnects or sends its next request.
RETURN_SECONDS = 0.2
#: Errors after which a returning client waits and tries again.
COME_AGAIN = frozenset({"unavailable", "ledger_unavailable", "in_progress", "not_reachable", "draining"})
#: The code of an error response without OpenAI's error object.
NO_ERROR_OBJECT = "no error object"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a client behaves."""

    #: Words of an answer, from and to.
    words: tuple[int, int] = (20, 80)
    #: Disconnects after at most this many pieces; None: stays.
    leaves_within: int | None = None
    #: Sends an idempotency key, and reconnects for the rest if the connection breaks.
    returns: bool = False
    #: First word of the prompt, to which the faulty workers react.
    special: str = ""
    #: Sends a request that failed once more, after the time that the error asks for. The second one returns, as those of our SDKs.
    retries: bool = False


@dataclass(slots=True)
class _Seen:
    pieces: list[Piece] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    status: int | None = None
    request_id: RequestId | None = None
    usage: tuple[int, int] | None = None
    last_event: str | None = None
    retry_after: float | None = None

    def add(self, text: str, number: int = 0) -> None:
        if text:
            self.pieces.append(Piece(time.monotonic(), text, number))


@dataclass(slots=True)
class Clients:
    """What the clients share."""

    stack: RunningStack
    people: Sequence[Person]
    mesh: ClientNode
    http: httpx.AsyncClient
    rng: random.Random
    calls: list[Call] = field(default_factory=list)
    running: int = 0
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def prompt(self, person: int, words: int, special: str = "") -> str:
        number = next(self._numbers)
        return " ".join([*([special] if special else []), *(f"p{person}r{number}w{word}" for word in range(1, words + 1))])

    async def ask(self, person: int, door: Door, manner: Manner, *, prompt: str | None = None, key: str | None = None) -> Call:
        """Send one request and follow it to its end, or twice if ``manner`` retries; the calls are also in ``calls`` afterwards."""
        call = await self._ask(person, door, manner, prompt, key)
        if call.failed and manner.retries:
            await asyncio.sleep(RETRY_SECONDS if call.retry_after is None else min(call.retry_after, DEADLINE_SECONDS))
            # The key of an answer that failed after its first text keeps that answer.
            again = None if call.pieces else call.key
            call = await self._ask(person, door, replace(manner, returns=True), call.prompt, again, attempt=2)
        return call

    async def _ask(self, person: int, door: Door, manner: Manner, prompt: str | None, key: str | None, *, attempt: int = 1) -> Call:
        who = self.people[person % len(self.people)]
        prompt = prompt or self.prompt(person, self.rng.randint(*manner.words), manner.special)
        if manner.returns and key is None:
            key = f"key-{person}-{self.rng.getrandbits(64):x}"
        leave_after = None if manner.leaves_within is None else self.rng.randint(1, manner.leaves_within)
        seen, began, returns = _Seen(), time.monotonic(), 0
        self.running += 1
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while True:
                    try:
                        if door is Door.RPC:
                            await self._by_rpc(who, prompt, key, leave_after, seen)
                        else:
                            await self._by_http(who, prompt, key, leave_after, seen)
                    except (httpx.TransportError, errors.LinkLost, errors.NotReachable, errors.Draining) as error:
                        seen.retry_after = getattr(error, "retry_after_seconds", None)
                        if not manner.returns:
                            seen.ends.append(CONNECTION_LOST if isinstance(error, httpx.TransportError) else errors.code_of(error))
                    except errors.AimeshError as error:
                        seen.retry_after = error.retry_after_seconds
                        seen.ends.append(errors.code_of(error))
                    if seen.ends:
                        break
                    returns += 1
                    await asyncio.sleep(RETURN_SECONDS)
        except TimeoutError:
            # If the answer is complete, only closing it took this long, which the call's duration shows.
            if not seen.ends:
                seen.ends.append(GAVE_UP if returns else HANGS)
        finally:
            self.running -= 1
        call = Call(
            owner=who.id, door=door, prompt=prompt, began=began, ended=time.monotonic(), pieces=tuple(seen.pieces), ends=tuple(seen.ends),
            status=seen.status, request_id=seen.request_id, usage=seen.usage, key=key, returns=returns,
            attempt=attempt, retry_after=seen.retry_after,
        )  # fmt: skip
        self.calls.append(call)
        return call

    async def _by_rpc(self, who: Person, prompt: str, key: str | None, leave_after: int | None, seen: _Seen) -> None:
        request = gateway.ProcessInferenceRequest(InferenceRequest(prompt=prompt, model=MODEL), idempotency_key=key)
        if seen.pieces:
            request = _with_rest(request, seen)
        else:
            # A client that does not know the ID of its request gets the answer from its beginning.
            seen.pieces.clear()
        async with self.mesh.rpc.stream(
            gateway.process_inference_request, request, credential=who.key.secret, deadline_seconds=DEADLINE_SECONDS - 2
        ) as answer:
            async for chunk in answer:
                seen.add(chunk.text, chunk.sequence)
                if leave_after is not None and len(seen.pieces) >= leave_after:
                    seen.ends.append(LEFT)
                    return
            end = answer.end
        seen.request_id, seen.usage = end.request_id, (end.usage.prompt_tokens, end.usage.completion_tokens)
        seen.ends.append(DONE)

    async def _by_http(self, who: Person, prompt: str, key: str | None, leave_after: int | None, seen: _Seen) -> None:
        body = {
            "model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        headers = {"authorization": f"Bearer {who.key.secret}"}
        if key is not None:
            headers["idempotency-key"] = key
        if seen.last_event is not None:
            headers["last-event-id"] = seen.last_event
        async with self.http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            seen.status = answer.status_code
            # For a repeat, the ID of the request that it repeats.
            if (named := answer.headers.get("x-original-request-id") or answer.headers.get("x-request-id")) is not None:
                seen.request_id = RequestId(UUID(named))
            if answer.status_code != 200:
                seen.retry_after = float(named) if (named := answer.headers.get("retry-after")) is not None else None
                code = _code_of(await answer.aread())
                # A returning client waits while the gateway restarts or still runs the request.
                if key is None or code not in COME_AGAIN:
                    seen.ends.append(code)
                return
            async for line in answer.aiter_lines():
                _read_event(line, seen)
                if leave_after is not None and len(seen.pieces) >= leave_after and not seen.ends:
                    seen.ends.append(LEFT)
                    return
        if not seen.ends:
            raise httpx.ReadError("the stream ended without its end")


def our_code(error: dict[str, str]) -> str:
    """Return our own error code: on /v1, ``code`` has OpenAI's."""
    return error.get("aimesh_code", error["code"])


def _code_of(body: bytes) -> str:
    try:
        return our_code(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return NO_ERROR_OBJECT


def _with_rest(request: gateway.ProcessInferenceRequest, seen: _Seen) -> gateway.ProcessInferenceRequest:
    rest = gateway.Rest(seen.pieces[-1].number)
    return gateway.ProcessInferenceRequest(request.request, request.auth, request.idempotency_key, rest)


def _read_event(line: str, seen: _Seen) -> None:
    if line.startswith("id:"):
        seen.last_event = line.removeprefix("id:").strip()
    if not line.startswith("data:"):
        return
    event = line.removeprefix("data:").strip()
    if event == "[DONE]":
        seen.ends.append(DONE)
        return
    found = json.loads(event)
    if "error" in found:
        seen.ends.append(our_code(found["error"]))
        return
    if usage := found.get("usage"):
        seen.usage = (usage["prompt_tokens"], usage["completion_tokens"])
    seen.add("".join(choice["delta"].get("content") or "" for choice in found["choices"]))


class AnyGateway(httpx.AsyncHTTPTransport):
    """Sends each request to one of the gateways, and to another one if that doesn't accept the connection, as a load balancer does."""

    def __init__(self, urls: Callable[[], Sequence[str]], rng: random.Random) -> None:
        super().__init__(trust_env=False, limits=httpx.Limits(max_connections=None, max_keepalive_connections=50))
        self._urls = urls
        self._rng = rng

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        urls = self._rng.sample(self._urls(), len(self._urls()))
        for number, chosen in enumerate(map(httpx.URL, urls), start=1):
            request.url = request.url.copy_with(host=chosen.host, port=chosen.port)
            try:
                return await super().handle_async_request(request)
            except httpx.ConnectError:
                if number == len(urls):
                    raise
        raise AssertionError("there is no gateway")


@asynccontextmanager
async def opened(stack: RunningStack, people: Sequence[Person], rng: random.Random) -> AsyncIterator[Clients]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=50)
    async with AsyncExitStack() as entered:
        mesh = await entered.enter_async_context(stack.client())
        http = await entered.enter_async_context(
            httpx.AsyncClient(base_url=stack.url("gateway"), timeout=DEADLINE_SECONDS, trust_env=False, limits=limits)
        )
        yield Clients(stack, people, mesh, http, rng)


@asynccontextmanager
async def busy(clients: Clients, count: int, manner: Manner | None = None, doors: Sequence[Door] = DOORS) -> AsyncIterator[Clients]:
    """Keep ``count`` clients busy during the block; then each finishes its request."""
    chosen = manner or Manner()
    over = False

    async def one(number: int) -> None:
        # Don't start all of them at the same moment.
        await asyncio.sleep(clients.rng.random())
        while not over:
            call = await clients.ask(number, doors[number % len(doors)], chosen)
            if call.failed:
                await asyncio.sleep(RETURN_SECONDS)

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(one(number))
        try:
            yield clients
        finally:
            over = True


async def until_served(clients: Clients, *, since: float, times: int = 10, seconds: float = 30) -> float:
    """Wait until this many calls in a row that began at ``since`` or later succeed. Return the time of the first text in them."""

    async def served() -> float | None:
        last = sorted((call for call in clients.calls if call.began >= since), key=lambda call: call.ended)[-times:]
        if len(last) < times or not all(call.succeeded for call in last):
            return None
        return min(call.pieces[0].at for call in last)

    return await until(served, seconds=seconds, what=f"{times} calls in a row succeed")


async def until_streaming(clients: Clients, count: int, *, seconds: float = 15) -> None:
    async def streaming() -> bool:
        return clients.running >= count

    await until(streaming, seconds=seconds, what=f"{count} streams run")
