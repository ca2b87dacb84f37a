"""Invitations to the mesh, on the running auth service."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import msgspec
import pytest

from services.auth.accounts import request_limits
from services.auth.organizations import membership_rules
from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import audit, auth, organizations
from shared.api.auth import ClientFacts
from shared.api.organizations import InvitedColleague
from shared.types import Credential, Peer, Role, Tier, UserRole
from tests.services.auth import by_hand
from tests.services.auth.surroundings import CLIENT, PASSWORD, Surroundings

EMAIL = "Ben@Example.com"


@pytest.fixture
async def closed(settings: AuthSettings) -> AsyncIterator[Surroundings]:
    """auth with closed registration and a public address."""
    world = Surroundings()
    closed = msgspec.structs.replace(settings, open_registration=False, public_url="https://ai.example/")
    async with AuthService.open(closed, world.as_node()) as world.service:
        yield world


async def invite(world: Surroundings, email: str = EMAIL, role: UserRole = UserRole.USER, organisation: str = "") -> InvitedColleague:
    return await world.administer(organizations.invite_colleague, organizations.InviteColleague(email, role, organisation))


async def register(world: Surroundings, code: str | None, name: str = "ben", email: str = "ben@example.com") -> auth.User:
    return await world.ask(auth.register_user, auth.RegisterUser(auth.UserData(name, email, PASSWORD), invitation=code))


async def open_ones(world: Surroundings) -> tuple[organizations.ColleagueInvitation, ...]:
    return (await world.administer(organizations.list_colleague_invitations, organizations.ListColleagueInvitations())).invitations


async def read(world: Surroundings, code: str, address: str = "192.0.2.7") -> organizations.ColleagueInvitation:
    request = organizations.ReadColleagueInvitation(code, ClientFacts(address))
    return await world.ask(organizations.read_colleague_invitation, request, peer=Peer(Role.WEB, CLIENT.node))


async def accept(world: Surroundings, code: str, credential: Credential) -> auth.User:
    return await world.ask(organizations.accept_colleague_invitation, organizations.AcceptColleagueInvitation(code), credential)


async def rows(world: Surroundings) -> list[audit.AuditRow]:
    return list((await world.administer(audit.list_audit, audit.ListAudit(limit=100))).rows)


async def test_an_invitation_registers_its_address_with_role_and_organization(closed: Surroundings, postgres_url: str) -> None:
    admin = await closed.admin_token()
    team = await closed.ask(organizations.create_organisation, organizations.CreateOrganization("Lab"), admin)
    made = await invite(closed, role=UserRole.ADMIN, organisation="lab")
    assert made.link == f"https://ai.example/join#{made.token}"
    assert not made.is_mailed
    assert await read(closed, f" {made.token}\n") == made.invitation
    assert (made.invitation.invited_by, made.invitation.organisation_name, made.invitation.role) == ("admin", "Lab", UserRole.ADMIN)
    stored = await by_hand.value(postgres_url, "SELECT token_hash FROM auth.colleague_invitations")
    assert stored == hashlib.sha256(made.token.encode()).hexdigest()
    for name, email, code in (
        ("ben", "ben@example.com", None),
        ("ben", "ben@example.com", "x" * 43),
        ("eve", "eve@example.com", made.token),
    ):
        with pytest.raises(errors.NotAllowed, match="registration is closed"):
            await register(closed, code, name, email)
    user = await register(closed, made.token)
    session = await closed.login("ben")
    assert user.role is session.user.role is UserRole.ADMIN
    teams = await closed.ask(organizations.list_organisations, organizations.ListOrganizations(), session.access_token)
    assert [(each.id, each.role) for each in teams.organisations] == [(team.id, organizations.TeamRole.MEMBER)]
    assert await open_ones(closed) == ()
    with pytest.raises(errors.NotAllowed, match="registration is closed"):
        await register(closed, made.token, "ben2")
    with pytest.raises(errors.NotFound, match="was already used"):
        await read(closed, made.token)
    log = await rows(closed)
    (joined,) = [row.act for row in log if row.act.action == "user.join"]
    (invited,) = [row.act for row in log if row.act.action == "user.invite"]
    assert joined.actor == user.id
    assert invited.target == joined.target == made.invitation.id
    assert (joined.details["after"], invited.details["email"], invited.details["role"]) == ("admin", EMAIL, "admin")
    assert made.token not in repr(log)
    assert [row.act.tenant_id for row in log if row.act.action == "organisation.join"] == [team.id]


async def test_open_registration_without_the_code_gives_no_role_and_the_code_raises_it_later(world: Surroundings) -> None:
    made = await invite(world, role=UserRole.DEVELOPER)
    await register(world, None)
    token = (await world.login("ben")).access_token
    await world.register("eve")
    with pytest.raises(errors.NotAllowed, match="for another email address"):
        await accept(world, made.token, (await world.login("eve")).access_token)
    # More calls than auth has database connections.
    outcomes = await asyncio.gather(*(accept(world, made.token, token) for _ in range(50)), return_exceptions=True)
    (user,) = [outcome for outcome in outcomes if isinstance(outcome, auth.User)]
    assert user.role is (await world.login("ben")).user.role is UserRole.DEVELOPER
    refused = [outcome for outcome in outcomes if isinstance(outcome, errors.NotFound)]
    assert {str(error.message) for error in refused} == {"this invitation was already used"}
    with pytest.raises(errors.NotFound, match="there is no such invitation"):
        await accept(world, "x" * 43, token)


async def test_people_that_an_administrator_invites_or_adds_get_a_tier(settings: AuthSettings) -> None:
    """Coding agents send more requests than a free account may."""
    world = Surroundings()
    chosen = msgspec.structs.replace(settings, invited_tier=Tier.ENTERPRISE)
    async with AuthService.open(chosen, world.as_node()) as world.service:
        assert (await register(world, None, "eve", "eve@example.com")).tier == Tier.FREE, "public registration"
        assert (await register(world, (await invite(world)).token)).tier == Tier.ENTERPRISE
        assert (await world.login("ben")).user.tier == Tier.ENTERPRISE
        data = auth.UserData("ann", "ann@example.com", PASSWORD)
        assert (await world.administer(auth.register_user, auth.RegisterUser(data))).tier == Tier.ENTERPRISE
        # They have an account before they accept; an administrator's choice stays.
        for name, before, after in (("cid", Tier.FREE, Tier.ENTERPRISE), ("dan", Tier.PRO, Tier.PRO)):
            code = (await invite(world, f"{name}@example.com")).token
            await register(world, None, name, f"{name}@example.com")
            await world.administer(auth.set_tier, auth.SetTier(name, before))
            token = (await world.login(name)).access_token
            assert (await accept(world, code, token)).tier == after
            assert (await world.login(name)).user.tier == after
        tiers = [row.act.details for row in await rows(world) if row.act.action == "user.tier" and row.act.details.get("after") != "pro"]
        assert [details["after"] for details in tiers].count("enterprise") == 2, "the invitations of ben and cid"


async def test_an_invitation_to_an_organization_leaves_the_tier(settings: AuthSettings) -> None:
    """Any user may found one and invite to it."""
    world = Surroundings()
    chosen = msgspec.structs.replace(settings, invited_tier=Tier.ENTERPRISE)
    async with AuthService.open(chosen, world.as_node()) as world.service:
        await world.register("eve")
        login = (await world.login("eve")).access_token
        team = await world.ask(organizations.create_organisation, organizations.CreateOrganization("Lab"), login)
        code = await world.ask(organizations.invite_member, organizations.InviteMember(team.id, EMAIL), login)
        ben = await register(world, code.token)
        token = (await world.login("ben")).access_token
        await world.ask(organizations.accept_invitation, organizations.AcceptInvitation(code.token), token)
        assert (ben.tier, (await world.login("ben")).user.tier) == (Tier.FREE, Tier.FREE)


async def test_an_invitation_never_lowers_a_role(world: Surroundings) -> None:
    made = await invite(world)
    ben = await register(world, None)
    await world.administer(auth.set_role, auth.SetRole(str(ben.id), UserRole.DEVELOPER))
    assert (await accept(world, made.token, (await world.login("ben")).access_token)).role is UserRole.DEVELOPER


async def test_with_open_registration_an_ended_code_registers_nobody(world: Surroundings, postgres_url: str) -> None:
    made = await invite(world)
    await by_hand.run(postgres_url, "UPDATE auth.colleague_invitations SET expires_at = now() - interval '2 days'")
    with pytest.raises(errors.NotFound, match="this invitation expired 2 days ago"):
        await register(world, made.token)
    assert (await register(world, None)).username == "ben"


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        pytest.param("UPDATE auth.colleague_invitations SET expires_at = now() - interval '2 days'", "expired 2 days ago", id="old"),
        pytest.param("UPDATE auth.users SET is_active = false WHERE username = 'boss'", "was revoked", id="inviter closed"),
        pytest.param("UPDATE auth.users SET role = 'user' WHERE username = 'boss'", "was revoked", id="inviter no administrator"),
        pytest.param("DELETE FROM auth.colleague_invitations", "no such invitation", id="gone"),
    ],
)
async def test_an_ended_invitation_admits_nobody_and_says_why(world: Surroundings, postgres_url: str, statement: str, why: str) -> None:
    boss = await world.register("boss")
    await world.administer(auth.set_role, auth.SetRole(str(boss.id), UserRole.ADMIN))
    by_boss = (await world.login("boss")).access_token
    made = await world.ask(organizations.invite_colleague, organizations.InviteColleague(EMAIL, UserRole.ADMIN), by_boss)
    await register(world, None)
    await by_hand.run(postgres_url, statement)
    assert await open_ones(world) == ()
    with pytest.raises(errors.NotFound, match=why):
        await read(world, made.token)
    token = (await world.login("ben")).access_token
    with pytest.raises(errors.NotFound, match=why):
        await accept(world, made.token, token)
    assert (await world.login("ben")).user.role is UserRole.USER


async def test_an_administrator_withdraws_by_prefix(closed: Surroundings) -> None:
    made = await invite(closed)
    for nonsense in ("zzzz", "'; --", made.invitation.id + "0"):
        with pytest.raises(errors.NotFound, match="no open invitation with this id"):
            await closed.administer(organizations.withdraw_colleague_invitation, organizations.WithdrawColleagueInvitation(nonsense))
    withdraw = organizations.WithdrawColleagueInvitation(made.invitation.id[:8])
    await closed.administer(organizations.withdraw_colleague_invitation, withdraw)
    with pytest.raises(errors.NotFound, match="no open invitation with this id"):
        await closed.administer(organizations.withdraw_colleague_invitation, withdraw)
    with pytest.raises(errors.NotFound, match="was revoked"):
        await read(closed, made.token)
    with pytest.raises(errors.NotAllowed, match="registration is closed"):
        await register(closed, made.token)
    assert [row.act.target for row in await rows(closed) if row.act.action == "user.uninvite"] == [made.invitation.id]


async def test_a_newer_invitation_replaces_the_older(closed: Surroundings) -> None:
    old, new = await invite(closed, role=UserRole.ADMIN), await invite(closed, "ben@EXAMPLE.com")
    assert [each.id for each in await open_ones(closed)] == [new.invitation.id]
    with pytest.raises(errors.NotAllowed, match="registration is closed"):
        await register(closed, old.token)
    assert (await register(closed, new.token)).role is UserRole.USER
    with pytest.raises(errors.AlreadyExists, match="has an account"):
        await invite(closed)


async def test_of_many_invitations_at_once_one_is_open_and_the_limit_holds(closed: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership_rules, "MAX_INVITATIONS_A_DAY", 5)
    await closed.administer(organizations.list_colleague_invitations, organizations.ListColleagueInvitations())
    outcomes = await asyncio.gather(*(invite(closed) for _ in range(20)), return_exceptions=True)
    made = [outcome for outcome in outcomes if isinstance(outcome, InvitedColleague)]
    assert len(made) == 5
    assert {type(outcome) for outcome in outcomes} == {InvitedColleague, errors.Limited}
    (left,) = await open_ones(closed)
    assert left.id in {each.invitation.id for each in made}


async def test_what_cannot_be_invited(closed: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.BadRequest, match="email: an address"):
        await invite(closed, "ben@example.com\nBcc: all@example.com")
    with pytest.raises(errors.NotFound, match="no organization 'Lab'"):
        await invite(closed, organisation="Lab")
    for _ in range(2):
        await closed.administer(organizations.create_organisation, organizations.CreateOrganization("Twin"))
    with pytest.raises(errors.BadRequest, match="several organizations"):
        await invite(closed, organisation="twin")
    monkeypatch.setattr(membership_rules, "MAX_INVITATIONS_A_DAY", 1)
    await invite(closed)
    with pytest.raises(errors.Limited, match="1 invitations within a day"):
        await invite(closed, "carl@example.com")


async def test_only_administrators_invite_list_and_withdraw(world: Surroundings) -> None:
    await world.register("eve")
    eve = (await world.login("eve")).access_token
    for method, request in (
        (organizations.invite_colleague, organizations.InviteColleague(EMAIL)),
        (organizations.list_colleague_invitations, organizations.ListColleagueInvitations()),
        (organizations.withdraw_colleague_invitation, organizations.WithdrawColleagueInvitation("0000")),
    ):
        with pytest.raises(errors.NotAllowed, match="eve is no administrator"):
            await world.ask(method, request, eve)  # type: ignore[arg-type]  # pairs of a method and its request


async def test_looking_up_codes_is_limited_for_each_address(world: Surroundings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_limits, "MAX_INVITATIONS_READ", 3)
    for _ in range(3):
        with pytest.raises(errors.NotFound, match="no such invitation"):
            await read(world, "x" * 43)
    with pytest.raises(errors.Limited, match="too many invitations were looked up") as refused:
        await read(world, "x" * 43)
    assert refused.value.retry_after_seconds
    with pytest.raises(errors.NotFound, match="no such invitation"):
        await read(world, "x" * 43, "192.0.2.8")


@pytest.mark.parametrize(
    ("role", "organisation", "words"),
    [
        (UserRole.USER, "", "a user"),
        (UserRole.DEVELOPER, "", "a developer"),
        (UserRole.NODE_OWNER, "", "a node owner"),
        (UserRole.ADMIN, "Acme", "an administrator, and a member of Acme"),
    ],
)
def test_words_of_an_offer(role: UserRole, organisation: str, words: str) -> None:
    at = datetime(2026, 11, 23, tzinfo=UTC)
    assert organizations.ColleagueInvitation("1", EMAIL, role, "ann", at, at, organisation).offer == words
