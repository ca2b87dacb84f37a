"""The login of a client that was given a session: the access token that goes with a request now, and whether there will be another.  Pure.

An access token is good for ten minutes, and the session's own token gives a new one, once: who sends a spent one later than ten seconds
after is taken for a thief, and the session ends. So of all calls that find their access token too old one asks, in that time or not at all.
"""

from aimesh.answers import Session
from aimesh.errors import NotAuthenticated, SessionEnded

#: For asking, repeats included: a spent token that comes again is given the same answer for ten seconds.
RENEWAL_SECONDS = 8.0
_ENDED_HINT = "log in again, and give a client the new session; a program that stays is better off with an API key"
_NO_KEY_HINT = "pass api_key, or set AIMESH_API_KEY; `aicli keys create` makes one"
_TOKEN_HINT = "log in again; a client that is given the session in place of its access token renews that by itself"  # noqa: S105 - a hint


class SessionLogin:
    """Read by every call of a client; changed by whoever renews it, one at a time."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._refusal: NotAuthenticated | None = None

    @property
    def access_token(self) -> str:
        """Raises SessionEnded, before anything is sent."""
        if self._refusal is not None:
            raise self._ended(self._refusal)
        return self.session.access_token

    def is_spent(self, access_token: str) -> bool:
        """Whether a token that was refused is still the newest; else somebody has renewed it meanwhile. Raises SessionEnded."""
        return self.access_token == access_token

    def end(self, refusal: NotAuthenticated) -> SessionEnded:
        """The platform gives no other token: nobody has to ask again."""
        self._refusal = refusal
        return self._ended(refusal)

    def _ended(self, refusal: NotAuthenticated) -> SessionEnded:
        return SessionEnded(refusal.message, hint=_ENDED_HINT, status=refusal.status, request_id=refusal.request_id)


class Bearer:
    """What the requests of one call go with: a key, or the access token that is the newest at that moment."""

    def __init__(self, api_key: str | None, login: SessionLogin | None, *, is_needed: bool) -> None:
        self._api_key = api_key
        self._login = login if is_needed else None
        self._is_needed = is_needed
        #: The access token that the last request went with.
        self._sent: str | None = None
        #: It was got for this request: if it is refused all the same, so will be another.
        self._is_new = False

    def take(self) -> str | None:
        """For the next request. Raises NotAuthenticated where there is nothing that it could go with."""
        if self._login is not None:
            self._sent = self._login.access_token
            return self._sent
        if self._is_needed and self._api_key is None:
            raise NotAuthenticated("no API key was given", hint=_NO_KEY_HINT)
        return self._api_key

    def find_spent(self, problem: Exception) -> str | None:
        """The access token that is to be renewed before the request is sent again; None where that is not what it failed of."""
        is_refused = isinstance(problem, NotAuthenticated) and problem.status is not None
        self._is_new = is_refused and not self._is_new
        return self._sent if self._is_new else None

    def explain(self, problem: Exception) -> None:
        """Where an access token was given in place of a key: the platform's own hint names calls that this package has not."""
        is_bare = self._is_needed and self._login is None and self._api_key is not None and not self._api_key.startswith("aip_")
        if is_bare and isinstance(problem, NotAuthenticated):
            problem.hint = _TOKEN_HINT
