"""Guardrails of a key on a whole stack: what a stock client reads, and what it gets at another gateway after its connection is cut."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import openai
import pytest

from tests import replicas
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until

CARD = "4111 1111 1111 1111"
SECRET = "AKIAIOSFODNN7EXAMPLE"


@pytest.fixture
async def guarded(stack: RunningStack, api_client: ApiClient) -> Person:
    """A user whose key masks cards and refuses secrets; no other key does."""
    person = await api_client.register(f"guarded-{uuid4().hex[:8]}")
    rules = ("--guard-prompt", "email=refuse", "--guard-answer", "card=mask,secret=refuse")
    done = await stack.aicli("policy", "set", "--key", str(person.key.id), *rules)
    assert done.status == 0, done.err
    async with stack.http(person.key.secret) as http:

        async def is_used() -> bool:
            return str((await _chat(http, f"pay {CARD} now")).json()["choices"][0]["message"]["content"]) == "pay [card] now"

        await until(is_used, seconds=10, what="the policy is in use")
    return person


@pytest.fixture
async def client(stack: RunningStack, guarded: Person) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(api_key=guarded.key.secret, base_url=stack.url("gateway") + "/v1", max_retries=0) as made:
        yield made


async def _chat(http: httpx.AsyncClient, prompt: str, **headers: str) -> httpx.Response:
    body = {"model": "echo", "messages": [{"role": "user", "content": prompt}], "stream": "idempotency-key" in headers}
    return await http.post("/v1/chat/completions", json=body, headers=headers)


async def _streamed(client: openai.AsyncOpenAI, prompt: str, **more: Any) -> tuple[str, list[str]]:
    stream = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": prompt}], stream=True, **more)
    choices = [choice async for chunk in stream for choice in chunk.choices]
    return "".join(choice.delta.content or "" for choice in choices), [choice.finish_reason for choice in choices if choice.finish_reason]


async def test_a_stock_client_reads_masked_and_refused_answers(client: openai.AsyncOpenAI) -> None:
    assert await _streamed(client, f"pay {CARD} now, or 4111-1111-1111-1111") == ("pay [card] now, or [card]", ["stop"])
    assert await _streamed(client, f"the key {SECRET} is mine") == ("the key ", ["content_filter"])
    whole = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": f"the key {SECRET} is mine"}])
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("the key ", "content_filter")
    response = await client.responses.create(model="echo", input=f"the key {SECRET} is mine")
    assert (response.output_text, response.status) == ("the key ", "incomplete")
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "content_filter"
    with pytest.raises(openai.BadRequestError, match="refuses: email") as refused:
        await _streamed(client, "write to bob@example.com")
    assert (refused.value.code, refused.value.param) == ("content_filter", "messages[0].content")
    with pytest.raises(openai.BadRequestError, match="logprobs can't be returned"):
        await _streamed(client, "hi", logprobs=True)


@pytest.mark.nightly("stacks")
async def test_a_cut_stream_continues_masked_at_the_other_gateway(stack: RunningStack, guarded: Person, tmp_path: Path) -> None:
    prompt = f"one {CARD} two 4111-1111-1111-1111 three and four"
    async with replicas.replica(stack, "gateway", folder=tmp_path) as second, stack.http(guarded.key.secret) as first:
        await second.ready()
        headers = {"authorization": f"Bearer {guarded.key.secret}"}
        async with httpx.AsyncClient(base_url=second.url, headers=headers, timeout=60, trust_env=False) as other:

            async def is_used() -> bool:
                return "4111" not in (await _chat(other, prompt)).text

            await until(is_used, seconds=10, what="the policy is in use at the second gateway")
            key = {"idempotency-key": uuid4().hex}
            whole = _events(await _chat(first, prompt, **key))
            assert "".join(text for _, text in whole) == "one [card] two [card] three and four"
            for number, (event, _) in enumerate(whole):
                rest = _events(await _chat(other if number % 2 else first, prompt, **key, **{"last-event-id": event}))
                assert rest == whole[number + 1 :]


def _events(answer: httpx.Response) -> list[tuple[str, str]]:
    """Return the id and the text of each event that has both."""
    assert answer.status_code == 200, answer.text
    found = []
    for event in answer.text.split("\n\n"):
        lines = dict(line.partition(": ")[::2] for line in event.splitlines())
        if "id" in lines and lines.get("data", "[DONE]") != "[DONE]":
            choices = json.loads(lines["data"])["choices"]
            if choices and (text := choices[0]["delta"].get("content")):
                found.append((lines["id"], text))
    return found


@pytest.mark.nightly("stacks")
async def test_a_text_is_tested_by_a_keys_guardrails(stack: RunningStack, guarded: Person) -> None:
    mine = {"AICLI_API_KEY": guarded.key.secret}
    found = (await stack.aicli("guard", "test", "-", "--answer", "--json", stdin=f"card {CARD}", **mine)).json()
    assert (found["shown"], [match["kind"] for match in found["matches"]]) == ("card [card]", ["card"])
    explained = (await stack.aicli("policy", "explain", "--json", **mine)).json()
    assert {rule["rule"]: rule["value"] for rule in explained if rule["rule"].startswith("guard.")} == {
        "guard.prompt.email": "refuse", "guard.answer.secret": "refuse", "guard.answer.card": "mask"
    }  # fmt: skip
