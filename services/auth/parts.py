"""What the handlers of auth share; made once, at the start."""

from dataclasses import dataclass

from services.auth.audit.trail import Trail
from services.auth.failed_logins import FailedLogins
from services.auth.identities import Identities
from services.auth.passwords import Passwords
from services.auth.sessions import Sessions
from services.auth.settings import AuthSettings
from services.auth.store import Store
from services.auth.tokens import AccessTokens
from shared.node import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    settings: AuthSettings
    node: Node
    store: Store
    passwords: Passwords
    sessions: Sessions
    tokens: AccessTokens
    guesses: FailedLogins
    identities: Identities
    trail: Trail
