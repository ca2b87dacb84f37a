"""Organizations: what each role may do, that an owner always remains, and that strangers learn nothing."""

import asyncio
from uuid import uuid4

import pytest

from services.auth.accounts.api_key_rpc import NO_SUCH_KEY
from services.auth.organizations.membership_rules import NOT_A_MEMBER
from services.auth.sessions.identities import TeamTerms
from shared import errors
from shared.api import auth, events
from shared.api import organizations as api
from shared.api.auth import Change, KeyKind
from shared.api.organizations import Organization, TeamRole
from shared.types import TenantId, Tier, UserId
from tests.services.auth import by_hand
from tests.services.auth.organizations.seeded_database import Person, SeededDb, refusal_of


async def remove(seeded_db: SeededDb, organisation: Organization, member: Person, by: str) -> None:
    await seeded_db.ask(api.remove_team_member, api.RemoveTeamMember(organisation.id, member.user.id), by)


async def set_role(seeded_db: SeededDb, organisation: Organization, member: Person, role: TeamRole, by: str) -> api.OrganizationDetails:
    return await seeded_db.ask(api.set_team_role, api.SetTeamRole(organisation.id, member.user.id, role), by)


async def mine(seeded_db: SeededDb, by: str) -> dict[str, TeamRole | None]:
    found = await seeded_db.ask(api.list_organisations, api.ListOrganizations(), by)
    return {organisation.name: organisation.role for organisation in found.organisations}


async def test_the_founder_of_an_organisation_owns_it(seeded_db: SeededDb) -> None:
    anna = await seeded_db.person("anna")
    acme = await seeded_db.found(anna, "  Acme & Söhne ")
    assert (acme.name, acme.tier, acme.members, acme.role) == ("Acme & Söhne", Tier.FREE, 1, TeamRole.OWNER)
    page = await seeded_db.page(acme, anna.login)
    assert page.organisation == acme
    assert [(member.username, member.email, member.role) for member in page.members] == [("anna", "anna@example.com", TeamRole.OWNER)]
    assert await mine(seeded_db, anna.login) == {"Acme & Söhne": TeamRole.OWNER}
    (act,) = seeded_db.trail.acts
    assert (act.action, act.tenant_id, act.actor, act.target) == ("organisation.create", acme.id, anna.user.id, str(acme.id))


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "x" * 101, "\u202eemca"])
async def test_invalid_names_are_refused(seeded_db: SeededDb, name: str) -> None:
    anna = await seeded_db.person("anna")
    with pytest.raises(errors.BadRequest, match="name"):
        await seeded_db.found(anna, name)


async def test_one_user_founds_two_however_fast_they_ask(seeded_db: SeededDb) -> None:
    anna = await seeded_db.person("anna")
    outcomes = await asyncio.gather(*(seeded_db.found(anna, f"no {n}") for n in range(30)), return_exceptions=True)
    founded = [outcome for outcome in outcomes if isinstance(outcome, Organization)]
    assert len(founded) == len(await mine(seeded_db, anna.login)) == 2
    assert sum(isinstance(outcome, errors.BadRequest) for outcome in outcomes) == 28
    # A user who gives an organization away may not create another one.
    ben = await seeded_db.person("ben")
    await seeded_db.join(anna, founded[0], ben, TeamRole.OWNER)
    await remove(seeded_db, founded[0], anna, anna.login)
    with pytest.raises(errors.BadRequest, match="created 2 organizations"):
        await seeded_db.found(anna, "another")
    boss = await seeded_db.admin()
    for number in range(3):
        await seeded_db.found(boss, f"no {number}")


async def test_a_new_organisation_shares_its_founders_limits_until_it_gets_a_tier(seeded_db: SeededDb) -> None:
    anna, ben, boss = await seeded_db.person("anna"), await seeded_db.person("ben"), await seeded_db.admin()
    acme = await seeded_db.found(anna)
    assert acme.shares_limits
    bens = await seeded_db.key(await seeded_db.join(anna, acme, ben))

    async def terms() -> tuple[Tier, UserId | None, TenantId]:
        principal = await seeded_db.principal(bens.api_key)
        found = await seeded_db.identities.find_team_terms(ben.user.id, acme.id)
        assert found == TeamTerms(principal.tier, principal.founder_id)
        return principal.tier, principal.founder_id, principal.limited_as

    assert await terms() == (Tier.FREE, anna.user.id, TenantId(anna.user.id))
    async with seeded_db.store.transaction() as transaction:
        await seeded_db.store.set_tier(transaction, anna.user.id, Tier.ENTERPRISE)
    assert await terms() == (Tier.ENTERPRISE, anna.user.id, TenantId(anna.user.id))
    with pytest.raises(errors.NotFound, match="there is no plan 'gold'"):
        await seeded_db.ask(api.set_team_tier, api.SetTeamTier(acme.id, "gold"), boss.login)
    given = await seeded_db.ask(api.set_team_tier, api.SetTeamTier(acme.id, Tier.PRO), boss.login)
    assert not given.shares_limits
    assert await terms() == (Tier.PRO, None, acme.id)


