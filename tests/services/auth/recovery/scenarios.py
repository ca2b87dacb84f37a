"""One case for each kind of recovery line: what a user had, how the real handlers took it away, and whether it works again.

All cases share one database, so each changes only its own rows.
"""

import base64
import contextlib
import time
from typing import Any, Protocol

from services.auth.mfa import totp
from services.auth.privacy.erasure import Erasures
from shared import errors
from shared.api import accounts, auth, membership, organizations
from shared.types import Credential, MicroCredits, UserRole
from tests.services.auth.recovery.restoring import RestorableAuth
from tests.services.auth.surroundings import CLIENT, PASSWORD, Newcomer, Surroundings

OTHER_PASSWORD = "another good sentence"


class Scenario(Protocol):
    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None: ...
    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None: ...
    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool: ...


async def is_accepted(world: Surroundings, method: Any, request: Any, credential: str | None = None, **more: Any) -> bool:
    with contextlib.suppress(errors.NotAuthenticated, errors.NotAllowed, errors.BadRequest, errors.NotFound):
        await world.ask(method, request, credential, **more)
        return True
    return False


async def has_access(world: Surroundings, secret: str) -> bool:
    return await is_accepted(world, auth.validate_api_key, auth.ValidateApiKey(Credential(secret)))


class WithKey:
    """A case with its own account and key."""

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    async def can_log_in(self, world: Surroundings, password: str = PASSWORD, code: str | None = None) -> bool:
        return await is_accepted(world, auth.login_user, auth.LoginUser(auth.Credentials(password, username=self.name, code=code)))

    async def token(self, world: Surroundings) -> Credential:
        return (await world.login(self.name)).access_token

    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None:
        self.user, created = await world.user_with_key(self.name)
        self.secret, self.key = created.api_key, created.key

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        return await has_access(world, self.secret)


class RevokedKey(WithKey):
    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await world.administer(auth.revoke_api_key, auth.RevokeApiKey(str(self.key.id)))


class RotatedKey(WithKey):
    """The key is rotated twice, and the last secret keeps working."""

    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        request = auth.RotateApiKey(str(self.key.id), overlap_seconds=0)
        await world.administer(auth.rotate_api_key, request)
        self.last = (await world.administer(auth.rotate_api_key, request)).api_key

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        if stored.settings.recovery_log_dir is not None:
            assert await has_access(world, self.last)
        return await super().works(world, stored)


class TightenedKey(WithKey):
    """Limits are changed in psql, because no method changes them."""

    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await stored.execute(f"UPDATE api_keys SET limits = '{{\"requests_per_hour\": 3}}' WHERE id = '{self.key.id}'")
        await stored.execute(f"UPDATE api_keys SET limits = '{{\"requests_per_hour\": 9, \"budget_micro\": 5}}' WHERE id = '{self.key.id}'")

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        principal = await world.ask(auth.validate_api_key, auth.ValidateApiKey(self.secret))
        return principal.key_limits != auth.ApiKeyLimits(requests_per_hour=3, budget_micro=MicroCredits(5))


class NarrowedKey(WithKey):
    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await stored.execute(f"UPDATE api_keys SET models = '{{small}}' WHERE id = '{self.key.id}'")


class ClosedAccount(WithKey):
    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await world.administer(auth.set_active, auth.SetActive(self.name, is_active=False))


class LoweredRole(WithKey):
    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None:
        await super().prepare(world, stored)
        await world.administer(auth.set_role, auth.SetRole(self.name, UserRole.DEVELOPER))

    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await world.administer(auth.set_role, auth.SetRole(self.name, UserRole.USER))

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        return (await world.ask(auth.validate_api_key, auth.ValidateApiKey(self.secret))).role is UserRole.DEVELOPER


class ErasedAccount(WithKey):
    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await world.ask(accounts.request_erasure, accounts.RequestErasure(), await self.token(world))
        await stored.execute("UPDATE users SET erase_at = now() WHERE erase_at IS NOT NULL")
        handler = world.dispatcher.find(accounts.request_erasure.name, CLIENT)
        erasures = handler.function.__self__  # type: ignore[attr-defined]
        assert isinstance(erasures, Erasures)
        await erasures.erase_due()

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        return bool(await stored.execute(f"SELECT 1 FROM users WHERE username = '{self.name}'")) or await super().works(world, stored)


class ChangedPassword(WithKey):
    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await world.ask(accounts.change_password, accounts.ChangePassword(OTHER_PASSWORD), await self.token(world))
        assert await self.can_log_in(world, OTHER_PASSWORD)

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        # The account's keys do not depend on its password.
        assert await has_access(world, self.secret)
        return await self.can_log_in(world)


class WithFactor(WithKey):
    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None:
        await super().prepare(world, stored)
        token = await self.token(world)
        seed = await world.ask(accounts.begin_mfa, accounts.BeginMfa(), token)
        self.seed = base64.b32decode(seed.secret)
        enabled = await world.ask(accounts.enable_mfa, accounts.EnableMfa(self.code()), token)
        self.codes = enabled.codes

    def code(self) -> str:
        return totp.code_at(self.seed, totp.step_at(time.time()))


class RemovedFactor(WithFactor):
    """The account must not open with the stolen phone's codes, nor with the password alone."""

    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await world.administer(auth.remove_mfa, auth.RemoveMfa(self.name))

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        return any([await self.can_log_in(world, code=code) for code in (self.codes[0], None)])


