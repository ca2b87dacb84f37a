"""Policies over RPC, on a real PostgreSQL: who may change which policy, within what the mesh's policy allows."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest

from services.gateway import store
from services.gateway.configuration.config_store import ConfigStore
from services.gateway.configuration.live_configuration import Bodies, LiveConfiguration
from services.gateway.limits.quotas import Quotas
from services.gateway.rpc_api.policy_rpc import PolicyRpc
from services.gateway.settings import GatewaySettings
from shared import config, errors
from shared.api import audit, auth, organizations
from shared.api import configuration as api
from shared.api.method import Nothing
from shared.api.organizations import Organization, OrganizationDetails, TeamRole
from shared.config_documents import ConfigKind, PlanDocument, PolicyDocument, RouteDocument, TargetDocument, TargetTask
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry import Metrics
from shared.types import KeyId, TenantId, Tier, UserId, UserRole
from tests.services.gateway.fake_counters import FakeCounters
from tests.services.gateway.fakes import OWNER, PERSON, FakeRpc, rpc_call
from tests.services.gateway.test_settings import GIVEN

ADMIN = msgspec.structs.replace(PERSON, username="root", role=UserRole.ADMIN, user_id=UserId(UUID(int=50)))
TEAM, OTHERS = TenantId(UUID(int=70)), TenantId(UUID(int=71))
KEY = KeyId(UUID(int=80))
NOW = datetime.now(UTC)


def api_key(key: KeyId, **fields: Any) -> auth.ApiKey:
    stored = auth.ApiKey(key, PERSON.user_id, "ci", "aip_…", is_active=True, created_at=NOW, team_id=TEAM)
    return msgspec.structs.replace(stored, **fields)


class Governed:
    """A gateway, and the organization TEAM in which the caller has ``role``."""

    def __init__(self, fake: FakeRpc, tables: ConfigStore, live: LiveConfiguration, reporting: AuditReporting) -> None:
        self.fake = fake
        self.tables = tables
        self.live = live
        self.rpc = PolicyRpc(live, fake, reporting, Quotas(FakeCounters(), lambda: live.config.limits, Metrics("gateway")))
        self.keys = [api_key(KEY)]
        self.ended: set[KeyId] = set()
        self.role: TeamRole | None = TeamRole.OWNER
        self.acts: list[audit.AuditedAct] = []

    async def find_organization(self, request: organizations.GetOrganization) -> OrganizationDetails:
        if request.id != TEAM:
            raise errors.NotFound("there is no such organization")
        return OrganizationDetails(Organization(TEAM, "acme", Tier.FREE, NOW, 2, self.role), (), ())

    async def list_keys(self, _request: auth.ListApiKeys) -> auth.ApiKeys:
        return auth.ApiKeys(tuple(self.keys))

    async def find_ended(self, request: auth.FindEndedKeys) -> auth.EndedKeys:
        return auth.EndedKeys(tuple(key for key in request.keys if key in self.ended))

    async def set(self, name: str, who: auth.Principal = PERSON, *, version: int | None = None, **rules: Any) -> api.PolicyState:
        document = msgspec.convert(rules, PolicyDocument) if rules else None
        return await self.rpc.set(api.SetPolicy(name, document, version), rpc_call(who))

    async def explain(self, who: auth.Principal = PERSON, **of: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
        found = await self.rpc.explain(api.ExplainPolicy(**of), rpc_call(who))
        return {rule.rule: (rule.value, rule.levels) for rule in found.rules}


@pytest.fixture
async def governed(postgres_url: str) -> AsyncIterator[Governed]:
    async with open_gateway(postgres_url) as found:
        yield found


@asynccontextmanager
async def open_gateway(url: str, **variables: str) -> AsyncIterator[Governed]:
    fake = FakeRpc()
    async with store.opened(url) as database:
        tables = ConfigStore(database)
        live = LiveConfiguration(tables)
        await live.start(config.load(GatewaySettings, GIVEN | variables))
        reporting = AuditReporting(fake)
        found = Governed(fake, tables, live, reporting)

        async def record(request: audit.RecordActs) -> Nothing:
            found.acts.extend(request.acts)
            return Nothing()

        fake.answers |= {
            organizations.get_organisation.name: found.find_organization, auth.list_api_keys.name: found.list_keys,
            auth.find_ended_keys.name: found.find_ended, audit.record_acts.name: record,
        }  # fmt: skip
        yield found
        await reporting.send()


TEAM_POLICY = f"organization:{TEAM}"


async def test_administrators_change_every_level_and_owners_only_tighten(governed: Governed) -> None:
    await governed.set("mesh", ADMIN, external=["acme"], machines="trusted")
    state = await governed.set(TEAM_POLICY, external=["acme"], machines="internal")
    assert (state.version, state.may_change, state.policy) == (1, True, PolicyDocument(external=("acme",), machines="internal"))
    assert await governed.rpc.get(api.GetPolicy(TEAM_POLICY), rpc_call(PERSON)) == state
    assert governed.live.config.policies.find(TEAM).placement.external == ("acme",)
    with pytest.raises(errors.NotAllowed, match="the mesh's policy does not allow the provider other; it allows acme"):
        await governed.set(TEAM_POLICY, external=["acme", "other"])
    with pytest.raises(errors.NotAllowed, match="the mesh's policy allows no more machines than trusted"):
        await governed.set(TEAM_POLICY, machines="group")
    with pytest.raises(errors.NotAllowed, match="you may not change the policy mesh"):
        await governed.set("mesh", external=["*"])
    await governed.set("mesh", ADMIN, external=["*"])
    await governed.set(TEAM_POLICY, external=["other"])
    removed = await governed.set(TEAM_POLICY)
    assert (removed.policy, removed.version) == (None, 3)


async def test_who_may_change_the_policy_of_an_organization(governed: Governed) -> None:
    governed.role = TeamRole.MEMBER
    state = await governed.rpc.get(api.GetPolicy(TEAM_POLICY), rpc_call(PERSON))
    assert (state.version, state.policy, state.may_change) == (0, None, False)
    with pytest.raises(errors.NotAllowed, match=f"you may not change the policy {TEAM_POLICY}"):
        await governed.set(TEAM_POLICY, machines="own")
    for other in (api.GetPolicy(f"organization:{OTHERS}"), api.SetPolicy(f"organization:{OTHERS}", None)):
        handler = governed.rpc.get if isinstance(other, api.GetPolicy) else governed.rpc.set
        with pytest.raises(errors.NotFound, match="no such organization"):
            await handler(other, rpc_call(PERSON))  # type: ignore[operator]
    own = await governed.set(f"organization:{PERSON.user_id}", machines="own")
    assert (await governed.rpc.get(api.GetPolicy(), rpc_call(PERSON))) == own, "a user's own requests"


async def test_who_may_change_the_policy_of_a_key(governed: Governed) -> None:
    name = f"key:{KEY}"
    assert (await governed.set(name, machines="own")).may_change
    itself = msgspec.structs.replace(OWNER, key_id=KEY)
    assert not (await governed.rpc.get(api.GetPolicy(name), rpc_call(itself))).may_change
    with pytest.raises(errors.NotAllowed, match="you may not change") as refused:
        await governed.set(name, itself, machines="group")
    assert "a key can't change its own policy" in refused.value.hint
    with pytest.raises(errors.NotFound, match="you have no active key"):
        await governed.set(f"key:{UUID(int=81)}", machines="own")
    with pytest.raises(errors.BadRequest, match="has no valid id"):
        await governed.set(f"key:{'-' * 36}", machines="own")


async def test_of_two_changes_of_one_version_only_the_first_is_made(governed: Governed) -> None:
    await governed.set(TEAM_POLICY, version=0, machines="own")
    with pytest.raises(errors.AlreadyExists, match="it is at version 1, not 0"):
        await governed.set(TEAM_POLICY, version=0, machines="trusted")
    assert (await governed.set(TEAM_POLICY, version=1, machines="own")).version == 1, "nothing changed"


async def test_an_explanation_names_the_levels(governed: Governed) -> None:
    await governed.set("mesh", ADMIN, external=["acme", "other"], max_price={"input": "0.5"})
    await governed.set(TEAM_POLICY, ADMIN, external=["acme"], models=["a", "b*"])
    await governed.set(f"key:{KEY}", ADMIN, machines="own", models=["b1"], show_targets=False, flex="never")
    explained = await governed.explain(key=KEY)
    assert explained == {
        "external": ("acme", ("mesh", "organization")), "machines": ("own", ("key",)), "models": ("a, b* and b1", ("organization", "key")),
        "targets": ("all", ("built-in",)), "direct_models": ("yes", ("built-in",)), "max_price.input": ("0.5", ("mesh",)),
        "max_price.output": ("any", ("built-in",)), "show_targets": ("no", ("key",)),
        "store_items": ("yes", ("built-in",)), "stored_prompts": ("never", ("built-in",)), "flex": ("never", ("key",)),
    }  # fmt: skip
    assert await governed.explain(ADMIN, organization=TEAM, key=KEY) == explained
    assert (await governed.explain(organization=TEAM))["machines"] == ("group", ("built-in",))
    assert (await governed.explain())["external"] == ("none", ("mesh", "default"))
    assert (await governed.explain(msgspec.structs.replace(OWNER, key_id=KEY, team_id=TEAM))) == explained
    with pytest.raises(errors.NotFound, match="no such organization"):
        await governed.explain(organization=OTHERS)


async def test_a_change_is_audited(postgres_url: str) -> None:
    async with open_gateway(postgres_url) as governed:
        await governed.set(TEAM_POLICY, machines="own")
    assert [(act.action, act.actor, act.target) for act in governed.acts] == [("policy.set", PERSON.user_id, TEAM_POLICY)]


async def test_providers_of_the_environment_are_allowed_until_somebody_edits_the_policy(postgres_url: str) -> None:
    async with open_gateway(postgres_url, EXTERNAL_PROVIDERS="acme") as governed:
        assert governed.live.config.policies.find(None).placement.external == ("acme",)
        await governed.set("default", ADMIN, external=[])
    async with open_gateway(postgres_url, EXTERNAL_PROVIDERS="acme,more") as governed:
        assert (await governed.explain())["external"] == ("none", ("mesh", "default"))
        assert (await governed.rpc.get(api.GetPolicy("mesh"), rpc_call(ADMIN))).policy == PolicyDocument(
            machines="group", external=("acme", "more")
        )


# --- guardrails -----------------------------------------------------------------------------------------------------------

CARD = "4111 1111 1111 1111"


async def test_a_text_is_tested_by_the_callers_guardrails(governed: Governed) -> None:
    await governed.set("mesh", ADMIN, guard={"prompt": {"card": "mask"}, "answer": {"card": "refuse"}})
    await governed.set(f"organization:{TEAM}", guard={"prompt": {"email": "report"}, "patterns": []})
    text = f"first line\npay {CARD}, a@b.example\n{CARD}"
    found = await governed.rpc.test_guard(api.GuardText(text, organization=TEAM), rpc_call(PERSON))
    assert [(one.kind, one.action, one.level, one.line, one.column) for one in found.matches] == [
        ("card", "mask", "mesh", 2, 5), ("email", "report", "organization", 2, 26), ("card", "mask", "mesh", 3, 1)
    ]  # fmt: skip
    assert (found.shown, found.refused) == ("first line\npay [card], a@b.example\n[card]", False)
    own = await governed.rpc.test_guard(api.GuardText(text), rpc_call(PERSON))
    assert [one.kind for one in own.matches] == ["card", "card"]
    answer = await governed.rpc.test_guard(api.GuardText(text, is_answer=True), rpc_call(PERSON))
    assert (answer.shown, answer.refused, len(answer.matches)) == ("first line\npay ", True, 2)
    with pytest.raises(errors.NotFound, match="no such organization"):
        await governed.rpc.test_guard(api.GuardText(text, organization=OTHERS), rpc_call(PERSON))


@pytest.mark.parametrize("name", ["mesh", "default"])
async def test_only_administrators_see_what_guardrails_of_the_mesh_look_for(governed: Governed, name: str) -> None:
    guard = {
        "prompt": {"own": "mask"}, "answer": {"card": "refuse"}, "countries": ["DE"], "internal_ips": True, "allow": ["ceo@acme.example"],
        "patterns": [{"name": "project", "pattern": "PRJ-[0-9]+", "max_length": 9}],
    }  # fmt: skip
    await governed.set(name, ADMIN, machines="group", guard=guard)
    shown = (await governed.rpc.get(api.GetPolicy(name), rpc_call(PERSON))).policy
    assert msgspec.to_builtins(shown) == {"machines": "group", "guard": {"prompt": {"own": "mask"}, "answer": {"card": "refuse"}}}
    whole = (await governed.rpc.get(api.GetPolicy(name), rpc_call(ADMIN))).policy
    assert whole == msgspec.convert({"machines": "group", "guard": guard}, PolicyDocument)
    own = await governed.set(f"organization:{PERSON.user_id}", guard=guard)
    assert await governed.rpc.get(api.GetPolicy(own.name), rpc_call(PERSON)) == own


async def test_a_tested_text_counts_as_a_request(governed: Governed) -> None:
    plan: Bodies = {(ConfigKind.PLAN, PERSON.tier): PlanDocument(requests_per_minute=2)}
    await governed.live.change(lambda _revision, _documents: plan, origin="applied", author=None, note="")
    await governed.live.reload()
    for _ in range(2):
        await governed.rpc.test_guard(api.GuardText(CARD), rpc_call(PERSON))
    with pytest.raises(errors.Limited, match="2 requests per minute"):
        await governed.rpc.test_guard(api.GuardText(CARD), rpc_call(PERSON))


async def test_only_administrators_set_many_patterns(governed: Governed) -> None:
    own = f"organization:{PERSON.user_id}"

    def guard(count: int) -> dict[str, Any]:
        return {"patterns": [{"name": f"p{number}", "pattern": "PRJ-[0-9]+", "max_length": 9} for number in range(count)]}

    await governed.set(own, ADMIN, guard=guard(6))
    with pytest.raises(errors.BadRequest, match=r"^guard.patterns may have at most 5 entries$"):
        await governed.set(own, guard=guard(6), machines="own")
    with pytest.raises(errors.BadRequest, match=r"^guard.patterns take too long to search"):
        await governed.set(own, guard={"patterns": [{"name": "x", "pattern": "a(?:.?){190}c", "max_length": 256}]})
    assert (await governed.set(own, guard=guard(5))).version == 2


async def test_an_explanation_names_guardrails_and_their_levels(governed: Governed) -> None:
    await governed.set("mesh", ADMIN, guard={"prompt": {"card": "mask"}})
    await governed.set(f"organization:{TEAM}", guard={"prompt": {"card": "refuse"}, "answer": {"secret": "mask", "card": "off"}})
    found = await governed.explain(organization=TEAM)
    rules = {name: value for name, value in found.items() if name.startswith("guard.")}
    assert rules == {"guard.prompt.card": ("refuse", ("organization",)), "guard.answer.secret": ("mask", ("organization",))}


async def test_patterns_and_countries_that_cant_be_used_are_refused(governed: Governed) -> None:
    pattern = {"name": "x", "pattern": "(a", "max_length": 5}
    with pytest.raises(errors.BadRequest, match=r"^guard.patterns.0.pattern can't be used: missing \): \(a$"):
        await governed.set(f"organization:{TEAM}", guard={"patterns": [pattern]})
    with pytest.raises(errors.BadRequest, match=r"^guard.patterns.1.name must be unique$"):
        await governed.set(f"organization:{TEAM}", guard={"patterns": [pattern | {"pattern": "a"}, pattern | {"pattern": "b"}]})
    with pytest.raises(errors.BadRequest, match=r"^guard.countries.0 is not a country"):
        await governed.set(f"organization:{TEAM}", guard={"countries": ["XX"]})


async def test_an_explanation_names_the_moderation_of_each_level(governed: Governed) -> None:
    with pytest.raises(errors.BadRequest, match="moderation is not a route whose targets have"):
        await governed.set("mesh", ADMIN, guard={"moderation": {"route": "moderation", "prompt": "refuse"}})
    target = TargetDocument(name="a", model="m", task=TargetTask.MODERATION)
    bodies: Bodies = {(ConfigKind.ROUTE, "moderation"): RouteDocument(targets=(target,))}
    await governed.live.change(lambda _revision, _documents: bodies, origin="applied", author=None, note="")
    await governed.set("mesh", ADMIN, guard={"moderation": {"route": "moderation", "prompt": "refuse"}})
    rule = {"route": "moderation", "answer": "report", "categories": ["hate", "violence"], "threshold": 0.5, "on_error": "allow"}
    await governed.set(f"organization:{TEAM}", guard={"moderation": rule})
    found = await governed.rpc.explain(api.ExplainPolicy(organization=TEAM), rpc_call(PERSON))
    assert [(one.value, one.levels) for one in found.rules if one.rule == "guard.moderation"] == [
        ("moderation: prompt refuse, answer off, all categories, on error refuse", ("mesh",)),
        ("moderation: prompt off, answer report, hate, violence from 0.5, on error allow", ("organization",)),
    ]


@pytest.mark.parametrize(
    ("mesh", "key", "shown"),
    [
        (None, None, ("allowed", ("built-in",))),
        ("only", None, ("only", ("mesh",))),
        (None, "never", ("never", ("key",))),
        ("only", "never", ("none", ("mesh", "key"))),
    ],
)
async def test_an_explanation_says_which_requests_run(
    governed: Governed, mesh: str | None, key: str | None, shown: tuple[str, tuple[str, ...]]
) -> None:
    await governed.set("mesh", ADMIN, flex=mesh)
    await governed.set(f"key:{KEY}", ADMIN, flex=key)
    assert (await governed.explain(key=KEY))["flex"] == shown
