"""What the audit log records of calls that the gate refused: who, what, why, and from where."""

import asyncio

import pytest

from shared import errors
from shared.api import audit, auth
from shared.api.audit import AuditedAct, Result
from shared.types import NodeId, Peer, Role
from tests.services.auth.mfa.equipment import WEB
from tests.services.auth.surroundings import CLIENT, PASSWORD, Surroundings

GATEWAY = Peer(Role.GATEWAY, NodeId("U" + "G" * 55))
#: Only administrators may make this call, directly or through another service.
ASKED = auth.ListUsers()


@pytest.fixture
def noted(world: Surroundings, monkeypatch: pytest.MonkeyPatch) -> list[AuditedAct]:
    acts: list[AuditedAct] = []
    monkeypatch.setattr(world.service._wiring.trail, "note", acts.append)
    return acts


async def log_in(world: Surroundings, name: str, address: str) -> auth.LoginSession:
    """Log in on the web pages, which report this address."""
    request = auth.LoginUser(auth.Credentials(PASSWORD, username=name), client=auth.ClientFacts(address))
    return await world.ask(auth.login_user, request, peer=WEB)


async def refused(world: Surroundings, credential: str | None, peer: Peer) -> None:
    with pytest.raises((errors.NotAllowed, errors.NotAuthenticated)):
        await world.ask(auth.list_users, ASKED, credential, peer=peer)


@pytest.mark.parametrize("door", [WEB, GATEWAY], ids=["web", "gateway"])
async def test_a_caller_through_a_gateway_is_logged_with_the_address_of_its_login(
    world: Surroundings, noted: list[AuditedAct], door: Peer
) -> None:
    anna = await world.register("anna")
    session = await log_in(world, "anna", "203.0.113.7")
    await refused(world, session.access_token, door)
    (act,) = noted
    assert (act.action, act.actor, act.result, act.address) == (auth.list_users.name, anna.id, Result.REFUSED, "203.0.113.7")


async def test_a_direct_caller_is_logged_with_its_node(world: Surroundings, noted: list[AuditedAct]) -> None:
    """This includes a session that was opened elsewhere: a copied token is used from another place."""
    _, new = await world.user_with_key("anna")
    session = await log_in(world, "anna", "203.0.113.7")
    for credential in (session.access_token, new.api_key, None):
        await refused(world, credential, CLIENT)
    assert [act.address for act in noted] == [CLIENT.node] * 3


async def test_an_address_is_never_taken_from_another_call(world: Surroundings, noted: list[AuditedAct]) -> None:
    _, new = await world.user_with_key("anna")
    await world.register("ben")
    mine, theirs = await log_in(world, "anna", "203.0.113.7"), await log_in(world, "ben", "203.0.113.8")
    for credential in (mine.access_token, new.api_key, None, "a.b.c", theirs.access_token):
        await refused(world, credential, WEB)
    assert [act.address for act in noted] == ["203.0.113.7", "", "", "", "203.0.113.8"]
    noted.clear()
    tokens = {mine.user.id: mine.access_token, theirs.user.id: theirs.access_token}
    await asyncio.gather(*(refused(world, token, WEB) for token in [*tokens.values()] * 10))
    assert {(act.actor, act.address) for act in noted} == {(mine.user.id, "203.0.113.7"), (theirs.user.id, "203.0.113.8")}


async def test_refusals_are_in_the_log(world: Surroundings) -> None:
    await world.register("anna")
    session = await log_in(world, "anna", "203.0.113.7")
    await refused(world, session.access_token, WEB)
    await world.service._wiring.trail.write()
    listed = await world.administer(audit.list_audit, audit.ListAudit(action=auth.list_users.name))
    assert [row.act.address for row in listed.rows] == ["203.0.113.7"]
