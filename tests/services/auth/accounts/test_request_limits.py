"""How many accounts an address may register, and which callers are not counted."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import audit, auth
from shared.types import NodeId, Peer, Role
from tests.services.auth.surroundings import Surroundings

WEB, GATEWAY = Peer(Role.WEB, NodeId("U" + "W" * 55)), Peer(Role.GATEWAY, NodeId("U" + "G" * 55))
MAX = 3


@pytest.fixture
async def world(settings: AuthSettings) -> AsyncIterator[Surroundings]:
    world = Surroundings()
    async with AuthService.open(msgspec.structs.replace(settings, registrations_per_address=MAX), world.as_node()) as world.service:
        yield world


async def register(
    world: Surroundings,
    name: str,
    address: str,
    *,
    by: str | None = None,
    peer: Peer = WEB,
    email: str = "",
    password: str = "a good sentence",
) -> auth.User:
    wanted = auth.RegisterUser(auth.UserData(name, email or f"{name}@example.com", password), auth.ClientFacts(address, "a browser"))
    return await world.ask(auth.register_user, wanted, by, peer=peer)


async def test_an_addresses_registrations_per_hour_are_limited_on_every_path(world: Surroundings) -> None:
    for number in range(MAX):
        await register(world, f"person{number}", "192.0.2.7", peer=(WEB, GATEWAY)[number % 2])
    with pytest.raises(errors.Limited, match="from your address") as refused:
        await register(world, "onemore", "::ffff:192.0.2.7")
    assert "administrator" in refused.value.hint
    assert 3590 < (refused.value.retry_after_seconds or 0) <= 3600
    await register(world, "onemore", "192.0.2.8")


async def test_an_ipv6_network_counts_as_one_and_unknown_addresses_as_their_node(world: Surroundings) -> None:
    for number in range(MAX):
        await register(world, f"six{number}", f"2001:db8::{number}")
        await register(world, f"none{number}", "")
    for address in ("2001:db8::ffff", "", "nonsense"):
        with pytest.raises(errors.Limited, match="too many accounts were requested from your address"):
            await register(world, "onemore", address)


async def test_attempts_that_reveal_taken_names_are_counted_and_others_are_not(world: Surroundings) -> None:
    await register(world, "anna", "192.0.2.9")
    for _ in range(2 * MAX):
        with pytest.raises(errors.BadRequest, match="password: it is shorter than 8 characters"):
            await register(world, "short", "192.0.2.7", password="short")
    for _ in range(MAX):
        with pytest.raises(errors.AlreadyExists, match="this email address is taken"):
            await register(world, "other", "192.0.2.7", email="anna@example.com")
    with pytest.raises(errors.Limited, match="too many accounts were requested from your address"):
        await register(world, "other", "192.0.2.7", email="anna@example.com")


async def test_administrators_loopback_and_mesh_nodes_are_not_counted(world: Surroundings) -> None:
    admin = await world.admin_token()
    for number in range(2 * MAX):
        await register(world, f"added{number}", "192.0.2.7", by=admin)
        await register(world, f"here{number}", ("127.0.0.1", "::1", "::ffff:127.3.2.1")[number % 3])
        await world.register(f"client{number}")
    await register(world, "self", "192.0.2.7")


async def test_a_key_of_another_user_or_an_invalid_one_changes_nothing(world: Surroundings) -> None:
    _, new = await world.user_with_key()
    for number, key in enumerate((new.api_key, "aip_live_nonsense", new.api_key)):
        await register(world, f"person{number}", "192.0.2.7", by=key)
    with pytest.raises(errors.Limited, match="too many accounts were requested from your address"):
        await register(world, "onemore", "192.0.2.7", by=new.api_key)


async def test_the_log_says_who_added_a_user_and_from_where(world: Surroundings) -> None:
    admin = await world.admin_token()
    added, came = await register(world, "added", "192.0.2.7", by=admin), await register(world, "came", "192.0.2.7")
    found = await world.ask(audit.list_audit, audit.ListAudit(action="user.register"), admin)
    by_target = {row.act.target: row.act for row in found.rows}
    root = await world.ask(auth.get_user_called, auth.GetUserCalled("admin"), admin)
    assert (by_target[str(added.id)].actor, by_target[str(added.id)].address) == (root.id, "")
    assert (by_target[str(came.id)].actor, by_target[str(came.id)].address) == (came.id, "192.0.2.7")
