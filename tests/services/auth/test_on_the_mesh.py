"""auth as a member of a mesh: authorized nodes call it over NATS, and it stops quickly."""

import asyncio
import time
from typing import ClassVar

import msgspec
import pytest

from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import auth, membership
from shared.identity import certificates
from shared.types import NodeId, Role
from tests import testnet as testnet_module
from tests.services.auth import by_hand
from tests.services.auth.surroundings import ADMIN_PASSWORD, PASSWORD
from tests.testnet import MESH, IdleService, TestNet, until


class Gateway(IdleService):
    """A node that only calls."""

    role: ClassVar[Role] = Role.GATEWAY


def on_mesh(settings: AuthSettings, net: TestNet) -> AuthSettings:
    key_file = net.server.key("auth", Role.AUTH)
    return msgspec.structs.replace(settings, mesh=MESH, nats_url=net.server.url, node_key_file=key_file)


async def test_a_client_registers_and_the_gateway_knows_it(net: TestNet, settings: AuthSettings) -> None:
    await net.start(AuthService, on_mesh(settings, net))
    gateway, client = await net.start(Gateway), await net.client()
    body = auth.UserData("john_doe", "john@example.com", PASSWORD)
    user = await client.rpc.call(auth.register_user, auth.RegisterUser(body))
    session = await client.rpc.call(auth.login_user, auth.LoginUser(auth.Credentials(PASSWORD, username="john_doe")))
    new = await client.rpc.call(auth.generate_api_key, auth.GenerateApiKey("My CLI Key"), credential=session.access_token)
    principal = await gateway.node.rpc.call(auth.validate_api_key, auth.ValidateApiKey(new.api_key))
    assert (principal.user_id, principal.key_name) == (user.id, "My CLI Key")
    with pytest.raises(errors.WrongRole, match=r"a client may not call auth\.validateApiKey"):
        await client.rpc.call(auth.validate_api_key, auth.ValidateApiKey(new.api_key))
    with pytest.raises(errors.AlreadyExists, match="this user name is taken"):
        await client.rpc.call(auth.register_user, auth.RegisterUser(body))


async def test_a_key_revocation_is_announced_and_an_open_watch_does_not_delay_the_drain(
    net: TestNet, settings: AuthSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testnet_module, "DRAIN_SECONDS", 600.0)
    running = await net.start(AuthService, on_mesh(settings, net))
    gateway, client = await net.start(Gateway), await net.client()
    body = auth.UserData("john_doe", "john@example.com", PASSWORD)
    user = await client.rpc.call(auth.register_user, auth.RegisterUser(body))
    session = await client.rpc.call(auth.login_user, auth.LoginUser(auth.Credentials(PASSWORD, username="john_doe")))
    new = await client.rpc.call(auth.generate_api_key, auth.GenerateApiKey(), credential=session.access_token)
    async with gateway.node.rpc.stream(auth.watch_changes, auth.WatchChanges()) as changes:
        heard = aiter(changes)
        assert (await asyncio.wait_for(anext(heard), 30)).user_id is None
        await client.rpc.call(auth.revoke_api_key, auth.RevokeApiKey(str(new.key.id)), credential=session.access_token)
        change = await asyncio.wait_for(anext(heard), 30)
        while change.user_id is None:
            change = await asyncio.wait_for(anext(heard), 30)
        assert change.user_id == user.id
        async with asyncio.timeout(60):
            await running.stop()


async def test_a_service_node_is_certified_and_learns_of_a_revocation(net: TestNet, ca_settings: AuthSettings, postgres_url: str) -> None:
    settings = msgspec.structs.replace(on_mesh(ca_settings, net), dht_bootstrap=())
    running = await net.start(AuthService, settings)
    gateway, client = await net.start(Gateway), await net.client()
    trust = gateway.node.trust
    await until(lambda: trust.certificate)
    found = certificates.check(trust.certificate, running.node.trust.authorities, time.time())
    assert (found.node, found.role) == (gateway.node.id, Role.GATEWAY)
    assert trust.number == running.node.trust.number
    login = auth.LoginUser(auth.Credentials(ADMIN_PASSWORD, username="admin"))
    token = (await client.rpc.call(auth.login_user, login)).access_token
    members = (await client.rpc.call(membership.list_members, membership.ListMembers(), credential=token)).members
    assert {(row.id, row.role) for row in members} >= {(gateway.node.id, Role.GATEWAY), (running.node.id, Role.AUTH)}
    lost = NodeId("U" * 56)
    await by_hand.run(postgres_url, "INSERT INTO auth.nodes (id, role, state) VALUES ($1, 'worker', 'revoked')", lost)
    await until(lambda: trust.revoked == {lost})
