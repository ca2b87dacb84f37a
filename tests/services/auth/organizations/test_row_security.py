"""The second line of defense: PostgreSQL itself shows a tenant's rows only to that tenant, if the role is not a superuser."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest

from services.auth.organizations.organization_store import OrganizationStore
from services.auth.store import AccountTables
from shared import errors
from shared.api import auth
from shared.api import organizations as api
from shared.api.auth import KeyKind
from shared.types import TenantId
from tests.services.auth import by_hand
from tests.services.auth.organizations.seeded_database import Person, SeededDb, opened_organizations

#: Each table, with the column that names a row's tenant.
TABLES = {"api_keys": "tenant_id", "organisations": "id", "organisation_members": "organisation_id", "invitations": "organisation_id"}


@pytest.fixture
async def seeded_db(plain_url: str) -> AsyncIterator[SeededDb]:
    async with opened_organizations(plain_url) as seeded_db:
        yield seeded_db


@dataclass
class Acme:
    anna: Person
    ben: Person
    id: TenantId
    #: A login of Anna's that acts for the organization.
    owner: str
    bens: auth.CreatedApiKey


async def settle(seeded_db: SeededDb) -> Acme:
    """Create two users with a key each, and their organization with a key and an open invitation."""
    anna, ben = await seeded_db.person("anna"), await seeded_db.person("ben")
    acme = await seeded_db.found(anna)
    bens = await seeded_db.key(await seeded_db.join(anna, acme, ben), "bens")
    await seeded_db.ask(api.invite_member, api.InviteMember(acme.id, "carl@example.com"), anna.login)
    other = await seeded_db.found(ben, "Other")
    await seeded_db.ask(api.invite_member, api.InviteMember(other.id, "carl@example.com"), ben.login)
    for person in (anna, ben):
        await seeded_db.key(person.login, "own")
    return Acme(anna, ben, acme.id, seeded_db.login(anna.user, acme.id), bens)


async def test_every_test_passes_for_a_role_that_is_not_a_superuser(seeded_db: SeededDb) -> None:
    acme = await settle(seeded_db)
    assert {key.name for key in await seeded_db.keys(acme.owner)} == {"bens"}
    assert {key.name for key in await seeded_db.keys(acme.anna.login)} == {"own"}
    rotated = await seeded_db.ask(auth.rotate_api_key, auth.RotateApiKey("bens", 60), acme.bens.api_key)
    for secret in (acme.bens.api_key, rotated.api_key):
        assert (await seeded_db.principal(secret)).team_id == acme.id
    await seeded_db.ask(auth.rename_api_key, auth.RenameApiKey("bens", "ours"), rotated.api_key)
    assert not (await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey(str(rotated.key.id)), acme.owner)).is_active
    with pytest.raises(errors.NotAuthenticated, match="revoked"):
        await seeded_db.principal(rotated.api_key)
    again = await seeded_db.key(seeded_db.login(acme.ben.user, acme.id), "again")
    await seeded_db.ask(api.remove_team_member, api.RemoveTeamMember(acme.id, acme.ben.user.id), acme.anna.login)
    with pytest.raises(errors.NotAuthenticated, match="revoked"):
        await seeded_db.principal(again.api_key)
    carl = await seeded_db.person("carl")
    sent = await seeded_db.ask(api.invite_member, api.InviteMember(acme.id, "carl@example.com"), acme.anna.login)
    assert (await seeded_db.ask(api.read_invitation, api.ReadInvitation(sent.token), carl.login)).organisation_name == "Acme"
    await seeded_db.store.touch_keys([again.key.id])
    boss = await seeded_db.admin()
    admins = (await seeded_db.key(boss.login, kind=KeyKind.ADMIN)).api_key
    assert len((await seeded_db.ask(api.list_all_organisations, api.ListAllOrganizations(), admins)).organisations) == 2
    assert len((await seeded_db.ask(auth.list_api_keys, auth.ListApiKeys(acme.ben.user.id), admins)).keys) == 3
    for key in (await seeded_db.ask(auth.list_api_keys, auth.ListApiKeys(acme.ben.user.id), admins)).keys:
        await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey(str(key.id)), admins)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("owns", [pytest.param(True, id="who owns the tables"), pytest.param(False, id="who was granted them")])
async def test_a_statement_without_a_where_clause_only_sees_its_tenant(
    seeded_db: SeededDb, plain_url: str, postgres_url: str, table: str, *, owns: bool
) -> None:
    acme = await settle(seeded_db)
    whose = TABLES[table]
    every = {row[0] for row in await _rows(postgres_url, f"SELECT {whose} FROM auth.{table}")}
    tenants = [acme.id, acme.anna.user.id]
    assert acme.id in every
    assert len(every) > 1
    connection = await asyncpg.connect(plain_url if owns else postgres_url)
    try:
        if not owns:
            await _become_granted(connection)
        seen = f"SELECT {whose} FROM auth.{table}"
        assert await connection.fetch(seen) == [], "who has not said for whom sees nothing"
        assert await connection.execute(f"DELETE FROM auth.{table}") == "DELETE 0"
        for tenant in tenants:
            await connection.execute("SELECT set_config('aimesh.tenant', $1, false)", str(tenant))
            assert {row[0] for row in await connection.fetch(seen)} == every & {tenant}
        await connection.execute("SELECT set_config('aimesh.tenant', '*', false)")
        assert {row[0] for row in await connection.fetch(seen)} == every
        for nonsense in ("", "' OR true --", "%", str(acme.id).upper() + "x", "*,*"):
            await connection.execute("SELECT set_config('aimesh.tenant', $1, false)", nonsense)
            assert await connection.fetch(seen) == []
    finally:
        await connection.close()
        if not owns:
            await by_hand.run(postgres_url, "DROP OWNED BY granted_to_read; DROP ROLE granted_to_read")


async def test_forced_row_security_applies_to_the_tables_owner(seeded_db: SeededDb, plain_url: str) -> None:
    await settle(seeded_db)
    connection = await asyncpg.connect(plain_url)
    try:
        assert await connection.fetchval("SELECT count(*) FROM auth.api_keys") == 0
        await connection.execute("BEGIN; ALTER TABLE auth.api_keys NO FORCE ROW LEVEL SECURITY")
        assert await connection.fetchval("SELECT count(*) FROM auth.api_keys") == 3
        await connection.execute("ROLLBACK")
    finally:
        await connection.close()


async def test_a_write_for_one_tenant_touches_no_other(seeded_db: SeededDb, plain_url: str, postgres_url: str) -> None:
    acme = await settle(seeded_db)
    connection = await asyncpg.connect(plain_url)
    try:
        await connection.execute("SELECT set_config('aimesh.tenant', $1, false)", str(acme.id))
        assert await connection.execute("UPDATE auth.api_keys SET name = 'taken'") == "UPDATE 1"
        for moved in (
            f"UPDATE auth.api_keys SET team_id = NULL WHERE id = '{acme.bens.key.id}'",
            f"INSERT INTO auth.organisation_members SELECT gen_random_uuid(), '{acme.ben.user.id}', 'owner'",
            "INSERT INTO auth.organisations (id, name) VALUES (gen_random_uuid(), 'Mine')",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(moved)
    finally:
        await connection.close()
    assert await by_hand.value(postgres_url, "SELECT count(*) FROM auth.api_keys WHERE name = 'own'") == 2


async def test_our_queries_for_another_tenants_rows_return_none(seeded_db: SeededDb) -> None:
    """Each query gets the arguments of the rightful tenant, but is bound to another tenant."""
    acme = await settle(seeded_db)
    mallory = await seeded_db.person("mallory")
    bound = TenantId(mallory.user.id)
    asked = {
        "find_key_of_tenant": (acme.bens.key.id, acme.id, acme.ben.user.id),
        "find_key_by_id": (acme.bens.key.id,),
        "list_keys_of_tenant": (acme.id, acme.anna.user.id),
        "list_keys_of_user": (acme.ben.user.id,),
        "list_keys_named": (acme.id, acme.ben.user.id, "bens"),
        "find_organisation": (acme.id, acme.anna.user.id, True),
        "list_organisations_of": (acme.anna.user.id,),
        "list_all_organisations": (acme.anna.user.id, 100, "", None),
        "list_team_members": (acme.id,),
        "list_invitations": (acme.id,),
    }
    for query, arguments in asked.items():
        async with seeded_db.db.bound(acme.id) as transaction:
            found = await transaction.rows(query, *arguments)
        assert found, query
        async with seeded_db.db.bound(bound) as transaction:
            assert await transaction.rows(query, *arguments) == [], query
    for query, writing in {
        "revoke_key": (acme.bens.key.id, acme.id),
        "rename_key": (acme.bens.key.id, acme.id, "mine"),
        "set_team_role": (acme.id, acme.ben.user.id, "owner"),
        "remove_team_member": (acme.id, acme.ben.user.id),
        "rename_organisation": (acme.id, "Mine"),
        "withdraw_invitations_to": (acme.id, "carl@example.com"),
    }.items():
        async with seeded_db.db.bound(bound) as transaction:
            assert await transaction.run(query, *writing) == 0, query


async def test_the_next_transaction_is_not_bound_to_the_last_ones_tenant(seeded_db: SeededDb) -> None:
    acme = await settle(seeded_db)
    store, organisations = AccountTables(seeded_db.db), OrganizationStore(seeded_db.db)
    for _ in range(30):
        async with organisations.bound(acme.id):
            pass
        assert len(await store.list_keys_of_user(acme.ben.user.id)) == 2
        assert await store.list_keys(TenantId(acme.anna.user.id), acme.ben.user.id) == ()


async def _rows(url: str, query: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(query))
    finally:
        await connection.close()


async def _become_granted(connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE ROLE granted_to_read NOLOGIN")
    await connection.execute("GRANT USAGE ON SCHEMA auth TO granted_to_read")
    await connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA auth TO granted_to_read")
    await connection.execute("SET ROLE granted_to_read")
