"""auth's tables of people: users, api_keys and changes. Every method may raise Unavailable.

What writes takes a transaction, so that an act and its row in the audit log happen together or not at all.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import msgspec

from services.auth import names
from shared import database, errors
from shared.api.auth import ApiKey, Change, KeyLimits, Principal, User
from shared.api.gateway import Check
from shared.types import KeyId, Tier, UserId, UserRole

#: Somebody who needs more active keys than this is making one per request.
MOST_ACTIVE_KEYS = 100
#: More missed changes than this are not worth sending one by one.
_MOST_MISSED = 1000
_CHANGES = "auth_changes"


@dataclass(frozen=True, slots=True)
class Account:
    user: User
    password_hash: str


@dataclass(frozen=True, slots=True)
class OwnedKey:
    """A key and whose it is, both of them perhaps no longer good."""

    principal: Principal
    key_is_active: bool
    user_is_active: bool


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[database.Database]:
    """auth's database, for all of its stores."""
    async with database.Database.open(url, schema="auth", package=Path(__file__).parent) as db:
        yield db


class Store:
    def __init__(self, db: database.Database) -> None:
        self._db = db

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Store"]:
        async with opened(url) as db:
            yield cls(db)

    async def check(self) -> Check:
        return await self._db.check()

    def transaction(self) -> contextlib.AbstractAsyncContextManager[database.Transaction]:
        """For what writes."""
        return self._db.transaction()

    # --- users -------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def adding_user(self) -> AsyncIterator[database.Transaction]:
        """Raises AlreadyExists where a name or an address that is written in it is taken."""
        try:
            async with self._db.transaction() as transaction:
                yield transaction
        except database.UniqueViolation as error:
            what = "e-mail address" if "email" in str(error.constraint_name) else "user name"
            raise errors.AlreadyExists(f"this {what} is taken", hint="log in, or choose another") from error

    async def add_user(self, transaction: database.Transaction, username: str, email: str, password_hash: str) -> User:
        row = await transaction.row("add_user", uuid4(), username, email, password_hash)
        assert row is not None  # an INSERT without a condition returns its row
        return _user(row)

    async def ensure_first_admin(self, password_hash: str) -> bool:
        """Whether this call made the administrator."""
        return bool(await self._db.run("add_first_admin", uuid4(), names.ADMIN_USERNAME, names.ADMIN_EMAIL, password_hash))

    async def has_admin(self) -> bool:
        return bool(await self._db.value("has_admin"))

    async def find_account(self, name: str) -> Account | None:
        """By user name or e-mail address; what can be neither is nobody, and not asked for."""
        if names.may_be_email(name):
            row = await self._db.row("find_user_by_email", name)
        elif names.may_be_username(name):
            row = await self._db.row("find_user_by_username", name)
        else:
            return None
        return None if row is None else Account(_user(row), row["password_hash"])

    async def find_user(self, user_id: UserId) -> User | None:
        row = await self._db.row("find_user_by_id", user_id)
        return None if row is None else _user(row)

    async def get_user_called(self, text: str) -> User:
        """By name, address or id, which cannot be mistaken for each other (see `names`). Raises NotFound."""
        if (user_id := names.find_uuid(text)) is not None:
            user = await self.find_user(UserId(user_id))
        else:
            account = await self.find_account(text)
            user = account.user if account else None
        if user is None:
            raise errors.NotFound(f"there is no user {text[:100]!r}", hint="give a user name, an e-mail address or a user id")
        return user

    async def list_users(self, limit: int) -> tuple[User, ...]:
        return tuple(_user(row) for row in await self._db.rows("list_users", limit))

    async def set_tier(self, transaction: database.Transaction, user_id: UserId, tier: Tier) -> User:
        return _user(_there(await transaction.row("set_tier", user_id, tier.value)))

    async def set_role(self, transaction: database.Transaction, user_id: UserId, role: UserRole) -> User:
        return _user(_there(await transaction.row("set_role", user_id, role.value)))

    async def set_active(self, transaction: database.Transaction, user_id: UserId, is_active: bool) -> User:
        return _user(_there(await transaction.row("set_active", user_id, is_active)))

    async def replace_password_hash(self, account: Account, password_hash: str) -> None:
        await self._db.run("replace_password_hash", account.user.id, account.password_hash, password_hash)

    # --- API keys ----------------------------------------------------------------------------------------------------

    async def add_key(
        self, transaction: database.Transaction, user_id: UserId, *, name: str, key_hash: str, preview: str, limits: KeyLimits
    ) -> ApiKey:
        """Raises BadRequest for one too many."""
        each = msgspec.structs.astuple(limits)
        row = await transaction.row("add_key", uuid4(), user_id, key_hash, name, preview, *each, MOST_ACTIVE_KEYS)
        if row is None:
            raise errors.BadRequest(f"{MOST_ACTIVE_KEYS} keys are active already", hint="revoke one that is not used any more")
        return _key(row)

    async def list_keys(self, user_id: UserId) -> tuple[ApiKey, ...]:
        return tuple(_key(row) for row in await self._db.rows("list_keys", user_id))

    async def find_key(self, key_id: KeyId) -> ApiKey | None:
        row = await self._db.row("find_key_by_id", key_id)
        return None if row is None else _key(row)

    async def list_keys_named(self, user_id: UserId, name: str) -> tuple[ApiKey, ...]:
        return tuple(_key(row) for row in await self._db.rows("list_keys_named", user_id, name))

    async def revoke_key(self, transaction: database.Transaction, key_id: KeyId) -> ApiKey | None:
        """None if it was revoked before."""
        row = await transaction.row("revoke_key", key_id)
        return None if row is None else _key(row)

    async def find_owner_of_key(self, key_hash: str) -> OwnedKey | None:
        row = await self._db.row("find_owner_of_key", key_hash, deadline_seconds=2)
        if row is None:
            return None
        principal = Principal(
            user_id=UserId(row["id"]),
            username=row["username"],
            role=UserRole(row["role"]),
            tier=Tier(row["subscription_tier"]),
            key_id=KeyId(row["key_id"]),
            key_name=row["key_name"],
            key_limits=_limits(row),
        )
        return OwnedKey(principal, row["key_is_active"], row["is_active"])

    async def touch_keys(self, key_ids: Sequence[KeyId]) -> None:
        await self._db.run("touch_keys", key_ids)

    # --- changes -----------------------------------------------------------------------------------------------------

    async def missed_changes(self, since: int) -> tuple[Change, ...]:
        """What a watcher has to hear first; at least one item, and that may be "forget everything"."""
        rows = await self._db.rows("list_changes_since", since, _MOST_MISSED) if since > 0 else []
        # Its own last change says that nothing between was pruned, and that this is the database it watched before.
        if len(rows) == _MOST_MISSED or all(row["sequence"] != since for row in rows):
            return (Change(await self._db.value("last_change")),)
        return tuple(Change(row["sequence"], row["user_id"]) for row in rows)

    async def prune_changes(self) -> None:
        await self._db.run("prune_changes")

    async def follow_changes(self) -> AsyncGenerator[Change, None]:
        """Every change from now on, for ever. Whenever some may have been missed, "forget everything"."""
        async with contextlib.aclosing(self._db.listen(_CHANGES)) as payloads:
            async for payload in payloads:
                if payload is None:
                    yield Change(await self._db.value("last_change"))
                else:
                    number, _, user_id = payload.partition(":")
                    yield Change(int(number), UserId(UUID(user_id)) if user_id else None)


def _there(row: database.Record | None) -> database.Record:
    if row is None:
        raise errors.NotFound("this user was deleted a moment ago", hint="list the users again")
    return row


def _user(row: database.Record) -> User:
    return User(
        id=UserId(row["id"]),
        username=row["username"],
        email=row["email"],
        role=UserRole(row["role"]),
        tier=Tier(row["subscription_tier"]),
        is_active=row["is_active"],
        created_at=row["created_at"],
    )


def _key(row: database.Record) -> ApiKey:
    return ApiKey(
        id=KeyId(row["id"]),
        user_id=UserId(row["user_id"]),
        name=row["name"],
        preview=row["preview"],
        is_active=row["is_active"],
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
        limits=_limits(row),
    )


def _limits(row: database.Record) -> KeyLimits:
    return KeyLimits(**{name: row[name] for name in KeyLimits.__struct_fields__})
