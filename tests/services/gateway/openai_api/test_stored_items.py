"""Items of answers that later requests refer to, on a real Valkey."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any
from uuid import UUID

import httpx
import pytest
import redis

from services.gateway.facts.policies import Policies
from services.gateway.idempotency import stored_items
from services.gateway.idempotency.sealed_values import MAX_BYTES
from services.gateway.idempotency.stored_items import PREFIX, StoredItems
from services.gateway.requests.request_validation import MAX_PROMPT_BYTES
from shared import errors
from shared.api import auth, gateway, inference
from shared.api.generation import ChatMessage, GenerationEnd, ToolCall, Usage
from shared.config_documents import PolicyDocument, StoredPrompts
from shared.stores.cache import Cache
from shared.types import FinishReason, UserId
from tests.services.gateway import fakes, http_answers
from tests.services.gateway.fakes import OWNER, TOKEN, FakeWorker, RunningService, rpc_call
from tests.services.gateway.openai_api.test_response_request import respond, streamed
from tests.services.gateway.openai_api.test_response_tools import AGENTS
from tests.stopwatch import HANG_SECONDS

OTHER = auth.Principal(UserId(UUID(int=9)), "bob", OWNER.role, OWNER.tier)
MESH = PolicyDocument(external=("*",))
PROMPTS = PolicyDocument(external=("*",), stored_prompts=StoredPrompts.DAY)
MESH_NEVER = PolicyDocument(external=("*",), stored_prompts=StoredPrompts.NEVER)
NO_ITEMS = PolicyDocument(external=("*",), store_items=False)


class Agent(FakeWorker):
    """A worker that thinks, speaks and calls a function of a namespace and a custom tool."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        self.received.append(prompt)
        yield inference.Chunk("", (5,), reasoning="Hm.")
        yield inference.Chunk("A CANARY", (6,))
        calls = (ToolCall("c1", "agents__spawn", '{"a": 1}'), ToolCall("c2", "agents__patch", '{"input": "x"}'))
        yield inference.Chunk("", (7,), tool_calls=calls)
        yield GenerationEnd(FinishReason.STOP, Usage(7, 3))


ANSWER = ChatMessage(
    "assistant",
    "A CANARY",
    (ToolCall("c1", "agents__spawn", '{"a": 1}'), ToolCall("c2", "agents__patch", '{"input":"x"}')),
    reasoning="Hm.",
)


@pytest.fixture
async def running_service(valkey_url: str) -> AsyncIterator[RunningService]:
    async with Cache.open(valkey_url) as cache, fakes.running_service() as service:
        service.items = StoredItems(cache, service, secret="s" * 16, most_bytes=40 * 2**20)
        yield service


@pytest.fixture
def agent(running_service: RunningService) -> Agent:
    worker = Agent()
    running_service.add_worker(1, worker, "smollm2")
    return worker


@pytest.fixture
def client(valkey_url: str) -> Any:
    with redis.Redis.from_url(valkey_url) as connected:
        yield connected


def values_in(client: Any) -> list[bytes]:
    return [key for key in client.keys("*items*") if not key.endswith((b":order", b":sizes", b":bytes"))]


def references(response: Any) -> list[dict[str, str]]:
    return [{"type": "item_reference", "id": item.id} for item in response.output]


async def ask(http: httpx.AsyncClient, items: list[dict[str, Any]], **headers: str) -> httpx.Response:
    return await http.post("/v1/responses", json={"input": items, "tools": [AGENTS]}, headers=headers)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_reference_stands_for_the_item(http: httpx.AsyncClient, agent: Agent, is_streamed: bool) -> None:
    if is_streamed:
        events = await streamed(http, tools=[AGENTS])
        assert events[0].response.to_dict()["store"] is True
        response = events[-1].response
    else:
        response = await respond(http, tools=[AGENTS], store=True)
    assert response.to_dict()["store"] is True
    results = [
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "2"},
    ]
    answer = await ask(http, [{"role": "user", "content": "hi"}, *references(response), *results])
    assert answer.status_code == 200, answer.text
    assert agent.received[-1].prompt == (
        ChatMessage("user", "hi"), ANSWER, ChatMessage("tool", "1", (), "c1"), ChatMessage("tool", "2", (), "c2"),
    )  # fmt: skip


