"""The access token of a client that has a login session, and the credential of each request.  Pure.

An access token lasts ten minutes. The session token buys a new pair, once: reusing a spent session token more than ten seconds later counts
as theft and ends the session. So concurrent calls share one renewal, which finishes within that time or fails.
"""

from aimesh.answers import Session
from aimesh.errors import NotAuthenticated, SessionEnded

#: For one renewal, retries included: within ten seconds the gateway repeats its answer to a spent session token.
RENEWAL_SECONDS = 8.0
_ENDED_HINT = "log in again and give the client the new session; long-running programs should use an API key"
_NO_KEY_HINT = "pass api_key, or set AIMESH_API_KEY; `aicli keys create` makes one"
_TOKEN_HINT = "log in again, and pass the session instead of its access token: the client then renews it"  # noqa: S105 - a hint


class SessionLogin:
    """Shared by all calls of a client; one renewal at a time changes it."""

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
        """Return whether a refused token is still the newest, that is, not renewed by another call. Raises SessionEnded."""
        return self.access_token == access_token

    def end(self, refusal: NotAuthenticated) -> SessionEnded:
        """Make every later call fail: the gateway refused to renew the session."""
        self._refusal = refusal
        return self._ended(refusal)

    def _ended(self, refusal: NotAuthenticated) -> SessionEnded:
        return SessionEnded(refusal.message, hint=_ENDED_HINT, status=refusal.status, request_id=refusal.request_id)


class Bearer:
    """The credential of one call's requests: an API key, or the newest access token."""

    def __init__(self, api_key: str | None, login: SessionLogin | None, *, is_needed: bool) -> None:
        self._api_key = api_key
        self._login = login if is_needed else None
        self._is_needed = is_needed
        #: The access token of the last request.
        self._sent: str | None = None
        #: Whether it was renewed for this call: if the gateway refuses it too, another renewal does not help.
        self._is_new = False

    def next_credential(self) -> str | None:
        """Raises NotAuthenticated if the call needs a credential and has none."""
        if self._login is not None:
            self._sent = self._login.access_token
            return self._sent
        if self._is_needed and self._api_key is None:
            raise NotAuthenticated("no API key was given", hint=_NO_KEY_HINT)
        return self._api_key

    def find_spent(self, problem: Exception) -> str | None:
        """Return the access token to renew before a retry; None if another token would not help."""
        is_refused = isinstance(problem, NotAuthenticated) and problem.status is not None
        self._is_new = is_refused and not self._is_new
        return self._sent if self._is_new else None

    def explain(self, problem: Exception) -> None:
        """Replace the gateway's hint if an access token was passed as the key: it names calls that this package lacks."""
        is_bare_token = self._is_needed and self._login is None and self._api_key is not None and not self._api_key.startswith("aip_")
        if is_bare_token and isinstance(problem, NotAuthenticated):
            problem.hint = _TOKEN_HINT
