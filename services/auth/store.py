"""auth's tables users, api_keys and changes. Every method may raise Unavailable.

Writes take a transaction, so that an act and its row in the audit log are committed together.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import msgspec

from services.auth import name_rules, roles
from services.auth.api_keys import Mark
from services.auth.roles import KeyTerms
from shared import errors, features
from shared.api.accounts import StaleKey, StaleUser
from shared.api.auth import ApiKey, ApiKeyLimits, Budget, Change, Every, KeyBounds, KeyKind, Principal, User
from shared.api.business import NewOfDay
from shared.api.gateway import Check
from shared.background import deferred_rows
from shared.mail import letters
from shared.recovery import recovery_store
from shared.stores import database
from shared.telemetry.version import version
from shared.types import KeyId, ModelName, PlanName, TenantId, Tier, UserId, UserRole

#: Anyone who needs more is creating one key per request.
MAX_ACTIVE_KEYS = 100
#: If more changes were missed, the watcher must forget everything.
_MAX_MISSED = 1000
#: Of each kind, in an access review; the longest unused come first.
_MAX_STALE = 1000
_CHANGES = "auth_changes"
_LISTEN_AGAIN_SECONDS = 1
FIRST_KEY_NAME = "first key"


@dataclass(frozen=True, slots=True)
class StoredAccount:
    user: User
    #: None for an account that only a login at a provider opens.
    password_hash: str | None

    @property
    def password_version(self) -> str:
        """Identifies the password without revealing anything about it: each hash has its own salt."""
        return hashlib.sha256((self.password_hash or "").encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class OwnedKey:
    """A key and its owner; either may be inactive."""

    principal: Principal
    key_is_active: bool
    user_is_active: bool
    #: None for never.
    expires_at: datetime | None
    #: When the presented secret ends, if the key was rotated since.
    replaced_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewKey:
    user_id: UserId
    #: The organization that owns the key; None for a personal key.
    team_id: TenantId | None
    name: str
    mark: Mark
    terms: KeyTerms
    #: The key that creates it; None for a login.
    made_by: KeyId | None = None


#: Opens auth's database for all of its stores.
opened = partial(
    database.Database.open,
    schema="auth",
    package=Path(__file__).parent,
    more_queries=(recovery_store.QUERIES, deferred_rows.QUERIES, *features.files("auth.sql")),
)


@contextlib.asynccontextmanager
async def naming_user(db: database.Database, hint: str) -> AsyncIterator[database.Transaction]:
    """Begin a transaction that writes a user name or an address. Raises AlreadyExists if it is taken."""
    try:
        async with db.transaction() as transaction:
            yield transaction
    except database.UniqueViolation as error:
        field, what = ("email", "email address") if "email" in str(error.constraint_name) else ("username", "user name")
        raise errors.AlreadyExists(f"this {what} is taken", hint=hint, field=field) from error


class AuthTables:
    """What all stores of auth's tables share."""

    def __init__(self, db: database.Database) -> None:
        self._db = db

    def transaction(self) -> contextlib.AbstractAsyncContextManager[database.Transaction]:
        return self._db.transaction()

    def bound(self, tenant: TenantId) -> contextlib.AbstractAsyncContextManager[database.Transaction]:
        """Begin a transaction in which PostgreSQL shows only this tenant's rows."""
        return self._db.bound(tenant)

    async def listen(self, channel: str, work: Callable[[str | None], Awaitable[None]]) -> None:
        """Run until canceled: call ``work`` at once and after each gap with None, and with the payload of each notification. If it is
        unavailable, begin again."""
        while True:
            with contextlib.suppress(errors.Unavailable):
                async with contextlib.aclosing(self._db.listen(channel)) as payloads:
                    async for payload in payloads:
                        await work(payload)
            await asyncio.sleep(_LISTEN_AGAIN_SECONDS)


async def verify_address(transaction: database.Transaction, user_id: UserId, email: str) -> None:
    """Note that the user reads mail at this address, if it is theirs. The first account that verifies an address gets its free tokens."""
    await transaction.value("lock_verified_addresses")
    await transaction.run("verify_address", user_id, email)