async def test_an_answer_without_text_is_stored(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.worker.words = ()
    empty = await respond(http)
    answer = await ask(http, [*references(empty), {"role": "user", "content": "more"}])
    assert answer.status_code == 200, answer.text
    assert running_service.worker.received[-1].prompt == (ChatMessage("assistant", ""), ChatMessage("user", "more"))


async def test_without_store_nothing_is_stored(http: httpx.AsyncClient, agent: Agent, client: Any) -> None:
    response = await respond(http, tools=[AGENTS], store=False)
    assert (response.to_dict()["store"], client.keys("*items*")) == (False, [])
    answer = await ask(http, references(response))
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "items are kept for an hour, unless the request says `store: false`" in answer.json()["error"]["message"]


async def test_what_is_stored_is_sealed_expires_and_has_no_prompt(http: httpx.AsyncClient, agent: Agent, client: Any) -> None:
    response = await respond(http, tools=[AGENTS], input="SECRET prompt")
    keys = values_in(client)
    assert len(keys) == 4
    for key in keys:
        assert b"CANARY" not in client.get(key) + key
        assert str(OWNER.tenant_id).encode() not in key
        assert response.output[0].id.encode() not in key
    assert {3_500_000 < client.pttl(key) <= 3_600_000 for key in client.keys("*items*")} == {True}


async def test_an_item_of_another_tenant_is_like_none(
    http: httpx.AsyncClient, running_service: RunningService, agent: Agent, client: Any
) -> None:
    response = await respond(http, tools=[AGENTS])

    async def identify(_request: auth.Identify) -> auth.Principal:
        return OTHER

    running_service.rpc.answers["auth.identify"] = identify
    never = {"type": "item_reference", "id": "msg_" + "0" * 32}
    theirs, none = [await ask(http, [one], authorization=f"Bearer {TOKEN}") for one in (references(response)[1], never)]
    assert theirs.status_code == none.status_code == 404
    shown, expected = theirs.json()["error"], none.json()["error"]
    assert shown.pop("message").replace(response.output[1].id, never["id"]) == expected.pop("message")
    assert {**shown, "request_id": ""} == {**expected, "request_id": ""}
    # Even under the other tenant's own key, it can't be read.
    (name,) = running_service.items._names(OWNER, [response.output[1].id])
    (copied,) = running_service.items._names(OTHER, [response.output[1].id])
    client.set(copied, client.get(name))
    assert (await ask(http, references(response)[1:2], authorization=f"Bearer {TOKEN}")).status_code == 404


@pytest.mark.parametrize("level", ["mesh", "default", f"organization:{OWNER.tenant_id}"])
async def test_a_change_of_policy_ends_what_is_stored(
    http: httpx.AsyncClient, running_service: RunningService, agent: Agent, client: Any, level: str
) -> None:
    def use(revision: int, document: PolicyDocument | None) -> None:
        documents = {"mesh": MESH, "default": MESH, level: document}
        found = {name: body for name, body in documents.items() if body is not None}
        running_service.config = replace(running_service.config, policies=Policies(found, {level: revision}))

    use(1, MESH)
    response = await respond(http, tools=[AGENTS])
    assert (await ask(http, references(response))).status_code == 200
    use(2, NO_ITEMS)
    assert (await ask(http, references(response))).status_code == 404
    client.flushdb()
    assert (await respond(http, tools=[AGENTS])).to_dict()["store"] is False
    assert client.keys("*items*") == []
    use(3, MESH)
    kept = await respond(http, tools=[AGENTS])
    use(4, NO_ITEMS)
    use(5, MESH if level == "mesh" else None)
    assert (await ask(http, references(kept))).status_code == 404, "it doesn't come back with the old policy"
    use(5, MESH)
    assert (await respond(http, tools=[AGENTS])).to_dict()["store"] is True


async def test_the_policy_of_a_key_only_affects_its_requests(
    http: httpx.AsyncClient, running_service: RunningService, agent: Agent
) -> None:
    response = await respond(http, tools=[AGENTS])
    assert OWNER.key_id is not None
    documents = {"mesh": MESH, "default": MESH, f"key:{OWNER.key_id}": NO_ITEMS}
    running_service.config = replace(running_service.config, policies=Policies(documents))
    assert (await ask(http, references(response))).status_code == 404
    assert (await ask(http, references(response), authorization=f"Bearer {TOKEN}")).status_code == 200


async def test_a_dropped_tenant_has_nothing_left(
    http: httpx.AsyncClient, running_service: RunningService, agent: Agent, client: Any
) -> None:
    async def drop(principal: auth.Principal) -> None:
        await running_service.items.drop(gateway.DropStoredItems(principal.tenant_id), rpc_call(principal))

    response = await respond(http, tools=[AGENTS])
    await running_service.items.keep(OTHER, {"msg_1": b"{}"})
    await drop(OWNER)
    assert len(values_in(client)) == 1
    assert (await ask(http, references(response))).status_code == 404
    await drop(OTHER)
    assert values_in(client) == []


async def test_without_valkey_the_answer_still_comes(valkey_url: str) -> None:
    async with fakes.running_service() as service:
        service.add_worker(1, Agent(), "smollm2")
        async with http_answers.connected(service) as http:
            response = await respond(http, tools=[AGENTS])
            events = await streamed(http, tools=[AGENTS])
            assert [response.to_dict()["store"], *(events[at].response.to_dict()["store"] for at in (0, -1))] == [False, True, False]
            answer = await ask(http, references(response))
            assert (answer.status_code, answer.json()["error"]["hint"]) == (503, "retry, or send the items themselves")
            assert "retry-after" in answer.headers


async def test_an_item_that_is_too_long_is_not_stored_but_others_are(running_service: RunningService, client: Any) -> None:
    items = {"a": b"x" * (MAX_BYTES + 1), "b": b"x"}
    assert not await running_service.items.keep(OWNER, items)
    assert await running_service.items.find(OWNER, ["b"]) == {"b": b"x"}
    with pytest.raises(errors.NotFound, match="no stored item 'a'"):
        await running_service.items.find(OWNER, ["a"])


async def test_a_tenant_has_room_for_32_mib_and_all_have_a_limit_too(running_service: RunningService, client: Any) -> None:
    def stored_bytes() -> int:
        return sum(client.strlen(key) for key in values_in(client))

    items = running_service.items
    for number in range(140):
        assert await items.keep(OWNER, {f"{number}": secrets.token_bytes(MAX_BYTES - 1000)})
    assert 31 * 2**20 < stored_bytes() <= 32 * 2**20
    await items.keep(OTHER, {"theirs": b"x"})
    await items.find(OWNER, ["139"])
    with pytest.raises(errors.NotFound, match="there is no stored item"):
        await items.find(OWNER, ["11"])
    for number in range(60):
        await items.keep(OTHER, {f"{number}": secrets.token_bytes(MAX_BYTES - 1000)})
    assert 39 * 2**20 < stored_bytes() <= 40 * 2**20
    await items.find(OWNER, ["139"])
    with pytest.raises(errors.NotFound, match="there is no stored item"):
        await items.find(OWNER, ["20"])
    group = items._group(OWNER.tenant_id)
    left = client.zrange(f"{group}order", 0, -1)
    assert int(client.get(f"{group}bytes")) == sum(client.strlen(key) + 400 for key in left)
    assert client.zcard(f"{PREFIX}order") == client.hlen(f"{PREFIX}sizes") == len(values_in(client))


async def test_expired_items_stop_counting(running_service: RunningService, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_items, "_KEEP_SECONDS", 0.02)
    for number in range(3):
        await running_service.items.keep(OWNER, {f"{number}": b"x"})
    async with asyncio.timeout(HANG_SECONDS):
        while client.keys("*items*"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    monkeypatch.setattr(stored_items, "_KEEP_SECONDS", 60.0)
    await running_service.items.keep(OWNER, {"last": b"x"})
    group = running_service.items._group(OWNER.tenant_id)
    assert client.zcard(f"{group}order") == client.zcard(f"{PREFIX}order") == 1
    assert client.get(f"{group}bytes") == client.get(f"{PREFIX}bytes") == b"%d" % (client.strlen(values_in(client)[0]) + 400)


async def test_references_are_bounded_like_a_prompt(running_service: RunningService) -> None:
    items = running_service.items
    for text in (secrets.token_bytes(200_000), b"x" * 200_000):  # packed, the second kind is tiny
        ids = [secrets.token_hex(4) for _ in range(MAX_PROMPT_BYTES // 200_000 + 1)]
        await items.keep(OWNER, dict.fromkeys(ids, text))
        await items.find(OWNER, ids[:-1])
        with pytest.raises(errors.ContextExceeded, match="prompt is too long: its stored items have more than"):
            await items.find(OWNER, ids)
    for wrong in (["a", "a"], [str(number) for number in range(2001)]):
        with pytest.raises(errors.BadRequest, match="must refer to at most 2000 items, and to each of them once"):
            await items.find(OWNER, wrong)


async def test_other_requests_run_while_many_items_are_read(running_service: RunningService) -> None:
    items, turns = running_service.items, 0
    ids = [f"msg_{number}" for number in range(2000)]
    for start in range(0, 2000, 100):
        await items.keep(OWNER, dict.fromkeys(ids[start : start + 100], b"x" * 300))

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    assert len(await items.find(OWNER, ids)) == 2000
    counting.cancel()
    assert turns > 20


async def test_an_item_of_another_version_is_refused(http: httpx.AsyncClient, running_service: RunningService) -> None:
    await running_service.items.keep(OWNER, {"msg_1": json.dumps({"type": "message", "role": "assistant", "words": []}).encode()})
    answer = await ask(http, [{"type": "item_reference", "id": "msg_1"}])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


async def test_without_the_policy_no_prompt_is_stored_and_the_error_names_it(
    http: httpx.AsyncClient, running_service: RunningService, agent: Agent, client: Any
) -> None:
    for documents in ({"mesh": MESH, "default": PROMPTS}, {"mesh": PROMPTS, "default": MESH_NEVER}):
        running_service.config = replace(running_service.config, policies=Policies(documents))
        first = await respond(http, tools=[AGENTS], input="SECRET prompt")
        assert len(values_in(client)) == 4
        client.flushdb()
        answer = await http.post("/v1/responses", json={"input": "hi", "previous_response_id": first.id})
        error = answer.json()["error"]
        assert (answer.status_code, error["aimesh_code"], error["param"]) == (400, "bad_request", "previous_response_id")
        assert "the mesh's policy does not say `stored_prompts: 24h`" in error["message"]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_conversation_goes_on_where_the_policy_stores_prompts(
    http: httpx.AsyncClient, running_service: RunningService, agent: Agent, client: Any, is_streamed: bool
) -> None:
    running_service.config = replace(running_service.config, policies=Policies({"mesh": PROMPTS, "default": MESH}))
    first = await respond(http, tools=[AGENTS], input="SECRET prompt", instructions="Be brief.")
    assert sorted(client.pttl(key) > 3_600_000 for key in values_in(client)) == [False] * 4 + [True]
    assert not any(b"SECRET" in client.get(key) for key in values_in(client))
    results = [
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": "2"},
    ]
    more = {"tools": [AGENTS], "previous_response_id": first.id, "input": results}
    if is_streamed:
        second = (await streamed(http, **more))[-1].response
    else:
        second = await respond(http, **more)
    assert second.previous_response_id == first.id
    earlier = (ChatMessage("user", "SECRET prompt"), ANSWER, ChatMessage("tool", "1", (), "c1"), ChatMessage("tool", "2", (), "c2"))
    assert agent.received[-1].prompt == earlier
    await respond(http, tools=[AGENTS], previous_response_id=second.id, input="and now?")
    assert agent.received[-1].prompt == (*earlier, ANSWER, ChatMessage("user", "and now?"))
    for refused in ({"previous_response_id": "resp_" + "0" * 32}, {"previous_response_id": "x" * 101}):
        answer = await http.post("/v1/responses", json={"input": "hi"} | refused)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "previous_response_id")


async def test_a_stored_conversation_is_its_tenants_and_ends_with_the_policy(
    http: httpx.AsyncClient, running_service: RunningService, agent: Agent, client: Any
) -> None:
    running_service.config = replace(running_service.config, policies=Policies({"mesh": PROMPTS, "default": MESH}))
    unstored = await respond(http, tools=[AGENTS], store=False)
    assert client.keys("*items*") == []
    first, body = await respond(http, tools=[AGENTS]), {"input": "hi"}
    assert await running_service.items.find_conversation(OWNER, first.id) is not None
    assert await running_service.items.find_conversation(OTHER, first.id) is None
    assert (await http.post("/v1/responses", json=body | {"previous_response_id": unstored.id})).status_code == 400
    running_service.config = replace(running_service.config, policies=Policies({"mesh": PROMPTS, "default": MESH}, {"default": 7}))
    assert (await http.post("/v1/responses", json=body | {"previous_response_id": first.id})).status_code == 400
    second = await respond(http, tools=[AGENTS])
    await running_service.items.drop(gateway.DropStoredItems(OWNER.tenant_id), rpc_call(OWNER))
    assert (await http.post("/v1/responses", json=body | {"previous_response_id": second.id})).status_code == 400


async def test_a_stored_conversation_is_deleted_with_its_response(
    http: httpx.AsyncClient, running_service: RunningService, agent: Agent
) -> None:
    running_service.config = replace(running_service.config, policies=Policies({"mesh": PROMPTS, "default": MESH}))
    first, second = await respond(http, tools=[AGENTS]), await respond(http, tools=[AGENTS])
    deleted = await http.delete(f"/v1/responses/{first.id}")
    assert deleted.json() == {"id": first.id, "object": "response", "deleted": True}
    assert await running_service.items.find_conversation(OWNER, first.id) is None
    assert (await http.delete(f"/v1/responses/{first.id}")).status_code == 404
    assert (await http.post("/v1/responses", json={"input": "hi", "previous_response_id": first.id})).status_code == 400
    await respond(http, tools=[AGENTS], previous_response_id=second.id, input="and now?")


async def test_a_conversation_that_is_too_long_is_not_stored(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.config = replace(running_service.config, policies=Policies({"mesh": PROMPTS, "default": MESH}))
    running_service.add_worker(1, FakeWorker(), "long", context_tokens=10**6)
    response = await respond(http, model="long", input=secrets.token_hex(MAX_BYTES))
    assert response.to_dict()["store"] is False
    counted = await respond(http, model="long", input="hi")
    count = await http.post("/v1/responses/input_tokens", json={"input": "hi", "previous_response_id": counted.id})
    assert count.status_code == 200, count.text


async def test_other_routes_below_it_do_not_exist(http: httpx.AsyncClient) -> None:
    answer = await http.post("/v1/responses/compact", json={"input": "hi"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "no route matches '/v1/responses/compact'")


async def test_chats_store_nothing(http: httpx.AsyncClient, client: Any) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "store": True}
    assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    assert client.keys("*items*") == []
