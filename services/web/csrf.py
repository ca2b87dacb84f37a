"""Form tokens and the origin check: was this form sent from a page of ours, by the browser that we gave it to?

Pure; randomness is an argument. A form is accepted only when both agree: the browser says that the request comes from
our own origin, and the form carries a token that only we could have made for this browser's session.
"""

import hmac
import re
from collections.abc import Callable
from urllib.parse import urlsplit

from shared import errors

#: `none` is a person's own doing, like a reload of a page that was the answer to a form.
_OWN_FETCH_SITES = frozenset({"same-origin", "none"})
_RANDOM_BYTES = 16
_TOKEN = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{64}")

_EXPIRED = "this form was not made for this browser session, or the session has ended"


class FormTokens:
    """Makes and checks tokens bound to a session: `<random>.<HMAC-SHA256 of random and session>` (OWASP's signed double submit)."""

    def __init__(self, secret: str, random_bytes: Callable[[int], bytes]) -> None:
        self._key = hmac.digest(secret.encode(), b"aimesh web form token", "sha256")
        self._random_bytes = random_bytes

    def issue(self, session: str) -> str:
        random = self._random_bytes(_RANDOM_BYTES).hex()
        return f"{random}.{self._sign(random, session)}"

    def check(self, token: str, session: str | None) -> None:
        """Raises NotAllowed unless ``token`` was issued for ``session``."""
        if session and _TOKEN.fullmatch(token):
            random, _, signature = token.partition(".")
            if hmac.compare_digest(signature, self._sign(random, session)):
                return
        raise errors.NotAllowed(_EXPIRED, hint="open the page again and send the form from there")

    def _sign(self, random: str, session: str) -> str:
        # The length keeps (session, random) pairs apart that would read the same when joined.
        message = f"{len(session)}!{session}!{random}"
        return hmac.new(self._key, message.encode(), "sha256").hexdigest()


def check_origin(*, fetch_site: str | None, origin: str | None, own_hosts: frozenset[str]) -> None:
    """Raises NotAllowed when the browser says that the form comes from elsewhere.

    Browsers send Sec-Fetch-Site only to trustworthy addresses (HTTPS, localhost); Origin, which every browser sends
    with a POST, covers plain HTTP. Neither means that it is no browser, and then the form token alone decides.
    """
    if fetch_site is not None:
        allowed = fetch_site in _OWN_FETCH_SITES
    elif origin is not None:
        allowed = _host_of(origin) in own_hosts
    else:
        allowed = True
    if not allowed:
        raise errors.NotAllowed("this form was sent from another site", hint="open the page here and send the form from there")


def _host_of(origin: str) -> str:
    # `null` (a sandboxed frame, a privacy redirect) has no host and so is nobody's.
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
