"""Moderation on a whole stack: an upstream behind a worker, OpenAI's client, and a policy that checks a key's requests with it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import openai
import pytest

from tests import replicas
from tests.people import ApiClient, Person
from tests.services.inference.fake_http import Answer, FakeServer, serving
from tests.stacks import RunningStack, until

ROUTES = """
routes:
  moderation: {targets: [{name: rack, model: rack/guard, task: moderation}]}
  llama: {targets: [{name: echo, model: echo, task: moderation, format: llama-guard}]}
"""
MODELS = Answer([json.dumps({"data": [{"id": "guard"}]})])


def verdicts(*flagged: bool) -> Answer:
    found = [{"flagged": one, "categories": {"violence": one}, "category_scores": {"violence": 0.9 if one else 0.1}} for one in flagged]
    return Answer([json.dumps({"id": "modr-1", "model": "guard", "results": found})])


@dataclass
class ModeratedStack:
    stack: RunningStack
    person: Person
    upstream: FakeServer

    def answers(self, answer: Answer) -> None:
        self.upstream.answers = {"/v1/models": MODELS, "/v1/moderations": answer}

    async def chat(self, prompt: str) -> httpx.Response:
        async with self.stack.http(self.person.key.secret) as http:
            return await http.post("/v1/chat/completions", json={"model": "echo", "messages": [{"role": "user", "content": prompt}]})

    async def use(self, *rules: str) -> None:
        """Set the key's moderation rules, and wait until they are used."""
        values = ",".join(("route=moderation", *rules))
        done = await self.stack.aicli("policy", "set", "--key", str(self.person.key.id), "--guard-moderation", values)
        assert done.status == 0, done.err

        async def is_used() -> bool:
            explained = (await self.stack.aicli("policy", "explain", "--json", AICLI_API_KEY=self.person.key.secret)).json()
            found = [rule["value"] for rule in explained if rule["rule"] == "guard.moderation"]
            return any(all(rule.replace("_", " ").replace("=", " ") in value for rule in rules) for value in found)

        await until(is_used, seconds=10, what="the policy is in use")


@asynccontextmanager
async def moderated(stack: RunningStack, person: Person, folder: Path) -> AsyncIterator[ModeratedStack]:
    """Not a fixture: its cleanup needs the running stack."""
    async with serving({"/v1/models": MODELS, "/v1/moderations": verdicts(False)}) as upstream:
        (folder / "upstreams.toml").write_text(f'[rack]\nurl = "{upstream.url}/v1"\nprefix = "rack/"\ntask = "moderation"\n')
        settings = {"INFERENCE_BACKEND": "openai", "OPENAI_UPSTREAMS": str(folder / "upstreams.toml")}
        async with replicas.replica(stack, "inference", folder=folder, name="guards", settings=settings) as worker:
            await worker.ready()
            (folder / "routes.yaml").write_text(ROUTES)
            applied = await stack.aicli("admin", "config", "apply", "-f", str(folder / "routes.yaml"))
            assert applied.status == 0, applied.err

            async def is_served() -> bool:
                routes = (await stack.aicli("admin", "routes", "list", "--json")).json()
                return any(target["workers"] for route in routes if route["name"] == "moderation" for target in route["targets"])

            await until(is_served, seconds=60, what="the worker serves the moderation model")
            try:
                yield ModeratedStack(stack, person, upstream)
            finally:
                await stack.aicli("policy", "set", "--key", str(person.key.id), "--remove")
                (folder / "routes.yaml").write_text("routes: {moderation: null, llama: null}")
                removed = await stack.aicli("admin", "config", "apply", "-f", str(folder / "routes.yaml"))
                assert removed.status == 0, removed.err


@pytest.mark.nightly("stacks")
async def test_moderation_from_an_upstream_to_a_policy(stack: RunningStack, api_client: ApiClient, tmp_path: Path) -> None:
    person = await api_client.register(f"moderated-{uuid4().hex[:8]}")
    client = openai.AsyncOpenAI(api_key=person.key.secret, base_url=stack.url("gateway") + "/v1", max_retries=0)
    async with client, moderated(stack, person, tmp_path) as running:
        running.answers(verdicts(False, True))
        found = await client.moderations.create(input=["be kind", "hurt them"])
        assert [(result.flagged, result.categories.violence) for result in found.results] == [(False, False), (True, True)]
        assert found.model == "moderation"
        assert running.upstream.asked[-1] == {"model": "guard", "input": ["be kind", "hurt them"]}
        with pytest.raises(openai.BadRequestError, match="moderation is a moderation route"):
            await client.chat.completions.create(model="moderation", messages=[{"role": "user", "content": "hi"}])
        # This model repeats its prompt.
        echoed = await client.moderations.create(input=["safe", "unsafe"], model="llama")
        assert [result.flagged for result in echoed.results] == [False, True]
        assert "moderation" not in {model.id async for model in client.models.list()}

        await running.use("prompt=refuse")
        running.answers(verdicts(True))
        refused = await running.chat("hurt them")
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "content_filter")
        assert refused.json()["error"]["param"] == "messages[0].content"
        running.answers(verdicts(False))
        assert (await running.chat("be kind")).json()["choices"][0]["message"]["content"] == "be kind"

        await running.use("prompt=off", "answer=refuse")
        running.answers(verdicts(True))
        (choice,) = (await running.chat("hurt them")).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "content_filter")

        stream = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hurt them"}], stream=True)
        choices = [choice async for chunk in stream for choice in chunk.choices]
        assert "".join(choice.delta.content or "" for choice in choices) == ""
        assert choices[-1].finish_reason == "content_filter"

        # The upstream is down.
        running.answers(Answer(["oops"], status=500))
        answer = await running.chat("be kind")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        await running.use("answer=refuse", "on_error=allow")
        assert (await running.chat("be kind")).json()["choices"][0]["message"]["content"] == "be kind"

        async with stack.http(person.key.secret) as http:
            rows = (await http.get("/api/requests")).json()["requests"]
        checks = [row for row in rows if row["model"] == "rack/guard"]
        assert {row["status"] for row in checks} == {"success", "error"}
        assert len({row["id"] for row in rows}) == len(rows) > len(checks)
