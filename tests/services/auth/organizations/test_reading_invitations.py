"""Reading an invitation before it is accepted: who sees what, with the real limit on guesses."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from services.auth.sessions.failed_logins import FailedLogins
from shared import errors
from shared.api import organizations as api
from shared.api.organizations import InvitationOffer, TeamRole
from shared.stores.cache import Cache
from tests.services.auth import by_hand
from tests.services.auth.organizations.seeded_database import Person, SeededDb, opened_organizations, refusal_of

NEVER_GIVEN = "never-given-out-by-anybody"
#: Changes of a valid invitation, each of which makes its code unusable for Ben.
SPOILS = {
    "used": "UPDATE auth.invitations SET accepted_at = now()",
    "withdrawn": "UPDATE auth.invitations SET withdrawn_at = now()",
    "too old": "UPDATE auth.invitations SET expires_at = now() - interval '2 days'",
    "gone": "DELETE FROM auth.invitations",
    "somebody else's": "UPDATE auth.invitations SET email = 'carl@example.com'",
}


@pytest.fixture
async def seeded_db(postgres_url: str, valkey_url: str) -> AsyncIterator[SeededDb]:
    async with Cache.open(valkey_url) as cache, opened_organizations(postgres_url, guesses=FailedLogins(cache)) as seeded_db:
        yield seeded_db


async def invite(seeded_db: SeededDb, by: Person, email: str = "ben@example.com", role: TeamRole = TeamRole.MEMBER) -> api.NewInvitation:
    acme = await seeded_db.found(by)
    return await seeded_db.ask(api.invite_member, api.InviteMember(acme.id, email, role), by.login)


async def read(seeded_db: SeededDb, token: str, by: str) -> InvitationOffer:
    return await seeded_db.ask(api.read_invitation, api.ReadInvitation(token), by)


@pytest.mark.parametrize("role", TeamRole)
async def test_an_invited_user_reads_the_invitation_without_using_it_up(seeded_db: SeededDb, role: TeamRole) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    made = await invite(seeded_db, anna, "BEN@example.com", role)
    for _ in range(30):
        found = await read(seeded_db, f" {made.token}\n", ben.login)
        assert found == InvitationOffer("Acme", role, "anna", made.invitation.expires_at)
    joined = await seeded_db.ask(api.accept_invitation, api.AcceptInvitation(made.token), ben.login)
    assert joined.role is role


@pytest.mark.parametrize("why", SPOILS)
async def test_every_refusal_looks_the_same_and_costs_the_same_queries(
    seeded_db: SeededDb, postgres_url: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    token = (await invite(seeded_db, anna)).token
    queries: list[str] = []
    row = seeded_db.db.row

    async def counted(name: str, *arguments: object) -> object:
        queries.append(name)
        return await row(name, *arguments)

    # Equal work takes equal time: one database query, whatever is wrong with the code.
    monkeypatch.setattr(type(seeded_db.db), "row", lambda _, name, *arguments: counted(name, *arguments))
    unknown = await refusal_of(read(seeded_db, NEVER_GIVEN, ben.login))
    for_nobody = queries.copy()
    await by_hand.run(postgres_url, SPOILS[why])
    queries.clear()
    refused = await refusal_of(read(seeded_db, token, ben.login))
    assert isinstance(refused, errors.NotFound)
    assert refused.to_problem() == unknown.to_problem()
    assert queries == for_nobody == ["find_offer"]
    assert "Acme" not in str(refused)


async def test_after_ten_wrong_codes_none_is_checked(seeded_db: SeededDb) -> None:
    anna, ben, carl = await seeded_db.person("anna"), await seeded_db.person("ben"), await seeded_db.person("carl")
    token = (await invite(seeded_db, anna)).token
    outcomes = await asyncio.gather(*(refusal_of(read(seeded_db, str(uuid4()), ben.login)) for _ in range(50)))
    assert sum(isinstance(outcome, errors.NotFound) for outcome in outcomes) == 10
    assert sum(isinstance(outcome, errors.Limited) for outcome in outcomes) == 40
    refused = await refusal_of(read(seeded_db, token, ben.login))
    assert "invitation codes" in refused.message
    assert (refused.retry_after_seconds or 0) > 800
    # Only Ben has to wait, and only to read invitations.
    assert isinstance(await refusal_of(read(seeded_db, token, carl.login)), errors.NotFound)
    await seeded_db.ask(api.accept_invitation, api.AcceptInvitation(token), ben.login)


async def test_a_valid_code_buys_no_more_attempts(seeded_db: SeededDb) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    token = (await invite(seeded_db, anna)).token
    for _ in range(10):
        await read(seeded_db, token, ben.login)
        assert isinstance(await refusal_of(read(seeded_db, str(uuid4()), ben.login)), errors.NotFound)
    assert isinstance(await refusal_of(read(seeded_db, token, ben.login)), errors.Limited)


async def test_wrong_codes_do_not_affect_logins(seeded_db: SeededDb) -> None:
    ben = await seeded_db.person("ben")
    for _ in range(10):
        await refusal_of(read(seeded_db, str(uuid4()), ben.login))
    assert isinstance(seeded_db.guesses, FailedLogins)
    await seeded_db.guesses.charge(str(ben.user.id))


async def test_an_organisations_key_cannot_read_an_invitation_to_another(seeded_db: SeededDb) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    token = (await invite(seeded_db, anna)).token
    bens = await seeded_db.found(ben, "Bens")
    key = (await seeded_db.key(seeded_db.login(ben.user, bens.id))).api_key
    assert isinstance(await refusal_of(read(seeded_db, token, key)), errors.NotAllowed)
    assert (await read(seeded_db, token, (await seeded_db.key(ben.login)).api_key)).organisation_name == "Acme"
