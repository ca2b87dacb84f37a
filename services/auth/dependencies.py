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
from shared.node import Node


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