async def test_members_may_read_and_owners_may_change(seeded_db: SeededDb) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    await seeded_db.join(anna, acme, ben)
    await seeded_db.ask(api.invite_member, api.InviteMember(acme.id, "carl@example.com"), anna.login)
    seen = await seeded_db.page(acme, ben.login)
    assert [(member.username, member.role) for member in seen.members] == [("anna", TeamRole.OWNER), ("ben", TeamRole.MEMBER)]
    assert (seen.organisation.role, seen.organisation.members, seen.invitations) == (TeamRole.MEMBER, 2, ())
    (invitation,) = (await seeded_db.page(acme, anna.login)).invitations
    for method, request in (
        (api.rename_organisation, api.RenameOrganization(acme.id, "Bens")),
        (api.invite_member, api.InviteMember(acme.id, "dora@example.com")),
        (api.withdraw_invitation, api.WithdrawInvitation(acme.id, invitation.id)),
        (api.set_team_role, api.SetTeamRole(acme.id, ben.user.id, TeamRole.OWNER)),
        (api.remove_team_member, api.RemoveTeamMember(acme.id, anna.user.id)),
    ):
        with pytest.raises(errors.NotAllowed, match="only an owner"):
            await seeded_db.ask(method, request, ben.login)  # type: ignore[misc]  # a union of pairs
    renamed = await seeded_db.ask(api.rename_organisation, api.RenameOrganization(acme.id, "Acme 2"), anna.login)
    assert renamed == (await seeded_db.page(acme, anna.login)).organisation
    assert renamed.name == "Acme 2"
    page = await set_role(seeded_db, acme, ben, TeamRole.OWNER, anna.login)
    assert {member.role for member in page.members} == {TeamRole.OWNER}
    await remove(seeded_db, acme, anna, ben.login)
    assert await mine(seeded_db, anna.login) == {}
    assert seeded_db.trail.actions == [
        "organisation.create", "organisation.invite", "organisation.join", "organisation.invite", "organisation.rename",
        "organisation.role", "organisation.remove",
    ]  # fmt: skip
    assert {act.tenant_id for act in seeded_db.trail.acts} == {acme.id}


# --- the last owner --------------------------------------------------------------------------------------------------


async def test_the_last_owner_can_neither_leave_nor_become_a_member(seeded_db: SeededDb, postgres_url: str) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    await seeded_db.join(anna, acme, ben)
    for _ in range(2):
        with pytest.raises(errors.NotAllowed, match="at least one owner"):
            await remove(seeded_db, acme, anna, anna.login)
        with pytest.raises(errors.NotAllowed, match="at least one owner"):
            await set_role(seeded_db, acme, anna, TeamRole.MEMBER, anna.login)
        assert (await seeded_db.page(acme, anna.login)).organisation.role is TeamRole.OWNER
        # An owner whose account is closed does not count.
        await set_role(seeded_db, acme, ben, TeamRole.OWNER, anna.login)
        await by_hand.run(postgres_url, "UPDATE auth.users SET is_active = false WHERE username = 'ben'")


async def test_one_of_ten_owners_who_leave_concurrently_stays(seeded_db: SeededDb) -> None:
    owners = [await seeded_db.person(f"owner{n}") for n in range(10)]
    acme = await seeded_db.found(owners[0])
    for owner in owners[1:]:
        await seeded_db.join(owners[0], acme, owner, TeamRole.OWNER)
    outcomes = await asyncio.gather(*(remove(seeded_db, acme, owner, owner.login) for owner in owners), return_exceptions=True)
    assert sum(isinstance(outcome, errors.NotAllowed) for outcome in outcomes) == 1
    stayed = owners[[isinstance(outcome, errors.NotAllowed) for outcome in outcomes].index(True)]
    assert [member.user_id for member in (await seeded_db.page(acme, stayed.login)).members] == [stayed.user.id]


async def test_two_owners_who_demote_each_other_concurrently_leave_one(seeded_db: SeededDb) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    await seeded_db.join(anna, acme, ben, TeamRole.OWNER)
    outcomes = await asyncio.gather(
        set_role(seeded_db, acme, ben, TeamRole.MEMBER, anna.login),
        set_role(seeded_db, acme, anna, TeamRole.MEMBER, ben.login),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, errors.NotAllowed) for outcome in outcomes) == 1, "whoever comes second is no owner any more"
    members = (await seeded_db.page(acme, anna.login)).members
    assert sorted(member.role for member in members) == [TeamRole.MEMBER, TeamRole.OWNER]