class EnabledFactor(WithFactor):
    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None:
        await WithKey.prepare(self, world, stored)

    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        token = await self.token(world)
        seed = await world.ask(accounts.begin_mfa, accounts.BeginMfa(), token)
        self.seed = base64.b32decode(seed.secret)
        await world.ask(accounts.enable_mfa, accounts.EnableMfa(self.code()), token)

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        return await self.can_log_in(world)


class UsedRecoveryCode(WithFactor):
    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        assert await self.can_log_in(world, code=self.codes[0])

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        return await self.can_log_in(world, code=self.codes[0])


class RemovedLink(WithKey):
    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None:
        await super().prepare(world, stored)
        for subject in ("removed", "kept"):
            await stored.execute(
                f"INSERT INTO oidc_identities (issuer, subject, user_id) VALUES ('https://id', '{subject}', '{self.user.id}')"
            )

    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        token = await self.token(world)
        await world.ask(accounts.remove_oidc_link, accounts.RemoveOidcLink("https://id", "removed"), token)

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        links = [row["subject"] for row in await stored.execute("SELECT subject FROM oidc_identities")]
        assert "kept" in links
        return "removed" in links


class WithTeam(WithKey):
    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None:
        await super().prepare(world, stored)
        self.team = await world.administer(organizations.create_organisation, organizations.CreateOrganization(self.name))
        invited = await world.administer(
            organizations.invite_member,
            organizations.InviteMember(self.team.id, f"{self.name}@example.com", organizations.TeamRole.OWNER),
        )
        self.invitation = invited.token

    async def join(self, world: Surroundings) -> None:
        await world.ask(organizations.accept_invitation, organizations.AcceptInvitation(self.invitation), await self.token(world))

    async def role(self, stored: RestorableAuth) -> str | None:
        rows = await stored.execute(f"SELECT role FROM organisation_members WHERE user_id = '{self.user.id}'")
        return rows[0]["role"] if rows else None


class RemovedMember(WithTeam):
    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None:
        await super().prepare(world, stored)
        await self.join(world)

    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        request = organizations.RemoveTeamMember(self.team.id, self.user.id)
        await world.administer(organizations.remove_team_member, request)

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        return await self.role(stored) is not None


class LoweredOwner(RemovedMember):
    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        request = organizations.SetTeamRole(self.team.id, self.user.id, organizations.TeamRole.MEMBER)
        await world.administer(organizations.set_team_role, request)

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        return await self.role(stored) == "owner"


class WithdrawnInvitation(WithTeam):
    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        details = await world.administer(organizations.get_organisation, organizations.GetOrganization(self.team.id))
        (invitation,) = details.invitations
        await world.administer(organizations.withdraw_invitation, organizations.WithdrawInvitation(self.team.id, invitation.id))

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        with contextlib.suppress(errors.AimeshError):
            await self.join(world)
        return await self.role(stored) is not None


class WithNode:
    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None:
        self.ticket = (await world.ticket(uses=2)).ticket
        self.node = Newcomer()
        await self.node.enroll(world, self.ticket)

    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await world.administer(membership.revoke_member, membership.RevokeMember(self.node.key.id))

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        listed = world.trust.list
        if listed is not None and self.node.key.id in listed.nodes:
            return False
        with contextlib.suppress(errors.AimeshError):
            await self.node.renew(world)
            return True
        return True


class RevokedUnknownNode(WithNode):
    """It joined after the backup, so only the log knows that it has a certificate."""

    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None:
        self.ticket = (await world.ticket(uses=2)).ticket
        self.node = Newcomer()

    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await self.node.enroll(world, self.ticket)
        await super().restrict(world, stored)


class RevokedTicket:
    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None:
        self.ticket = await world.ticket()

    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await world.administer(membership.revoke_ticket, membership.RevokeTicket(self.ticket.row.id))

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        with contextlib.suppress(errors.AimeshError):
            await Newcomer().enroll(world, self.ticket.ticket)
            return True
        return False


class UsedTicket(RevokedTicket):
    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await Newcomer().enroll(world, self.ticket.ticket)


class RotatedSigningKeys(WithKey):
    """A token from before the rotation must stay invalid."""

    async def prepare(self, world: Surroundings, stored: RestorableAuth) -> None:
        await super().prepare(world, stored)
        self.secret = await self.token(world)

    async def restrict(self, world: Surroundings, stored: RestorableAuth) -> None:
        await world.administer(auth.rotate_signing_keys, auth.RotateSigningKeys(at_once=True))

    async def works(self, world: Surroundings, stored: RestorableAuth) -> bool:
        return await is_accepted(world, accounts.list_sessions, accounts.ListSessions(), self.secret)


#: The last case ends every login.
SCENARIOS: tuple[type[Scenario], ...] = (
    RevokedKey, RotatedKey, TightenedKey, NarrowedKey, ClosedAccount, LoweredRole, ErasedAccount, ChangedPassword, RemovedFactor,
    EnabledFactor, UsedRecoveryCode, RemovedLink, RemovedMember, LoweredOwner, WithdrawnInvitation, WithNode, RevokedUnknownNode,
    RevokedTicket, UsedTicket, RotatedSigningKeys,
)  # fmt: skip
