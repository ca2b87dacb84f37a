"""What people of a tenant may write, so that no tenant fills the configuration of the mesh, on a real PostgreSQL."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from datetime import timedelta
from uuid import UUID

import asyncpg
import msgspec
import pytest

from services.gateway.configuration import config_checks, ended_keys
from services.gateway.facts.config_snapshot import DocumentKey, StoredDocument
from services.gateway.rpc_api.config_rpc import ConfigRpc
from services.gateway.settings import GatewaySettings
from shared import config, errors
from shared.api import business
from shared.api import configuration as api
from shared.config_documents import (
    MAX_TENANT_BYTES,
    MAX_TENANTS_BYTES,
    MAX_TENANTS_DOCUMENTS,
    ConfigKind,
    Document,
    PolicyDocument,
    RouteDocument,
    TargetDocument,
)
from shared.rpc.audit_reporting import AuditReporting
from shared.types import KeyId, TenantId
from tests.services.gateway.fakes import PERSON, no_servers, rpc_call
from tests.services.gateway.rpc_api.test_policy_rpc import ADMIN, KEY, NOW, OTHERS, TEAM, TEAM_POLICY, Governed, api_key, open_gateway
from tests.services.gateway.test_settings import GIVEN

OWN_POLICY = f"organization:{PERSON.user_id}"
KEYS = [KeyId(UUID(int=1_000 + number)) for number in range(130)]


@pytest.fixture
async def governed(postgres_url: str) -> AsyncIterator[Governed]:
    async with open_gateway(postgres_url) as found:
        found.keys += [api_key(key) for key in KEYS]
        yield found


def config_rpc(governed: Governed) -> ConfigRpc:
    async def names(_request: business.NameUsers) -> business.UserNames:
        return business.UserNames({})

    governed.fake.answers[business.name_users.name] = names
    settings = config.load(GatewaySettings, GIVEN)
    live, rpc = governed.live, governed.fake
    return ConfigRpc(live, governed.tables, settings, rpc, AuditReporting(rpc), no_servers(live, rpc), served=list, gateways=list)


def names_of(size: int) -> list[str]:
    """Return allowed texts of about so many bytes as JSON."""
    return [f"{number:03d}{'x' * 195}" for number in range(size // 201)]


async def age(url: str, **time: int) -> None:
    """Make all versions older."""
    connection = await asyncpg.connect(url, server_settings={"search_path": "gateway"})
    try:
        await connection.execute("UPDATE config_versions SET created_at = created_at - $1::interval", timedelta(**time))
    finally:
        await connection.close()


async def test_policies_of_one_user_never_stop_an_administrator(governed: Governed) -> None:
    for key, number in zip(KEYS, (*[190] * 8, 95, 48, 24, 12, 6, 3), strict=False):
        with suppress(errors.BadRequest):
            names = ["m" * 100] * number
            await governed.set(f"key:{key}", models=names, targets=names, guard={"allow": names_of(number * 150)})
    assert (await governed.set("mesh", ADMIN, models=["m" * 100] * 50)).version == 2
    text = "routes: {assistant: {targets: [{name: local, model: smollm2}]}}"
    applied = await config_rpc(governed).apply(api.ApplyConfig(text), rpc_call(ADMIN))
    assert [change.name for change in applied.changes] == ["assistant"]


async def test_a_tenants_documents_are_bounded_together(governed: Governed) -> None:
    await governed.set(TEAM_POLICY, guard={"allow": names_of(9_000)})
    with pytest.raises(errors.BadRequest, match=r"your policies would have \d+ bytes as JSON; the limit is 16384"):
        await governed.set(f"key:{KEY}", guard={"allow": names_of(9_000)})
    await governed.set(OWN_POLICY, guard={"allow": names_of(9_000)})
    await governed.set(TEAM_POLICY, guard={"allow": names_of(4_000)})
    await governed.set(f"key:{KEY}", guard={"allow": names_of(9_000)})
    written = {key[1]: stored.tenant for key, stored in governed.live.documents.items() if stored.tenant is not None}
    assert written == {TEAM_POLICY: TEAM, f"key:{KEY}": TEAM, OWN_POLICY: TenantId(PERSON.user_id)}


async def test_a_tenant_has_at_most_120_documents(governed: Governed, postgres_url: str) -> None:
    for start in range(0, 120, 20):
        for key in KEYS[start : start + 20]:
            await governed.set(f"key:{key}", machines="own")
        await age(postgres_url, minutes=1)
    with pytest.raises(errors.BadRequest, match="your policies would have 121 documents; the limit is 120"):
        await governed.set(f"key:{KEYS[120]}", machines="own")
    await governed.set(f"key:{KEYS[0]}", machines="internal")
    await governed.set(f"key:{KEYS[0]}")
    await governed.set(f"key:{KEYS[120]}", machines="own")


async def test_an_administrator_removes_a_route_that_tenants_policies_name(governed: Governed) -> None:
    rpc = config_rpc(governed)
    route = "routes: {watch: {targets: [{name: a, model: m, task: moderation}]}}"
    await rpc.apply(api.ApplyConfig(route), rpc_call(ADMIN))
    with pytest.raises(errors.BadRequest, match="gone is not a route whose targets"):
        await governed.set(TEAM_POLICY, guard={"moderation": {"route": "gone", "prompt": "refuse"}})
    await governed.set(TEAM_POLICY, guard={"moderation": {"route": "watch", "prompt": "refuse"}})
    await rpc.apply(api.ApplyConfig("routes: {watch: null}"), rpc_call(ADMIN))


async def test_a_file_has_and_prunes_only_what_administrators_wrote(governed: Governed) -> None:
    await governed.set(TEAM_POLICY, machines="own")
    await governed.set(f"organization:{OTHERS}", ADMIN, machines="internal")
    rpc = config_rpc(governed)
    exported = (await rpc.export(api.ExportConfig(), rpc_call(ADMIN))).text
    assert (f"organization:{OTHERS}" in exported, TEAM_POLICY in exported) == (True, False)
    await rpc.apply(api.ApplyConfig("policies: {mesh: {machines: group}}", prune=True), rpc_call(ADMIN))
    documents = governed.live.config.policies.documents
    assert (f"organization:{OTHERS}" in documents, documents[TEAM_POLICY]) == (False, PolicyDocument(machines="own"))


async def test_a_user_makes_20_changes_a_minute_over_all_gateways(postgres_url: str) -> None:
    async with AsyncExitStack() as stack:
        gateways = [await stack.enter_async_context(open_gateway(postgres_url)) for _ in range(3)]
        for number in range(20):
            await gateways[number % 3].set((TEAM_POLICY, OWN_POLICY)[number % 2], models=[f"m{number}"])
        for gateway in gateways:
            with pytest.raises(errors.Limited, match="you may change policies 20 times a minute") as limited:
                await gateway.set(TEAM_POLICY, models=["more"])
            assert 50 < (limited.value.retry_after_seconds or 0) <= 60
        await gateways[0].set(TEAM_POLICY, ADMIN, models=["more"])
        await gateways[0].set(TEAM_POLICY, msgspec.structs.replace(PERSON, user_id=UUID(int=9)), models=["of-a-colleague"])
        await age(postgres_url, seconds=50)
        with pytest.raises(errors.Limited) as limited:
            await gateways[1].set(TEAM_POLICY, models=["more"])
        assert 0 < (limited.value.retry_after_seconds or 0) <= 10
        await age(postgres_url, seconds=10)
        await gateways[1].set(TEAM_POLICY, models=["more"])


async def test_50_versions_of_a_tenants_document_are_kept(governed: Governed, postgres_url: str) -> None:
    for number in range(60):
        if number % 20 == 0:
            await age(postgres_url, minutes=1)
        await governed.set(TEAM_POLICY, models=[f"m{number}"])
    kept = await governed.tables.versions(ConfigKind.POLICY, TEAM_POLICY, limit=1_000)
    assert [found.version for found in kept] == list(range(60, 10, -1))


async def test_a_policy_ends_with_its_key(postgres_url: str) -> None:
    async with open_gateway(postgres_url) as governed, open_gateway(postgres_url) as other:
        governed.keys += [api_key(key) for key in KEYS[:2]]
        for key in KEYS[:2]:
            await governed.set(f"key:{key}", machines="own")
        governed.ended = {KEYS[0]}
        for _ in range(2):
            await ended_keys.remove_policies(governed.tables, governed.live, governed.fake)
        await other.live.reload()
        for gateway in (governed, other):
            assert set(gateway.live.config.policies.documents) == {"mesh", "default", f"key:{KEYS[1]}"}
            assert (ConfigKind.POLICY, f"key:{KEYS[0]}") not in gateway.live.documents, "it takes no memory"
        assert len(await governed.tables.versions(ConfigKind.POLICY, f"key:{KEYS[0]}", limit=9)) == 2
        await age(postgres_url, hours=25)
        await ended_keys.remove_policies(governed.tables, governed.live, governed.fake)
        assert await governed.tables.policies_of_keys() == [KEYS[1]]
        assert list(await governed.tables.versions(ConfigKind.POLICY, f"key:{KEYS[0]}", limit=9)) == []


@pytest.mark.parametrize("ended", [{"is_active": False}, {"expires_at": NOW - timedelta(seconds=1)}])
async def test_an_ended_key_gets_no_policy(governed: Governed, ended: dict[str, object]) -> None:
    governed.keys = [api_key(KEY, **ended)]
    with pytest.raises(errors.NotFound, match="you have no active key"):
        await governed.set(f"key:{KEY}", machines="own")


def test_what_gateways_load_of_all_tenants_is_bounded() -> None:
    def stored(number: int, size: int) -> dict[DocumentKey, StoredDocument]:
        tenants = (TenantId(UUID(int=index)) for index in range(number))
        body = PolicyDocument()
        return {(ConfigKind.POLICY, f"organization:{tenant}"): StoredDocument(1, 1, "applied", body, tenant, size) for tenant in tenants}

    def mistakes(current: dict[DocumentKey, StoredDocument], tenant: TenantId | None, name: str, body: Document | None) -> list[str]:
        return list(config_checks.check_change(current, {(ConfigKind.POLICY, name): body}, tenant))

    full, newcomer = stored(MAX_TENANTS_BYTES // MAX_TENANT_BYTES, MAX_TENANT_BYTES), TenantId(UUID(int=10**9))
    small = PolicyDocument(models=("a",))
    assert mistakes(full, newcomer, f"organization:{newcomer}", small) == [
        f"the policies of all organizations and users would have {MAX_TENANTS_BYTES + 16} bytes as JSON; the limit is {MAX_TENANTS_BYTES}"
    ]
    many = stored(MAX_TENANTS_DOCUMENTS, 2)
    assert mistakes(many, newcomer, f"organization:{newcomer}", small) == [
        "the policies of all organizations and users would have 20001 documents; the limit is 20000"
    ]
    first = TenantId(UUID(int=0))
    assert mistakes(full, first, f"organization:{first}", small) == [], "it shrinks"
    for current in (full, many):
        assert mistakes(current, None, f"organization:{newcomer}", small) == []
        assert mistakes(current, None, "mesh", small) == []
    route = RouteDocument(targets=(TargetDocument(name="a", model="m"),))
    assert list(config_checks.check_change(full, {(ConfigKind.ROUTE, "r"): route}, None)) == []
