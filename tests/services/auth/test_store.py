"""auth's tables on a real PostgreSQL: uniqueness, races, and that a listener hears of every change, however it was made."""

import asyncio
import dataclasses
import json
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

import services.auth
from services.auth.api_keys import Mark
from services.auth.roles import KeyTerms
from services.auth.store import MAX_ACTIVE_KEYS, AccountTables, NewKey, opened
from shared import errors
from shared.api.auth import ApiKey, ApiKeyLimits, Change, KeyBounds, KeyKind, User
from shared.node import lifecycle
from shared.stores import migrations
from shared.stores.database import Database
from shared.types import MicroCredits, ModelName, TenantId, Tier, UserId, UserRole
from tests.cases import case
from tests.services.auth import by_hand

NO_LIMITS = ApiKeyLimits()


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[AccountTables]:
    async with opened(postgres_url) as db:
        yield AccountTables(db)


async def add_user(store: AccountTables, name: str = "anna", email: str = "") -> User:
    async with store.adding_user() as transaction:
        return await store.add_user(transaction, name, email or f"{name}@example.com", "hash")


async def set_tier(store: AccountTables, user_id: UserId, tier: Tier) -> User:
    async with store.transaction() as transaction:
        return await store.set_tier(transaction, user_id, tier)


async def revoke(store: AccountTables, key: ApiKey) -> ApiKey | None:
    async with store.transaction() as transaction:
        return await store.revoke_key(transaction, key)


async def add_key(
    store: AccountTables, user: User, key_hash: str = "k", name: str = "default", limits: ApiKeyLimits = NO_LIMITS, **changed: Any
) -> ApiKey:
    terms = dataclasses.replace(KeyTerms(KeyKind.LIVE, limits, KeyBounds(), None), **changed)
    async with store.bound(TenantId(user.id)) as transaction:
        return await store.add_key(transaction, NewKey(user.id, None, name, Mark(key_hash, "aip_live_abc…wxyz"), terms))


async def keys_of(store: AccountTables, user_id: UserId) -> tuple[ApiKey, ...]:
    return await store.list_keys(TenantId(user_id), user_id)


async def test_a_user_is_found_by_each_of_its_names(store: AccountTables) -> None:
    user = await add_user(store, "Anna")
    assert (user.role, user.tier, user.is_active) == (UserRole.USER, Tier.FREE, True)
    assert user.created_at.tzinfo is not None
    for name in ("Anna", "aNNa", "ANNA@example.com", str(user.id)):
        assert await store.get_user_called(name) == user
    account = await store.find_account("anna")
    assert account is not None
    assert account.password_hash == "hash"


async def test_an_unknown_name_finds_no_user(store: AccountTables) -> None:
    for name in ("nobody", "x@y.z", str(UUID(int=1)), "", "a\0b", "' OR 1=1 --", "x" * 10_000):
        with case(name), pytest.raises(errors.NotFound, match="there is no user"):
            await store.get_user_called(name)


@pytest.mark.parametrize(
    ("username", "email", "what"),
    [
        pytest.param("ANNA", "other@example.com", "user name", id="the name in other letters"),
        pytest.param("other", "Anna@Example.com", "email address", id="the address in other letters"),
    ],
)
async def test_a_taken_name_error_says_what_is_taken(store: AccountTables, username: str, email: str, what: str) -> None:
    await add_user(store)
    with pytest.raises(errors.AlreadyExists, match=what):
        async with store.adding_user() as transaction:
            await store.add_user(transaction, username, email, "hash")


async def test_one_of_twenty_concurrent_registrations_of_a_name_succeeds(store: AccountTables) -> None:
    outcomes = await asyncio.gather(*(add_user(store, "anna", f"anna{n}@example.com") for n in range(20)), return_exceptions=True)
    assert sum(isinstance(outcome, User) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, errors.AlreadyExists) for outcome in outcomes) == 19


async def test_one_of_twenty_concurrent_starts_creates_the_administrator(store: AccountTables) -> None:
    assert not await store.has_admin()
    assert (await asyncio.gather(*(store.ensure_first_admin("hash") for _ in range(20)))).count(True) == 1
    assert await store.has_admin()
    admin = await store.get_user_called("admin")
    assert (admin.role, admin.tier, admin.email) == (UserRole.ADMIN, Tier.ENTERPRISE, "admin@localhost")


async def test_a_key_can_be_revoked_once(store: AccountTables) -> None:
    key = await add_key(store, await add_user(store))
    revoked = await revoke(store, key)
    assert revoked is not None
    assert not revoked.is_active
    assert await revoke(store, key) is None
    assert [found.is_active for found in await keys_of(store, key.user_id)] == [False]


