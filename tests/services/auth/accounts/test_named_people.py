"""A key with `users:name` names a person by a verified address: who they are then, and who is nobody."""

from collections.abc import AsyncIterator

import msgspec
import pytest

from services.auth import store
from services.auth.accounts.account_store import AccountStore
from shared import errors
from shared.api import auth, organizations
from shared.api.auth import ApiKeyLimits, Budget, IdentifyOwner, IdentifyPerson, KeyBounds, Principal
from shared.types import KeyId, MicroCredits, ModelName, Permission, TenantId, UserRole
from tests.cases import case
from tests.services.auth.organizations.seeded_database import Person, SeededDb, opened_organizations, refusal_of

NAMING = (Permission.INFER, Permission.NAME_USERS)
BUDGET = Budget(MicroCredits(5_000_000))


@pytest.fixture
async def seeded_db(postgres_url: str) -> AsyncIterator[SeededDb]:
    async with opened_organizations(postgres_url) as seeded_db:
        yield seeded_db


async def naming_key(seeded_db: SeededDb, login: str, scopes: tuple[str, ...] = NAMING) -> auth.CreatedApiKey:
    bounds = KeyBounds(scopes, models=(ModelName("smollm2"),))
    return await seeded_db.key(login, "webui", bounds=bounds, limits=ApiKeyLimits(budget_micro=MicroCredits(7)))


async def verified(seeded_db: SeededDb, name: str = "anna", role: UserRole = UserRole.USER) -> Person:
    person = await seeded_db.person(name, role)
    async with seeded_db.store.transaction() as transaction:
        await store.verify_address(transaction, person.user.id, person.user.email)
        await seeded_db.store.set_tier(transaction, person.user.id, "pro")
        await transaction.run("set_user_budget", person.user.id, msgspec.json.encode(BUDGET).decode())
    return person


async def named(seeded_db: SeededDb, key: KeyId, address: str) -> Principal:
    return await seeded_db.identities.of_person(IdentifyPerson(key, address))


async def test_a_named_person_has_their_plan_and_budget_and_of_their_rights_what_the_key_has(seeded_db: SeededDb) -> None:
    boss = await seeded_db.admin()
    made = await naming_key(seeded_db, boss.login)
    for name, role in (("anna", UserRole.USER), ("chief", UserRole.ADMIN)):
        person = await verified(seeded_db, name, role)
        for address in (person.user.email, person.user.email.upper()):
            with case(address):
                found = await named(seeded_db, made.key.id, address)
                assert found == Principal(
                    user_id=person.user.id, username=name, role=role, tier="pro", key_id=made.key.id, key_name="webui",
                    scopes=("inference:execute",), models=(ModelName("smollm2"),), expires_at=found.expires_at, budget=BUDGET,
                    named_by=boss.user.id,
                )  # fmt: skip
                assert found.expires_at == (await seeded_db.principal(made.api_key)).expires_at
                assert found.tenant_id == found.limited_as == TenantId(person.user.id)
        # Its jobs run later as the same person.
        assert await seeded_db.identities.of_owner(IdentifyOwner(person.user.id, made.key.id)) == found


async def test_an_address_that_nobody_has_verified_is_the_keys_own(seeded_db: SeededDb) -> None:
    boss, anna = await seeded_db.admin(), await seeded_db.person()
    made = await naming_key(seeded_db, boss.login)
    itself = await seeded_db.principal(made.api_key)
    for address in (anna.user.email, boss.user.email, "nobody@example.com", "", "%", "anna"):
        with case(address):
            assert await named(seeded_db, made.key.id, address) == itself


async def test_a_closed_account_is_refused_and_its_jobs_too(seeded_db: SeededDb) -> None:
    boss, anna = await seeded_db.admin(), await verified(seeded_db)
    made = await naming_key(seeded_db, boss.login, (*NAMING, Permission.SERVE_STRANGERS))
    async with seeded_db.store.transaction() as transaction:
        await seeded_db.store.set_active(transaction, anna.user.id, is_active=False)
    with pytest.raises(errors.PersonRefused, match="is closed"):
        await named(seeded_db, made.key.id, anna.user.email)
    with pytest.raises(errors.NotAuthenticated, match="closed"):
        await seeded_db.identities.of_owner(IdentifyOwner(anna.user.id, made.key.id))


async def test_without_the_key_or_its_scope_nobody_is_named(seeded_db: SeededDb) -> None:
    boss, anna = await seeded_db.admin(), await verified(seeded_db)
    made = await naming_key(seeded_db, boss.login)
    plain = await seeded_db.key(boss.login, "plain")
    asked = IdentifyOwner(anna.user.id, made.key.id)
    assert "may not name people any more" in str(await refusal_of(named(seeded_db, plain.key.id, anna.user.email)))
    async with seeded_db.store.transaction() as transaction:
        await seeded_db.store.set_role(transaction, boss.user.id, UserRole.DEVELOPER)
    assert "may not name people any more" in str(await refusal_of(named(seeded_db, made.key.id, anna.user.email)))
    assert "may not name people any more" in str(await refusal_of(seeded_db.identities.of_owner(asked)))
    await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey(str(made.key.id)), boss.login)
    assert "revoked" in str(await refusal_of(named(seeded_db, made.key.id, anna.user.email)))
    assert "revoked" in str(await refusal_of(seeded_db.identities.of_owner(asked)))


async def test_a_key_of_an_organization_names_its_members(seeded_db: SeededDb) -> None:
    boss, anna, ben = await seeded_db.admin(), await verified(seeded_db), await verified(seeded_db, "ben")
    acme = await seeded_db.found(boss)
    await seeded_db.join(boss, acme, anna)
    made = await naming_key(seeded_db, seeded_db.login(boss.user, acme.id))
    itself = await seeded_db.principal(made.api_key)
    found = await named(seeded_db, made.key.id, anna.user.email)
    assert (found.user_id, found.tenant_id, found.tier, found.budget) == (anna.user.id, acme.id, itself.tier, itself.budget)
    assert found.limited_as == itself.limited_as
    assert await named(seeded_db, made.key.id, ben.user.email) == itself, "no member"
    await seeded_db.ask(organizations.remove_team_member, organizations.RemoveTeamMember(acme.id, anna.user.id), boss.login)
    assert await named(seeded_db, made.key.id, anna.user.email) == itself
    with pytest.raises(errors.NotAuthenticated):
        await seeded_db.identities.of_owner(IdentifyOwner(anna.user.id, made.key.id, acme.id))


async def test_a_new_address_is_announced(seeded_db: SeededDb) -> None:
    """What is cached of the address is another person then."""
    anna = await verified(seeded_db)
    before = (await seeded_db.store.missed_changes(0))[-1].sequence
    async with seeded_db.store.transaction() as transaction:
        await AccountStore(seeded_db.db).change_profile(transaction, anna.user.id, None, "other@example.com")
    told = await seeded_db.store.missed_changes(before)
    assert [change.user_id for change in told if change.sequence > before] == [anna.user.id]