class AccountTables(AuthTables):
    def __init__(self, db: database.Database, *, verifies_addresses: bool = False) -> None:
        super().__init__(db)
        self._verifies_addresses = verifies_addresses

    def has_free_tokens(self, row: database.DatabaseRow) -> bool:
        """Return whether an account gets the tokens of a plan without a fee."""
        return not self._verifies_addresses or row["has_free_tokens"]

    def _user(self, row: database.DatabaseRow) -> User:
        return User(
            id=UserId(row["id"]),
            username=row["username"],
            email=row["email"],
            role=UserRole(row["role"]),
            tier=row["subscription_tier"],
            is_active=row["is_active"],
            created_at=row["created_at"],
            budget=budget_of(row),
            has_free_tokens=self.has_free_tokens(row),
        )

    async def check(self) -> Check:
        return await self._db.check()

    def adding_user(self) -> contextlib.AbstractAsyncContextManager[database.Transaction]:
        """Raises AlreadyExists if a name or an address written in it is taken."""
        return naming_user(self._db, "log in, or choose another")

    async def is_invited(self, token_hash: str, email: str) -> bool:
        """Return whether an open invitation to this address has this code."""
        return bool(await self._db.value("is_invited", token_hash, email))

    async def find_inviter(self, token_hash: str) -> tuple[UserId, TenantId] | None:
        """Return who sent the invitation, and for which organization."""
        row = await self._db.row("find_inviter", token_hash)
        return None if row is None else (UserId(row["invited_by"]), TenantId(row["organisation_id"]))

    async def add_user(
        self, transaction: database.Transaction, username: str, email: str, password_hash: str, tier: PlanName = Tier.FREE
    ) -> User:
        row = await transaction.row("add_user", uuid4(), username, email, password_hash, tier)
        assert row is not None  # an INSERT without a condition returns its row
        return self._user(row)

    async def ensure_first_admin(self, password_hash: str, first_key: Mark | None = None) -> bool:
        """Return whether this call created the administrator. Their first key never expires and may do everything."""
        async with self._db.transaction() as transaction:
            made = await transaction.value("add_first_admin", uuid4(), name_rules.ADMIN_USERNAME, name_rules.ADMIN_EMAIL, password_hash)
            if made is not None and first_key is not None:
                terms = KeyTerms(KeyKind.ADMIN, ApiKeyLimits(), KeyBounds(), None)
                await self.add_key(transaction, NewKey(UserId(made), None, FIRST_KEY_NAME, first_key, terms))
            return made is not None

    async def has_admin(self) -> bool:
        return bool(await self._db.value("has_admin"))

    async def find_account(self, name: str) -> StoredAccount | None:
        """Find by user name or email address. Anything else is not looked up."""
        if letters.may_be_email(name):
            row = await self._db.row("find_user_by_email", name)
        elif name_rules.may_be_username(name):
            row = await self._db.row("find_user_by_username", name)
        else:
            return None
        return None if row is None else StoredAccount(self._user(row), row["password_hash"])

    async def find_account_of(self, user_id: UserId) -> StoredAccount | None:
        row = await self._db.row("find_user_by_id", user_id)
        return None if row is None else StoredAccount(self._user(row), row["password_hash"])

    async def find_user(self, user_id: UserId) -> User | None:
        account = await self.find_account_of(user_id)
        return None if account is None else account.user

    async def find_person(self, address: str, team_id: TenantId | None) -> User | None:
        """Find who has verified this address; for an organization, only a member."""
        row = await self._db.row("find_person", address, team_id)
        return None if row is None else self._user(row)

    async def get_user(self, user_id: UserId) -> User:
        """Raises NotFound."""
        user = await self.find_user(user_id)
        if user is None:
            raise errors.NotFound("there is no user with this id", hint="`aicli admin users list` shows the ids")
        return user

    async def get_user_called(self, text: str) -> User:
        """Find by name, address or id; `name_rules` keeps them distinct. Raises NotFound."""
        if (user_id := name_rules.find_uuid(text)) is not None:
            user = await self.find_user(UserId(user_id))
        else:
            account = await self.find_account(text)
            user = account.user if account else None
        if user is None:
            raise errors.NotFound(f"there is no user {text[:100]!r}", hint="give a user name, an email address or a user id")
        return user

    async def find_appearance(self, user_id: UserId, team_id: TenantId | None) -> tuple[str | None, str | None]:
        """Return the user's theme and the organization's name; either may be None."""
        row = await self._db.row("find_look", user_id, team_id)
        assert row is not None  # a SELECT without FROM has one row
        return row["theme"], row["team_name"]

    async def list_users(self, limit: int, search: str = "", after: UserId | None = None) -> tuple[User, ...]:
        return tuple(self._user(row) for row in await self._db.rows("list_users", limit, search, after))

    async def names_of(self, ids: Sequence[UserId | KeyId]) -> dict[str, str]:
        """Return the names of those users, organizations and keys that exist, by id."""
        return {str(row["id"]): row["username"] for row in await self._db.rows("names_of", list(ids))}

    async def count_new(self, since: date, until: date) -> tuple[NewOfDay, ...]:
        """Count new users and keys per UTC day before ``until``; days without any are left out."""
        return tuple(NewOfDay(row["day"], row["registrations"], row["keys"]) for row in await self._db.rows("count_new", since, until))

    async def set_tier(self, transaction: database.Transaction, user_id: UserId, tier: PlanName) -> User:
        return self._user(_there(await transaction.row("set_tier", user_id, tier)))

    async def set_role(self, transaction: database.Transaction, user_id: UserId, role: UserRole) -> User:
        return self._user(_there(await transaction.row("set_role", user_id, role.value)))

    async def set_active(self, transaction: database.Transaction, user_id: UserId, is_active: bool) -> User:
        return self._user(_there(await transaction.row("set_active", user_id, is_active)))

    async def replace_password_hash(self, account: StoredAccount, password_hash: str) -> bool:
        """Return False if the account has another password by now."""
        return await self._db.run("replace_password_hash", account.user.id, account.password_hash, password_hash) == 1

    # Queries about keys name the tenant and also run in its bound transaction.

    async def add_key(self, transaction: database.Transaction, key: NewKey) -> ApiKey:
        """Raises BadRequest if the tenant has too many keys, or the owner has just left the organization."""
        terms, bounds = key.terms, key.terms.bounds
        row = await transaction.row(
            "add_key", uuid4(), key.user_id, key.team_id, key.mark.key_hash, key.name, key.mark.preview, terms.kind.value,
            bounds.scopes, bounds.models, bounds.networks, terms.expires_at, _written(terms.limits), MAX_ACTIVE_KEYS, key.made_by,
            terms.limits.budget_every,
        )  # fmt: skip
        if row is None:
            where = "" if key.team_id is None else " here, or you are no longer a member of this organization"
            raise errors.BadRequest(f"there are already {MAX_ACTIVE_KEYS} active keys{where}", hint="revoke a key that you no longer use")
        return _key(row)

    async def list_keys(self, tenant: TenantId, user_id: UserId) -> tuple[ApiKey, ...]:
        """List the keys that this user may see: all of an organization for its owner, otherwise only their own."""
        async with self._db.bound(tenant) as transaction:
            return tuple(_key(row) for row in await transaction.rows("list_keys_of_tenant", tenant, user_id))

    async def list_keys_of_user(self, user_id: UserId) -> tuple[ApiKey, ...]:
        """List across tenants: for administrators."""
        return tuple(_key(row) for row in await self._db.rows("list_keys_of_user", user_id))

    async def find_key(self, tenant: TenantId, user_id: UserId, key_id: KeyId) -> ApiKey | None:
        """Find a key of this tenant that the user may see."""
        async with self._db.bound(tenant) as transaction:
            row = await transaction.row("find_key_of_tenant", key_id, tenant, user_id)
        return None if row is None else _key(row)

    async def find_any_key(self, key_id: KeyId) -> ApiKey | None:
        """Find across tenants: for administrators."""
        row = await self._db.row("find_key_by_id", key_id)
        return None if row is None else _key(row)

    async def list_ended_keys(self, key_ids: Sequence[KeyId]) -> tuple[KeyId, ...]:
        """Return those that are revoked, expired or unknown."""
        return tuple(KeyId(row["id"]) for row in await self._db.rows("list_ended_keys", key_ids))

    async def list_keys_named(self, tenant: TenantId, user_id: UserId, name: str) -> tuple[ApiKey, ...]:
        async with self._db.bound(tenant) as transaction:
            return tuple(_key(row) for row in await transaction.rows("list_keys_named", tenant, user_id, name))

    async def revoke_key(self, transaction: database.Transaction, key: ApiKey) -> ApiKey | None:
        """Return None if it was revoked before."""
        row = await transaction.row("revoke_key", key.id, tenant_of(key))
        return None if row is None else _key(row)

    async def list_keys_made_by(self, key_id: KeyId) -> tuple[ApiKey, ...]:
        """List the active keys created by this key, directly or not, across tenants: an administrator's key creates keys for others."""
        return tuple(_key(row) for row in await self._db.rows("list_keys_made_by", key_id))

    async def rename_key(self, transaction: database.Transaction, key: ApiKey, name: str) -> ApiKey | None:
        """Return None if it was revoked before."""
        row = await transaction.row("rename_key", key.id, tenant_of(key), name)
        return None if row is None else _key(row)

    async def rotate_key(self, transaction: database.Transaction, key: ApiKey, mark: Mark, overlap_seconds: int) -> ApiKey | None:
        """Keep the current secret for the overlap, and end older ones. Return None if the key has ended."""
        await transaction.run("end_former_secrets", key.id, float(overlap_seconds))
        if not await transaction.run("keep_former_secret", key.id, tenant_of(key), float(overlap_seconds)):
            return None
        row = await transaction.row("replace_secret", key.id, tenant_of(key), mark.key_hash, mark.preview)
        return None if row is None else _key(row)

    async def find_owner_of_key(self, key_hash: str | None, key_id: KeyId | None = None) -> OwnedKey | None:
        row = await self._db.row("find_owner_of_key", key_hash, key_id, deadline_seconds=2)
        if row is None:
            return None
        role, bounds = UserRole(row["role"]), _bounds(row)
        ends = [time.timestamp() for time in (row["expires_at"], row["good_until"]) if time is not None]
        principal = Principal(
            user_id=UserId(row["id"]),
            username=row["username"],
            role=role,
            tier=row["subscription_tier"],
            key_id=KeyId(row["key_id"]),
            key_name=row["key_name"],
            key_limits=_all_limits(row),
            team_id=_team(row),
            scopes=roles.scopes_of_key(KeyKind(row["kind"]), role, bounds.scopes),
            models=bounds.models,
            networks=bounds.networks,
            expires_at=min(ends, default=None),
            founder_id=None if row["founder_id"] is None else UserId(row["founder_id"]),
            budget=budget_of(row),
            has_free_tokens=self.has_free_tokens(row),
        )
        return OwnedKey(principal, row["key_is_active"], row["is_active"], row["expires_at"], row["good_until"])

    async def touch_keys(self, key_ids: Sequence[KeyId]) -> None:
        await self._db.run("touch_keys", key_ids)

    async def list_stale_keys(self, days: int) -> tuple[StaleKey, ...]:
        return tuple(_stale_key(row, days) for row in await self._db.rows("list_stale_keys", days, _MAX_STALE))

    async def list_stale_users(self, days: int) -> tuple[StaleUser, ...]:
        return tuple(_stale_user(row, days) for row in await self._db.rows("list_stale_users", days, _MAX_STALE))

    async def missed_changes(self, since: int) -> tuple[Change, ...]:
        """Return what a watcher missed: at least one item, which may mean "forget everything"."""
        rows = await self._db.rows("list_changes_since", since, _MAX_MISSED) if since > 0 else []
        # If its own last change is still there, nothing after it was pruned, and it is the same database.
        if len(rows) == _MAX_MISSED or all(row["sequence"] != since for row in rows):
            return (Change(await self._db.value("last_change")),)
        return tuple(Change(row["sequence"], row["user_id"]) for row in rows)

    async def prune_changes(self) -> None:
        await self._db.run("prune_changes")

    async def follow_changes(self, notify: Callable[[Change], None]) -> None:
        """Run until canceled: report every change from now on. After a gap, report "forget everything"."""

        async def report(payload: str | None) -> None:
            if payload is None:
                notify(Change(await self._db.value("last_change")))
            else:
                number, _, user_id = payload.partition(":")
                notify(Change(int(number), UserId(UUID(user_id)) if user_id else None))

        await self.listen(_CHANGES, report)


