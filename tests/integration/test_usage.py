"""The usage in the answers and the usage in the tables are the same numbers."""

import asyncio
from collections import Counter
from dataclasses import dataclass

import asyncpg
import httpx
import pytest

from shared import errors
from shared.api import auth, gateway, usage_report
from shared.types import KeyId, UserId
from tests.integration import asking
from tests.integration.asking import Answered
from tests.people import ApiClient, Key, Person
from tests.stacks import RunningStack, until

EACH = 3


@dataclass(frozen=True, slots=True)
class Asked:
    user: UserId
    key: KeyId
    answered: Answered


async def _ask_in_every_way(stack: RunningStack, api_client: ApiClient, person: Person, key: Key) -> list[Asked]:
    """Ask at once, with prompts of different lengths, so that no two sums agree by chance."""
    async with stack.http(key.secret) as http, asyncio.TaskGroup() as tasks:

        async def is_known() -> bool:
            return (await http.get("/v1/models")).is_success

        # The gateway asks auth about a new key once, for at most 2 s; a busy machine could need longer under this load.
        await until(is_known, what="the gateway knows the key")
        waiting = []
        for number in range(EACH):
            ways = ("rpc", *asking.OVER_HTTP)
            prompts = [f"{person.username} {way} " + "word " * (number + position) for position, way in enumerate(ways)]
            waiting.append((prompts[0], tasks.create_task(asking.rpc(api_client.mesh, key.secret, prompts[0]))))
            for prompt, ask in zip(prompts[1:], asking.OVER_HTTP.values(), strict=True):
                waiting.append((prompt, tasks.create_task(ask(http, prompt))))
    for prompt, task in waiting:
        answered = task.result()
        assert answered.text == prompt.strip()
        assert answered.prompt_tokens == answered.completion_tokens == len(prompt.split())
    return [Asked(person.id, key.id, task.result()) for _, task in waiting]


