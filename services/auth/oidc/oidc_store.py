"""auth's table oidc_identities, and the users created with it. Each change is in the audit log in the same transaction.

Every method may raise Unavailable.
"""

from uuid import uuid4

from services.auth import audit_records, store
from services.auth.audit_trail import AuditTrail
from services.auth.oidc.account_provisioning import FoundAccounts, Identity, NameTaken
from shared.api.accounts import OidcLink
from shared.mail import letters
from shared.stores import database
from shared.types import PlanName, Tier, UserId, UserRole

#: Unique constraint -> what it makes unique.
_TAKEN = {"users_username_key": NameTaken.USERNAME, "users_email_key": NameTaken.EMAIL, "oidc_identities_pkey": NameTaken.IDENTITY}


class OidcStore:
    """``account_provisioning.IdentityStore`` on PostgreSQL."""

    def __init__(self, db: database.Database, trail: AuditTrail, first_tier: PlanName = Tier.FREE) -> None:
        self._db = db
        self._trail = trail
        self._first_tier = first_tier

    async def find(self, identity: Identity) -> FoundAccounts:
        row = await self._db.row("find_oidc_user", identity.issuer, identity.subject, _email(identity))
        assert row is not None  # a SELECT without FROM has one row
        return FoundAccounts(_user_id(row["known"]), _user_id(row["same_email"]))

    async def add(self, username: str, email: str, role: UserRole, identity: Identity) -> UserId | NameTaken:
        user_id = UserId(uuid4())
        try:
            async with self._db.transaction() as transaction:
                await transaction.run(
                    "add_oidc_user", user_id, username, email, role.value, self._first_tier, identity.issuer, identity.subject
                )
                act = audit_records.done_by(
                    "user.register", user_id, target=user_id, issuer=identity.issuer, role=role, tier=self._first_tier
                )
                await self._trail.add(transaction, act)
                await _verify(transaction, user_id, identity)
        except database.UniqueViolation as error:
            taken = _TAKEN.get(str(error.constraint_name))
            if taken is None:
                raise
            return taken
        return user_id

    async def link(self, user_id: UserId, identity: Identity) -> bool:
        async with self._db.transaction() as transaction:
            linked = await transaction.run("link_oidc_identity", identity.issuer, identity.subject, user_id, _email(identity))
            if linked:
                # The subject may be an email address, so it goes into the details, which can be erased.
                act = audit_records.done_by("oidc.link", user_id, target=user_id, issuer=identity.issuer, subject=identity.subject)
                await self._trail.add(transaction, act)
                if await transaction.run("set_first_tier", user_id, self._first_tier):
                    act = audit_records.done_by("user.tier", user_id, target=user_id, after=self._first_tier, issuer=identity.issuer)
                    await self._trail.add(transaction, act)
        return bool(linked)

    async def note_login(self, user_id: UserId, identity: Identity, role: UserRole | None) -> None:
        async with self._db.transaction() as transaction:
            await transaction.run("note_oidc_login", identity.issuer, identity.subject, _email(identity))
            await _verify(transaction, user_id, identity)
            if role is not None and await transaction.run("set_oidc_role", user_id, role.value):
                act = audit_records.done_by("user.role", user_id, target=user_id, after=role, issuer=identity.issuer)
                await self._trail.add(transaction, act)

    async def list_of(self, user_id: UserId) -> tuple[OidcLink, ...]:
        rows = await self._db.rows("list_oidc_identities", user_id)
        return tuple(OidcLink(row["issuer"], row["subject"], row["email"] or "", row["linked_at"]) for row in rows)

    async def remove(self, user_id: UserId, issuer: str, subject: str) -> bool:
        """Return False if there is no such link, or it is the only way into the account: no password and no other link."""
        async with self._db.transaction() as transaction:
            removed = await transaction.run("remove_oidc_identity", user_id, issuer, subject)
            if removed:
                act = audit_records.done_by("oidc.unlink", user_id, target=user_id, issuer=issuer, subject=subject)
                await self._trail.add(transaction, act)
        return bool(removed)


async def _verify(transaction: database.Transaction, user_id: UserId, identity: Identity) -> None:
    if identity.email_verified and identity.email is not None:
        await store.verify_address(transaction, user_id, identity.email)


def _email(identity: Identity) -> str | None:
    return identity.email if identity.email is not None and letters.may_be_email(identity.email) else None


def _user_id(value: object) -> UserId | None:
    return None if value is None else UserId(value)  # type: ignore[arg-type]  # asyncpg gives a UUID
