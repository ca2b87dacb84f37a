"""Flex requests on a whole stack."""

import json

import pytest

from tests.people import Person
from tests.stacks import RunningStack

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three"}], "service_tier": "flex"}


async def test_a_flex_request_costs_half(stack: RunningStack, ann: Person) -> None:
    async with stack.http(ann.key.secret) as http:
        answers = [await http.post("/v1/chat/completions", json=body) for body in (CHAT, {**CHAT, "service_tier": "default"})]
    assert [answer.json()["service_tier"] for answer in answers] == ["flex", "default"], answers[0].text
    usage = answers[0].json()["usage"]
    live = 100 * usage["prompt_tokens"] + 200 * usage["completion_tokens"]
    await stack.recorded(ann.id, 2)
    used = (await stack.aicli("usage", "--json", AICLI_API_KEY=ann.key.secret)).json()
    assert used["cost_micro"] == live + live // 2
    report = (await stack.aicli("admin", "ledger", "verify", "--json")).json()
    assert (report["drift_micro"], report["findings"]) == (0, [])


@pytest.mark.nightly("stacks")
async def test_a_flex_stream_and_flex_embeddings(stack: RunningStack, ann: Person) -> None:
    async with stack.http(ann.key.secret) as http:
        stream = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
        vectors = await http.post("/v1/embeddings", json={"model": "echo", "input": "one two", "service_tier": "flex"})
    chunks = [json.loads(line[6:]) for line in stream.text.splitlines() if line.startswith("data: {")]
    assert {chunk["service_tier"] for chunk in chunks} == {"flex"}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "one two three"
    assert vectors.json()["service_tier"] == "flex"
