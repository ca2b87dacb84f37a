"""People behind one key, over HTTP: whose plan, books and rows a request counts for, and who is refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from services.gateway.callers import MAX_ENTRIES
from shared import errors
from shared.api import auth
from shared.api.auth import ApiKeyLimits, Budget, Principal
from shared.types import MicroCredits, ModelName, RequestStatus, TenantId, Tier, UserId, UserRole
from tests.cases import case
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY_ID, OWNER, USER, FakeWorker, RunningService
from tests.services.gateway.http_answers import BEARER, CHAT, problem
from tests.testnet import until

OURS, OPEN_WEBUI = "X-Aimesh-User", "X-OpenWebUI-User-Email"
BUDGET = Budget(MicroCredits(5_000_000))
NAMING = ("inference:execute", "model:read", "users:name")
#: Path -> a body.
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {**CHAT, "max_tokens": 8},
    "/v1/embeddings": {"input": "hi", "model": "embedder"},
    "/api/inference": CHAT,
    "/ollama/api/chat": {**CHAT, "model": "smollm2"},
    "/ollama/api/generate": {"prompt": "hi", "model": "smollm2"},
    "/ollama/api/embed": {"input": "hi", "model": "embedder"},
}


@dataclass
class Behind:
    """A gateway, and what auth says of the people behind its key."""

    service: RunningService
    key: Principal
    people: dict[str, UserId] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        async def validate(_request: auth.ValidateApiKey) -> Principal:
            return self.key

        self.service.rpc.answers |= {"auth.validateApiKey": validate, "auth.identifyPerson": self._identify}

    async def _identify(self, request: auth.IdentifyPerson) -> Principal:
        assert request.key_id == KEY_ID
        self.asked.append(request.address)
        await asyncio.sleep(0)
        if request.address in self.closed:
            raise errors.PersonRefused("closed")
        return self.person(request.address) if request.address in self.people else self.key

    def person(self, address: str) -> Principal:
        return Principal(
            self.people[address], address.partition("@")[0], UserRole.USER, Tier.PRO, KEY_ID, "webui", scopes=("inference:execute",),
            models=self.key.models, budget=BUDGET, named_by=USER,
        )  # fmt: skip

    async def rows(self, count: int) -> list[Any]:
        await until(lambda: len(self.service.store.rows) >= count)
        assert len(self.service.store.rows) == count
        return list(self.service.store.rows.values())


@asynccontextmanager
async def behind(*scopes: str, free: int = 100, **key: Any) -> AsyncIterator[tuple[Behind, httpx.AsyncClient]]:
    async with fakes.running_service(free=free) as service:
        service.add_worker(2, FakeWorker(), "embedder", only_embeds=True)
        found = Behind(service, msgspec.structs.replace(OWNER, scopes=scopes or NAMING, **key))
        found.people = {"ann@example.org": UserId(UUID(int=101)), "ben@example.org": UserId(UUID(int=102))}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app()), base_url="http://gateway", headers=BEARER) as http:
            yield found, http


@pytest.mark.parametrize("header", [OURS, OPEN_WEBUI])
@pytest.mark.parametrize("path", BODIES)
async def test_a_request_is_the_persons_on_every_api(path: str, header: str) -> None:
    async with behind() as (found, http):
        for number, address in enumerate(("ann@example.org", "ben@example.org"), 1):
            answer = await http.post(path, json=BODIES[path], headers={header: address.title()})
            if "embed" not in path:
                assert answer.status_code == 200, answer.text
            row = (await found.rows(number))[-1]
            assert (row.user_id, row.team_id, row.api_key_id, row.plan) == (found.people[address], None, KEY_ID, "pro")
            if found.service.books.reserved:
                reserved = found.service.books.reserved[-1]
                assert (reserved.owner, reserved.key_id) == (TenantId(found.people[address]), KEY_ID)
                assert (reserved.spending.owner_budget, reserved.spending.key_budget) == (BUDGET, None)
        assert found.asked == ["ann@example.org", "ben@example.org"]


async def test_each_person_has_their_own_limit() -> None:
    """The key's plan has one request an hour, theirs 1,000."""
    async with behind(*NAMING, "users:unknown", free=1) as (_, http):
        for address in (*(["ann@example.org"] * 3), "ben@example.org", "nobody@example.org"):
            assert (await http.post("/v1/chat/completions", json=CHAT, headers={OPEN_WEBUI: address})).status_code == 200
        # Strangers share the limit of the key's plan.
        for headers in ({OPEN_WEBUI: "another@example.org"}, {}):
            problem(await http.post("/v1/chat/completions", json=CHAT, headers=headers), 429, "rate_limited")
        assert (await http.post("/v1/chat/completions", json=CHAT, headers={OURS: "ben@example.org"})).status_code == 200


async def test_the_limits_and_the_budget_of_the_key_are_those_of_strangers() -> None:
    of_key = msgspec.structs.replace(ApiKeyLimits(budget_micro=MicroCredits(9)), requests_per_hour=1)
    async with behind(*NAMING, "users:unknown", key_limits=of_key) as (found, http):
        for address in ("ann@example.org", "ann@example.org", "x@example.org"):
            assert (await http.post("/v1/chat/completions", json=CHAT, headers={OURS: address})).status_code == 200
        budgets = [(reserved.owner, reserved.spending.key_budget) for reserved in found.service.books.reserved]
        ann = TenantId(found.people["ann@example.org"])
        assert budgets == [(ann, None), (ann, None), (TenantId(USER), Budget(MicroCredits(9)))]
        problem(await http.post("/v1/chat/completions", json=CHAT, headers={OURS: "y@example.org"}), 429, "rate_limited")


