"""What all handlers of auth share; created once, at startup."""

from dataclasses import dataclass

from services.auth.audit_trail import AuditTrail
from services.auth.passwords import Passwords
from services.auth.sessions.failed_logins import FailedLogins
from services.auth.sessions.identities import Identities
from services.auth.sessions.session_store import SessionStore
from services.auth.sessions.tokens import AccessTokens
from services.auth.settings import AuthSettings
from services.auth.store import AccountTables
from shared import errors
from shared.api import service_settings
from shared.node import Node
from shared.rpc import RpcCall
from shared.types import PlanName, Tier

_PLANS_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    settings: AuthSettings
    node: Node
    store: AccountTables
    passwords: Passwords
    sessions: SessionStore
    tokens: AccessTokens
    guesses: FailedLogins
    identities: Identities
    trail: AuditTrail


class AuthHandlers:
    """The base of handlers and tasks that use several of them."""

    def __init__(self, parts: Dependencies) -> None:
        self._settings = parts.settings
        self._node = parts.node
        self._store = parts.store
        self._passwords = parts.passwords
        self._sessions = parts.sessions
        self._guesses = parts.guesses
        self._identities = parts.identities
        self._trail = parts.trail

    async def _check_plan(self, name: PlanName, call: RpcCall) -> None:
        """Raises NotFound if there is no such plan, and Unavailable if it is not a built-in one and no gateway can tell."""
        if name in tuple(Tier):
            return
        try:
            deadline_seconds = min(_PLANS_SECONDS, call.remaining_seconds())
            listed = await self._node.rpc.call(service_settings.list_tiers, service_settings.ListTiers(), deadline_seconds=deadline_seconds)
        except (errors.NotReachable, errors.DeadlineExceeded) as error:
            raise errors.Unavailable(f"no gateway can tell whether there is a plan {name!r}", hint="try again in a moment") from error
        known = [each.tier for each in listed.tiers]
        if name not in known:
            raise errors.NotFound(f"there is no plan {name!r}", hint=f"use {', '.join(known)}, or add it with `aicli admin config apply`")
