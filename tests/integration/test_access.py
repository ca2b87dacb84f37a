"""Refused access, and how soon it takes effect: closed accounts, revoked keys, and other users' userId."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from shared import errors
from shared.api import auth, gateway, usage_report
from shared.api.method import Method
from shared.types import UserId
from tests.integration import asking
from tests.people import ApiClient, Person
from tests.stacks import MESH, RunningStack, until

#: "At once": the time that the issue allows for a change to reach every gateway.
AT_ONCE_SECONDS = 2


async def _is_refused(stack: RunningStack, credential: str) -> bool:
    async with stack.http(credential) as http:
        answer = await http.post("/api/inference", json={"model": "echo", "prompt": "hi"})
    assert answer.status_code in {200, 401}, answer.text
    return answer.status_code == 401


async def _close_by_aicli(stack: RunningStack, person: Person) -> None:
    done = await stack.aicli("admin", "users", "disable", person.username)
    assert done.status == 0, done.err


async def _close_in_the_database(stack: RunningStack, person: Person) -> None:
    async with stack.database("auth") as database:
        await database.execute("UPDATE users SET is_active = false WHERE id = $1", person.id)


@pytest.mark.parametrize("close", [_close_by_aicli, _close_in_the_database])
async def test_a_closed_account_is_refused_at_once(
    stack: RunningStack, api_client: ApiClient, ann: Person, bob: Person, close: Callable[[RunningStack, Person], Awaitable[None]]
) -> None:
    # From now on, the gateway has both credentials cached.
    assert not await _is_refused(stack, ann.key.secret)
    assert not await _is_refused(stack, ann.access_token)
    await close(stack, ann)
    for credential in (ann.key.secret, ann.access_token):
        await until(lambda credential=credential: _is_refused(stack, credential), seconds=AT_ONCE_SECONDS, what="it is refused")  # type: ignore[misc]
    credentials = auth.Credentials(ann.password, ann.username)
    with pytest.raises(errors.NotAuthenticated):
        await api_client.mesh.rpc.call(auth.login_user, auth.LoginUser(credentials))
    with pytest.raises(errors.NotAuthenticated):
        await asking.rpc(api_client.mesh, ann.key.secret, "hi")
    assert (await stack.aicli("infer", "-m", "echo", "hi", AICLI_API_KEY=ann.key.secret)).status == 3
    assert not await _is_refused(stack, bob.key.secret)

    assert (await stack.aicli("admin", "users", "enable", ann.username)).status == 0

    async def works_again() -> bool:
        return not await _is_refused(stack, ann.key.secret)

    await until(works_again, seconds=AT_ONCE_SECONDS, what="an opened account works again")


async def test_a_revoked_key_is_refused_at_once_and_the_other_is_not(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    spare = await api_client.make_key(ann, "spare")
    assert not await _is_refused(stack, spare.secret)
    done = await stack.aicli("keys", "revoke", "spare", AICLI_API_KEY=ann.key.secret)
    assert done.status == 0, done.err
    await until(lambda: _is_refused(stack, spare.secret), seconds=AT_ONCE_SECONDS, what="it is refused")
    assert not await _is_refused(stack, ann.key.secret)


# --- another user's userId --------------------------------------------------------------------------------------------

#: Every method that takes a userId.
ABOUT_SOMEBODY: dict[str, tuple[Method[Any, Any], Callable[[UserId], msgspec.Struct]]] = {
    "generateApiKey": (auth.generate_api_key, lambda user: auth.GenerateApiKey("for you", user_id=user)),
    "listApiKeys": (auth.list_api_keys, auth.ListApiKeys),
    "getUserUsage": (usage_report.get_user_usage, usage_report.GetUserUsage),
    "getUserQuota": (gateway.get_user_quota, gateway.GetUserQuota),
}


@pytest.mark.parametrize("name", ABOUT_SOMEBODY)
async def test_anothers_user_id_is_refused_over_rpc(
    stack: RunningStack, api_client: ApiClient, ann: Person, bob: Person, name: str
) -> None:
    method, request = ABOUT_SOMEBODY[name]
    with pytest.raises(errors.NotAllowed):
        await api_client.mesh.rpc.call(method, request(bob.id), credential=ann.access_token)
    await api_client.mesh.rpc.call(method, request(ann.id), credential=ann.access_token)
    await api_client.mesh.rpc.call(method, request(bob.id), credential=stack.api_key)


@pytest.mark.parametrize("name", ABOUT_SOMEBODY)
async def test_anothers_user_id_is_refused_over_nats_micro(stack: RunningStack, ann: Person, bob: Person, name: str) -> None:
    method, request = ABOUT_SOMEBODY[name]
    subject = f"aimesh.{MESH}.rpc.{method.served_by}.{name}"
    async with stack.operator() as nats:

        async def ask(about: UserId, credential: str) -> str | None:
            headers = {"content-type": "application/json", "authorization": f"Bearer {credential}"}
            answer = await nats.request(subject, msgspec.json.encode(request(about)), timeout=30, headers=headers)
            return (answer.headers or {}).get("Nats-Service-Error-Code")

        assert await ask(bob.id, ann.access_token) == "403"
        assert await ask(ann.id, ann.access_token) is None
        assert await ask(bob.id, stack.api_key) is None


@pytest.mark.parametrize("field", ["userId", "user_id"])
async def test_anothers_user_id_is_refused_over_http(stack: RunningStack, ann: Person, bob: Person, field: str) -> None:
    for service in ("gateway", "web"):
        async with stack.http(ann.access_token, service=service) as http:
            refused = await http.post("/api/auth/api-keys", json={"name": "x", field: str(bob.id)})
            asking.problem(refused, 403, "not_allowed")
            made = await http.post("/api/auth/api-keys", json={"name": "x", field: str(ann.id)})
            assert made.status_code == 201, made.text
            assert made.json()["key"]["user_id"] == str(ann.id)
