"""Requests under policies: where their prompts go, and what callers see."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from uuid import UUID

import httpx
import msgspec
import pytest

from services.gateway.billing.prices import Price
from services.gateway.facts import model_names, model_routes, policies, worker_requirements
from services.gateway.facts.config_snapshot import ConfigSnapshot
from services.gateway.facts.policies import Policies
from services.gateway.idempotency import cache_keys
from services.gateway.idempotency.idempotency_keys import KeyUse, NewKeyUse, OrphanedKeyUse
from services.gateway.idempotency.recorder import Recorders
from services.gateway.idempotency.response_cache import CacheBounds, ResponseCache
from services.gateway.job_rules import JobRules
from services.gateway.requests.request_validation import ModerationRequest
from services.gateway.scheduling import routing
from services.gateway.scheduling.worker_claims import Claim
from shared import context, errors
from shared.api.auth import Principal
from shared.api.embedding import EmbeddingRequest
from shared.api.gateway import InferenceRequest
from shared.api.ledger import MICRO, ModelPrice
from shared.config_documents import PolicyDocument, RouteDocument, TargetDocument, TargetTask
from shared.protocol.directory import ModelOffer
from shared.stores.cache import Cache
from shared.types import KeyId, MicroCredits, ModelName, Role, TenantId, UserId
from tests import tiers
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, OWNER, FakeWorker, RunningService, announcement, node_id
from tests.services.gateway.pulled import PulledRuns
from tests.services.gateway.requests.test_embedding_runs import EmbeddingWorker, packed
from tests.services.gateway.test_moderation import ModerationWorker
from tests.testnet import until

LOCAL, API, LENT = ModelName("local"), ModelName("api"), ModelName("lent")
ANY: dict[str, Any] = {"external": ["*"]}
OWN = f"organization:{OWNER.tenant_id}"
TO_LOCAL = TargetDocument(name="own", model=LOCAL, order=1)
TO_API = TargetDocument(name="paid", model=API, share=100)


class Policed:
    """A gateway with the route `assistant` to an upstream and then to a machine of the operator, and a model on a lent machine."""

    def __init__(self, service: RunningService) -> None:
        self.service = service
        self.local, self.api, self.lent = FakeWorker(), FakeWorker(words=("Paid", " words")), FakeWorker(words=("Lent",))
        service.add_worker(11, self.local, LOCAL)
        service.add_worker(12, self.api, API, provider="acme")
        service.add_worker(13, self.lent, LENT, owner=str(UUID(int=5)))
        self.pulled = service.pulled
        self.route_fields: dict[str, Any] = {}
        self.use()

    def use(self, *targets: TargetDocument, moderation: tuple[TargetDocument, ...] = (), **documents: dict[str, Any]) -> None:
        wanted = {"assistant": RouteDocument(targets=targets or (TO_API, TO_LOCAL), **self.route_fields)}
        if moderation:
            wanted["moderation"] = RouteDocument(targets=moderation)
        routes = {name: model_routes.compile_route(name, 4, document) for name, document in wanted.items()}
        self.service.names = model_names.ModelNames({"alias": LOCAL}, None, routes=routes)
        self.service.config = ConfigSnapshot(
            names=self.service.names,
            route_names=model_names.ModelNames({"alias": LOCAL}, None, only_routes=True, routes=self.service.names.routes),
            limits=self.service.config.limits,
            policies=Policies({name: msgspec.convert(rules, PolicyDocument) for name, rules in documents.items()}),
        )

    async def ask(self, model: str = "assistant", who: Principal = OWNER, *, key_use: KeyUse | None = None, **fields: Any) -> str:
        context.start()
        request = InferenceRequest(**{"prompt": "hi", "model": ModelName(model), **fields})
        async with self.pulled.run(who, request, seconds=10, key_use=key_use) as running:
            return "".join([chunk.text async for _, chunk in running])

    async def moderate(self, **fields: Any) -> None:
        context.start()
        async with self.pulled.moderate(OWNER, ModerationRequest(("hi",), **fields), seconds=10) as running:
            await running.read()

    async def refusal(self, model: str = "assistant", who: Principal = OWNER, **fields: Any) -> str:
        with pytest.raises(errors.PolicyForbidden) as refused:
            await self.ask(model, who, **fields)
        return refused.value.message


@pytest.fixture
async def policed() -> AsyncIterator[Policed]:
    async with fakes.running_service(free=100_000) as service:
        service.books.prices = (
            Price(1, ModelPrice(None, MicroCredits(MICRO), MicroCredits(2 * MICRO))),
            Price(2, ModelPrice(API, MicroCredits(10 * MICRO), MicroCredits(20 * MICRO))),
        )
        await service.admission.search.ledger.refresh_prices()
        yield Policed(service)


async def test_prompts_leave_the_machines_only_if_mesh_and_organization_allow_it(policed: Policed) -> None:
    policed.use()
    assert await policed.ask() == "Hello world!"
    assert await policed.refusal("api") == "the policy (level: mesh, default) forbids api here: policy_external"
    policed.use(mesh={"external": ["acme", "more"]})
    assert await policed.refusal("api") == "the policy (level: default) forbids api here: policy_external"
    policed.use(mesh=ANY, default={"external": ["acme"]})
    assert await policed.ask() == await policed.ask("api") == "Paid words"
    policed.use(mesh=ANY, default=ANY, **{OWN: {"machines": "group"}})
    assert await policed.ask() == "Hello world!"
    assert await policed.refusal("api") == "the policy (level: organization) forbids api here: policy_external"
    assert len(policed.api.received) == 2


async def test_a_key_and_a_header_forbid_providers_for_their_requests(policed: Policed) -> None:
    policed.use(mesh=ANY, default=ANY, **{f"key:{OWNER.key_id}": {"external": []}})
    assert await policed.ask() == "Hello world!"
    other = msgspec.structs.replace(OWNER, key_id=KeyId(UUID(int=77)))
    assert await policed.ask(who=other) == "Paid words"
    assert await policed.ask(who=other, forbid_external=True) == "Hello world!"
    assert await policed.refusal("api", other, forbid_external=True) == "the policy (level: request) forbids api here: policy_external"


async def test_over_http_the_header_forbids_providers(policed: Policed) -> None:
    policed.use(mesh=ANY, default=ANY)
    transport = httpx.ASGITransport(policed.service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:

        async def post(path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
            return await http.post(path, json=body, headers={"Authorization": f"Bearer {KEY}", **headers})

        chat = {"model": "api", "messages": [{"role": "user", "content": "hi"}]}
        forbid = {"X-Aimesh-External": "forbid"}
        assert (await post("/v1/chat/completions", chat)).status_code == 200
        refused = await post("/v1/chat/completions", chat, **forbid)
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "policy_forbidden")
        for path, body in (
            ("/v1/completions", {"model": "api", "prompt": "hi"}), ("/v1/completions", {"model": "api", "prompt": ["a", "b"]}),
            ("/v1/embeddings", {"model": "api", "input": "hi"}), ("/api/inference", {"model": "api", "prompt": "hi"}),
            ("/api/infer", {"model": "api", "payload": "hi"}), ("/v1/responses", {"model": "api", "input": "hi"}),
            ("/v1/messages", {"model": "api", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}),
        ):  # fmt: skip
            assert (await post(path, body, **forbid)).status_code == 403, path
        wrong = await post("/v1/chat/completions", chat, **{"X-Aimesh-External": "no"})
        assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "X-Aimesh-External")
        models = (await http.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})).json()
        assert {model["id"] for model in models["data"]} == {"assistant", "api", "local", "lent", "smollm2"}
        assert len(policed.api.received) == 1


async def test_embeddings_obey_the_policy(policed: Policed) -> None:
    policed.service.add_worker(21, EmbeddingWorker((packed(1.0),)), "vectors", provider="acme")

    async def embed() -> bool:
        context.start()
        request = EmbeddingRequest(("a",), ModelName("vectors"))
        async with policed.service.pulled.embed(OWNER, request, seconds=10) as running:
            return bool([vectors async for _, vectors in running])

    with pytest.raises(errors.PolicyForbidden, match="policy_external"):
        await embed()
    policed.use(mesh=ANY, default=ANY)
    assert await embed()


async def test_machines(policed: Policed) -> None:
    policed.use(mesh={"machines": "internal"})
    assert await policed.refusal("lent") == "the policy (level: mesh) forbids lent here: policy_machines"
    assert await policed.ask("lent", msgspec.structs.replace(OWNER, user_id=UserId(UUID(int=5)))) == "Lent", "it is this user's own"
    assert await policed.ask("local") == "Hello world!"
    policed.use(default={"machines": "own"})
    assert await policed.refusal("local") == "the policy (level: default) forbids local here: policy_machines"
    assert await policed.refusal() == "the policy (level: mesh, default) forbids assistant here: policy_external, policy_machines"


async def test_a_model_that_the_policy_does_not_list_does_not_exist(policed: Policed) -> None:
    policed.use(mesh=ANY, default={"external": ["*"], "models": ["alias", "ap*"]})
    for name in ("local", "assistant", "nonsense", "lent"):
        with pytest.raises(errors.UnknownModel) as refused:
            await policed.ask(name)
        assert refused.value.message == f"no worker serves the model {name!r}; served models: alias, api"
    assert await policed.ask("alias") == "Hello world!"
    assert await policed.ask("api:latest") == "Paid words"
    assert listed(policed) == {"api", "alias"}


async def test_targets_behind_a_route(policed: Policed) -> None:
    policed.use(mesh=ANY, default={"external": ["*"], "targets": ["local"]})
    assert await policed.ask() == "Hello world!"
    assert await policed.refusal("api") == "the policy (level: default) forbids api here: policy_model"
    policed.use(mesh={"external": ["*"], "targets": []}, default=ANY)
    assert await policed.refusal() == "the policy (level: mesh) forbids assistant here: policy_model"
    assert listed(policed) == set()


async def test_a_price_ceiling_leaves_out_dear_targets(policed: Policed) -> None:
    policed.use(mesh=ANY, default={"external": ["*"], "max_price": {"input": "9.99"}})
    assert await policed.ask() == "Hello world!"
    assert await policed.refusal("api") == "the policy (level: default) forbids api here: price_ceiling"
    policed.use(mesh=ANY, default={"external": ["*"], "max_price": {"input": "10", "output": 20}})
    assert await policed.ask() == "Paid words"
    policed.use(mesh={"external": ["*"], "max_price": {"output": "1.5"}}, default=ANY)
    assert await policed.refusal() == "the policy (level: mesh) forbids assistant here: price_ceiling"


async def test_a_route_that_is_away_for_another_reason_is_not_forbidden(policed: Policed) -> None:
    policed.use(TO_API, TargetDocument(name="gone", model="away", order=1))
    with pytest.raises(errors.NotReachable, match=r"paid \(api\): policy_external; gone \(away\): not_served"):
        await policed.ask()


async def test_only_one_organization_may_name_served_models(policed: Policed) -> None:
    policed.use(**{OWN: {"direct_models": False}})
    with pytest.raises(errors.UnknownModel, match="served models: alias"):
        await policed.ask("local")
    assert await policed.ask("alias") == await policed.ask() == "Hello world!"
    assert listed(policed) == {"alias", "assistant"}
    assert await policed.ask("local", msgspec.structs.replace(OWNER, team_id=TenantId(UUID(int=8)))) == "Hello world!"


async def test_jobs_are_refused_when_their_lines_would_be(policed: Policed) -> None:
    rules = JobRules(policed.service.admission.search, policed.service.callers.identify_owner, lambda _owner: ())
    policed.use()
    assert rules.may_run(OWNER, LOCAL)
    policed.use(**{OWN: {"direct_models": False}})
    assert not rules.may_run(OWNER, LOCAL)
    assert rules.may_run(OWNER, ModelName("assistant"))


async def test_answers_may_hide_their_target(policed: Policed) -> None:
    policed.use(**{OWN: {"show_targets": False}})
    context.start()
    async with policed.service.pulled.run(OWNER, InferenceRequest(prompt="hi", model=ModelName("assistant")), seconds=10) as running:
        async for _ in running:
            pass
    assert running.shown_route is not None
    assert (running.shown_route.route, running.shown_route.variant) == ("assistant", None)
    assert running.result.target is None
    row = policed.service.store.only_row
    assert row.route is not None
    assert row.route.variant == "paid", "the log knows"


async def test_a_worker_that_begins_to_announce_a_provider_gets_nothing_that_it_was_chosen_for(policed: Policed) -> None:
    hanging = FakeWorker(hangs_after=0)
    policed.service.add_worker(31, hanging, "one", load=fakes.WorkerLoad(slots=1))
    asking = [asyncio.create_task(policed.ask("one")) for _ in range(4)]
    await until(lambda: hanging.is_hanging.is_set() and policed.service.dispatch.waiting)
    sent = len(hanging.received)
    offers = (ModelOffer(ModelName("one"), 100, provider="acme"),)
    change = msgspec.structs.replace(announcement(31, "one", load=fakes.WorkerLoad(slots=1)), models=offers)
    policed.service.directory.apply_announcement(change, "nats")
    for task in asking[:sent]:
        task.cancel()
    await asyncio.wait(asking)
    assert {type(task.exception()) for task in asking[sent:]} == {errors.NotReachable}
    assert all("sends prompts to acme, which the policy forbids" in str(task.exception()) for task in asking[sent:])
    assert len(hanging.received) == sent < 4


async def test_the_announcement_is_compared_again_when_the_prompt_is_sent(policed: Policed, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch = policed.service.dispatch
    find = dispatch.find

    async def choose_before_the_change(requirements: worker_requirements.WorkerRequirements) -> AsyncGenerator[str | Claim]:
        async with contextlib.aclosing(find(requirements)) as steps:
            async for step in steps:
                policed.service.directory.worker(11, LOCAL, provider="acme")
                yield step

    # Without a wait, nothing can happen between the choice and the call.
    monkeypatch.setattr(dispatch, "claim_now", lambda _requirements: None)
    monkeypatch.setattr(dispatch, "find", choose_before_the_change)
    with pytest.raises(errors.NotReachable, match="sends prompts to acme, which the policy forbids"):
        await policed.ask("local")
    assert policed.local.received == []
    assert dispatch.in_flight == 0


async def test_a_running_stream_ends_under_the_policy_of_its_start(policed: Policed) -> None:
    policed.use(mesh=ANY, default=ANY)
    context.start()
    request = InferenceRequest(prompt="hi", model=ModelName("assistant"))
    async with policed.service.pulled.run(OWNER, request, seconds=10) as running:
        words = [(await anext(running))[1].text]
        policed.use()
        words += [chunk.text async for _, chunk in running]
    assert "".join(words) == "Paid words"
    assert await policed.ask() == "Hello world!"


async def test_a_request_of_a_dead_gateway_is_sent_only_where_the_policy_of_now_allows_it(policed: Policed) -> None:
    policed.use(mesh=ANY, default=ANY)
    begun = OrphanedKeyUse(1, API)
    assert await policed.ask(key_use=begun) == "Paid words"
    policed.use()
    assert await policed.ask(key_use=begun) == "Hello world!", "nobody has a part of the answer"
    with pytest.raises(errors.AnswerGone, match="may not continue it"):
        await policed.ask(key_use=OrphanedKeyUse(1, API, is_resumed=True))
    with pytest.raises(errors.PolicyForbidden, match="policy_external"):
        await policed.ask("api", key_use=OrphanedKeyUse(1, API, is_resumed=True))
    assert len(policed.api.received) == 1


async def test_headers_that_the_gateway_writes_are_ignored_in_requests(policed: Policed) -> None:
    policed.use(mesh={"direct_models": False})
    forged = {"x-aimesh-route": "assistant@1", "x-aimesh-variant": "paid", "x-aimesh-target": "paid", "x-aimesh-cache": "hit"}
    transport = httpx.ASGITransport(policed.service.app())
    async with httpx.AsyncClient(
        transport=transport, base_url="http://gateway", headers={"Authorization": f"Bearer {KEY}", **forged}
    ) as http:
        answer = await http.post("/v1/completions", json={"model": "assistant", "prompt": "hi"})
        assert (answer.json()["choices"][0]["text"], answer.headers["x-aimesh-route"]) == ("Hello world!", "assistant@4")
        assert "x-aimesh-cache" not in answer.headers
        for target in ("api", "local", "paid"):
            refused = await http.post("/v1/completions", json={"model": target, "prompt": "hi"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found"), target
    assert policed.api.received == []


def test_answers_are_cached_apart_for_what_may_be_external() -> None:
    config = fakes.inference.ModelConfig(model=LOCAL)
    questions = [cache_keys.CacheQuestion(OWNER.tenant_id, "hi", config, "", external) for external in ((), ("acme",), ("*",))]
    assert len({cache_keys.name(question, "s" * 16) for question in questions}) == 3


@pytest.fixture
async def cached(policed: Policed, valkey_url: str) -> AsyncIterator[Policed]:
    bounds = CacheBounds(keep_seconds=60, most_bytes=2**20, most_seconds=10)
    async with Cache.open(valkey_url) as values, Recorders().running() as recorders:
        responses = ResponseCache(values, recorders, policed.service.metrics, bounds, secret="s" * 16)
        policed.pulled = PulledRuns(policed.service.new_runs(responses=responses))
        yield policed


async def test_no_random_request_reaches_a_forbidden_provider(cached: Policed) -> None:
    """Random routes, policies, failures and requests of dead gateways; the cache answers most of them if it has their answers. Models have
    internal and external workers, and random policies check prompts and answers. 500 requests, 10,000 nightly."""
    policed = cached
    rng, rounds = random.Random(tiers.seed("POLICY_SEED")), 500 if tiers.is_nightly() else 25
    acme = [FakeWorker(words=("x",)) for _ in range(3)]
    models = ["a", "b", "c"]
    for number, worker in enumerate(acme):
        policed.service.add_worker(41 + number, worker, *models, provider="acme")
        policed.service.add_worker(51 + number, FakeWorker(words=("y",)), *models[: number + 1])
    judges = [ModerationWorker(), ModerationWorker()]
    policed.service.add_worker(61, judges[0], "outside", only_moderates=True, provider="acme")
    policed.service.add_worker(62, judges[1], "inside", only_moderates=True)
    acme.append(judges[0])
    failures = (None, None, None, errors.LinkLost("gone"), errors.Unavailable("refused"), errors.Overloaded("full"))
    allowed = forbidden = judged = 0
    for turn in range(rounds):
        targets = [
            TargetDocument(name=f"t{number}", model=model, share=100 if not number else None, order=number or None)
            for number, model in enumerate(rng.sample([*models, "away"], rng.randint(1, 3)))
        ]
        documents = {
            name: {"external": rng.choice([[], ["acme"], ["acme"], ["*"]])}
            for name in ("mesh", "default", OWN, f"key:{OWNER.key_id}")
            if rng.random() < 0.8
        }
        for document in documents.values():
            if rng.random() < 0.3:
                rule = {place: rng.choice(["off", "report", "refuse"]) for place in ("prompt", "answer")}
                document["guard"] = {"moderation": {"route": "moderation", "on_error": rng.choice(["refuse", "allow"]), **rule}}
        checks = tuple(
            TargetDocument(name=model, model=model, task=TargetTask.MODERATION, share=None if number else 100, order=number or None)
            for number, model in enumerate(rng.sample(["outside", "inside"], rng.randint(1, 2)))
        )
        policed.route_fields = {"cache": rng.choice([None, "same_request"])}
        policed.use(*targets, moderation=checks, **documents)
        for worker in [*acme, judges[1], *(policed.service.rpc.workers[node_id(51 + number)] for number in range(3))]:
            worker.fails_with = rng.choice(failures)
        for _ in range(20):
            before, checked = sum(len(worker.received) for worker in acme), len(judges[0].received)
            forbid = rng.random() < 0.3
            temperature, text = rng.choice([0.0, None]), ""
            orphaned = OrphanedKeyUse(1, rng.choice([None, *map(ModelName, models)]), is_resumed=rng.random() < 0.5)
            with contextlib.suppress(errors.AimeshError):
                if rng.random() < 0.1:
                    await policed.moderate(forbid_external=forbid)
                text = await policed.ask(
                    rng.choice(["assistant", *models]),
                    key_use=rng.choice([None, None, NewKeyUse(1), orphaned]),
                    forbid_external=forbid,
                    temperature=temperature,
                    prompt=f"{turn} {rng.choice('pq')}",
                )
            levels = ["mesh", OWN if OWN in documents else "default", *(name for name in documents if name.startswith("key:"))]
            lists = [documents[level]["external"] if level in documents else [] for level in levels]
            may = not forbid and all({"acme", "*"}.intersection(names) for names in lists)
            sent = sum(len(worker.received) for worker in acme) - before
            assert may or not (sent or text == "x")
            allowed, forbidden = allowed + sent, forbidden + (not may)
            judged += len(judges[0].received) - checked
    assert allowed > rounds // 5
    assert forbidden > 5 * rounds
    assert judged > rounds // 10
    assert 'ai_platform_response_cache_total{result="hit"}' in policed.service.metrics.render()


def listed(policed: Policed) -> set[str]:
    config = policed.service.config
    policy = config.policies.of(OWNER)
    workers = policies.open_to(OWNER.tenant_id, policy, policed.service.directory.usable(Role.WORKER))
    names = config.names if policy.direct_models.value else config.route_names
    found = routing.catalogue(workers, names, policy.allows_name)
    return {name for model in found for name in (model.name, *model.aliases)}
