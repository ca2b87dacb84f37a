"""API keys: what each kind may do, that a key never has more permissions than its creator, and how keys end."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import pytest

from services.auth import api_keys
from services.auth.accounts.api_key_rpc import NO_SUCH_KEY
from services.auth.api_keys import NOT_A_KEY
from services.auth.roles import NOT_YOURS
from services.auth.sessions.identities import Identities, KeyLastUsed
from services.auth.store import AccountTables
from shared import access_table, errors
from shared.api import auth, events
from shared.api.auth import ApiKeyLimits, KeyBounds, KeyKind
from shared.identity import credentials
from shared.stores.database import Database
from shared.types import Credential, KeyId, ModelName, Permission, Role, TenantId, UserRole
from tests.cases import case
from tests.services.auth import by_hand
from tests.services.auth.organizations.seeded_database import SeededDb, opened_organizations, refusal_of

#: Only an administrator's admin key may read autoscaling, and only one that lists it may name people.
EVERYDAY = {str(permission) for permission in Permission} - {"*", "scale:read", "users:name", "users:unknown"}


@pytest.fixture
async def seeded_db(postgres_url: str) -> AsyncIterator[SeededDb]:
    async with opened_organizations(postgres_url) as seeded_db:
        yield seeded_db


async def permissions(seeded_db: SeededDb, key: Credential) -> set[str]:
    found = await seeded_db.principal(key)
    assert found.scopes is not None
    granted = access_table.permissions_of(found.role, found.scopes)
    assert {str(permission) for permission in granted} == set(found.scopes), "what it carries is exactly what it may"
    return set(found.scopes)


# --- kinds -----------------------------------------------------------------------------------------------------------


async def test_a_live_key_may_do_what_its_owner_may_but_never_administer(seeded_db: SeededDb) -> None:
    for role in UserRole:
        person = await seeded_db.person(f"a-{role}", role)
        made = await seeded_db.key(person.login)
        assert (made.key.kind, made.key.bounds, made.api_key.startswith("aip_live_")) == (KeyKind.LIVE, KeyBounds(), True)
        assert await permissions(seeded_db, made.api_key) == (EVERYDAY if role is UserRole.ADMIN else set(access_table.ROLES[role]))


async def test_a_key_without_requested_scopes_may_use_models_and_read_usage(seeded_db: SeededDb) -> None:
    usual = {"inference:execute", "model:read", "usage:read"}
    for role in UserRole:
        person = await seeded_db.person(f"a-{role}", role)
        allowed = EVERYDAY if role is UserRole.ADMIN else set(access_table.ROLES[role])
        for kind in (KeyKind.LIVE, KeyKind.TEST):
            made = await seeded_db.ask(auth.generate_api_key, auth.GenerateApiKey("k", kind=kind), person.login)
            assert await permissions(seeded_db, made.api_key) == usual & allowed
            with pytest.raises(errors.NotAllowed, match="the key 'k' lacks the scope key:write"):
                await seeded_db.ask(auth.generate_api_key, auth.GenerateApiKey("another"), made.api_key)


async def test_older_keys_keep_their_permissions(seeded_db: SeededDb) -> None:
    person = await seeded_db.person(role=UserRole.NODE_OWNER)
    assert await permissions(seeded_db, await seeded_db.key_by_hand(person.user)) == set(access_table.ROLES[UserRole.NODE_OWNER])
    assert await permissions(seeded_db, await seeded_db.key_by_hand(person.user, KeyKind.TEST)) == {"inference:execute"}


async def test_a_leaked_key_is_revoked_with_all_keys_that_it_created(seeded_db: SeededDb) -> None:
    boss, anna = await seeded_db.admin(), await seeded_db.person()
    leaked = await seeded_db.key(boss.login, kind=KeyKind.ADMIN)
    child = await seeded_db.key(leaked.api_key, "child", kind=KeyKind.ADMIN)
    for_anna = await seeded_db.key(leaked.api_key, "for anna", user_id=anna.user.id)
    grandchild = await seeded_db.key(child.api_key, "grandchild")
    own = await seeded_db.key(anna.login, "own")
    assert (leaked.key.made_by, child.key.made_by, grandchild.key.made_by) == (None, leaked.key.id, child.key.id)
    assert (await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey(str(leaked.key.id)), boss.login)).id == leaked.key.id
    assert await permissions(seeded_db, grandchild.api_key) == EVERYDAY, "alone it takes none with it"
    # The leaked key is already revoked, but the keys that it created still work.
    await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey(str(leaked.key.id), with_made=True), boss.login)
    for gone in (child, for_anna, grandchild):
        with pytest.raises(errors.NotAuthenticated, match="revoked"):
            await seeded_db.principal(gone.api_key)
    assert (await seeded_db.principal(own.api_key)).key_id == own.key.id


async def test_an_administrators_live_key_is_refused_admin_methods(seeded_db: SeededDb) -> None:
    boss, anna = await seeded_db.admin(), await seeded_db.person()
    key = (await seeded_db.key(boss.login)).api_key
    for request in (auth.GenerateApiKey(user_id=anna.user.id), auth.GenerateApiKey(kind=KeyKind.ADMIN)):
        with pytest.raises(errors.NotAllowed, match=r"only administrators can create and have keys|that belongs to another user"):
            await seeded_db.ask(auth.generate_api_key, request, key)
    with pytest.raises(errors.NotAllowed, match=NOT_YOURS):
        await seeded_db.ask(auth.list_api_keys, auth.ListApiKeys(anna.user.id), key)
    annas = await seeded_db.key(anna.login)
    with pytest.raises(errors.NotFound, match=NO_SUCH_KEY):
        await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey(str(annas.key.id)), key)


async def test_an_admin_key_administers_and_only_administrators_have_one(seeded_db: SeededDb) -> None:
    boss, anna = await seeded_db.admin(), await seeded_db.person()
    made = await seeded_db.key(boss.login, kind=KeyKind.ADMIN)
    assert made.api_key.startswith("aip_adm_")
    assert await permissions(seeded_db, made.api_key) == {"*"}
    for by, request in (
        (anna.login, auth.GenerateApiKey(kind=KeyKind.ADMIN)),
        (boss.login, auth.GenerateApiKey(kind=KeyKind.ADMIN, user_id=anna.user.id)),
    ):
        with pytest.raises(errors.NotAllowed, match="kind adm"):
            await seeded_db.ask(auth.generate_api_key, request, by)
    narrow = await seeded_db.key(made.api_key, kind=KeyKind.ADMIN, bounds=KeyBounds(("usage:read", "key:write")))
    assert await permissions(seeded_db, narrow.api_key) == {"usage:read", "key:write"}


async def test_an_admin_key_loses_its_rights_with_its_owner(seeded_db: SeededDb) -> None:
    boss = await seeded_db.admin()
    keys = [await seeded_db.key(boss.login, kind=KeyKind.ADMIN, bounds=KeyBounds(scopes)) for scopes in ((), ("*",))]
    async with seeded_db.store.transaction() as transaction:
        await seeded_db.store.set_role(transaction, boss.user.id, UserRole.USER)
    for key in keys:
        assert await permissions(seeded_db, key.api_key) == set(access_table.ROLES[UserRole.USER])


async def test_a_test_key_runs_models_for_thirty_days_and_does_nothing_else(seeded_db: SeededDb) -> None:
    person = await seeded_db.person(role=UserRole.DEVELOPER)
    made = await seeded_db.key(person.login, kind=KeyKind.TEST)
    assert made.api_key.startswith("aip_test_")
    assert await permissions(seeded_db, made.api_key) == {"inference:execute", "model:read", "usage:read"}
    assert made.key.limits == ApiKeyLimits(requests_per_hour=60)
    assert made.key.expires_at is not None
    assert timedelta(days=29) < made.key.expires_at - datetime.now(UTC) <= timedelta(days=30)
    for changed in ({"days": 31}, {"days": 0}, {"limits": ApiKeyLimits(requests_per_hour=61)}):
        with pytest.raises(errors.BadRequest, match="a test key"):
            await seeded_db.key(person.login, kind=KeyKind.TEST, **changed)
    with pytest.raises(errors.NotAllowed, match="kind test"):
        await seeded_db.key(person.login, kind=KeyKind.TEST, bounds=KeyBounds(("key:write",)))
    tighter = await seeded_db.key(person.login, kind=KeyKind.TEST, limits=ApiKeyLimits(requests_per_hour=5), days=1)
    assert tighter.key.limits.requests_per_hour == 5


async def test_scopes_edited_by_hand_give_no_live_key_admin_rights(seeded_db: SeededDb) -> None:
    boss = await seeded_db.admin()
    for kind in (KeyKind.LIVE, KeyKind.TEST):
        key = await seeded_db.key_by_hand(boss.user, kind, KeyBounds(("*", "of-a-later-version", "inference:execute")))
        assert await permissions(seeded_db, key) == {"inference:execute"}


# --- bounds ----------------------------------------------------------------------------------------------------------


async def test_a_lost_scope_grants_nothing_instead_of_everything(seeded_db: SeededDb) -> None:
    dev = await seeded_db.person(role=UserRole.DEVELOPER)
    key = (await seeded_db.key(dev.login, bounds=KeyBounds(("model:write",)))).api_key
    async with seeded_db.store.transaction() as transaction:
        await seeded_db.store.set_role(transaction, dev.user.id, UserRole.USER)
    assert await permissions(seeded_db, key) == set()


async def test_invalid_bounds_are_refused(seeded_db: SeededDb) -> None:
    person = await seeded_db.person()
    for bounds, error, says in (
        (KeyBounds(("everything",)), errors.BadRequest, "no 'everything'"),
        (KeyBounds(("model:write",)), errors.NotAllowed, "model:write"),
        (KeyBounds(("*",)), errors.NotAllowed, r"\*"),
        (KeyBounds(models=tuple(ModelName(str(n)) for n in range(101))), errors.BadRequest, "at most 100"),
        (KeyBounds(models=(ModelName("a\nb"),)), errors.BadRequest, "models"),
        (KeyBounds(models=(ModelName(""),)), errors.BadRequest, "models"),
        (KeyBounds(networks=tuple(f"10.0.{n}.0/24" for n in range(21))), errors.BadRequest, "at most 20"),
        (KeyBounds(networks=("10.0.0.0/33",)), errors.BadRequest, "not a network"),
        (KeyBounds(networks=("fe80::1%eth0",)), errors.BadRequest, "not a network"),
    ):
        with case(bounds), pytest.raises(error, match=says) as refused:
            await seeded_db.key(person.login, bounds=bounds)
        if says.startswith("no 'every"):
            assert all(permission in refused.value.hint for permission in Permission)


async def test_a_keys_bounds_are_stored_normalized(seeded_db: SeededDb) -> None:
    person = await seeded_db.person()
    asked = KeyBounds(
        ("usage:read", "inference:execute", "usage:read"),
        (ModelName("b"), ModelName("a"), ModelName("b")),
        ("192.0.2.7/24", "::ffff:198.51.100.0/120", "2001:DB8::1", "192.0.2.0/24"),
    )
    made = await seeded_db.key(person.login, bounds=asked)
    kept = KeyBounds(
        ("inference:execute", "usage:read"), (ModelName("b"), ModelName("a")), ("192.0.2.0/24", "198.51.100.0/24", "2001:db8::1/128")
    )
    found = await seeded_db.principal(made.api_key)
    assert (made.key.bounds, found.scopes, found.models, found.networks) == (kept, kept.scopes, kept.models, kept.networks)
    access_table.check_network(found, "198.51.100.9")
    with pytest.raises(errors.NotAllowed, match="this key may not be used from"):
        access_table.check_network(found, "198.51.101.9")


async def test_a_key_grants_new_keys_no_more_than_it_has(seeded_db: SeededDb) -> None:
    person = await seeded_db.person()
    mine = KeyBounds(("inference:execute", "key:write"), (ModelName("a"), ModelName("b")), ("10.0.0.0/8", "2001:db8::/32"))
    maker = (await seeded_db.key(person.login, bounds=mine)).api_key

    async def make(bounds: KeyBounds) -> KeyBounds:
        request = auth.GenerateApiKey(bounds=bounds)
        return (await seeded_db.ask(auth.generate_api_key, request, maker, through=Role.GATEWAY)).key.bounds

    usual = KeyBounds(("inference:execute",), mine.models, mine.networks)
    assert await make(KeyBounds()) == usual, "models and networks that are left out are inherited; rights are the usual ones"
    within = KeyBounds(("inference:execute",), (ModelName("a"),), ("10.1.0.0/16", "2001:db8:1::/48"))
    assert await make(within) == within
    for beyond in (
        KeyBounds(("usage:read",)),
        KeyBounds(models=(ModelName("a"), ModelName("c"))),
        KeyBounds(networks=("10.1.0.0/16", "11.0.0.0/8")),
        KeyBounds(networks=("0.0.0.0/0",)),
        KeyBounds(networks=("::/0",)),
    ):
        with pytest.raises(
            errors.NotAllowed,
            match=r"models: beyond those of this key: c|networks: beyond those of this key|you cannot give permissions that you lack",
        ):
            await make(beyond)


async def test_a_key_that_may_only_write_keys_creates_none_that_may_run_models(seeded_db: SeededDb) -> None:
    person = await seeded_db.person()
    key = (await seeded_db.key(person.login, bounds=KeyBounds(("key:write",)))).api_key
    with pytest.raises(errors.NotAllowed, match="would have no permissions"):
        await seeded_db.key(key, kind=KeyKind.TEST)
    assert await permissions(seeded_db, (await seeded_db.key(key)).api_key) == {"key:write"}


async def test_a_key_creates_none_that_outlives_it(seeded_db: SeededDb) -> None:
    person = await seeded_db.person()
    maker = await seeded_db.key(person.login, days=10)
    heir = await seeded_db.key(maker.api_key)
    assert heir.key.expires_at == maker.key.expires_at
    for days in (0, 11):
        with pytest.raises(errors.NotAllowed, match="longer than this key"):
            await seeded_db.key(maker.api_key, days=days)
    assert (await seeded_db.key(maker.api_key, days=9)).key.expires_at is not None


async def test_a_key_with_networks_is_refused_where_the_address_is_unknown(seeded_db: SeededDb) -> None:
    person = await seeded_db.person()
    made = await seeded_db.key(person.login, bounds=KeyBounds(networks=("10.0.0.0/8",)))
    with pytest.raises(errors.NotAllowed, match="bound to networks"):
        await seeded_db.key(made.api_key)


# --- lifetime --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "expected"), [(None, 90), (1, 1), (3650, 3650), (0, None)])
async def test_lifetimes_of_keys(seeded_db: SeededDb, days: int | None, expected: int | None) -> None:
    person = await seeded_db.person()
    made = await seeded_db.key(person.login, days=days)
    found = await seeded_db.principal(made.api_key)
    if expected is None:
        assert (made.key.expires_at, found.expires_at) == (None, None)
        return
    assert found.expires_at is not None
    assert abs(found.expires_at - time.time() - expected * 86_400) < 60


async def test_a_gateway_finds_out_which_keys_have_ended(seeded_db: SeededDb, postgres_url: str) -> None:
    ann, bob = await seeded_db.person("ann"), await seeded_db.person("bob")
    expired, revoked, lives, without_end = [
        (await seeded_db.key(person.login, days=days)).key.id for person, days in ((ann, 1), (ann, None), (bob, None), (bob, 0))
    ]
    await by_hand.run(postgres_url, "UPDATE auth.api_keys SET expires_at = now() WHERE id = $1", expired)
    await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey(str(revoked)), ann.login)
    unknown = KeyId(uuid4())
    request = auth.FindEndedKeys((expired, lives, revoked, unknown, without_end))
    found = await seeded_db.ask(auth.find_ended_keys, request, None, through=Role.GATEWAY)
    assert set(found.keys) == {expired, revoked, unknown}
    with pytest.raises(errors.WrongRole, match=r"may not call auth\.findEndedKeys"):
        await seeded_db.ask(auth.find_ended_keys, request, None)


async def test_an_expired_key_error_says_since_when(seeded_db: SeededDb, postgres_url: str) -> None:
    person = await seeded_db.person()
    made = await seeded_db.key(person.login)
    await by_hand.run(postgres_url, "UPDATE auth.api_keys SET expires_at = now() - interval '3 days 1 hour'")
    with pytest.raises(errors.NotAuthenticated, match="this API key expired 3 days ago") as refused:
        await seeded_db.principal(made.api_key)
    assert "create a new one" in refused.value.hint
    assert seeded_db.surroundings.refusals("expired_key") == 1
    with pytest.raises(errors.BadRequest, match="has expired"):
        await seeded_db.ask(auth.rotate_api_key, auth.RotateApiKey(str(made.key.id)), person.login)


# --- rotating and renaming -------------------------------------------------------------------------------------------


async def rotate(seeded_db: SeededDb, by: str, key: str = "default", overlap_seconds: int = 3600) -> auth.CreatedApiKey:
    return await seeded_db.ask(auth.rotate_api_key, auth.RotateApiKey(key, overlap_seconds), by)


async def test_an_old_secret_works_during_the_overlap_and_then_explains_why_not(seeded_db: SeededDb, postgres_url: str) -> None:
    person = await seeded_db.person()
    old = await seeded_db.key(person.login)
    new = await rotate(seeded_db, person.login)
    assert new.api_key != old.api_key
    assert (new.key.id, new.key.name, new.key.expires_at) == (old.key.id, "default", old.key.expires_at)
    assert new.key.preview == api_keys.preview(new.api_key)
    before, after = await seeded_db.principal(old.api_key), await seeded_db.principal(new.api_key)
    assert (before.key_id, after.key_id) == (old.key.id, old.key.id)
    assert before.expires_at is not None
    assert abs(before.expires_at - time.time() - 3600) < 60, "no cache may believe in it for longer"
    assert old.key.expires_at is not None
    assert after.expires_at == old.key.expires_at.timestamp()
    await by_hand.run(postgres_url, "UPDATE auth.former_key_hashes SET good_until = now() - interval '2 hours 1 minute'")
    with pytest.raises(errors.NotAuthenticated, match="rotated, and its old secret ended 2 hours ago"):
        await seeded_db.principal(old.api_key)
    await seeded_db.principal(new.api_key)
    assert [act.action for act in seeded_db.trail.acts] == ["key.create", "key.rotate"]


async def test_without_an_overlap_old_secrets_end_immediately(seeded_db: SeededDb) -> None:
    person = await seeded_db.person()
    first = (await seeded_db.key(person.login)).api_key
    secrets = [first, *[(await rotate(seeded_db, person.login, overlap_seconds=overlap)).api_key for overlap in (3600, 3600, 0)]]
    for old in secrets[:-1]:
        with pytest.raises(errors.NotAuthenticated, match="rotated"):
            await seeded_db.principal(old)
    await seeded_db.principal(secrets[-1])


async def test_revoking_a_key_revokes_its_old_secrets(seeded_db: SeededDb) -> None:
    person = await seeded_db.person()
    old = (await seeded_db.key(person.login)).api_key
    new = (await rotate(seeded_db, person.login)).api_key
    await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey("default"), person.login)
    for secret in (old, new):
        with pytest.raises(errors.NotAuthenticated, match="revoked"):
            await seeded_db.principal(secret)


async def test_ten_concurrent_rotations_return_valid_secrets_and_the_last_one_stays(seeded_db: SeededDb, postgres_url: str) -> None:
    person = await seeded_db.person()
    first = await seeded_db.key(person.login)
    made = await asyncio.gather(*(rotate(seeded_db, person.login, str(first.key.id)) for _ in range(10)))
    for secret in (first, *made):
        assert (await seeded_db.principal(secret.api_key)).key_id == first.key.id
    await by_hand.run(postgres_url, "UPDATE auth.former_key_hashes SET good_until = now()")
    outcomes = await asyncio.gather(*(seeded_db.principal(secret.api_key) for secret in made), return_exceptions=True)
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1


async def test_a_key_rotates_itself_but_no_key_with_more_permissions(seeded_db: SeededDb) -> None:
    person = await seeded_db.person()
    narrow = await seeded_db.key(person.login, "narrow", bounds=KeyBounds(("key:write",)))
    limited = await seeded_db.key(person.login, "limited", limits=ApiKeyLimits(requests_per_hour=5))
    soon = await seeded_db.key(person.login, "soon", days=1)
    modelled = await seeded_db.key(person.login, "modelled", bounds=KeyBounds(models=(ModelName("a"),)), days=90)
    wide = await seeded_db.key(person.login, "wide")
    for by in (narrow, limited, soon, modelled):
        with pytest.raises(errors.NotAllowed):
            await rotate(seeded_db, by.api_key, "wide")
        renewed = await rotate(seeded_db, by.api_key, str(by.key.id))
        assert renewed.key.bounds == by.key.bounds
        assert renewed.key.limits == by.key.limits
    assert (await rotate(seeded_db, wide.api_key, "narrow")).key.name == "narrow"


async def test_a_key_is_renamed_and_found_by_its_new_name(seeded_db: SeededDb) -> None:
    person = await seeded_db.person()
    made = await seeded_db.key(person.login, "old")
    renamed = await seeded_db.ask(auth.rename_api_key, auth.RenameApiKey("old", " new "), person.login)
    assert (renamed.id, renamed.name) == (made.key.id, "new")
    with pytest.raises(errors.NotFound, match="you have no active key of this name"):
        await seeded_db.ask(auth.rename_api_key, auth.RenameApiKey("old", "again"), person.login)
    with pytest.raises(errors.BadRequest, match="name"):
        await seeded_db.ask(auth.rename_api_key, auth.RenameApiKey("new", "a\nb"), person.login)
    await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey("new"), person.login)
    with pytest.raises(errors.BadRequest, match="revoked"):
        await seeded_db.ask(auth.rename_api_key, auth.RenameApiKey(str(made.key.id), "again"), person.login)
    assert seeded_db.trail.actions == ["key.create", "key.rename", "key.revoke"]


async def test_every_audit_entry_names_the_key_without_a_secret(seeded_db: SeededDb) -> None:
    boss, anna = await seeded_db.admin(), await seeded_db.person()
    made = await seeded_db.key(boss.login, user_id=anna.user.id)
    new = await rotate(seeded_db, boss.login, str(made.key.id))
    await seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey(str(made.key.id)), boss.login)
    assert [(act.action, act.tenant_id, act.actor, act.target) for act in seeded_db.trail.acts] == [
        (action, TenantId(anna.user.id), boss.user.id, str(made.key.id)) for action in ("key.create", "key.rotate", "key.revoke")
    ]
    assert not any(
        secret in repr(seeded_db.trail.acts) for secret in (made.api_key, new.api_key, seeded_db.identities.mark(new.api_key).key_hash)
    )
    assert [type(event) for event in seeded_db.surroundings.published] == [events.KeyCreated, events.KeyRevoked]


async def test_an_action_that_cannot_be_logged_does_not_happen(seeded_db: SeededDb, monkeypatch: pytest.MonkeyPatch) -> None:
    person = await seeded_db.person()
    made = await seeded_db.key(person.login)

    async def full(transaction: object, act: object) -> None:
        raise errors.Unavailable("the log is away")

    monkeypatch.setattr(seeded_db.trail, "add", full)
    for asking in (
        seeded_db.key(person.login, "other"),
        rotate(seeded_db, person.login),
        seeded_db.ask(auth.rename_api_key, auth.RenameApiKey("default", "x"), person.login),
        seeded_db.ask(auth.revoke_api_key, auth.RevokeApiKey("default"), person.login),
    ):
        with pytest.raises(errors.Unavailable, match="the log is away"):
            await asking
    assert [(key.name, key.is_active, key.preview) for key in await seeded_db.keys(person.login)] == [("default", True, made.key.preview)]
    await seeded_db.principal(made.api_key)


# --- ownership -------------------------------------------------------------------------------------------------------


async def test_guessed_key_ids_are_not_found_whether_real_or_not(seeded_db: SeededDb) -> None:
    mallory, anna = await seeded_db.person("mallory"), await seeded_db.person("anna")
    mine = await seeded_db.key(mallory.login)
    annas = [await seeded_db.key(anna.login, f"key {n}") for n in range(5)]
    guesses = [str(made.key.id) for made in annas] + [str(uuid4()) for _ in range(10)]
    for guess in guesses:
        for method, request in (
            (auth.revoke_api_key, auth.RevokeApiKey(guess)),
            (auth.rename_api_key, auth.RenameApiKey(guess, "mine")),
            (auth.rotate_api_key, auth.RotateApiKey(guess)),
        ):
            refused = await refusal_of(seeded_db.ask(method, request, mine.api_key))  # type: ignore[misc]  # a union of pairs
            assert (type(refused), refused.message) == (errors.NotFound, "you have no key with this id")
    assert {key.id for key in await seeded_db.keys(mine.api_key)} == {mine.key.id}
    assert all(key.is_active and key.name.startswith("key ") for key in await seeded_db.keys(anna.login))


class NoDatabase:
    """Replaces PostgreSQL, and records the queries."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        raise errors.Unavailable("there is no PostgreSQL")


