"""Requests for names that no worker serves, and that the pattern of a route matches."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import msgspec
import pytest

from services.gateway.facts import config_snapshot, tiers
from services.gateway.facts.config_snapshot import StoredDocument
from services.gateway.facts.policies import Policies
from services.gateway.facts.request_record import RouteUse
from services.gateway.facts.tiers import LimitRules
from services.gateway.requests.request_validation import ModerationRequest
from services.gateway.scheduling import routing
from shared import context, errors
from shared.api.auth import Principal
from shared.api.gateway import InferenceRequest
from shared.config_documents import ConfigKind, Document, PolicyDocument, RouteDocument, TargetDocument, TargetTask
from shared.types import ModelName, Role
from tests.services.gateway import fakes
from tests.services.gateway.fakes import ALLOWING, KEY, OWNER, FakeWorker, RunningService, node_id
from tests.services.gateway.test_moderation import ModerationWorker

#: One target without a condition: with a plain name, it would be an alias.
PATTERNS = {"claude-*": "local", "claude-opus-*": "large", "claude-opus-5": "local"}


class Patterned:
    def __init__(self, service: RunningService) -> None:
        self.service = service
        service.add_worker(11, FakeWorker(words=("Local",)), "local")
        service.add_worker(12, FakeWorker(words=("Large",)), "large")
        self.use(PATTERNS)

    def use(self, models: dict[str, str], *, limits: LimitRules | None = None, **policies: dict[str, Any]) -> None:
        bodies: dict[str, Document] = {
            name: RouteDocument(targets=(TargetDocument(name="main", model=model),)) for name, model in models.items()
        }
        snapshot = config_snapshot.build(
            1, {(ConfigKind.ROUTE, name): StoredDocument(3, 1, "applied", body) for name, body in bodies.items()}
        )
        documents = {name: msgspec.convert(rules, PolicyDocument) for name, rules in policies.items()}
        self.service.names = snapshot.names
        self.service.config = replace(
            snapshot, limits=limits or self.service.config.limits, policies=Policies(documents) if documents else ALLOWING
        )

    async def ask(self, model: str, who: Principal = OWNER) -> tuple[str, str]:
        """Return the answer and its model."""
        context.start()
        async with self.service.pulled.run(who, InferenceRequest(prompt="hi", model=ModelName(model)), seconds=10) as running:
            text = "".join([chunk.text async for _, chunk in running])
        return text, running.result.model


@pytest.fixture
async def patterned() -> AsyncIterator[Patterned]:
    async with fakes.running_service(free=10_000) as service:
        yield Patterned(service)


async def test_a_pattern_answers_for_every_name_with_its_beginning(patterned: Patterned) -> None:
    for name in ("claude-haiku-9", "claude-haiku-9:latest", "claude-"):
        assert await patterned.ask(name) == ("Local", name), "the answer has the name of the request"
    rows = patterned.service.store.rows.values()
    assert {(row.model_used, row.route) for row in rows} == {("local", RouteUse("claude-*", 3, "main", "main"))}
    for name in ("claude", "gpt-5", "Claude-haiku"):
        with pytest.raises(errors.UnknownModel, match=f"no worker serves the model '{name}'"):
            await patterned.ask(name)


async def test_the_longest_pattern_wins_and_an_exact_name_over_all(patterned: Patterned) -> None:
    assert (await patterned.ask("claude-opus-4"))[0] == "Large"
    assert (await patterned.ask("claude-opus-5"))[0] == "Local"
    patterned.use({"*": "large", "claude-*": "local"})
    assert (await patterned.ask("claude-opus-4"))[0] == "Local"
    assert (await patterned.ask("gpt-5"))[0] == "Large"
    patterned.use({"claude-*": "local", "claude-opus-5": "away"})
    with pytest.raises(errors.UnknownModel, match="'away'"):
        await patterned.ask("claude-opus-5")


async def test_a_model_that_is_served_or_away_is_never_replaced_by_a_pattern(patterned: Patterned) -> None:
    patterned.service.add_worker(13, FakeWorker(words=("Itself",)), "claude-haiku-9")
    assert (await patterned.ask("claude-haiku-9"))[0] == "Itself"
    patterned.service.directory.mark_gone(node_id(13), "silent for 6 s")
    with pytest.raises(errors.NotReachable, match=r"claude-haiku-9 now: .* silent for 6 s"):
        await patterned.ask("claude-haiku-9")


async def test_a_key_for_one_model_does_not_reach_another_one_through_a_pattern(patterned: Patterned) -> None:
    def key(*models: str) -> Principal:
        return msgspec.structs.replace(OWNER, models=tuple(map(ModelName, models)))

    assert (await patterned.ask("claude-haiku-9", key("local")))[0] == "Local"
    assert (await patterned.ask("claude-haiku-9", key("claude-*")))[0] == "Local"
    for only in ("large", "claude-opus-*", "claude-haiku-9", "*"):
        with pytest.raises(errors.NotAllowed, match=r"this key may not use claude-\*"):
            await patterned.ask("claude-haiku-9", key(only))
    with pytest.raises(errors.NotAllowed, match=r"this key may not use claude-opus-\*"):
        await patterned.ask("claude-opus-4", key("claude-*"))


async def test_policies_apply_to_the_name_of_the_request_and_to_the_target(patterned: Patterned) -> None:
    patterned.use(PATTERNS, mesh={"models": ["local", "claude-h*"], "direct_models": False})
    assert (await patterned.ask("claude-haiku-9"))[0] == "Local"
    with pytest.raises(errors.UnknownModel, match="claude-sonnet-9"):
        await patterned.ask("claude-sonnet-9")
    patterned.use(PATTERNS, mesh={"targets": ["large"]})
    with pytest.raises(errors.PolicyForbidden, match=r"forbids claude-\* here: policy_model"):
        await patterned.ask("claude-haiku-9")


async def test_if_only_routes_may_be_named_a_pattern_wins_over_a_served_model(patterned: Patterned) -> None:
    patterned.service.add_worker(13, FakeWorker(words=("Itself",)), "claude-haiku-9")
    patterned.use(PATTERNS, mesh={"direct_models": False})
    assert (await patterned.ask("claude-haiku-9"))[0] == "Local"


async def test_the_limit_of_a_pattern_is_one_for_all_its_names(patterned: Patterned) -> None:
    limits = LimitRules(patterned.service.config.limits.plans, {ModelName("claude-*"): replace(tiers.NO_LIMITS, requests_per_minute=2)})
    patterned.use(PATTERNS, limits=limits)
    for name in ("claude-haiku-9", "claude-sonnet-9"):
        await patterned.ask(name)
    with pytest.raises(errors.Limited, match="the model's limit of 2 requests per minute"):
        await patterned.ask("claude-fable-9")


async def test_the_default_model_and_moderation_may_match_a_pattern(patterned: Patterned) -> None:
    patterned.service.add_worker(13, ModerationWorker(), "guard", only_moderates=True)
    patterned.use(PATTERNS)
    names = patterned.service.names
    moderation = RouteDocument(targets=(TargetDocument(name="main", model="guard", task=TargetTask.MODERATION),))
    routes = config_snapshot.build(1, {(ConfigKind.ROUTE, "omni-*"): StoredDocument(3, 1, "applied", moderation)}).names.routes
    names = replace(names, default="claude-haiku-9", routes={**names.routes, **routes})
    patterned.service.config = replace(patterned.service.config, names=names)
    async with patterned.service.pulled.run(OWNER, InferenceRequest(prompt="hi"), seconds=10) as running:
        assert "".join([chunk.text async for _, chunk in running]) == "Local"
    context.start()
    wanted = ModerationRequest(("hi",), ModelName("omni-moderation-latest"))
    async with patterned.service.pulled.moderate(OWNER, wanted, seconds=10) as moderated:
        assert [verdict.flagged for verdict in await moderated.read()] == [False]
    with pytest.raises(errors.BadRequest, match=r"omni-\* is a moderation route"):
        await patterned.ask("omni-moderation-latest")


async def test_models_lists_no_patterns_and_answers_name_their_route(patterned: Patterned) -> None:
    listed = routing.catalogue(patterned.service.directory.usable(Role.WORKER), patterned.service.names)
    assert [(model.name, model.aliases) for model in listed] == [("large", ()), ("local", ("claude-opus-5",)), ("smollm2", ())]
    transport = httpx.ASGITransport(patterned.service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"X-API-Key": KEY}) as http:
        body = {"model": "claude-haiku-9", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
        answer = await http.post("/v1/messages", json=body)
    assert (answer.json()["model"], answer.headers["x-aimesh-route"]) == ("claude-haiku-9", "claude-*@3")