#: What is no address here, or none that anybody has.
NOBODY = ["nobody@example.org", "ann", "", " ", "ann@example.org,ben@example.org", "a" * 200 + "@example.org", "änn@example.org", "%", "*"]


@pytest.mark.parametrize("path", BODIES)
async def test_nobody_is_refused_with_one_code_or_served_as_the_key(path: str) -> None:
    async with behind() as (found, http):
        for address in NOBODY:
            with case(address):
                answer = await http.post(path, json=BODIES[path], headers={OPEN_WEBUI.encode(): address.encode()})
                error = answer.json()["error"] if not path.startswith("/ollama") else answer.json()
                assert answer.status_code == 403
                assert "person_refused" in answer.text
                assert address.strip() == "" or address not in answer.text, "what a header says is not repeated"
                assert "ENABLE_FORWARD_USER_INFO_HEADERS" in answer.text, error
        for other in (path, "/rpc/gateway.processInferenceRequest"):
            assert (await http.post(other, json=BODIES[path])).status_code == 403
        assert found.asked == ["nobody@example.org"], "what can't be an address is not looked up"
        assert all(row.user_id == USER and row.status == RequestStatus.REJECTED for row in found.service.store.rows.values())
    async with behind(*NAMING, "users:unknown") as (found, http):
        for number, address in enumerate(NOBODY, 1):
            with case(address):
                await http.post(path, json=BODIES[path], headers={OPEN_WEBUI.encode(): address.encode()})
                row = (await found.rows(number))[-1]
                assert (row.user_id, row.api_key_id, row.error_code != "person_refused") == (USER, KEY_ID, True)


async def test_a_closed_account_is_refused_even_if_strangers_are_served() -> None:
    async with behind(*NAMING, "users:unknown") as (found, http):
        found.closed.add("mallory@example.org")
        problem(await http.post("/v1/chat/completions", json=CHAT, headers={OURS: "mallory@example.org"}), 403, "person_refused")


@pytest.mark.parametrize("scopes", [("inference:execute",), ("*",), (), None])
async def test_the_header_of_any_other_credential_is_ignored(scopes: tuple[str, ...] | None) -> None:
    async with behind() as (found, http):
        found.key = msgspec.structs.replace(found.key, scopes=scopes, role=UserRole.ADMIN)
        status = 403 if scopes == () else 200
        for address in ("ann@example.org", "nobody@example.org", "\x01", "a" * 3000):
            answer = await http.post("/v1/chat/completions", json=CHAT, headers={OPEN_WEBUI: address, OURS: address})
            assert answer.status_code == status
        assert not found.asked
        assert {row.user_id for row in await found.rows(4)} == {USER}


async def test_a_person_uses_only_what_the_key_may_use() -> None:
    async with behind(models=(ModelName("qwen"),)) as (found, http):
        found.service.add_worker(3, FakeWorker(), "qwen")
        for model, status in (("qwen", 200), ("smollm2", 403)):
            body = {**CHAT, "model": model}
            assert (await http.post("/v1/chat/completions", json=body, headers={OURS: "ann@example.org"})).status_code == status


async def test_the_header_changes_nothing_but_what_asks_models() -> None:
    """The key's owner manages keys, usage and money. Everyone sees models: an empty list would hide why nobody is served."""
    async with behind(*NAMING, "usage:read") as (found, http):
        for path in ("/api/quota", "/v1/models", "/ollama/api/tags"):
            for headers in ({OURS: "ann@example.org"}, {OURS: "nobody@example.org"}, {}):
                assert (await http.get(path, headers=headers)).status_code == 200
        assert not found.asked


async def test_a_header_that_occurs_twice_is_refused() -> None:
    async with behind() as (_, http):
        for name in (OURS, OPEN_WEBUI):
            headers = [(name, "ann@example.org"), (name, "ben@example.org")]
            problem(await http.post("/v1/chat/completions", json=CHAT, headers=headers), 400, "bad_request")
        both = {OURS: "ben@example.org", OPEN_WEBUI: "ann@example.org"}
        assert (await http.post("/v1/chat/completions", json=CHAT, headers=both)).status_code == 200


async def test_ten_thousand_people_behind_one_key_cost_bounded_memory_and_auth_is_asked_once_for_each() -> None:
    async with behind() as (found, _):
        callers = found.service.callers
        callers._cache.watch_began()
        found.people |= {f"user{number}@example.org": UserId(UUID(int=1000 + number)) for number in range(MAX_ENTRIES + 500)}
        for address in found.people:
            assert (await callers.identify_person(found.key, address)).user_id == found.people[address]
            await callers.identify_person(found.key, address)
        assert len(found.asked) == len(found.people)
        assert len(callers._cache._entries) == MAX_ENTRIES
        assert not callers._locks


@pytest.mark.parametrize("change", [None, USER, UserId(UUID(int=101))], ids=["everyone", "the key's owner", "the person"])
async def test_a_change_of_the_person_or_the_keys_owner_reaches_the_next_request(change: UserId | None) -> None:
    async with behind() as (found, http):
        watching = asyncio.create_task(found.service.callers.watch())
        found.service.rpc.changes.put_nowait(auth.Change(1, UserId(UUID(int=9))))
        await until(lambda: found.service.callers._cache.sequence == 1)
        ann = {OURS: "ann@example.org"}
        for _ in range(2):
            assert (await http.post("/v1/chat/completions", json=CHAT, headers=ann)).status_code == 200
        assert found.asked == ["ann@example.org"]
        del found.people["ann@example.org"]
        found.service.rpc.changes.put_nowait(auth.Change(2, change))
        await until(lambda: found.service.callers._cache.sequence == 2)
        problem(await http.post("/v1/chat/completions", json=CHAT, headers=ann), 403, "person_refused")
        watching.cancel()
        await asyncio.wait([watching])
