"""Run a login with the provider, from the button to a verified identity, and the logout there. Touches no accounts."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from services.auth import api_keys
from services.auth.oidc import account_provisioning, discovery, flow, id_tokens
from services.auth.oidc.account_provisioning import Identity
from services.auth.oidc.discovery import ClientRegistration
from services.auth.oidc.flow import BegunLogin, LoginPurpose, PendingLogin, ProviderReply
from services.auth.oidc.id_tokens import VerifiedToken
from services.auth.oidc.provider import Provider, ProviderTokens
from shared.stores.cache import Cache
from shared.types import UserId

#: Long enough to find a password, a phone and a second factor.
PENDING_SECONDS = 600

#: Ours have 43 characters; longer ones are not looked up.
_MAX_STATE_LENGTH = 128


class PendingLogins:
    """Logins that have begun, in Valkey. Keys are hashes of the state, so a copy of Valkey can finish no login.

    Every method may raise Unavailable.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    async def put(self, state: str, pending: PendingLogin) -> None:
        await self._cache.set(_key(state), msgspec.json.encode(pending), ttl_seconds=PENDING_SECONDS)

    async def take(self, state: str) -> PendingLogin | None:
        """Return None if it is unknown, used or expired. Only one of several concurrent callers gets it."""
        if not 0 < len(state) <= _MAX_STATE_LENGTH:
            return None
        stored = await self._cache.take(_key(state))
        if stored is None:
            return None
        try:
            return msgspec.json.decode(stored, type=PendingLogin)
        except msgspec.ValidationError:
            # Written by another version of auth, before an upgrade: the user starts again.
            return None


@dataclass(frozen=True, slots=True)
class FinishedLogin:
    identity: Identity
    #: From the ``LoginPurpose``.
    then: str
    link_to: UserId | None


class OidcLogins:
    """Every method raises Unavailable if the provider or Valkey doesn't answer, or the provider's answer is unusable."""

    def __init__(
        self, registration: ClientRegistration, provider: Provider, pending: PendingLogins, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._registration = registration
        self._provider = provider
        self._pending = pending
        self._clock = clock

    async def begin(self, purpose: LoginPurpose) -> BegunLogin:
        """Raises BadRequest for a redirect address that is not allowed."""
        # 43 characters are the shortest verifier that PKCE allows.
        random_text = partial(secrets.token_urlsafe, 32)
        begun = flow.begin_login(await self._provider.metadata(), self._registration, purpose, self._clock(), random_text)
        await self._pending.put(begun.state, begun.pending)
        return begun

    async def finish(self, answer: ProviderReply, binding: str) -> FinishedLogin:
        """Works once per login, even if it fails. ``binding`` is what ``begin`` gave to this browser.

        Raises NotAuthenticated if the identity was not proven, and NotAllowed if the user refused consent.
        """
        pending = await self._pending.take(answer.state)
        if pending is None:
            raise flow.start_again("this login was already completed, or started more than ten minutes ago")
        metadata = await self._provider.metadata()
        code = flow.check_answer(answer, pending, binding, metadata)
        method = discovery.choose_authentication(metadata, has_secret=self._registration.client_secret is not None)
        tokens = await self._provider.redeem(flow.make_token_request(code, pending, self._registration, method))
        token = await self._verify(tokens, pending)
        return FinishedLogin(await self._identify(token, tokens), pending.then, pending.link_to)

    async def logout_url(self, id_token: str | None, then: str) -> str | None:
        """Return where the browser logs out at the provider after our own logout; None if the provider doesn't offer it."""
        return flow.make_logout_url(await self._provider.metadata(), self._registration, id_token, then)

    async def _verify(self, tokens: ProviderTokens, pending: PendingLogin) -> VerifiedToken:
        header = id_tokens.read_header(tokens.id_token)
        key = await self._provider.find_key(header)
        if key is None:
            raise id_tokens.rejected("the ID token is signed with a key that the provider does not publish")
        token = id_tokens.verify_signature(tokens.id_token, header, key)
        expected = id_tokens.ExpectedClaims(
            issuer=self._registration.issuer,
            client_id=self._registration.client_id,
            nonce=pending.nonce,
            began_at=pending.began_at,
            max_age_seconds=pending.max_age_seconds,
        )
        id_tokens.check_claims(token, expected, tokens.access_token, self._clock())
        return token

    async def _identify(self, token: VerifiedToken, tokens: ProviderTokens) -> Identity:
        """Many providers put only the subject into the ID token, and the rest into the userinfo."""
        claims = token.all_claims
        groups_claim = self._registration.groups_claim
        wanted = ("email", "email_verified", "preferred_username", groups_claim)
        if tokens.access_token is not None and any(account_provisioning.find_claim(claims, name) is None for name in wanted):
            userinfo = await self._provider.user_claims(tokens.access_token)
            # OpenID Connect Core §5.3.2: an attacker may have swapped the access token for another user's.
            if userinfo and userinfo.get("sub") != token.claims.sub:
                raise id_tokens.rejected("its userinfo is about another user")
            claims = {**userinfo, **{name: value for name, value in claims.items() if value is not None}}
        return account_provisioning.read_identity(self._registration.issuer, token.claims.sub, claims, groups_claim, tokens.id_token)


def _key(state: str) -> str:
    return f"auth:oidc:{api_keys.hash_token(state)}"
