"""Invitations: for one address, for seven days, usable once."""

import asyncio
import hashlib
from uuid import uuid4

import pytest

from shared import errors
from shared.api import organizations as api
from shared.api.organizations import Organization, TeamRole
from tests.services.auth import by_hand
from tests.services.auth.organizations.seeded_database import Person, SeededDb, refusal_of


async def invite(
    seeded_db: SeededDb, organisation: Organization, by: Person, email: str, role: TeamRole = TeamRole.MEMBER
) -> api.NewInvitation:
    return await seeded_db.ask(api.invite_member, api.InviteMember(organisation.id, email, role), by.login)


async def accept(seeded_db: SeededDb, token: str, by: str) -> Organization:
    return await seeded_db.ask(api.accept_invitation, api.AcceptInvitation(token), by)


async def test_an_invitation_is_mailed_and_its_token_is_not_stored(seeded_db: SeededDb, postgres_url: str) -> None:
    anna = await seeded_db.person("anna")
    acme = await seeded_db.found(anna)
    made = await invite(seeded_db, acme, anna, " Ben@Example.com ")
    ((to, subject, text),) = seeded_db.mailbox.mails
    assert (to, made.invitation.email, made.invitation.invited_by) == ("Ben@Example.com", "Ben@Example.com", "anna")
    assert "Acme" in subject
    assert f"https://ai.example/invitation#{made.token}" in text
    assert len(made.token) == 43
    assert (made.invitation.expires_at - made.invitation.created_at).days == 7
    stored = await by_hand.value(postgres_url, "SELECT token_hash FROM auth.invitations")
    assert stored == hashlib.sha256(made.token.encode()).hexdigest()
    assert made.token not in repr(seeded_db.trail.acts)
    (listed,) = (await seeded_db.page(acme, anna.login)).invitations
    assert listed == made.invitation


async def test_a_user_with_the_address_and_the_token_joins(seeded_db: SeededDb) -> None:
    anna, ben, carl = await seeded_db.person("anna"), await seeded_db.person("ben"), await seeded_db.person("carl")
    acme = await seeded_db.found(anna)
    token = (await invite(seeded_db, acme, anna, "BEN@EXAMPLE.COM", TeamRole.OWNER)).token
    with pytest.raises(errors.NotAllowed, match="another email address"):
        await accept(seeded_db, token, carl.login)
    joined = await accept(seeded_db, f" {token}\n", ben.login)
    assert (joined.id, joined.role, joined.members) == (acme.id, TeamRole.OWNER, 2)
    assert (await seeded_db.page(acme, anna.login)).invitations == ()
    for by in (ben, carl):
        with pytest.raises(errors.NotFound, match="was already used"):
            await accept(seeded_db, token, by.login)


async def test_one_of_fifty_concurrent_acceptances_succeeds(seeded_db: SeededDb, postgres_url: str) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    token = (await invite(seeded_db, acme, anna, "ben@example.com")).token
    outcomes = await asyncio.gather(*(accept(seeded_db, token, ben.login) for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(outcome, Organization) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, errors.NotFound) for outcome in outcomes) == 49
    assert await by_hand.value(postgres_url, "SELECT count(*) FROM auth.organisation_members") == 2
    assert seeded_db.trail.actions.count("organisation.join") == 1


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        pytest.param("UPDATE auth.invitations SET expires_at = now() - interval '2 days'", "expired 2 days ago", id="too old"),
        pytest.param("UPDATE auth.invitations SET withdrawn_at = now()", "was revoked", id="withdrawn"),
        pytest.param("UPDATE auth.invitations SET accepted_at = now()", "was already used", id="used"),
        pytest.param("DELETE FROM auth.invitations", "no such invitation", id="gone"),
        pytest.param("UPDATE auth.users SET email = 'benjamin@example.com' WHERE username = 'ben'", "another email", id="moved away"),
    ],
)
async def test_an_invalid_invitation_says_why(seeded_db: SeededDb, postgres_url: str, statement: str, says: str) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    token = (await invite(seeded_db, acme, anna, "ben@example.com")).token
    await by_hand.run(postgres_url, statement)
    with pytest.raises(errors.CallerError, match=says):
        await accept(seeded_db, token, ben.login)
    assert await by_hand.value(postgres_url, "SELECT count(*) FROM auth.organisation_members") == 1


