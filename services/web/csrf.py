"""Protect forms against cross-site request forgery with form tokens and an origin check. Pure.

Web accepts a form only if the browser reports our own origin and the form carries a token that we signed for this browser's session.
"""

import hmac
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from shared import errors

#: `none` means the user did it directly, for example by reloading the response to a form.
_OWN_FETCH_SITES = frozenset({"same-origin", "none"})
_RANDOM_BYTES = 16
_TOKEN = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{64}")

_EXPIRED = "this form belongs to another browser session, or the session has ended"


class FormTokens:
    """Issues and checks session-bound tokens: `<random>.<HMAC-SHA256 of random and session>` (OWASP's signed double submit)."""

    def __init__(self, secret: str, random_bytes: Callable[[int], bytes]) -> None:
        self._key = hmac.digest(secret.encode(), b"aimesh web form token", "sha256")
        self._random_bytes = random_bytes

    def issue(self, session: str) -> str:
        random = self._random_bytes(_RANDOM_BYTES).hex()
        return f"{random}.{self._sign(random, session)}"

    def check(self, token: str, session: str | None) -> None:
        """Raise NotAllowed unless ``token`` was issued for ``session``."""
        if session and _TOKEN.fullmatch(token):
            random, _, signature = token.partition(".")
            if hmac.compare_digest(signature, self._sign(random, session)):
                return
        raise errors.NotAllowed(_EXPIRED, hint="reload the page and submit the form again")

    def _sign(self, random: str, session: str) -> str:
        # The length prevents two (session, random) pairs from joining to the same text.
        message = f"{len(session)}!{session}!{random}"
        return hmac.new(self._key, message.encode(), "sha256").hexdigest()


def check_origin(*, fetch_site: str | None, origin: str | None, own_hosts: frozenset[str]) -> None:
    """Raise NotAllowed if the browser reports that the form comes from another origin.

    Browsers send Sec-Fetch-Site only to trustworthy addresses (HTTPS, localhost). For plain HTTP, check Origin, which every browser
    sends with a POST. A client that sends neither is no browser; then the form token alone decides.
    """
    if fetch_site is not None:
        allowed = fetch_site in _OWN_FETCH_SITES
    elif origin is not None:
        allowed = _host_of(origin) in own_hosts
    else:
        allowed = True
    if not allowed:
        raise errors.NotAllowed("this form was submitted from another site", hint="open this page directly and submit the form there")


def _host_of(origin: str) -> str:
    # `null` (a sandboxed frame, a privacy redirect) has no host and never matches.
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