async def test_a_users_active_keys_are_limited(store: AccountTables) -> None:
    user = await add_user(store)
    key = await add_key(store, user, "first")
    for n in range(1, MAX_ACTIVE_KEYS):
        await add_key(store, user, str(n))
    with pytest.raises(errors.BadRequest, match="already 100 active keys"):
        await add_key(store, user, "more")
    await revoke(store, key)
    await add_key(store, user, "more")


async def test_the_owner_of_a_key(store: AccountTables) -> None:
    user = await add_user(store)
    key = await add_key(store, user)
    assert await store.find_owner_of_key("unknown") is None
    owned = await store.find_owner_of_key("k")
    assert owned is not None
    assert (owned.principal.user_id, owned.principal.key_id, owned.principal.key_name) == (user.id, key.id, "default")
    assert owned.key_is_active
    assert owned.user_is_active
    assert await store.find_owner_of_key(None, key.id) == owned


async def test_a_key_stores_each_of_its_limits(store: AccountTables) -> None:
    limits = ApiKeyLimits(requests_per_hour=1, requests_per_minute=2, tokens_per_minute=3, concurrency=4, budget_micro=MicroCredits(10**18))
    key = await add_key(store, await add_user(store), limits=limits)
    owned = await store.find_owner_of_key("k")
    assert owned is not None
    (listed,) = await keys_of(store, key.user_id)
    assert key.limits == owned.principal.key_limits == listed.limits == limits


async def test_a_key_stores_its_kind_bounds_and_expiry(store: AccountTables) -> None:
    bounds = KeyBounds(("model:read",), (ModelName("llama"), ModelName("qwen")), ("10.0.0.0/8",))
    ends = datetime.now(UTC) + timedelta(days=3)
    key = await add_key(store, await add_user(store), kind=KeyKind.TEST, bounds=bounds, expires_at=ends)
    assert (key.kind, key.bounds, key.expires_at, key.team_id) == (KeyKind.TEST, bounds, ends, None)
    assert await keys_of(store, key.user_id) == (key,)
    owned = await store.find_owner_of_key("k")
    assert owned is not None
    assert (owned.principal.models, owned.principal.networks, owned.principal.expires_at) == (
        bounds.models,
        bounds.networks,
        ends.timestamp(),
    )
    assert (owned.expires_at, owned.replaced_at) == (ends, None)


async def test_a_tenants_key_cannot_be_found_changed_or_revoked_by_another(store: AccountTables) -> None:
    anna, ben = await add_user(store, "anna"), await add_user(store, "ben")
    key = await add_key(store, anna)
    for tenant, user in ((ben.id, ben.id), (anna.id, ben.id), (ben.id, anna.id)):
        assert await store.find_key(TenantId(tenant), user, key.id) is None
        assert await store.list_keys(TenantId(tenant), user) == ()
        assert await store.list_keys_named(TenantId(tenant), user, "default") == ()
    claimed = msgspec.structs.replace(key, user_id=ben.id)
    async with store.transaction() as transaction:
        assert await store.revoke_key(transaction, claimed) is None
        assert await store.rename_key(transaction, claimed, "mine") is None
        assert await store.rotate_key(transaction, claimed, Mark("stolen", "…"), 60) is None
    assert await store.find_key(TenantId(anna.id), anna.id, key.id) == key == await store.find_any_key(key.id)
    assert await store.find_owner_of_key("stolen") is None


async def test_a_replaced_secret_leads_to_the_same_key_until_its_time(store: AccountTables) -> None:
    key = await add_key(store, await add_user(store), "old")
    async with store.transaction() as transaction:
        assert await store.rotate_key(transaction, key, Mark("new", "aip_live_new…wxyz"), 60) is not None
    old, new = await store.find_owner_of_key("old"), await store.find_owner_of_key("new")
    assert old is not None
    assert new is not None
    assert old.principal.key_id == new.principal.key_id == key.id
    assert old.replaced_at is not None
    assert old.principal.expires_at == old.replaced_at.timestamp()
    assert (new.replaced_at, new.principal.expires_at) == (None, None)


