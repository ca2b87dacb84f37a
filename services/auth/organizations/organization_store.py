"""auth's tables of organizations, members and invitations. Every method may raise Unavailable.

Every change begins with ``lock``, so changes of one organization are serialized, and a change that leaves no owner is rolled back.
Everything but founding one and accepting invitations runs bound to the organization, so that PostgreSQL shows no other one's rows.
"""

import contextlib
from collections.abc import AsyncIterator
from uuid import UUID, uuid4

from services.auth import roles
from services.auth.organizations import membership_rules
from services.auth.organizations.membership_rules import KnownInvitation
from services.auth.store import AuthTables, budget_of
from shared import errors
from shared.api.auth import Principal
from shared.api.organizations import Invitation, InvitationOffer, Organization, OrganizationDetails, TeamMember, TeamRole
from shared.stores import database
from shared.types import KeyId, PlanName, TenantId, UserId


class OrganizationStore(AuthTables):
    async def add(self, transaction: database.Transaction, name: str, founder: UserId, most: int) -> Organization:
        """Raises BadRequest if the founder would have more than ``most``."""
        await transaction.value("lock_founder", founder)
        row = await transaction.row("add_organisation", uuid4(), name, founder, most)
        if row is None:
            raise errors.BadRequest(
                f"you have already created {most} organizations (ORGANISATIONS_PER_USER)", hint="rename one, or ask an administrator"
            )
        return _organisation(row)

    async def list_of(self, user_id: UserId) -> tuple[Organization, ...]:
        return tuple(_organisation(row) for row in await self._db.rows("list_organisations_of", user_id))

    async def list_all(self, caller: Principal, limit: int, search: str = "", after: TenantId | None = None) -> tuple[Organization, ...]:
        """List across tenants: for administrators."""
        rows = await self._db.rows("list_all_organisations", caller.user_id, limit, search, after)
        return tuple(_organisation(row) for row in rows)

    async def get(self, transaction: database.Transaction, organisation: TenantId, caller: Principal) -> Organization:
        """Raises NotFound, also if the caller may not see it."""
        row = await transaction.row("find_organisation", organisation, caller.user_id, roles.is_admin(caller))
        if row is None:
            raise membership_rules.unknown()
        return _organisation(row)

    async def get_page(self, transaction: database.Transaction, organisation: TenantId, caller: Principal) -> OrganizationDetails:
        """Raises NotFound."""
        found = await self.get(transaction, organisation, caller)
        members = tuple(_member(row) for row in await transaction.rows("list_team_members", organisation))
        sees_invitations = found.role is TeamRole.OWNER or roles.is_admin(caller)
        open_ones = await transaction.rows("list_invitations", organisation) if sees_invitations else []
        return OrganizationDetails(found, members, tuple(_invitation(row) for row in open_ones))

    async def lock(self, transaction: database.Transaction, organisation: TenantId, caller: Principal) -> Organization:
        """Keep others from changing it until the end of the transaction. Raises NotFound."""
        if await transaction.row("lock_organisation", organisation, caller.user_id, roles.is_admin(caller)) is None:
            raise membership_rules.unknown()
        # Only now: a role read before the lock may have changed while waiting for it.
        return await self.get(transaction, organisation, caller)

    @contextlib.asynccontextmanager
    async def changing(self, organisation: TenantId, caller: Principal) -> AsyncIterator[tuple[database.Transaction, Organization]]:
        """Lock it in a transaction that is bound to it. Raises NotFound if the caller may not see it."""
        membership_rules.check_in_reach(caller, organisation)
        async with self.bound(organisation) as transaction:
            yield transaction, await self.lock(transaction, organisation, caller)

    @contextlib.asynccontextmanager
    async def owned(self, organisation: TenantId, caller: Principal) -> AsyncIterator[tuple[database.Transaction, Organization]]:
        """Like ``changing``, for owners only. Raises NotAllowed."""
        async with self.changing(organisation, caller) as (transaction, found):
            membership_rules.check_owner(caller, found.role)
            yield transaction, found

    async def rename(self, transaction: database.Transaction, organisation: TenantId, name: str) -> None:
        await transaction.run("rename_organisation", organisation, name)

    async def set_tier(self, transaction: database.Transaction, organisation: TenantId, tier: PlanName) -> None:
        await transaction.run("set_organisation_tier", organisation, tier)

    async def set_role(self, transaction: database.Transaction, organisation: TenantId, member: UserId, role: TeamRole) -> None:
        """Raises NotFound for a non-member, and NotAllowed if no owner would be left."""
        if not await transaction.run("set_team_role", organisation, member, role.value):
            raise _no_member()
        await self._check_owned(transaction, organisation)

    async def remove(self, transaction: database.Transaction, organisation: TenantId, member: UserId) -> tuple[KeyId, ...]:
        """Return the keys that ended. Raises what ``set_role`` raises."""
        if not await transaction.run("remove_team_member", organisation, member):
            raise _no_member()
        await self._check_owned(transaction, organisation)
        rows = await transaction.rows("revoke_keys_of_team_member", organisation, member)
        return tuple(KeyId(row["id"]) for row in rows)

    async def _check_owned(self, transaction: database.Transaction, organisation: TenantId) -> None:
        if not await transaction.value("has_team_owner", organisation):
            raise membership_rules.no_owner_left()

    async def has_member_with(self, transaction: database.Transaction, organisation: TenantId, email: str) -> bool:
        return bool(await transaction.value("is_team_member", organisation, email))

    async def invite(
        self, transaction: database.Transaction, organisation: TenantId, *, by: UserId, email: str, role: TeamRole, token_hash: str
    ) -> Invitation:
        """Replaces open invitations to this address. Raises Limited."""
        await transaction.run("withdraw_invitations_to", organisation, email)
        row = await transaction.row(
            "add_invitation", uuid4(), organisation, email, role.value, token_hash, by, membership_rules.MAX_INVITATIONS_A_DAY
        )
        if row is None:
            most = membership_rules.MAX_INVITATIONS_A_DAY
            raise errors.Limited(f"{most} invitations were sent within a day", hint="continue tomorrow", retry_after_seconds=24 * 3600)
        return _invitation(row)

    async def withdraw(self, transaction: database.Transaction, organisation: TenantId, invitation: UUID) -> bool:
        """Return whether it was open."""
        return bool(await transaction.run("withdraw_invitation", invitation, organisation))

    async def accept(self, transaction: database.Transaction, token_hash: str, caller: Principal) -> Organization | None:
        """Return the new membership, or None if the invitation is not theirs or not open."""
        row = await transaction.row("accept_invitation", token_hash, caller.user_id)
        return None if row is None else await self.get(transaction, TenantId(row["organisation_id"]), caller)

    async def find_offer(self, token_hash: str, user_id: UserId) -> InvitationOffer | None:
        """Return None if they cannot accept it, for whatever reason."""
        row = await self._db.row("find_offer", token_hash, user_id)
        return None if row is None else InvitationOffer(row["name"], TeamRole(row["role"]), row["invited_by"], row["expires_at"])

    async def find_invitation(self, token_hash: str) -> KnownInvitation | None:
        row = await self._db.row("find_invitation_by_token", token_hash)
        return None if row is None else KnownInvitation(row["accepted_at"], row["withdrawn_at"], row["expires_at"])


def _no_member() -> errors.NotFound:
    return errors.NotFound("this user is not a member of the organization", hint="`getOrganisation` lists its members")


def _organisation(row: database.DatabaseRow) -> Organization:
    return Organization(
        id=TenantId(row["id"]),
        name=row["name"],
        tier=row["subscription_tier"],
        created_at=row["created_at"],
        members=row["members"],
        role=None if row["role"] is None else TeamRole(row["role"]),
        shares_limits=row["shares_limits"],
        budget=budget_of(row),
    )


def _member(row: database.DatabaseRow) -> TeamMember:
    return TeamMember(UserId(row["id"]), row["username"], row["email"], TeamRole(row["role"]), row["joined_at"])


def _invitation(row: database.DatabaseRow) -> Invitation:
    return Invitation(
        id=str(row["id"]),
        email=row["email"],
        role=TeamRole(row["role"]),
        invited_by=row["invited_by"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )
