"""Both clients with a whole stack, at the gateway's address and at the public one; and the README examples."""

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aimesh
import httpx
import pytest

from tests import stacks, tiers
from tests.people import Person
from tests.sdk.python import cutting_proxy
from tests.stacks import RunningStack, until

SDK = Path(__file__).resolve().parents[3] / "sdk" / "python"
LONG = " ".join(f"word{number}" for number in range(300))
#: Takes 5 s, so that the reader leaves before its end.
LONGER = "word " * 1000

addresses = pytest.mark.parametrize("address", tiers.by_day(["gateway", "web"], "web", group="clients"))


@addresses
async def test_plain_and_streamed_answer(stack: RunningStack, ann: Person, address: str) -> None:
    with aimesh.Client(ann.key.secret, stack.url(address)) as client:
        plain = await asyncio.to_thread(client.inference, "three small words", model="echo", system="be brief")
        assert (plain.text, plain.model, plain.finish_reason) == ("three small words", "echo", "stop")
        assert plain.usage == aimesh.Usage(5, 3, 8)
        assert plain.request_id
    async with aimesh.AsyncClient(ann.key.secret, stack.url(address) + "/v1") as client_of_a_loop:
        async with client_of_a_loop.stream(
            messages=[{"role": "user", "content": "three small words"}], model="echo", max_tokens=2
        ) as stream:
            assert [piece async for piece in stream] == ["three", " small"]
        assert (stream.answer.text, stream.answer.finish_reason, stream.answer.usage) == ("three small", "length", aimesh.Usage(3, 2, 5))


@addresses
async def test_errors_have_their_class_and_message(stack: RunningStack, ann: Person, address: str) -> None:
    async with aimesh.AsyncClient("aip_live_" + "x" * 49, stack.url(address)) as anonymous:
        with pytest.raises(aimesh.NotAuthenticated) as bad_key:
            await anonymous.inference("hi", model="echo")
        assert (bad_key.value.code, bad_key.value.status) == ("not_authenticated", 401)
        with pytest.raises(aimesh.NotAuthenticated, match="this is not a valid API key: its checksum or length is wrong"):
            await anonymous.models()
    async with aimesh.AsyncClient(ann.key.secret, stack.url(address)) as client:
        with pytest.raises(aimesh.UnknownModel, match="smollm2") as unknown:
            await client.inference("hi", model="gpt-9")
        assert (unknown.value.param, bool(unknown.value.request_id)) == ("model", True)
        with pytest.raises(aimesh.BadRequest, match="temperature"):
            await client.inference("hi", model="echo", temperature=5)
        with pytest.raises(aimesh.BadRequest, match="prompt is missing; send prompt or messages"):
            async with client.stream(model="echo") as stream:
                await anext(stream)
        with pytest.raises(aimesh.IdempotencyConflict, match="this idempotency key was used for another request"):
            for prompt in ("one", "another"):
                await client.inference(prompt, model="echo", idempotency_key="the same for both")


async def test_models_and_usage(stack: RunningStack, ann: Person) -> None:
    async with aimesh.AsyncClient(ann.key.secret, stack.url("web")) as client:
        assert {"smollm2", "echo"} <= {model.name for model in await client.models()}
        await client.inference("one two three", model="echo")

        async def counted() -> bool:
            return (await client.usage()).request_count == 1

        await until(counted, what="the request is in the usage")
        usage, quota = await client.usage(), await client.quota()
        assert (usage.tokens_used, [day.request_count for day in usage.days]) == (6, [1])
        assert (quota.tier, quota.used_this_hour, quota.user_id) == ("pro", 1, str(ann.id))
        assert "requests_per_hour" in {limit.kind for limit in quota.limits}