@pytest.mark.parametrize("tables_of", [None], ids=["empty"])
async def test_premium_users_are_pro_after_the_upgrade(postgres_url: str, tmp_path: Path) -> None:
    package = Path(services.auth.__file__).parent
    (tmp_path / "migrations").mkdir()
    shutil.copytree(package / "queries", tmp_path / "queries")
    for name in ("0001_pre_accounts.sql", "0002_pre_mesh.sql"):
        shutil.copy(package / "migrations" / name, tmp_path / "migrations")
    async with Database.open(postgres_url, schema="auth", package=tmp_path):
        await by_hand.run(
            postgres_url,
            """
            INSERT INTO auth.users (id, username, email, password_hash, subscription_tier) VALUES
                (gen_random_uuid(), 'anna', 'anna@example.com', 'hash', 'premium'),
                (gen_random_uuid(), 'bob', 'bob@example.com', 'hash', 'free');
            INSERT INTO auth.api_keys (id, user_id, key_hash, name, preview, requests_per_hour)
                SELECT gen_random_uuid(), id, username, 'old', '…', 7 FROM auth.users;
            """,
        )
    async with opened(postgres_url) as db:
        store = AccountTables(db)
        anna, bob = await store.get_user_called("anna"), await store.get_user_called("bob")
        assert (anna.tier, bob.tier) == (Tier.PRO, Tier.FREE)
        owned = await store.find_owner_of_key("anna")
        assert owned is not None
        assert owned.principal.key_limits == ApiKeyLimits(requests_per_hour=7)
        # Gateways that cache the old tier name are notified.
        assert (await store.missed_changes(1))[-1].user_id == anna.id
        assert (await set_tier(store, bob.id, Tier.ENTERPRISE)).tier == Tier.ENTERPRISE


async def test_the_last_use_is_written_once_a_minute_and_is_not_a_change(store: AccountTables, postgres_url: str) -> None:
    key = await add_key(store, await add_user(store))
    await store.touch_keys([key.id])
    first = (await keys_of(store, key.user_id))[0].last_used_at
    await store.touch_keys([key.id])
    assert (await keys_of(store, key.user_id))[0].last_used_at == first
    await by_hand.run(postgres_url, "UPDATE auth.api_keys SET last_used_at = now() - interval '2 minutes'")
    await store.touch_keys([key.id])
    last = (await keys_of(store, key.user_id))[0].last_used_at
    assert first is not None
    assert last is not None
    assert last > first
    assert await store.missed_changes(0) == (Change(0),)


async def test_a_concurrently_changed_hash_is_not_replaced(store: AccountTables, postgres_url: str) -> None:
    await add_user(store)
    account = await store.find_account("anna")
    assert account is not None
    await by_hand.run(postgres_url, "UPDATE auth.users SET password_hash = 'newer'")
    await store.replace_password_hash(account, "rehashed")
    after = await store.find_account("anna")
    assert after is not None
    assert after.password_hash == "newer"


async def test_changes_made_by_hand_are_announced(store: AccountTables, postgres_url: str) -> None:
    user = await add_user(store)
    await add_key(store, user)
    changes: asyncio.Queue[Change] = asyncio.Queue()
    async with lifecycle.background() as tasks:
        tasks.create_task(store.follow_changes(changes.put_nowait))
        assert await asyncio.wait_for(changes.get(), 30) == Change(0)
        for number, statement in enumerate(ANNOUNCED, start=1):
            with case(statement):
                await by_hand.run(postgres_url, statement)
                assert await asyncio.wait_for(changes.get(), 30) == Change(number, user.id)


ANNOUNCED = (
    "UPDATE auth.api_keys SET limits = '{\"concurrency\": 5}'",
    "UPDATE auth.api_keys SET budget_micro = 5",
    "UPDATE auth.api_keys SET budget_every = 'month'",
    "UPDATE auth.api_keys SET scopes = '{model:read}'",
    "UPDATE auth.api_keys SET models = '{llama}'",
    "UPDATE auth.api_keys SET networks = '{10.0.0.0/8}'",
    "UPDATE auth.api_keys SET expires_at = now()",
    "UPDATE auth.api_keys SET kind = 'test'",
    "UPDATE auth.api_keys SET is_active = false",
    "DELETE FROM auth.api_keys",
    "UPDATE auth.users SET subscription_tier = 'pro'",
    "UPDATE auth.users SET budget = '{\"micro\": 5}'",
    "UPDATE auth.users SET role = 'admin'",
    "UPDATE auth.users SET is_active = false",
)


