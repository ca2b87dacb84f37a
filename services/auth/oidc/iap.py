"""Take a user from the signed header of Google's Identity-Aware Proxy (IAP), which stands before web."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from services.auth.oidc import account_provisioning, id_tokens, provider
from services.auth.oidc.account_provisioning import Identity
from services.auth.oidc.id_tokens import ProviderKey, VerifiedToken
from services.auth.oidc.provider import CachedAnswer
from shared import errors

ISSUER = "https://cloud.google.com/iap"
#: IAP signs with nothing else.
ALGORITHM = "ES256"


class IapLogins:
    def __init__(self, audience: str, keys: CachedAnswer[tuple[ProviderKey, ...]], *, clock: Callable[[], float] = time.time) -> None:
        self._audience = audience
        self._keys = keys
        self._clock = clock

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, audience: str, keys_url: str, ca_file: Path | None) -> AsyncIterator["IapLogins"]:
        """Send nothing yet. Raises BadSettings for an unusable CA file."""
        async with provider.open_client(ca_file) as client:

            async def fetch() -> tuple[ProviderKey, ...]:
                return id_tokens.read_keys(await provider.get(client, keys_url))

            yield cls(audience, CachedAnswer(fetch, time.monotonic))

    async def identify(self, assertion: str) -> Identity:
        """Raises NotAuthenticated if IAP did not sign this for us, and Unavailable if its keys cannot be fetched."""
        header = id_tokens.read_header(assertion)
        if header.alg != ALGORITHM:
            raise id_tokens.rejected(f"IAP signs with {ALGORITHM} only")
        key = await provider.find_key(self._keys, header)
        if key is None:
            raise id_tokens.rejected("it is signed with a key that IAP does not publish")
        token = id_tokens.verify_signature(assertion, header, key)
        check_claims(token, self._audience, self._clock())
        # IAP vouches for the address, but has no claim that says so.
        claims = {"email": token.all_claims.get("email"), "email_verified": True}
        return account_provisioning.read_identity(ISSUER, token.claims.sub, claims, "")


def check_claims(token: VerifiedToken, audience: str, now: float) -> None:
    """Raises NotAuthenticated with the broken rule."""
    claims = token.claims
    rules = (
        (claims.iss == ISSUER, "somebody else issued it"),
        (claims.audiences == (audience,), "it is meant for another service; check IAP_AUDIENCE"),
        *id_tokens.validity(claims, now),
        (id_tokens.is_subject(claims.sub), "it has no valid subject"),
    )
    for holds, what in rules:
        if not holds:
            raise errors.NotAuthenticated(
                f"the header of IAP is invalid: {what}", hint="reload the page; if it happens again, tell an administrator"
            )
