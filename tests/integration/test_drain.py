"""SIGTERM of the gateway under load: it finishes what it has accepted, over HTTP and RPC, and the supervisor restarts it."""

import asyncio
import signal
from uuid import UUID

import httpx

from shared import errors
from shared.types import RequestId
from tests.integration import asking
from tests.integration.asking import Answered
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until

#: An answer takes 3 s, so that the gateway's metrics, which are at most a second old, show all of them running.
COUNT = 600
WORDS = "word " * COUNT
EACH = 10


async def _whole_stream(http: httpx.AsyncClient, begun: asyncio.Semaphore) -> Answered:
    """Stream one chat; release ``begun`` at its first event."""
    body = asking.chat_body(WORDS, stream=True, stream_options={"include_usage": True})
    text = ""
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if not text and line:
                begun.release()
            text += line + "\n"
        whole = httpx.Response(200, headers=answer.headers, text=text)
    *_, last = asking.events(whole)
    return Answered(RequestId(UUID(answer.headers["x-request-id"])), "", last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"])


async def _whole_call(api_client: ApiClient, person: Person) -> Answered:
    return await asking.rpc(api_client.mesh, person.key.secret, WORDS)


async def test_a_gateway_that_is_asked_to_stop_finishes_every_accepted_request(
    stack: RunningStack, api_client: ApiClient, ann: Person
) -> None:
    begun = asyncio.Semaphore(0)
    others = {name: pid for name, pid in (await stack.pids()).items() if name != "gateway"}
    async with stack.http(ann.key.secret) as http, asyncio.TaskGroup() as tasks:
        streams = [tasks.create_task(_whole_stream(http, begun)) for _ in range(EACH)]
        calls = [tasks.create_task(_whole_call(api_client, ann)) for _ in range(EACH)]
        for _ in range(EACH):
            await begun.acquire()

        async def all_accepted() -> bool:
            return await stack.metric("gateway", "ai_platform_inflight_requests") >= EACH

        await until(all_accepted, what="all run")
        old = await stack.signal("gateway", signal.SIGTERM)
    for task in streams + calls:
        assert task.result().completion_tokens == COUNT

    await stack.restarted("gateway", old)
    assert {name: pid for name, pid in (await stack.pids()).items() if name != "gateway"} == others

    async def used() -> bool:
        async with stack.http(ann.key.secret) as http:
            await asking.chat(http, "hi")
        return (await asking.rpc(api_client.mesh, ann.key.secret, "hi")).text == "hi"

    await until(used, what="it is used again", ignoring=(errors.PeerError, httpx.HTTPError))
    await stack.recorded(ann.id, 2 * EACH)
    async with stack.database("gateway") as database:
        rows = await database.fetch("SELECT status, completion_tokens FROM request_logs WHERE user_id = $1", ann.id)
    assert [tuple(row) for row in rows if row["completion_tokens"] > 1] == [("success", COUNT)] * (2 * EACH)