async def test_rows_are_the_sum_of_the_answers_for_each_user_and_key(
    stack: RunningStack, api_client: ApiClient, ann: Person, bob: Person
) -> None:
    people = [(person, key) for person in (ann, bob) for key in (person.key, await api_client.make_key(person, "second"))]
    asked = [one for each in people for one in await _ask_in_every_way(stack, api_client, *each)]
    assert len({one.answered.request_id for one in asked}) == len(asked) == 4 * EACH * 7
    await stack.knows_its_models()
    # A request that fails is in the log and not in the usage.
    async with stack.http(ann.key.secret) as http:
        assert (await http.post("/api/inference", json={"prompt": "x", "model": "no-such"})).status_code == 404

    users = [ann.id, bob.id]
    await stack.recorded(ann.id, len(asked) // 2 + 1)
    await stack.recorded(bob.id, len(asked) // 2)
    async with stack.database("gateway") as database:
        logged = await database.fetch("SELECT * FROM request_logs WHERE user_id = ANY($1) AND status = 'success'", users)
        daily = await database.fetch("SELECT * FROM usage_stats WHERE user_id = ANY($1)", users)
    assert {row["id"]: (row["user_id"], row["api_key_id"], row["prompt_tokens"], row["completion_tokens"]) for row in logged} == {
        one.answered.request_id: (one.user, one.key, one.answered.prompt_tokens, one.answered.completion_tokens) for one in asked
    }
    for row in logged:
        assert (row["model_used"], row["error_code"], len(row["prompt_hash"])) == ("echo", None, 64)
    assert _sums(daily) == _expected(asked)
    await _every_view_says_the_same(stack, api_client, ann, asked)


def _expected(asked: list[Asked]) -> dict[tuple[UserId, KeyId], tuple[int, int]]:
    tokens: Counter[tuple[UserId, KeyId]] = Counter()
    for one in asked:
        tokens[one.user, one.key] += one.answered.prompt_tokens + one.answered.completion_tokens
    requests = Counter((one.user, one.key) for one in asked)
    return {each: (requests[each], tokens[each]) for each in tokens}


def _sums(daily: list[asyncpg.Record]) -> dict[tuple[UserId, KeyId], tuple[int, int]]:
    """Return the sums over the days, because midnight may pass while a test runs."""
    found: dict[tuple[UserId, KeyId], tuple[int, int]] = {}
    for row in daily:
        requests, tokens = found.get((row["user_id"], row["api_key_id"]), (0, 0))
        found[row["user_id"], row["api_key_id"]] = (requests + row["request_count"], tokens + row["tokens_used"])
    return found


async def _every_view_says_the_same(stack: RunningStack, api_client: ApiClient, person: Person, asked: list[Asked]) -> None:
    own = [one.answered for one in asked if one.user == person.id]
    expected = (len(own), sum(one.prompt_tokens + one.completion_tokens for one in own))
    async with stack.http(person.key.secret) as http:
        over_http = (await http.get("/api/usage")).json()
    over_rpc = await api_client.mesh.rpc.call(usage_report.get_user_usage, usage_report.GetUserUsage(), credential=person.key.secret)
    assert (over_http["request_count"], over_http["tokens_used"]) == expected
    assert (over_rpc.request_count, over_rpc.tokens_used) == expected
    listed = (await stack.aicli("usage", "--json", AICLI_API_KEY=person.key.secret)).json()
    assert sum(day["tokens_used"] for day in listed["days"]) == listed["tokens_used"] == expected[1]


# --- requests that failed or were canceled -----------------------------------------------------------------------------


async def _rows(stack: RunningStack, person: Person) -> list[asyncpg.Record]:
    async with stack.database("gateway") as database:
        return list(await database.fetch("SELECT * FROM request_logs WHERE user_id = $1 ORDER BY created_at", person.id))


async def _only_row(stack: RunningStack, person: Person) -> asyncpg.Record:
    async def written() -> list[asyncpg.Record]:
        return await _rows(stack, person)

    (row,) = await until(written, what="the row is written")
    return row


async def _used(stack: RunningStack, person: Person) -> tuple[int, int]:
    async with stack.http(person.key.secret) as http:
        usage = (await http.get("/api/usage")).json()
    return usage["request_count"], usage["tokens_used"]


LONG = "word " * 400


async def test_a_stream_that_its_reader_left_is_cancelled_and_counts_what_was_delivered(stack: RunningStack, ann: Person) -> None:
    body = asking.chat_body(LONG, stream=True)
    async with stack.http(ann.key.secret) as http, http.stream("POST", "/v1/chat/completions", json=body) as answer:
        texts = 0
        async for line in answer.aiter_lines():
            texts += '"content":"' in line and '"content":""' not in line
            if texts >= 5:
                break
    row = await _only_row(stack, ann)
    assert (row["status"], row["error_code"]) == ("cancelled", "cancelled")
    assert 5 <= row["completion_tokens"] < 400
    assert row["prompt_tokens"] > 0, "the worker says it when it takes the prompt, not only at the end"
    assert row["tokens_used"] == row["prompt_tokens"] + row["completion_tokens"]
    assert await _used(stack, ann) == (1, row["tokens_used"])


async def test_an_rpc_caller_that_leaves_cancels_too(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    request = gateway.ProcessInferenceRequest(gateway.InferenceRequest(prompt=LONG, model=asking.ECHO))
    async with api_client.mesh.rpc.stream(gateway.process_inference_request, request, credential=ann.key.secret) as answer:
        async for chunk in answer:
            if chunk.text:
                break
    assert (await _only_row(stack, ann))["status"] == "cancelled"
    await until(lambda: _is_idle(stack), what="the worker stops")


async def _is_idle(stack: RunningStack) -> bool:
    nodes = (await stack.aicli("nodes", "--json")).json()
    return not any(node["running"] for node in nodes if "echo" in node["models"])


async def test_a_deadline_that_passes_is_a_timeout(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    with pytest.raises(errors.DeadlineExceeded):
        await asking.rpc(api_client.mesh, ann.key.secret, LONG, deadline_seconds=1.5)
    row = await _only_row(stack, ann)
    assert (row["status"], row["error_code"]) == ("timeout", "deadline_exceeded")


async def test_a_request_over_its_limit_has_a_row_and_no_usage(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    tight = await api_client.make_key(ann, "tight", auth.ApiKeyLimits(requests_per_hour=1))
    async with stack.http(tight.secret) as http:
        await asking.inference(http, "first")
        asking.problem(await http.post("/api/inference", json={"model": "echo", "prompt": "second"}), 429, "rate_limited")
    await stack.recorded(ann.id, 2)
    first, second = await _rows(stack, ann)
    assert (first["status"], second["status"]) == ("success", "limited")
    assert (second["error_code"], second["tokens_used"], second["api_key_id"]) == ("rate_limited", 0, tight.id)
    assert await _used(stack, ann) == (1, 2)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"prompt": "hi", "model": "no-such-model"}, 404, "unknown_model"),
        ({"prompt": "hi", "model": "echo", "temperature": 9}, 400, "bad_request"),
    ],
)
async def test_a_refused_request_is_rejected_and_uses_nothing(
    stack: RunningStack, ann: Person, body: dict[str, object], status: int, code: str
) -> None:
    async with stack.http(ann.key.secret) as http:
        answer: httpx.Response = await http.post("/api/inference", json=body)
    error = asking.problem(answer, status, code)
    row = await _only_row(stack, ann)
    assert (str(row["id"]), row["status"], row["error_code"], row["tokens_used"]) == (error["request_id"], "rejected", code, 0)
    assert await _used(stack, ann) == (0, 0)