async def test_ten_thousand_invented_keys_cost_no_query() -> None:
    database, refused = NoDatabase(), Counter[str]()
    nothing = cast("Any", None)
    store = AccountTables(cast("Database", database))
    identities = Identities(
        store, nothing, nothing, KeyLastUsed(store), pepper="p" * 32, count_refusal=lambda why: refused.update([why]), admin_mfa=False
    )
    good = api_keys.generate()
    for invented in _invented(good, 10_000):
        with pytest.raises(errors.NotAuthenticated, match=NOT_A_KEY):
            await identities.of_key(invented)
    assert (database.asked, refused) == ([], Counter(malformed=10_000))
    with pytest.raises(errors.Unavailable, match="there is no PostgreSQL"):
        await identities.of_key(good)
    assert database.asked == ["row"]


def _invented(good: Credential, count: int) -> list[Credential]:
    """Return invalid keys: what scanners try, and the good key with one character changed."""
    tails = [
        "", "' OR 1=1", "'; DROP TABLE api_keys; --", '" UNION SELECT key_hash FROM api_keys --', "' AND pg_sleep(9) --", "$1", "\0", "%00",
        "../../etc/passwd", "٣" * 49, "\ud800", "A" * 65_536, "0" * 48, "0" * 49, "0" * 50, "{{7*7}}", "${jndi:ldap://x}", "\r\nX-Admin: 1",
        good[9:] + "\n", " " + good[9:], good[9:] + "0", good[9:-1], good[9:].swapcase(), good.encode("utf-16").decode("latin-1"),
    ]  # fmt: skip
    found = [
        Credential(head + tail)
        for head in (*credentials.PREFIXES.values(), "aip_", "aip_join_", "aip_rt_", "Bearer ", "")
        for tail in tails
    ]
    found += [
        Credential(good[:place] + other + good[place + 1 :])
        for place in range(9, len(good))
        for other in credentials.ALPHABET
        if other != good[place]
    ]
    found += [Credential(f"aip_test_{number:049d}") for number in range(count)]
    return [key for key in dict.fromkeys(found) if not credentials.looks_like_api_key(key)][:count]


async def test_the_first_administrators_key(seeded_db: SeededDb) -> None:
    secret = api_keys.generate(KeyKind.ADMIN)
    api_keys.check_first(secret)
    mark = seeded_db.identities.mark(secret)
    made = await asyncio.gather(*(seeded_db.store.ensure_first_admin("hash", mark) for _ in range(5)))
    assert made.count(True) == 1
    found = await seeded_db.principal(secret)
    assert (found.username, found.key_name, found.expires_at, found.scopes) == ("admin", "first key", None, ("*",))
    other = api_keys.generate(KeyKind.ADMIN)
    assert not await seeded_db.store.ensure_first_admin("hash", seeded_db.identities.mark(other))
    with pytest.raises(errors.NotAuthenticated, match="this API key does not exist"):
        await seeded_db.principal(other)
    for wrong in (api_keys.generate(), "aip_adm_short", ""):
        with pytest.raises(errors.BadRequest, match="administrator"):
            api_keys.check_first(wrong)