# --- leaving ---------------------------------------------------------------------------------------------------------


async def test_a_removed_member_loses_their_keys_of_the_organisation_and_no_others(seeded_db: SeededDb) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme, other = await seeded_db.found(anna), await seeded_db.found(anna, "Other")
    member = await seeded_db.join(anna, acme, ben)
    team_keys = [await seeded_db.key(member, f"key {n}") for n in range(3)]
    kept = [
        await seeded_db.key(await seeded_db.join(anna, other, ben)),
        await seeded_db.key(ben.login),
        await seeded_db.key(seeded_db.login(anna.user, acme.id)),
    ]
    await remove(seeded_db, acme, ben, anna.login)
    for made in team_keys:
        with pytest.raises(errors.NotAuthenticated, match="revoked"):
            await seeded_db.principal(made.api_key)
    for made in kept:
        await seeded_db.principal(made.api_key)
    revoked = [event for event in seeded_db.surroundings.published if isinstance(event, events.KeyRevoked)]
    assert {event.key_id for event in revoked} == {made.key.id for made in team_keys}
    assert seeded_db.trail.acts[-1].details == {"keys": "3"}
    await seeded_db.join(anna, acme, ben)
    with pytest.raises(errors.NotAuthenticated, match="this API key was revoked"):
        await seeded_db.principal(team_keys[0].api_key)
    with pytest.raises(errors.NotFound, match="is not a member"):
        await seeded_db.ask(api.remove_team_member, api.RemoveTeamMember(acme.id, UserId(uuid4())), anna.login)


async def test_the_key_of_a_member_removed_by_hand_stops_working(seeded_db: SeededDb, postgres_url: str) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    made = await seeded_db.key(await seeded_db.join(anna, acme, ben))
    await by_hand.run(postgres_url, "DELETE FROM auth.organisation_members WHERE role = 'member'")
    with pytest.raises(errors.NotAuthenticated, match="revoked"):
        await seeded_db.principal(made.api_key)


async def test_a_member_may_leave(seeded_db: SeededDb) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    await seeded_db.join(anna, acme, ben)
    await remove(seeded_db, acme, ben, ben.login)
    with pytest.raises(errors.NotFound, match=NOT_A_MEMBER):
        await seeded_db.page(acme, ben.login)


# --- strangers -------------------------------------------------------------------------------------------------------


async def test_guessed_and_real_organisations_look_the_same_to_a_stranger(seeded_db: SeededDb) -> None:
    anna, mallory = await seeded_db.person("anna"), await seeded_db.person("mallory")
    real = [await seeded_db.found(anna, f"no {n}") for n in range(2)]
    before = [await seeded_db.page(organisation, anna.login) for organisation in real]
    key = (await seeded_db.key(mallory.login)).api_key
    guesses = [organisation.id for organisation in real] + [TenantId(uuid4()) for _ in range(10)]
    for guess in guesses:
        for method, request in (
            (api.get_organisation, api.GetOrganization(guess)),
            (api.rename_organisation, api.RenameOrganization(guess, "Mallorys")),
            (api.invite_member, api.InviteMember(guess, "mallory@example.com", TeamRole.OWNER)),
            (api.withdraw_invitation, api.WithdrawInvitation(guess, str(uuid4()))),
            (api.set_team_role, api.SetTeamRole(guess, mallory.user.id, TeamRole.OWNER)),
            (api.remove_team_member, api.RemoveTeamMember(guess, anna.user.id)),
        ):
            refused = await refusal_of(seeded_db.ask(method, request, key))  # type: ignore[misc]  # a union of pairs
            assert (type(refused), refused.message) == (errors.NotFound, "you are not a member of an organization with this id"), (
                method.name
            )
    assert [await seeded_db.page(organisation, anna.login) for organisation in real] == before
    assert await mine(seeded_db, key) == {}


async def test_an_organisations_key_cannot_read_another(seeded_db: SeededDb) -> None:
    anna = await seeded_db.person("anna")
    acme, other = await seeded_db.found(anna), await seeded_db.found(anna, "Other")
    key = (await seeded_db.key(seeded_db.login(anna.user, acme.id))).api_key
    assert await mine(seeded_db, key) == {"Acme": TeamRole.OWNER}
    await seeded_db.page(acme, key)
    for asking in (
        seeded_db.page(other, key),
        seeded_db.ask(api.rename_organisation, api.RenameOrganization(other.id, "x"), key),
        seeded_db.ask(api.invite_member, api.InviteMember(other.id, "x@example.com"), key),
    ):
        with pytest.raises(errors.NotFound, match=NOT_A_MEMBER):
            await asking
    assert await mine(seeded_db, anna.login) == {"Acme": TeamRole.OWNER, "Other": TeamRole.OWNER}


