"""Requests under documents that only a newer release can read: their callers are refused, and nobody else is."""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import httpx
import msgspec
import pytest

from services.gateway.facts import config_snapshot, tiers
from services.gateway.facts.config_snapshot import DocumentKey, StoredDocument
from services.gateway.facts.tiers import LimitRules
from services.gateway.facts.unreadable import Unreadable
from shared import context, errors
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest
from shared.config_documents import ConfigKind, DefaultModelDocument, Document, PolicyDocument, TrustDocument, TrustMode
from shared.types import KeyId, ModelName, TenantId, UserId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, OWNER, FakeWorker, RunningService

OTHER = msgspec.structs.replace(
    OWNER, user_id=UserId(UUID(int=501)), team_id=TenantId(UUID(int=502)), key_id=KeyId(UUID(int=503)), tier="pro"
)
OPEN: dict[DocumentKey, Document] = {(ConfigKind.POLICY, name): PolicyDocument(external=("*",)) for name in ("mesh", "default")}


class Beside:
    """A gateway beside one of a newer release."""

    def __init__(self, service: RunningService) -> None:
        self.service = service
        service.add_worker(11, FakeWorker(words=("Local",)), "local")
        service.add_worker(12, FakeWorker(words=("Paid",)), "paid", provider="acme")
        service.add_worker(13, FakeWorker(words=("Seven",)), "llama@7")

    def use(self, *unreadable: tuple[ConfigKind | str, str], more: dict[DocumentKey, Document] | None = None) -> None:
        documents = {key: StoredDocument(1, 1, "applied", body) for key, body in (OPEN | (more or {})).items()}
        known = [(ConfigKind(kind), name) for kind, name in unreadable if kind in set(ConfigKind)]
        unknown = [Unreadable(kind, name, 7, "0.5.0") for kind, name in unreadable if kind not in set(ConfigKind)]
        documents |= {(kind, name): StoredDocument(7, 2, "applied", Unreadable(kind, name, 7, "0.5.0")) for kind, name in known}
        snapshot = config_snapshot.build(2, documents, unknown=unknown)
        plans = {name: replace(tiers.NO_LIMITS, unreadable=plan.unreadable) for name, plan in snapshot.limits.plans.items()}
        self.service.names = snapshot.names
        self.service.config = replace(snapshot, limits=LimitRules(plans, snapshot.limits.models))

    async def ask(self, model: str = "local", who: Principal = OWNER) -> str:
        context.start()
        async with self.service.pulled.run(who, InferenceRequest(prompt="hi", model=ModelName(model)), seconds=10) as running:
            return "".join([chunk.text async for _, chunk in running])


@pytest.fixture
async def beside() -> AsyncIterator[Beside]:
    async with fakes.running_service(free=10_000) as service:
        yield Beside(service)


OWN = f"organization:{OWNER.tenant_id}"


@pytest.mark.parametrize(
    ("kind", "name", "model", "spared"),
    [
        pytest.param("policy", "mesh", "local", None, id="the mesh's policy"),
        pytest.param("policy", "default", "local", None, id="the policy of those without one"),
        pytest.param("policy", OWN, "local", ("local", OTHER), id="an organization's policy"),
        pytest.param("policy", f"key:{OTHER.key_id}", "local", ("local", OWNER), id="a key's policy"),
        pytest.param("plan", "free", "local", ("local", OTHER), id="a plan"),
        pytest.param("model_limit", "local", "local", ("paid", OWNER), id="the limits of a model"),
        pytest.param("route", "local", "local", ("paid", OWNER), id="a route with the name of a served model"),
        pytest.param("route", "assistant", "assistant:latest", ("local", OWNER), id="a route"),
        pytest.param("route", "gpt-*", "gpt-7", ("local", OWNER), id="a pattern"),
        pytest.param("trust", "llama", "llama@7", ("local", OWNER), id="who signs a model"),
        pytest.param("trust", "ll*", "llama@7", ("local", OWNER), id="who signs some models"),
        pytest.param("server", "acme", "paid", ("local", OWNER), id="a server"),
        pytest.param("seal", "everything", "local", None, id="a kind of tomorrow"),
    ],
)
async def test_callers_of_a_document_that_cannot_be_read_are_refused(
    beside: Beside, kind: str, name: str, model: str, spared: tuple[str, Principal] | None
) -> None:
    who = OTHER if name.startswith("key:") else OWNER
    beside.use()
    if model in {"local", "paid", "llama@7"}:
        assert await beside.ask(model, who)
    beside.use((kind, name))
    with pytest.raises(
        errors.ConfigUnreadable, match=rf"can't read the current {kind} '{name.replace('*', '.')}' \(version 7\)"
    ) as refused:
        await beside.ask(model, who)
    assert (refused.value.status, "release 0.5.0" in refused.value.hint) == (503, True)
    if spared is not None:
        assert await beside.ask(*spared)


async def test_the_refusal_has_a_code_over_http(beside: Beside) -> None:
    beside.use((ConfigKind.POLICY, OWN))
    transport = httpx.ASGITransport(beside.service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"Authorization": f"Bearer {KEY}"}) as http:
        answer = await http.post("/v1/chat/completions", json={"model": "local", "messages": [{"role": "user", "content": "hi"}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "config_unreadable"), answer.text


async def test_an_organization_with_its_own_policy_needs_no_default(beside: Beside) -> None:
    beside.use((ConfigKind.POLICY, "default"), more={(ConfigKind.POLICY, OWN): PolicyDocument(external=("*",))})
    assert await beside.ask() == "Local"


async def test_a_longer_name_that_can_be_read_counts(beside: Beside) -> None:
    signed: dict[DocumentKey, Document] = {(ConfigKind.TRUST, "llama"): TrustDocument(mode=TrustMode.OFF)}
    beside.use((ConfigKind.TRUST, "ll*"), more=signed)
    assert await beside.ask("llama@7") == "Seven"


async def test_of_kinds_that_restrict_nothing_the_newest_readable_version_is_used(beside: Beside) -> None:
    older = DefaultModelDocument(model="local")
    stored = StoredDocument(2, 2, "applied", Unreadable(ConfigKind.DEFAULT_MODEL, "default", 2, "0.5.0", older))
    snapshot = config_snapshot.build(2, {(ConfigKind.DEFAULT_MODEL, "default"): stored})
    assert snapshot.names.default == "local"
    assert snapshot.needs_release == "0.3.0", "no gateway is cut off for it"
    assert len(snapshot.unreadable) == 1, "an alert fires"