def _there(row: database.DatabaseRow | None) -> database.DatabaseRow:
    if row is None:
        raise errors.NotFound("this user was deleted a moment ago", hint="list the users again")
    return row


def budget_of(row: database.DatabaseRow) -> Budget | None:
    """Return the budget of the user or organization."""
    return None if row["budget"] is None else msgspec.json.decode(row["budget"], type=Budget)


def _key(row: database.DatabaseRow) -> ApiKey:
    return ApiKey(
        id=KeyId(row["id"]),
        user_id=UserId(row["user_id"]),
        name=row["name"],
        preview=row["preview"],
        is_active=row["is_active"],
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
        limits=_limits(row),
        kind=KeyKind(row["kind"]),
        bounds=_bounds(row),
        expires_at=row["expires_at"],
        team_id=_team(row),
        made_by=None if row["made_by"] is None else KeyId(row["made_by"]),
    )


def _all_limits(row: database.DatabaseRow) -> ApiKeyLimits:
    """Raises ConfigUnreadable for a limit that only a newer release knows: nobody would count it."""
    if unknown := sorted(_numbers(row).keys() - set(ApiKeyLimits.__struct_fields__)):
        raise errors.ConfigUnreadable(
            f"this auth (release {version()}) doesn't know the limits {', '.join(unknown)} of the key {row['key_name']!r}",
            hint="finish the upgrade of auth, or replace the key",
        )
    return _limits(row)