async def test_limits_also_of_a_newer_version_survive_the_end_of_their_columns(store: AccountTables, postgres_url: str) -> None:
    user = await add_user(store)
    new = await add_key(store, user, limits=ApiKeyLimits(requests_per_hour=7, budget_micro=MicroCredits(5)))
    connection = await asyncpg.connect(postgres_url)
    try:
        newer = 'UPDATE auth.api_keys SET limits = limits || \'{"of_a_newer_version": 3, "requests_per_hour": 4}\''
        await connection.execute(newer)
        limits = await connection.fetchval("SELECT limits FROM auth.api_keys WHERE id = $1", new.id)
        (details,) = await connection.fetchrow("SELECT details FROM auth.recovery_log WHERE kind = 'key.tightened' ORDER BY number DESC")
        assert json.loads(details).items() >= json.loads(limits).items() >= {"of_a_newer_version": 3, "requests_per_hour": 4}.items()
        await connection.execute("SET search_path TO auth")
        known = migrations.read(Path(services.auth.__file__).parent / "migrations")
        assert await migrations.run(connection, "auth", known, post=True) == ["0024_post_key_limit_columns.sql"]
    finally:
        await connection.close()
    listed = {key.id: key.limits for key in await store.list_keys_of_user(user.id)}
    assert listed == {new.id: ApiKeyLimits(requests_per_hour=4, budget_micro=MicroCredits(5))}
    later = ApiKeyLimits(concurrency=9)
    assert (await add_key(store, user, key_hash="later", limits=later)).limits == later


async def test_a_key_with_a_limit_that_only_a_newer_release_knows_is_refused(store: AccountTables, postgres_url: str) -> None:
    """Otherwise auth and gateways of this release would not count it."""
    user = await add_user(store)
    await add_key(store, user, limits=ApiKeyLimits(requests_per_hour=7))
    await by_hand.run(postgres_url, "UPDATE auth.api_keys SET limits = limits || '{\"of_a_newer_version\": 3}'")
    with pytest.raises(errors.ConfigUnreadable, match="doesn't know the limits of_a_newer_version of the key 'default'"):
        await store.find_owner_of_key("k")
    (listed,) = await store.list_keys_of_user(user.id)
    assert listed.limits == ApiKeyLimits(requests_per_hour=7), "its owner can still see and replace it"


@pytest.mark.parametrize("limits", ["[]", '{"concurrency": 0}', '{"concurrency": "5"}', '{"concurrency": {}}', '{"concurrency": null}'])
async def test_what_is_no_limit_is_not_stored(store: AccountTables, postgres_url: str, limits: str) -> None:
    await add_key(store, await add_user(store))
    with pytest.raises(asyncpg.PostgresError):
        await by_hand.run(postgres_url, f"UPDATE auth.api_keys SET limits = '{limits}'")


async def test_emptying_the_tables_means_forget_everything(store: AccountTables, postgres_url: str) -> None:
    await add_user(store)
    changes: asyncio.Queue[Change] = asyncio.Queue()
    async with lifecycle.background() as tasks:
        tasks.create_task(store.follow_changes(changes.put_nowait))
        await asyncio.wait_for(changes.get(), 30)
        await by_hand.run(postgres_url, "TRUNCATE auth.users, auth.api_keys CASCADE")
        assert (await asyncio.wait_for(changes.get(), 30)).user_id is None


async def test_missed_changes_are_sent_since_the_last_one(store: AccountTables) -> None:
    users = [await add_user(store, f"user{n}") for n in range(4)]
    assert await store.missed_changes(0) == (Change(0),)
    for user in users:
        await set_tier(store, user.id, Tier.PRO)
    assert await store.missed_changes(0) == (Change(4),)
    missed = await store.missed_changes(2)
    assert {change.sequence for change in missed} >= {2, 3, 4}
    assert {change.user_id for change in missed} >= {users[2].id, users[3].id}
    assert None not in {change.user_id for change in missed}


async def test_a_watcher_that_was_away_too_long_or_used_another_database_forgets_everything(
    store: AccountTables, postgres_url: str
) -> None:
    user = await add_user(store)
    for tier in (Tier.PRO, Tier.FREE, Tier.PRO):
        await set_tier(store, user.id, tier)
    assert await store.missed_changes(99) == (Change(3),)
    await by_hand.run(postgres_url, "UPDATE auth.changes SET at = at - interval '2 days'")
    await store.prune_changes()
    assert await store.missed_changes(1) == (Change(3),)
    assert await store.missed_changes(3) == (Change(3, user.id),)


async def test_a_deleted_user(store: AccountTables) -> None:
    with pytest.raises(errors.NotFound, match="this user was deleted a moment ago"):
        await set_tier(store, UserId(uuid4()), Tier.FREE)
    assert await store.find_user(UserId(uuid4())) is None


async def test_the_tables_have_the_expected_columns(store: AccountTables, postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        rows = await connection.fetch("SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'auth'")
    finally:
        await connection.close()
    columns = {(row["table_name"], row["column_name"]) for row in rows}
    users = ("id", "username", "email", "password_hash", "created_at", "is_active", "subscription_tier")
    keys = ("id", "user_id", "key_hash", "name", "created_at", "last_used_at", "is_active")
    assert columns >= {("users", name) for name in users} | {("api_keys", name) for name in keys}
