"""auth's table colleague_invitations. Every method may raise Unavailable."""

from dataclasses import dataclass
from uuid import UUID, uuid4

from services.auth.oidc.account_provisioning import BY_POWER
from services.auth.organizations import membership_rules
from services.auth.organizations.membership_rules import KnownInvitation
from services.auth.store import AuthTables
from shared import errors
from shared.api.organizations import ColleagueInvitation
from shared.stores import database
from shared.types import TenantId, UserId, UserRole


@dataclass(frozen=True, slots=True)
class AcceptedInvitation:
    id: UUID
    role_before: UserRole
    #: Never less than they had before.
    role: UserRole
    organisation: TenantId | None


class ColleagueStore(AuthTables):
    async def has_account(self, email: str) -> bool:
        return bool(await self._db.value("has_account", email))

    async def get_organisation(self, text: str) -> TenantId:
        """Find by name or id. Raises NotFound and BadRequest."""
        rows = await self._db.rows("find_organisations_named", text)
        if not rows:
            raise errors.NotFound(f"there is no organization {text[:100]!r}", hint="give its name or its id")
        if len(rows) > 1:
            raise errors.BadRequest(f"several organizations are called {text[:100]!r}", hint="give the id of the right one")
        return TenantId(rows[0]["id"])

    async def invite(
        self, transaction: database.Transaction, *, by: UserId, email: str, role: UserRole, organisation: TenantId | None, token_hash: str
    ) -> ColleagueInvitation:
        """Replaces open invitations to this address. Raises Limited."""
        most = membership_rules.MAX_INVITATIONS_A_DAY
        await transaction.value("lock_colleague_invitations")
        await transaction.run("replace_colleague_invitations", email)
        added = await transaction.run(
            "add_colleague_invitation", uuid4(), email, role.value, organisation, token_hash, by, membership_rules.INVITATION_DAYS, most
        )
        if not added:
            raise errors.Limited(f"you sent {most} invitations within a day", hint="continue tomorrow", retry_after_seconds=24 * 3600)
        (row,) = await transaction.rows("list_colleague_invitations", token_hash)
        return _invitation(row)

    async def list_open(self, token_hash: str | None = None) -> tuple[ColleagueInvitation, ...]:
        """List all, or only the one with this token."""
        return tuple(_invitation(row) for row in await self._db.rows("list_colleague_invitations", token_hash))

    async def withdraw(self, transaction: database.Transaction, invitation: str) -> bool:
        """Return whether it was open."""
        return bool(await transaction.run("withdraw_colleague_invitation", UUID(invitation)))

    async def accept(self, transaction: database.Transaction, token_hash: str, user_id: UserId) -> AcceptedInvitation | None:
        """Use the invitation up, raise the user's role and add them to the organization. Return None if it is not theirs or not open."""
        row = await transaction.row("accept_colleague_invitation", token_hash, user_id)
        if row is None:
            return None
        before = UserRole(row["role_before"])
        role = min(before, UserRole(row["role"]), key=BY_POWER.index)
        organisation = None if row["organisation_id"] is None else TenantId(row["organisation_id"])
        if role is not before:
            await transaction.row("set_role", user_id, role.value)
        if organisation is not None:
            await transaction.run("join_invited", organisation, user_id)
        return AcceptedInvitation(row["id"], before, role, organisation)

    async def find(self, transaction: database.Transaction, token_hash: str) -> KnownInvitation | None:
        """Return it whether it is open or not."""
        row = await transaction.row("find_colleague_invitation", token_hash)
        return None if row is None else KnownInvitation(row["accepted_at"], row["withdrawn_at"], row["expires_at"])


def _invitation(row: database.DatabaseRow) -> ColleagueInvitation:
    return ColleagueInvitation(
        str(row["id"]),
        row["email"],
        UserRole(row["role"]),
        row["invited_by"],
        row["created_at"],
        row["expires_at"],
        row["organisation_name"],
    )