CITY = {"type": "object", "properties": {"city": {"enum": ["Kyiv", "Lima"]}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": CITY}}


@addresses
async def test_calls_of_tools_are_the_same_in_a_broken_stream(stack: RunningStack, ann: Person, address: str) -> None:
    wanted: dict[str, Any] = {
        "model": "smollm2", "messages": [{"role": "user", "content": "What is the weather in Kyiv?"}], "tools": [TOOL],
        "tool_choice": "required", "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 2, "max_tokens": 60, "seed": 7,
    }  # fmt: skip
    async with (
        cutting_proxy.before(stack.url(address), [700, 2000]) as broken,
        aimesh.AsyncClient(ann.key.secret, broken.url, max_retries=4) as client,
        client.stream(**wanted) as stream,
    ):
        pieces = [piece async for piece in stream]
        answer = stream.answer
        assert ("".join(pieces), stream.tool_calls) == (answer.text, answer.tool_calls)
    (call,) = answer.tool_calls
    assert (call.name, json.loads(call.arguments)["city"] in {"Kyiv", "Lima"}) == ("get_weather", True)
    assert answer.finish_reason == "tool_calls"
    assert answer.logprobs
    assert all(len(token.top) == 2 and token.top[0].logprob <= 0 for token in answer.logprobs)
    async with aimesh.AsyncClient(ann.key.secret, stack.url(address)) as client:
        again = await client.inference(**wanted)
        assert [(one.name, one.arguments) for one in again.tool_calls] == [(call.name, call.arguments)]
        assert [token.token for token in again.logprobs] == [token.token for token in answer.logprobs]
        result = {"role": "tool", "tool_call_id": again.tool_calls[0].id, "content": "sunny"}
        assert (await client.inference(messages=[*wanted["messages"], again.message, result], model="smollm2", max_tokens=5)).text


async def test_a_format_holds(stack: RunningStack, ann: Person) -> None:
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"], "additionalProperties": False}
    async with aimesh.AsyncClient(ann.key.secret, stack.url("web")) as client:
        answer = await client.inference(
            "Name a color", model="smollm2", max_tokens=60, response_format={"type": "json_schema", "json_schema": {"schema": schema}}
        )
        assert json.loads(answer.text)["color"] in {"red", "blue"}
        with pytest.raises(aimesh.BadRequest, match="top_logprobs requires logprobs=true"):
            await client.inference("hi", model="smollm2", top_logprobs=2)


async def test_credits_and_a_budget_that_is_used_up(stack: RunningStack, ann: Person) -> None:
    async with aimesh.AsyncClient(base_url=stack.url("web")) as anonymous:
        session = await anonymous.login(ann.username, ann.password)
    async with aimesh.AsyncClient(base_url=stack.url("web"), session=session) as logged_in:
        quota = await logged_in.quota()
        assert quota.credits is not None
        assert (quota.credits.available, quota.credits.overage, quota.budget, quota.allowance) == ("0", None, None, None)
        made = await logged_in.keys.create("small", budget="0.001", budget_every="month")
    async with aimesh.AsyncClient(made.secret, stack.url("web")) as client:
        budget = (await client.quota()).budget
        assert budget == aimesh.Budget(limit="0.001", spent="0", reserved="0", available="0.001", every="month")
        with pytest.raises(aimesh.BudgetExhausted, match="budget"):
            await client.inference("word " * 500, model="echo")


async def test_vectors(stack: RunningStack, ann: Person) -> None:
    async with aimesh.AsyncClient(ann.key.secret, stack.url("web")) as client:
        made = await client.embed(["a cat sat", "a cat sat", "quite another thing"], model="echo", dimensions=8)
        first, second, third = made.vectors
        assert (len(first), made.model, made.prompt_tokens) == (8, "echo", 9)
        assert first == second != third
        assert sum(value * value for value in first) == pytest.approx(1, abs=1e-5)
        assert len((await client.embed("one", model="smollm2")).vectors) == 1


async def test_from_account_to_answer(stack: RunningStack) -> None:
    name = f"carol-{time.monotonic_ns()}"
    async with aimesh.AsyncClient(base_url=stack.url("web")) as anonymous:
        user = await anonymous.register(name, f"{name}@example.org", "a long enough passphrase")
        session = await anonymous.login(f"{name}@example.org", "a long enough passphrase")
        with pytest.raises(aimesh.NotAuthenticated, match="the user name or the password is wrong"):
            await anonymous.login(name, "another passphrase")
    assert session.user == user
    stale = replace(session, access_token="eyJ.of.yesterday")
    async with aimesh.AsyncClient(base_url=stack.url("web"), session=stale) as logged_in:
        made = await logged_in.keys.create("laptop", requests_per_minute=60, budget="1.5")
        answers = await asyncio.gather(*(logged_in.inference("hello", model="echo") for _ in range(5)))
        assert [answer.text for answer in answers] == ["hello"] * 5
        assert logged_in.session is not None
        assert logged_in.session.session_token != session.session_token
    async with aimesh.AsyncClient(session.access_token, stack.url("web")) as by_token:
        assert (await by_token.usage()).user_id == user.id
    assert (made.key.name, made.key.requests_per_minute, made.key.budget) == ("laptop", 60, "1.5")
    async with aimesh.AsyncClient(made.secret, stack.url("web")) as client:
        assert (await client.inference("hello", model="echo")).text == "hello"


# --- interruptions and leaving early --------------------------------------------------------------------------------


@addresses
async def test_stream_over_an_unreliable_path_has_no_gap_or_repetition_and_is_billed_once(
    stack: RunningStack, ann: Person, address: str
) -> None:
    async with (
        cutting_proxy.before(stack.url(address), [0, 900, 5000, 2500]) as broken,
        aimesh.AsyncClient(ann.key.secret, broken.url, max_retries=4) as client,
        client.stream(LONG, model="echo", max_tokens=300) as stream,
    ):
        pieces = [piece async for piece in stream]
        assert broken.cuts >= 3
        assert "".join(pieces) == stream.answer.text == LONG
        assert len(pieces) == stream.answer.usage.completion_tokens == 300

        async def counted() -> bool:
            return bool((await client.usage()).request_count)

        await until(counted, what="the request is in the usage")
        assert ((await client.usage()).request_count, (await client.usage()).tokens_used) == (1, 600)


#: Asks for a long answer, and leaves once the event is set.
Leave = Callable[[aimesh.AsyncClient, asyncio.Event], Awaitable[None]]


async def _close(client: aimesh.AsyncClient, seen: asyncio.Event, *, resume: bool = True) -> None:
    async with client.stream(LONGER, model="echo", resume=resume) as stream:
        async for _ in stream:
            if seen.is_set():
                return


async def _close_without_a_key(client: aimesh.AsyncClient, seen: asyncio.Event) -> None:
    await _close(client, seen, resume=False)


async def _close_in_a_thread(client: aimesh.AsyncClient, seen: asyncio.Event) -> None:
    def close(plain: aimesh.Client) -> None:
        with plain, plain.stream(LONGER, model="echo") as stream:
            for _ in stream:
                if seen.is_set():
                    return

    await asyncio.to_thread(close, aimesh.Client(client._context.api_key, client.base_url))


async def _run_out_of_time(client: aimesh.AsyncClient, seen: asyncio.Event) -> None:
    with pytest.raises(aimesh.DeadlineExceeded, match="no answer within"):
        await client.inference(LONGER, model="echo", timeout=1)


async def _be_cancelled(client: aimesh.AsyncClient, seen: asyncio.Event) -> None:
    asking = asyncio.ensure_future(client.inference(LONGER, model="echo"))
    await seen.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


@addresses
@pytest.mark.parametrize("leave", [_close, _close_without_a_key, _close_in_a_thread, _run_out_of_time, _be_cancelled])
async def test_leaving_frees_the_slot(stack: RunningStack, ann: Person, address: str, leave: Leave) -> None:
    url = (await stack.programs())["inference-echo"].url
    async with httpx.AsyncClient(trust_env=False) as looking, aimesh.AsyncClient(ann.key.secret, stack.url(address)) as client:

        async def busy() -> float:
            return stacks.total((await looking.get(f"{url}/metrics")).text, "ai_platform_worker_slots", state="busy", model="echo")

        async def free() -> bool:
            return not await busy()

        seen = asyncio.Event()
        leaving = asyncio.ensure_future(leave(client, seen))
        await until(busy, what="the worker runs it")
        seen.set()
        await leaving
        await until(free, what="the slot is free")
    await stack.recorded(ann.id, 1)
    async with stack.database("gateway") as database:
        (row,) = await database.fetch("SELECT status, completion_tokens FROM request_logs WHERE user_id = $1", ann.id)
    assert (row["status"], row["completion_tokens"] < 1000) == ("cancelled", True)


# --- the README -----------------------------------------------------------------------------------------------------

BLOCKS = re.findall(r"^```python\n(.*?)^```", (SDK / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", tiers.by_day(range(len(BLOCKS)), 0, 4, group="clients"))
async def test_readme_examples_run(stack: RunningStack, ann: Person, tmp_path: Path, number: int) -> None:
    file = tmp_path / f"block_{number}.py"
    file.write_text(BLOCKS[number], encoding="utf-8")
    environment = {
        **{name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        "AIMESH_API_KEY": ann.key.secret,
        "AIMESH_BASE_URL": stack.url("web"),
        "AIMESH_USER": ann.username,
        "AIMESH_PASSWORD": ann.password,
        "PYTHONPATH": str(SDK / "src"),
        "PYTHONWARNINGS": "error",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(file), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment, cwd=tmp_path
    )
    async with asyncio.timeout(200):
        out, err = await process.communicate()
    assert (process.returncode, err.decode()) == (0, "")
    assert out.decode().strip(), "every example shows something"


def test_readme_has_examples() -> None:
    assert len(BLOCKS) >= 5
