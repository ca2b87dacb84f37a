"""What administrators do with tickets and nodes."""

import time

import msgspec
import pytest

from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors, tickets
from shared.api import membership
from shared.api.membership import TicketState
from shared.types import Role
from tests.services.auth.surroundings import Newcomer, Surroundings


async def test_a_ticket_carries_what_is_needed_to_find_and_recognise_the_mesh(house: Surroundings) -> None:
    made = await house.ticket(Role.CLIENT, uses=3, ttl_seconds=120, labels={"team": "a"})
    ticket = tickets.parse(made.ticket)
    assert (ticket.mesh, ticket.bootstrap, ticket.relays) == (house.mesh, ("192.0.2.1:49737",), (b"\xab" * 32,))
    assert ticket.authority_id == house.trust.authorities[0]
    row = made.row
    assert (row.id, row.role, row.state, row.uses, row.used) == (ticket.id, Role.CLIENT, TicketState.GOOD, 3, 0)
    assert (row.labels, row.owner, row.needs_approval) == ({"team": "a"}, "admin", False)
    assert 115 < row.expires_at.timestamp() - time.time() < 125
    assert made.warnings == ()
    assert "\n" not in made.ticket
    (listed,) = (await house.administer(membership.list_tickets, membership.ListTickets())).tickets
    assert (listed.id, listed.expires_at) == (row.id, row.expires_at)


async def test_another_user_may_answer_for_the_node(house: Surroundings) -> None:
    user = await house.register("alice")
    made = await house.ticket(owner="alice@example.com")
    assert made.row.owner == "alice"
    await Newcomer().enroll(house, made.ticket)
    listed = (await house.administer(membership.list_members, membership.ListMembers())).members
    assert [(row.role, row.owner) for row in listed if row.owner] == [(Role.WORKER, "alice")]
    assert user.username == "alice"
    with pytest.raises(errors.NotFound):
        await house.ticket(owner="nobody")


@pytest.mark.parametrize("role", [Role.AUTH, Role.OPERATOR, Role.NEWCOMER])
async def test_no_ticket_for_what_nobody_joins_as(house: Surroundings, role: Role) -> None:
    with pytest.raises(errors.BadRequest, match=role):
        await house.ticket(role)


async def test_a_revoked_ticket_lets_nobody_in_and_whoever_is_in_stays(house: Surroundings) -> None:
    made, inside = await house.ticket(uses=5), Newcomer()
    await inside.enroll(house, made.ticket)
    for _ in range(2):
        row = await house.administer(membership.revoke_ticket, membership.RevokeTicket(made.row.id[:6]))
        assert (row.state, row.used) == (TicketState.REVOKED, 1)
    with pytest.raises(errors.BadTicket, match="was revoked"):
        await Newcomer().enroll(house, made.ticket)
    await inside.renew(house)


async def test_all_of_it_is_for_administrators(house: Surroundings) -> None:
    await house.register()
    token = (await house.login()).access_token
    for method, request in (
        (membership.create_ticket, membership.CreateTicket(Role.WORKER)),
        (membership.list_tickets, membership.ListTickets()),
        (membership.revoke_ticket, membership.RevokeTicket("aaaa")),
        (membership.list_members, membership.ListMembers()),
        (membership.approve_member, membership.ApproveMember(house.id)),
        (membership.revoke_member, membership.RevokeMember(house.id)),
    ):
        with pytest.raises(errors.NotAllowed):
            await house.ask(method, request, token)  # type: ignore[misc]  # a union of pairs
        with pytest.raises(errors.NotAuthenticated):
            await house.ask(method, request)  # type: ignore[misc]


async def test_auth_itself_is_listed_and_not_revoked(house: Surroundings) -> None:
    (row,) = (await house.administer(membership.list_members, membership.ListMembers())).members
    assert (row.id, row.role, row.state) == (house.id, Role.AUTH, "active")
    with pytest.raises(errors.NotAllowed, match="auth"):
        await house.administer(membership.revoke_member, membership.RevokeMember(house.id))


async def test_a_revocation_is_signed_before_the_administrator_hears_of_it(house: Surroundings) -> None:
    newcomer = Newcomer()
    await newcomer.enroll(house, (await house.ticket()).ticket)
    before, changes = house.trust.number, house.changes
    row = await house.administer(membership.revoke_member, membership.RevokeMember(newcomer.key.id[:12], reason="sold\x1b"))
    assert (row.id, row.state, row.reason, row.revoked_at is not None) == (newcomer.key.id, "revoked", "sold", True)
    assert house.trust.revoked == {newcomer.key.id}
    assert house.trust.number > before
    assert house.changes > changes, "so that the number is announced"
    assert [epoch for epoch, _ in house.trust.topics] == [2, 1]
    number = house.trust.number
    again = await house.administer(membership.revoke_member, membership.RevokeMember(newcomer.key.id, reason="again"))
    assert (again.reason, house.trust.number) == ("sold", number)


async def test_loopback_in_a_ticket_is_warned_of_and_no_hyperswarm_makes_none(ca_settings: AuthSettings) -> None:
    for changed, warned in (({"ticket_bootstrap": ()}, True), ({"dht_bootstrap": ("public",), "ticket_bootstrap": ()}, False)):
        here = Surroundings()
        async with AuthService.open(msgspec.structs.replace(ca_settings, **changed), here.as_node()) as here.service:
            made = await here.ticket()
            assert bool(made.warnings) is warned
            assert tickets.parse(made.ticket).bootstrap == (("127.0.0.1:49737",) if warned else ())
    here = Surroundings()
    async with AuthService.open(msgspec.structs.replace(ca_settings, dht_bootstrap=()), here.as_node()) as here.service:
        with pytest.raises(errors.Unavailable, match="Hyperswarm is off"):
            await here.ticket()