# --- administrators --------------------------------------------------------------------------------------------------


async def test_an_administrator_sees_all_and_sets_the_tier(seeded_db: SeededDb) -> None:
    anna, ben, boss = await seeded_db.person("anna"), await seeded_db.person("ben"), await seeded_db.admin()
    acme = await seeded_db.found(anna)
    made = await seeded_db.key(seeded_db.login(anna.user, acme.id))
    assert (await seeded_db.principal(made.api_key)).tier == Tier.FREE
    own = await seeded_db.found(boss, "Own")
    listed = (await seeded_db.ask(api.list_all_organisations, api.ListAllOrganizations(), boss.login)).organisations
    assert [(found.id, found.role) for found in listed] == [(own.id, TeamRole.OWNER), (acme.id, None)]
    assert (await seeded_db.ask(api.list_all_organisations, api.ListAllOrganizations(1), boss.login)) == api.Organizations(
        listed[:1], more=True
    )
    rest = api.ListAllOrganizations(1, after=own.id)
    assert (await seeded_db.ask(api.list_all_organisations, rest, boss.login)) == api.Organizations(listed[1:])
    for search, found in (("OW", listed[:1]), (str(acme.id), listed[1:]), ("%", ())):
        assert (await seeded_db.ask(api.list_all_organisations, api.ListAllOrganizations(search=search), boss.login)).organisations == found
    assert (await seeded_db.page(acme, boss.login)).organisation.role is None
    changed = await seeded_db.ask(api.set_team_tier, api.SetTeamTier(acme.id, Tier.PRO), boss.login)
    assert (changed.tier, (await seeded_db.page(acme, anna.login)).organisation.tier) == (Tier.PRO, Tier.PRO)
    assert (await seeded_db.principal(made.api_key)).tier == Tier.PRO
    assert seeded_db.trail.acts[-1].details == {"before": "free", "after": "pro"}
    with pytest.raises(errors.NotFound, match=NOT_A_MEMBER):
        await seeded_db.ask(api.set_team_tier, api.SetTeamTier(TenantId(uuid4()), Tier.PRO), boss.login)
    for by in (anna.login, ben.login, (await seeded_db.key(boss.login)).api_key):
        for method, request in (
            (api.list_all_organisations, api.ListAllOrganizations()),
            (api.set_team_tier, api.SetTeamTier(acme.id, Tier.ENTERPRISE)),
        ):
            with pytest.raises(errors.NotAllowed):
                await seeded_db.ask(method, request, by)  # type: ignore[misc]  # a union of pairs


async def test_an_administrator_helps_an_organisation_whose_owner_is_gone(seeded_db: SeededDb, postgres_url: str) -> None:
    anna, ben, boss = await seeded_db.person("anna"), await seeded_db.person("ben"), await seeded_db.admin()
    acme = await seeded_db.found(anna)
    await seeded_db.join(anna, acme, ben)
    await by_hand.run(postgres_url, "UPDATE auth.users SET is_active = false WHERE username = 'anna'")
    key = (await seeded_db.key(boss.login, kind=KeyKind.ADMIN)).api_key
    await set_role(seeded_db, acme, ben, TeamRole.OWNER, key)
    await remove(seeded_db, acme, anna, key)
    assert [member.username for member in (await seeded_db.page(acme, ben.login)).members] == ["ben"]


async def test_a_change_of_tier_or_members_reaches_every_cache(seeded_db: SeededDb, postgres_url: str) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    await seeded_db.join(anna, acme, ben)
    before = (await seeded_db.store.missed_changes(0))[-1].sequence
    await by_hand.run(postgres_url, "UPDATE auth.organisations SET subscription_tier = 'pro'")
    assert (await seeded_db.store.missed_changes(0))[-1].sequence == before + 1
    await by_hand.run(postgres_url, "UPDATE auth.organisations SET budget = '{\"micro\": 5}'")
    assert (await seeded_db.store.missed_changes(0))[-1] == Change(before + 2)
    await set_role(seeded_db, acme, ben, TeamRole.OWNER, anna.login)
    await remove(seeded_db, acme, ben, anna.login)
    told = [change.user_id for change in await seeded_db.store.missed_changes(before + 1) if change.sequence > before]
    assert told == [None, None, ben.user.id, ben.user.id]


async def test_an_organisations_key_is_not_listed_among_personal_keys(seeded_db: SeededDb) -> None:
    anna = await seeded_db.person("anna")
    acme = await seeded_db.found(anna)
    made = await seeded_db.key(seeded_db.login(anna.user, acme.id), "team")
    assert await seeded_db.keys(anna.login) == ()
    with pytest.raises(errors.NotFound, match=NO_SUCH_KEY):
        await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey(str(made.key.id)), anna.login)
