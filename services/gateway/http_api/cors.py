"""Decides which websites may call the API from a browser (CORS). Pure.

Only routes that need a credential in a header are open. Cookies are never allowed, and the gateway reads none.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass

from services.gateway.http_api.response_formats import Headers

_PATHS = ("/v1/", "/api/")
#: Header names, as browsers send them in lower case; openai's client alone sends ten.
_HEADER_NAMES = re.compile(rb"([a-z0-9-]{1,64}(, ?[a-z0-9-]{1,64}){0,63})?")
_EXPOSED = (
    b"x-request-id, request-id, x-original-request-id, idempotent-replayed, x-budget-clamped, x-aimesh-route, x-aimesh-variant, "
    b"x-aimesh-version, x-aimesh-cache, x-aimesh-ignored, retry-after, retry-after-ms, x-ratelimit-limit-requests, "
    b"x-ratelimit-remaining-requests, x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, "
    b"x-ratelimit-reset-tokens"
)
_MAX_AGE = (b"access-control-max-age", b"600")


@dataclass(frozen=True, slots=True)
class CorsPolicy:
    #: Exact origins such as https://example.org; * allows all, and none turns CORS off.
    origins: Collection[str] = ()

    def covers(self, path: str) -> bool:
        return path.startswith(_PATHS)

    def preflight_verb(self, verb: str, path: str, wanted: bytes | None) -> str:
        """Return the verb of the request that a browser asks about, without its credential; empty if this is no such question."""
        return wanted.decode("latin-1") if wanted is not None and verb == "OPTIONS" and self.covers(path) else ""

    def headers(self, origin: bytes | None, preflight_verb: str = "", wanted: bytes | None = None) -> Headers:
        """Return the headers of a response for a page of this origin; in a preflight, they also allow the ``wanted`` headers."""
        vary: Headers = [] if "*" in self.origins else [(b"vary", b"origin")]
        if origin is None or ("*" not in self.origins and origin.decode("latin-1") not in self.origins):
            return vary
        allowed = [(b"access-control-allow-origin", origin if vary else b"*"), (b"access-control-expose-headers", _EXPOSED), *vary]
        if not preflight_verb or not _HEADER_NAMES.fullmatch(wanted or b""):
            return allowed
        # The names, because * does not include Authorization.
        names = (b"access-control-allow-headers", wanted or b"")
        return [*allowed, names, (b"access-control-allow-methods", preflight_verb.encode("latin-1")), _MAX_AGE]
