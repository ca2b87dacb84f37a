"""The logs of all services: a request's id finds it in each of them, and none contains a secret."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest

from shared import errors
from shared.api import auth
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import RunningStack, until

SERVICES = ("auth", "gateway", "inference", "inference-echo", "metrics", "web")


def _lines(stack: RunningStack, name: str) -> Iterator[dict[str, object]]:
    # The service may be writing the last line.
    for line in stack.log(name).rpartition("\n")[0].splitlines():
        yield json.loads(line)


def _logs_with(stack: RunningStack, request_id: object) -> set[str]:
    return {name for name in SERVICES if any(line.get("request_id") == str(request_id) for line in _lines(stack, name))}


@pytest.mark.parametrize("door", ["gateway", "web"])
async def test_one_request_has_one_id_in_the_logs_of_every_hop(stack: RunningStack, api_client: ApiClient, ann: Person, door: str) -> None:
    # The gateway has not seen this key yet, so it asks auth as well.
    fresh = await api_client.make_key(ann, "fresh")
    traceparent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    async with stack.http(fresh.secret, service=door) as http:
        answer = await http.post("/v1/chat/completions", json=asking.chat_body("hi"), headers={"traceparent": traceparent})
    request_id = UUID(answer.headers["x-request-id"])

    async def everywhere() -> bool:
        return {"auth", "gateway", "inference-echo"} <= _logs_with(stack, request_id)

    await until(everywhere, what=f"{request_id} is in every log")
    await stack.recorded(ann.id, 1)
    async with stack.database("gateway") as database:
        assert await database.fetchval("SELECT status FROM request_logs WHERE id = $1", request_id) == "success"


async def test_a_request_over_rpc_has_one_id_too(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    answered = await asking.rpc(api_client.mesh, ann.key.secret, "hi")

    async def everywhere() -> bool:
        return {"gateway", "inference-echo"} <= _logs_with(stack, answered.request_id)

    await until(everywhere, what="the id is in both logs")


async def test_an_id_that_a_caller_sends_is_not_taken(stack: RunningStack, ann: Person) -> None:
    chosen = str(UUID(int=7))
    async with stack.http(ann.key.secret) as http:
        answer = await http.post("/api/inference", json={"model": "echo", "prompt": "hi"}, headers={"x-request-id": chosen})
    assert answer.headers["x-request-id"] != chosen


def test_every_line_of_a_service_is_json_with_a_time_and_an_event(stack: RunningStack) -> None:
    for name in SERVICES:
        for line in _lines(stack, name):
            assert {"ts", "level", "service", "event"} <= line.keys(), (name, line)


async def test_no_prompt_key_or_password_is_in_any_log(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    canary = f"canary{secrets.token_hex(8)}"
    await _say_it_everywhere(stack, api_client, ann, canary)
    await _fail_with_it_everywhere(stack, api_client, ann, canary)
    # When the last request's end is logged, everything before it is, too.
    last = await asking.rpc(api_client.mesh, ann.key.secret, canary)

    async def logged() -> bool:
        return {"gateway", "inference-echo"} <= _logs_with(stack, last.request_id)

    await until(logged, what="the last request is logged")
    hidden = {"canary": canary, "key": ann.key.secret[9:], "password": ann.password, "token": ann.access_token.split(".")[2]}
    hidden["admin's key"] = stack.api_key[9:]
    hidden["admin's password"] = (stack.place.secrets / "admin_password").read_text().strip()
    for path in stack.place.logs.iterdir():
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, secret in hidden.items():
            assert secret not in text, f"the {what} is in {path.name}"


async def _say_it_everywhere(stack: RunningStack, api_client: ApiClient, ann: Person, canary: str) -> None:
    for service in ("gateway", "web"):
        async with stack.http(ann.key.secret, service=service) as http:
            await asyncio.gather(*(ask(http, canary) for ask in asking.OVER_HTTP.values()))
            await http.post("/api/inference", json={"prompt": canary, "model": "smollm2", "maxTokens": 1})
            await http.post("/api/auth/login", json={"username": ann.username, "password": ann.password})
    await stack.aicli("infer", "-m", "echo", canary, AICLI_API_KEY=ann.key.secret)


async def _fail_with_it_everywhere(stack: RunningStack, api_client: ApiClient, ann: Person, canary: str) -> None:
    bodies: list[dict[str, object]] = [
        {"prompt": canary, "model": "no-such"},
        {"prompt": canary, "temperature": canary},
        {"prompt": {canary: canary}},
        {"messages": [{"role": canary, "content": canary}]},
        {canary: canary},
    ]
    for service in ("gateway", "web"):
        async with stack.http(ann.key.secret, service=service) as http:
            for body in bodies:
                assert 400 <= (await http.post("/api/inference", json=body)).status_code < 500
            await http.post("/api/inference", content=f'{{"prompt": "{canary}', headers={"content-type": "application/json"})
            await http.post(f"/api/{canary}", json={})
            await http.get("/v1/models", params={"api_key": ann.key.secret, "prompt": canary})
            await http.get("/v1/models", headers={"authorization": f"Bearer {ann.key.secret}x"})
            await http.get("/v1/models", headers={"authorization": f"Basic {ann.password}"})
            await http.post("/api/auth/login", json={"username": ann.username, "password": ann.password + canary})
            await http.post("/api/auth/register", json={"username": ann.username, "email": "x", "password": ann.password})
    async with httpx.AsyncClient(base_url=stack.url("web"), trust_env=False) as browser:
        await browser.get(f"/login-link?token={canary}")
        await browser.post("/login", data={"username": ann.username, "password": ann.password + canary})
    with pytest.raises(errors.NotAuthenticated):
        credentials = auth.Credentials(ann.password + canary, ann.username)
        await api_client.mesh.rpc.call(auth.login_user, auth.LoginUser(credentials))
