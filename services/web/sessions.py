"""Exchange session cookies for access tokens at auth, with a short cache."""

import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from services.web.mesh_calls import MeshCalls
from shared import errors
from shared.api import auth

#: How long a session is cached. Web does not subscribe to auth's changes, so a revoked session works this much longer.
REMEMBERED_SECONDS = 5.0
#: About 2 KB each. With more users than this within 5 s, web only asks auth more often.
REMEMBERED_SESSIONS = 4096
AUTH_SECONDS = 5.0

#: The format of session tokens; anything else is rejected without a call.
_TOKEN = re.compile(r"[0-9A-Za-z._~+/=-]{16,512}")


@dataclass(frozen=True, slots=True)
class _Remembered:
    session: auth.LoginSession
    until: float


class WebSessions:
    """A cache of sessions that auth confirmed, oldest first, keyed by a hash of the token."""

    def __init__(self, caller: MeshCalls, clock: Callable[[], float]) -> None:
        self._caller = caller
        self._clock = clock
        self._remembered: OrderedDict[bytes, _Remembered] = OrderedDict()

    async def find(self, token: str | None) -> auth.LoginSession | None:
        """Return the session with a fresh access token, or None if it does not exist. Raises PeerError while auth is down."""
        if token is None or not _TOKEN.fullmatch(token):
            return None
        key = _key_of(token)
        known = self._remembered.get(key)
        if known is not None and self._clock() < known.until:
            return known.session
        self._remembered.pop(key, None)
        try:
            session = await self._caller.call(auth.resume_session, auth.ResumeSession(token), deadline_seconds=AUTH_SECONDS)
        except (errors.NotAuthenticated, errors.NotAllowed, errors.BadRequest):
            return None
        self._remember(key, session)
        return session

    def forget(self, token: str) -> None:
        self._remembered.pop(_key_of(token), None)

    def _remember(self, key: bytes, session: auth.LoginSession) -> None:
        seconds = min(REMEMBERED_SECONDS, float(session.expires_in))
        self._remembered[key] = _Remembered(session, self._clock() + seconds)
        while len(self._remembered) > REMEMBERED_SESSIONS:
            self._remembered.popitem(last=False)


def _key_of(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
