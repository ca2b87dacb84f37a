"""Accounts and keys over HTTP, with a fake mesh: what the gateway asks of auth, with which credential, and how it shows the response."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from shared import errors
from shared.api import auth
from shared.api.method import Nothing
from shared.limits import BY_NAME
from shared.types import Credential, KeyId, MicroCredits, ModelName, Tier, UserId, UserRole
from tests.services.gateway.fakes import KEY, KEY_ID, TOKEN, USER, RunningService
from tests.services.gateway.http_answers import problem

AT = datetime(2026, 3, 2, 12, tzinfo=UTC)
ADA = auth.User(USER, "ada", "ada@example.org", UserRole.USER, Tier.FREE, is_active=True, created_at=AT)
SESSION = auth.LoginSession(Credential("a.b.c"), 600, "s" * 43, ADA, step=auth.Step.ENTER_CODE, team_id=None, theme="dark")
API_KEY = auth.ApiKey(
    KEY_ID, USER, "ci", "aip_live_abc…wxyz", is_active=True, created_at=AT, kind=auth.KeyKind.TEST,
    limits=auth.ApiKeyLimits(requests_per_hour=60, concurrency=2, budget_micro=MicroCredits(2_500_000), budget_every=auth.Every.MONTH),
    bounds=auth.KeyBounds(("inference:execute",), (ModelName("smollm2"),), ("192.0.2.0/24",)), expires_at=AT,
)  # fmt: skip


@dataclass
class Auth:
    """A fake auth that records its requests and their credentials."""

    running_service: RunningService
    received: list[tuple[str, msgspec.Struct, Credential | None]] = field(default_factory=list)

    def answers(self, method: str, answer: msgspec.Struct | errors.AimeshError) -> None:
        async def give(request: msgspec.Struct) -> msgspec.Struct:
            self.received.append((method, request, self.running_service.rpc.credentials[-1]))
            if isinstance(answer, errors.AimeshError):
                raise answer
            return answer

        self.running_service.rpc.answers[method] = give

    @property
    def only(self) -> tuple[msgspec.Struct, Credential | None]:
        ((_, request, credential),) = self.received
        return request, credential


@pytest.fixture
def api_client(running_service: RunningService) -> Auth:
    return Auth(running_service)


@pytest.fixture
async def http(running_service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(running_service.app(), client=("192.0.2.7", 50_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"user-agent": "curl/8\x7f.1"}) as client:
        yield client


def bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


# --- registration and login -----------------------------------------------------------------------------------------------

REGISTER = {"username": "ada", "email": "ada@example.org", "password": "pass word"}


@pytest.mark.parametrize("credential", [None, KEY], ids=["a visitor", "somebody with a key, for meshes that are closed"])
async def test_a_user_registers(api_client: Auth, http: httpx.AsyncClient, credential: Credential | None) -> None:
    api_client.answers("auth.registerUser", msgspec.structs.replace(ADA, tier="free@1"))
    answer = await http.post("/api/auth/register", json=REGISTER, headers={} if credential is None else bearer(credential))
    assert (answer.status_code, answer.json()) == (
        201,
        {
            "id": str(USER), "username": "ada", "email": "ada@example.org", "role": "user", "tier": "free", "is_active": True,
            "created_at": "2026-03-02T12:00:00Z",
        },
    )  # fmt: skip
    assert api_client.only == (
        auth.RegisterUser(auth.UserData("ada", "ada@example.org", "pass word"), auth.ClientFacts("192.0.2.7", "curl/8.1")),
        credential,
    )


async def test_a_login_forwards_where_it_comes_from(api_client: Auth, http: httpx.AsyncClient) -> None:
    api_client.answers("auth.loginUser", SESSION)
    answer = await http.post("/api/auth/login", json={"username": "ada", "password": "pass word", "code": "123456"}, headers=bearer(KEY))
    assert answer.status_code == 200
    credentials = auth.Credentials("pass word", "ada", None, "123456")
    expected = auth.LoginUser(credentials, auth.SessionKind.PROGRAM, auth.ClientFacts("192.0.2.7", "curl/8.1"))
    assert api_client.only == (expected, None), "a login has no credential, whatever else was sent"
    shown = answer.json()
    assert {name: shown[name] for name in ("access_token", "token_type", "expires_in", "session_token", "step")} == {
        "access_token": "a.b.c", "token_type": "Bearer", "expires_in": 600, "session_token": "s" * 43, "step": "enter_code",
    }  # fmt: skip
    assert shown["user"]["username"] == "ada"
    assert "theme" not in shown, "pages ask for it over RPC"
    assert answer.headers["cache-control"] == "no-store"


async def test_the_second_step_uses_the_login_of_the_first(
    running_service: RunningService, api_client: Auth, http: httpx.AsyncClient
) -> None:
    halfway = auth.Principal(USER, "ada", UserRole.ADMIN, Tier.FREE, step=auth.Step.ENTER_CODE)

    async def identify(_request: auth.Identify) -> auth.Principal:
        return halfway

    running_service.rpc.answers["auth.identify"] = identify
    api_client.answers("auth.confirmLogin", SESSION)
    problem(await http.get("/api/auth/api-keys", headers=bearer(TOKEN)), 403, "second_factor_needed")
    assert api_client.received == [], "the first step alone gives no other access"
    assert (await http.post("/api/auth/confirm", json={"code": "123456"}, headers=bearer(TOKEN))).status_code == 200
    assert api_client.only == (auth.ConfirmLogin("123456"), TOKEN)


@pytest.mark.parametrize("name", ["session_token", "sessionToken"])
async def test_a_session_is_refreshed_and_ended_by_its_token_alone(api_client: Auth, http: httpx.AsyncClient, name: str) -> None:
    api_client.answers("auth.refreshSession", SESSION)
    api_client.answers("auth.logoutUser", Nothing())
    assert (await http.post("/api/auth/refresh", json={name: "t" * 43})).json()["session_token"] == "s" * 43
    assert (await http.post("/api/auth/logout", json={name: "t" * 43})).json() == {"done": True}
    assert [(method, credential) for method, _, credential in api_client.received] == [
        ("auth.refreshSession", None),
        ("auth.logoutUser", None),
    ]
    assert [request for _, request, _ in api_client.received] == [auth.RefreshSession("t" * 43), auth.LogoutUser("t" * 43)]


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("register", {"username": "ada", "email": "a@example.org"}, "password"),
        ("register", {**REGISTER, "role": "admin"}, "role"),
        ("register", {**REGISTER, "username": 5}, "username"),
        ("register", {**REGISTER, "isActive": True}, "is_active"),
        ("login", {"username": "ada"}, "password"),
        ("login", {"username": "ada", "password": "x", "kind": "browser"}, "kind"),
        ("login", {"username": "ada", "password": "x", "client": {"address": "192.0.2.1"}}, "client"),
        ("login", {"username": ["ada"], "password": "x"}, "username"),
        ("refresh", {}, "session_token"),
        ("refresh", {"session_token": None}, "session_token"),
        ("logout", {"session_token": "a", "sessionToken": "b"}, "session_token"),
    ],
)
async def test_an_invalid_body_names_its_field_and_never_reaches_auth(
    running_service: RunningService, http: httpx.AsyncClient, path: str, body: dict[str, object], named: str
) -> None:
    error = problem(await http.post(f"/api/auth/{path}", json=body), 400, "bad_request")
    assert (error["param"], running_service.rpc.called) == (named, [])


@pytest.mark.parametrize(
    "operation",
    [("login", "auth.loginUser"), ("register", "auth.registerUser"), ("refresh", "auth.refreshSession")],
    ids=lambda pair: pair[0],
)
@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (errors.NotAuthenticated("user name or password are wrong"), (401, "not_authenticated")),
        (errors.AlreadyExists("the name is taken"), (409, "already_exists")),
        (errors.Limited("too many tries", retry_after_seconds=30), (429, "rate_limited")),
        (errors.NotReachable("no auth"), (503, "not_reachable")),
    ],
)
async def test_refusals_of_auth_keep_their_message(
    api_client: Auth, http: httpx.AsyncClient, operation: tuple[str, str], error: errors.AimeshError, shown: tuple[int, str]
) -> None:
    (path, method), (status, code) = operation, shown
    bodies = {"login": {"username": "ada", "password": "x"}, "register": REGISTER, "refresh": {"session_token": "x"}}
    api_client.answers(method, error)
    answer = await http.post(f"/api/auth/{path}", json=bodies[path])
    assert problem(answer, status, code)["message"] == error.message
    assert ("retry-after" in answer.headers) is (status in {429, 503})


# --- keys -----------------------------------------------------------------------------------------------------------------

SHOWN_KEY = {
    "id": str(KEY_ID), "user_id": str(USER), "name": "ci", "preview": "aip_live_abc…wxyz", "is_active": True,
    "created_at": "2026-03-02T12:00:00Z", **dict.fromkeys(BY_NAME), "requests_per_hour": 60, "concurrency": 2,
    "budget": "2.5", "budget_every": "month", "kind": "test",
    "scopes": ["inference:execute"], "models": ["smollm2"], "networks": ["192.0.2.0/24"],
    "last_used_at": None, "expires_at": "2026-03-02T12:00:00Z", "made_by": None,
}  # fmt: skip


@pytest.mark.parametrize("in_camel_case", [False, True])
async def test_a_key_is_created_with_all_its_limits_for_the_caller(
    api_client: Auth, http: httpx.AsyncClient, *, in_camel_case: bool
) -> None:
    api_client.answers("auth.generateApiKey", auth.CreatedApiKey(KEY, API_KEY))
    other = UUID(int=9)
    names = ("userId", "requestsPerHour", "budgetEvery") if in_camel_case else ("user_id", "requests_per_hour", "budget_every")
    body = {
        "name": "ci", names[0]: str(other), names[1]: 60, "concurrency": 2, "budget": "2.5", names[2]: "month", "kind": "test",
        "scopes": ["inference:execute"], "models": ["smollm2"], "networks": ["192.0.2.0/24"], "days": 7,
    }  # fmt: skip
    answer = await http.post("/api/auth/api-keys", json=body, headers=bearer(TOKEN))
    assert (answer.status_code, answer.json()) == (201, {"api_key": KEY, "key": SHOWN_KEY})
    assert answer.headers["cache-control"] == "no-store"
    bounds = auth.KeyBounds(("inference:execute",), (ModelName("smollm2"),), ("192.0.2.0/24",))
    expected = auth.GenerateApiKey("ci", UserId(other), API_KEY.limits, auth.KeyKind.TEST, bounds, 7)
    assert api_client.only == (expected, TOKEN)


async def test_omitted_fields_are_left_to_auth(api_client: Auth, http: httpx.AsyncClient) -> None:
    api_client.answers("auth.generateApiKey", auth.CreatedApiKey(KEY, API_KEY))
    await http.post("/api/auth/api-keys", json={}, headers=bearer(TOKEN))
    assert api_client.only == (auth.GenerateApiKey(), TOKEN)


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"kind": "root"}, "kind"),
        ({"budget": "2.5", "budget_every": "year"}, "budget_every"),
        ({"scopes": "inference:execute"}, "scopes"),
        ({"scopes": [1]}, "scopes[0]"),
        ({"models": {"a": 1}}, "models"),
        ({"networks": [None]}, "networks[0]"),
        ({"days": -1}, "days"),
        ({"days": 3651}, "days"),
        ({"expires_at": "2026-03-02T12:00:00Z"}, "expires_at"),
        ({"user_id": "ada"}, "user_id"),
        ({"name": None}, "name"),
    ],
)
async def test_invalid_limits_name_their_field(api_client: Auth, http: httpx.AsyncClient, body: dict[str, object], named: str) -> None:
    api_client.answers("auth.generateApiKey", auth.CreatedApiKey(KEY, API_KEY))
    error = problem(await http.post("/api/auth/api-keys", json=body, headers=bearer(TOKEN)), 400, "bad_request")
    assert (error["param"], api_client.received) == (named, [])


async def test_auths_refusal_of_a_limit_reaches_the_caller(api_client: Auth, http: httpx.AsyncClient) -> None:
    refusal = errors.NotAllowed("you cannot give what you have not: model:write", hint="leave these scopes out")
    api_client.answers("auth.generateApiKey", refusal)
    error = problem(await http.post("/api/auth/api-keys", json={"scopes": ["model:write"]}, headers=bearer(KEY)), 403, "not_allowed")
    assert (error["message"], error["hint"]) == (refusal.message, refusal.hint)


async def test_keys_are_listed_without_their_secrets(api_client: Auth, http: httpx.AsyncClient) -> None:
    for_ever = auth.ApiKey(KeyId(UUID(int=8)), USER, "old", "p", is_active=False, created_at=AT, last_used_at=AT)
    api_client.answers("auth.listApiKeys", auth.ApiKeys((API_KEY, for_ever)))
    answer = await http.get("/api/auth/api-keys", headers=bearer(KEY))
    first, second = answer.json()["keys"]
    assert first == SHOWN_KEY
    assert (second["kind"], second["scopes"], second["expires_at"], second["budget"], second["is_active"]) == (
        "live",
        [],
        None,
        None,
        False,
    )
    assert api_client.only == (auth.ListApiKeys(), KEY)


@pytest.mark.parametrize(
    ("path", "which"),
    [
        ("ci", "ci"),
        (str(KEY_ID), str(KEY_ID)),
        ("my%20laptop", "my laptop"),
        ("a/b", "a/b"),
        ("%C3%BC", "ü"),
        ("..%2Fother", "../other"),
    ],
)
async def test_a_key_is_revoked_by_its_id_or_its_name(api_client: Auth, http: httpx.AsyncClient, path: str, which: str) -> None:
    api_client.answers("auth.revokeApiKey", API_KEY)
    answer = await http.delete(f"/api/auth/api-keys/{path}", headers=bearer(KEY))
    assert (answer.status_code, answer.json()) == (200, SHOWN_KEY)
    assert api_client.only == (auth.RevokeApiKey(which), KEY)


async def test_a_revocation_that_the_recovery_log_lacks_says_so(api_client: Auth, http: httpx.AsyncClient) -> None:
    api_client.answers("auth.revokeApiKey", msgspec.structs.replace(API_KEY, logged=False))
    answer = await http.delete("/api/auth/api-keys/ci", headers=bearer(KEY))
    assert (answer.status_code, answer.json()) == (200, {**SHOWN_KEY, "logged": False})


async def test_a_key_is_revoked_with_all_keys_that_it_created(api_client: Auth, http: httpx.AsyncClient) -> None:
    api_client.answers("auth.revokeApiKey", API_KEY)
    assert (await http.delete("/api/auth/api-keys/ci?with_made=true", headers=bearer(KEY))).status_code == 200
    assert api_client.only == (auth.RevokeApiKey("ci", with_made=True), KEY)
    assert (await http.delete("/api/auth/api-keys/ci?withMade=true", headers=bearer(KEY))).status_code == 200
    assert api_client.received[-1][1:] == (auth.RevokeApiKey("ci", with_made=True), KEY)
    problem(await http.delete("/api/auth/api-keys/ci?with=all", headers=bearer(KEY)), 400, "bad_request")


async def test_a_missing_key_name_is_refused(api_client: Auth, http: httpx.AsyncClient) -> None:
    api_client.answers("auth.revokeApiKey", API_KEY)
    problem(await http.delete("/api/auth/api-keys/", headers=bearer(KEY)), 404, "not_found")
    assert api_client.received == []


# --- signing keys ---------------------------------------------------------------------------------------------------------


async def test_anyone_may_fetch_and_cache_the_signing_keys(api_client: Auth, http: httpx.AsyncClient) -> None:
    api_client.answers("auth.getSigningKeys", auth.SigningKeys((auth.SigningKey("2026-1", "x" * 43),)))
    answer = await http.get("/.well-known/jwks.json")
    assert answer.json() == {"keys": [{"kid": "2026-1", "x": "x" * 43, "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA"}]}
    assert answer.headers.get_list("cache-control") == ["public, max-age=300"]
    assert any(name.lower() == "x-content-type-options" for name in answer.headers)


async def test_an_empty_set_of_signing_keys_is_not_cached(api_client: Auth, http: httpx.AsyncClient) -> None:
    api_client.answers("auth.getSigningKeys", errors.NotReachable("no auth"))
    answer = await http.get("/.well-known/jwks.json")
    problem(answer, 503, "not_reachable")
    assert answer.headers.get_list("cache-control") == ["no-store"]


def test_only_the_creation_of_a_key_returns_its_secret() -> None:
    """Checked by type: answers that show a key again have only a preview."""
    from services.gateway.http_api import rest_accounts

    kinds: list[Any] = [rest_accounts.ApiKeyView, rest_accounts.ApiKeysAnswer, rest_accounts.UserAnswer, rest_accounts.PublicKey]
    for kind in kinds:
        assert not {"api_key", "password", "secret", "access_token"} & {each.name for each in msgspec.structs.fields(kind)}


async def test_many_sign_ins_are_sent_to_auth_a_few_at_a_time(running_service: RunningService, http: httpx.AsyncClient) -> None:
    running, at_once, gate = 0, 0, asyncio.Event()

    async def log_in(_: msgspec.Struct) -> msgspec.Struct:
        nonlocal running, at_once
        running += 1
        at_once = max(at_once, running)
        await gate.wait()
        running -= 1
        return SESSION

    running_service.rpc.answers["auth.loginUser"] = log_in
    body = {"username": "ada", "password": "correct horse"}
    async with asyncio.TaskGroup() as tasks:
        crowd = [tasks.create_task(http.post("/api/auth/login", json=body)) for _ in range(30)]
        async with asyncio.timeout(30):
            while running < 4:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
        # Callers with a credential don't wait in this queue.
        models = await http.get("/v1/models", headers={"authorization": f"Bearer {KEY}"})
        assert models.status_code == 200
        gate.set()
    assert [answer.result().status_code for answer in crowd] == [200] * 30
    assert at_once == 4, "one address gets at most half of the turns"