def _numbers(row: database.DatabaseRow) -> dict[str, int]:
    return msgspec.json.decode(row["limits"], type=dict[str, int])


def _limits(row: database.DatabaseRow) -> ApiKeyLimits:
    """Return the limits that this release knows, to show them."""
    found = _numbers(row)
    every = None if row["budget_every"] is None else Every(row["budget_every"])
    known = {name: found[name] for name in ApiKeyLimits.__struct_fields__ if name in found}
    return msgspec.structs.replace(ApiKeyLimits(budget_every=every), **known)


def _written(limits: ApiKeyLimits) -> str:
    """Return the numbers as JSON."""
    return msgspec.json.encode(
        {name: number for name, number in msgspec.structs.asdict(limits).items() if isinstance(number, int)}
    ).decode()


def _bounds(row: database.DatabaseRow) -> KeyBounds:
    return KeyBounds(tuple(row["scopes"]), tuple(ModelName(name) for name in row["models"]), tuple(row["networks"]))


def _team(row: database.DatabaseRow) -> TenantId | None:
    return None if row["team_id"] is None else TenantId(row["team_id"])


def tenant_of(key: ApiKey) -> TenantId:
    """Return the organization that owns the key, or else its user."""
    return TenantId(key.user_id) if key.team_id is None else key.team_id


def _stale_key(row: database.DatabaseRow, days: int) -> StaleKey:
    unused = "never used" if row["last_used_at"] is None else f"not used for {days} days"
    facts = (
        (row["is_unused"], unused),
        (not row["owner_is_active"], "its owner's account is closed"),
        (row["expires_at"] is None, "never expires"),
    )
    return StaleKey(
        id=str(row["id"]),
        name=row["name"],
        owner=row["username"],
        kind=row["kind"],
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
        why=", ".join(why for holds, why in facts if holds),
    )


def _stale_user(row: database.DatabaseRow, days: int) -> StaleUser:
    return StaleUser(
        username=row["username"],
        role=row["role"],
        created_at=row["created_at"],
        last_seen_at=row["last_seen_at"],
        why="never used" if row["last_seen_at"] is None else f"not seen for {days} days",
    )
