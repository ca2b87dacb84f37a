"""A caller that disconnects frees the worker within 100 ms, over every API; so does a deadline that passes."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import httpx
import pytest

from shared import errors
from shared.types import Tier
from tests import stacks
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until

LONG = "word " * 1000
TIMES = 5
#: The documented limit is 100 ms, and 13 to 32 ms were measured; a busy machine gets three times the limit.
FREE_WITHIN_SECONDS = 0.3

#: Asks for LONG, and disconnects once the event is set; returns when it did.
Leaving = Callable[[RunningStack, ApiClient, Person, asyncio.Event], Awaitable[float]]


async def _http(stack: RunningStack, _desk: ApiClient, person: Person, leave: asyncio.Event, *, stream: bool) -> float:
    # A separate connection: its closing is all that the gateway sees.
    async with stack.http(person.key.secret) as http:
        asked = asyncio.create_task(http.post("/v1/chat/completions", json=asking.chat_body(LONG, stream=stream)))
        await leave.wait()
        asked.cancel()
        went_at = time.monotonic()
        await asyncio.gather(asked, return_exceptions=True)
    return went_at


async def _http_stream(stack: RunningStack, api_client: ApiClient, person: Person, leave: asyncio.Event) -> float:
    return await _http(stack, api_client, person, leave, stream=True)


async def _http_at_once(stack: RunningStack, api_client: ApiClient, person: Person, leave: asyncio.Event) -> float:
    return await _http(stack, api_client, person, leave, stream=False)


async def _rpc(_stack: RunningStack, api_client: ApiClient, person: Person, leave: asyncio.Event) -> float:
    asked = asyncio.create_task(asking.rpc(api_client.mesh, person.key.secret, LONG))
    await leave.wait()
    asked.cancel()
    went_at = time.monotonic()
    await asyncio.gather(asked, return_exceptions=True)
    return went_at


async def _deadline(_stack: RunningStack, api_client: ApiClient, person: Person, _leave: asyncio.Event) -> float:
    ends_at = time.monotonic() + 1.0
    with pytest.raises(errors.DeadlineExceeded):
        await asking.rpc(api_client.mesh, person.key.secret, LONG, deadline_seconds=1.0)
    return ends_at


async def _ctrl_c(stack: RunningStack, _desk: ApiClient, _person: Person, leave: asyncio.Event, **variables: str) -> float:
    process = await stack.start_aicli("infer", "--model", "echo", LONG, **variables)
    await leave.wait()
    process.send_signal(2)
    went_at = time.monotonic()
    await process.communicate()
    return went_at


async def _ctrl_c_over_http(stack: RunningStack, api_client: ApiClient, person: Person, leave: asyncio.Event) -> float:
    return await _ctrl_c(stack, api_client, person, leave, AIMESH_URL=stack.url("web"), AIMESH_API_KEY=person.key.secret)


WAYS: dict[str, Leaving] = {
    "http, streamed": _http_stream,
    "http, at once": _http_at_once,
    "rpc": _rpc,
    "a deadline": _deadline,
    "ctrl-c": _ctrl_c,
    "ctrl-c over http": _ctrl_c_over_http,
}


@pytest.mark.nightly("clock")
@pytest.mark.parametrize("way", WAYS)
async def test_the_slot_is_free_at_once(stack: RunningStack, api_client: ApiClient, way: str) -> None:
    eve = await api_client.register("eve", Tier.ENTERPRISE)
    url = (await stack.programs())["inference-echo"].url
    seconds = []
    async with httpx.AsyncClient(trust_env=False) as looking:

        async def busy() -> float:
            return stacks.total((await looking.get(f"{url}/metrics")).text, "ai_platform_worker_slots", state="busy", model="echo")

        for _ in range(TIMES):
            leave = asyncio.Event()
            asked = asyncio.create_task(WAYS[way](stack, api_client, eve, leave))
            await until(busy, seconds=15, what="the worker runs it")
            leave.set()
            free_at = await _free(busy, asked)
            seconds.append(free_at - await asked)
    print(f"CANCEL {way}: free after {', '.join(f'{one * 1000:.0f}' for one in seconds)} ms")
    assert statistics.median(seconds) <= FREE_WITHIN_SECONDS


async def test_an_answer_that_was_stopped_can_be_rated_by_who_asked_for_it(stack: RunningStack, ann: Person, bob: Person) -> None:
    async with stack.http(ann.key.secret) as http:
        async with http.stream("POST", "/v1/chat/completions", json=asking.chat_body(LONG, stream=True)) as answer:
            thumb = {"request_id": answer.headers["x-request-id"], "rating": -1}
            await anext(line async for line in answer.aiter_lines() if '"content":"word' in line)

        async def is_taken() -> bool:
            return (await http.post("/api/feedback", json=thumb)).status_code == 200

        await until(is_taken, what="its row is written")
        (logged,) = (await http.get("/api/requests")).json()["requests"]
    assert (logged["id"], logged["status"], logged["rating"]) == (thumb["request_id"], "cancelled", -1)
    assert logged["completion_tokens"] > 0
    async with stack.http(bob.key.secret) as http:
        asking.problem(await http.post("/api/feedback", json=thumb), 404, "not_found")


async def _free(busy: Callable[[], Awaitable[float]], asked: "asyncio.Task[float]") -> float:
    """Return when the worker was first seen idle, without waiting for the caller's end."""
    async with asyncio.timeout(30):
        while await busy():
            if asked.done():
                await asyncio.sleep(0)
    return time.monotonic()