async def test_an_owner_withdraws_it_once(seeded_db: SeededDb) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    made = await invite(seeded_db, acme, anna, "ben@example.com")
    withdraw = api.WithdrawInvitation(acme.id, made.invitation.id)
    await seeded_db.ask(api.withdraw_invitation, withdraw, anna.login)
    with pytest.raises(errors.NotFound, match="no open invitation"):
        await seeded_db.ask(api.withdraw_invitation, withdraw, anna.login)
    with pytest.raises(errors.NotFound, match="was revoked"):
        await accept(seeded_db, made.token, ben.login)
    for nonsense in ("", "'", str(uuid4())):
        with pytest.raises(errors.NotFound, match="there is no open invitation with this id"):
            await seeded_db.ask(api.withdraw_invitation, api.WithdrawInvitation(acme.id, nonsense), anna.login)


async def test_a_new_invitation_to_the_same_address_replaces_the_old(seeded_db: SeededDb) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    old = await invite(seeded_db, acme, anna, "ben@example.com", TeamRole.OWNER)
    new = await invite(seeded_db, acme, anna, "Ben@example.com")
    assert [invitation.id for invitation in (await seeded_db.page(acme, anna.login)).invitations] == [new.invitation.id]
    with pytest.raises(errors.NotFound, match="this invitation was revoked"):
        await accept(seeded_db, old.token, ben.login)
    assert (await accept(seeded_db, new.token, ben.login)).role is TeamRole.MEMBER
    with pytest.raises(errors.AlreadyExists, match="a user with this address is already a member"):
        await invite(seeded_db, acme, anna, "BEN@example.com")


@pytest.mark.parametrize("email", ["", "ben", "ben@example.com\nBcc: all@example.com", "b\0@example.com", "x" * 95 + "@example.com"])
async def test_an_invalid_address_gets_no_mail(seeded_db: SeededDb, email: str) -> None:
    anna = await seeded_db.person("anna")
    acme = await seeded_db.found(anna)
    with pytest.raises(errors.BadRequest, match="email"):
        await invite(seeded_db, acme, anna, email)
    assert seeded_db.mailbox.mails == []


async def test_an_organisations_mails_per_day_are_limited(seeded_db: SeededDb, postgres_url: str) -> None:
    anna = await seeded_db.person("anna")
    acme = await seeded_db.found(anna)
    for n in range(100):
        await invite(seeded_db, acme, anna, f"guest{n}@example.com")
    with pytest.raises(errors.Limited, match="100 invitations were sent within a day"):
        await invite(seeded_db, acme, anna, "ben@example.com")
    assert len(seeded_db.mailbox.mails) == 100
    await by_hand.run(postgres_url, "UPDATE auth.invitations SET created_at = created_at - interval '1 day'")
    await invite(seeded_db, acme, anna, "ben@example.com")


async def test_guessed_tokens_neither_withdraw_nor_accept_anything(seeded_db: SeededDb) -> None:
    anna, mallory = await seeded_db.person("anna"), await seeded_db.person("mallory")
    acme, evil = await seeded_db.found(anna), await seeded_db.found(mallory, "Evil")
    made = [await invite(seeded_db, acme, anna, f"guest{n}@example.com") for n in range(3)]
    for guess in [invitation.invitation.id for invitation in made] + [str(uuid4()) for _ in range(10)]:
        withdrawing = seeded_db.ask(api.withdraw_invitation, api.WithdrawInvitation(evil.id, guess), mallory.login)
        assert isinstance(await refusal_of(withdrawing), errors.NotFound)
        assert isinstance(await refusal_of(accept(seeded_db, guess, mallory.login)), errors.NotFound)
    assert len((await seeded_db.page(acme, anna.login)).invitations) == 3


async def test_an_organisations_key_cannot_join_another(seeded_db: SeededDb) -> None:
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme, bens = await seeded_db.found(anna), await seeded_db.found(ben, "Bens")
    token = (await invite(seeded_db, acme, anna, "ben@example.com")).token
    key = (await seeded_db.key(seeded_db.login(ben.user, bens.id))).api_key
    with pytest.raises(errors.NotAllowed, match="a key of an organization cannot join another one"):
        await accept(seeded_db, token, key)
    await accept(seeded_db, token, (await seeded_db.key(ben.login)).api_key)
