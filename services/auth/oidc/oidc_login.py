"""A login with the provider, from the button to a proven identity, and the way out again. Touches no accounts: see
`account_provisioning`.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from services.auth.oidc import claim_mapping, discovery, flow, id_tokens, oidc_errors
from services.auth.oidc.claim_mapping import Identity
from services.auth.oidc.client_registration import ClientRegistration
from services.auth.oidc.flow import Begun, LoginPurpose, PendingLogin, ProviderReply
from services.auth.oidc.pending_logins import PendingLogins
from services.auth.oidc.provider import Provider, Tokens
from shared.types import UserId


@dataclass(frozen=True, slots=True)
class Finished:
    identity: Identity
    #: As the login began with it: where to go, and who asked to be linked.
    then: str
    link_to: UserId | None


class Oidc:
    """Every method may raise Unavailable: the provider or Valkey does not answer, or the provider says what it must not say."""

    def __init__(
        self, registration: ClientRegistration, provider: Provider, pending: PendingLogins, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._registration = registration
        self._provider = provider
        self._pending = pending
        self._clock = clock

    async def begin(self, wish: LoginPurpose) -> Begun:
        """Raises BadRequest for addresses that nobody may be sent to."""
        metadata = await self._provider.metadata()
        begun = flow.begin(metadata, self._registration, wish, self._clock(), _random_text)
        await self._pending.keep(begun.state, begun.pending)
        return begun

    async def finish(self, answer: ProviderReply, binding: str) -> Finished:
        """Once for each login, whatever comes of it. ``binding`` is what ``begin`` gave to this browser.

        Raises NotAuthenticated where who it is was not proven, and NotAllowed where the person refused.
        """
        pending = await self._pending.take(answer.state)
        if pending is None:
            raise oidc_errors.start_again("this login was finished before, or begun more than ten minutes ago")
        metadata = await self._provider.metadata()
        code = flow.check_answer(answer, pending, binding, metadata)
        way = discovery.choose_authentication(metadata, has_secret=self._registration.client_secret is not None)
        tokens = await self._provider.redeem(flow.token_request(code, pending, self._registration, way))
        return Finished(await self._prove(tokens, pending), pending.then, pending.link_to)

    async def logout_url(self, id_token: str | None, then: str) -> str | None:
        """Where to send the browser after our own logout, so that it is logged out there too; None where that is not offered."""
        return flow.logout_url(await self._provider.metadata(), self._registration, id_token, then)

    async def _prove(self, tokens: Tokens, pending: PendingLogin) -> Identity:
        header = id_tokens.read_header(tokens.id_token)
        key = await self._provider.find_key(header)
        if key is None:
            raise oidc_errors.not_vouched_for("the ID token is signed with a key that the provider does not publish")
        proven = id_tokens.prove(tokens.id_token, header, key)
        expected = id_tokens.Expected(
            issuer=self._registration.issuer,
            client_id=self._registration.client_id,
            nonce=pending.nonce,
            began_at=pending.began_at,
            max_age_seconds=pending.max_age_seconds,
        )
        id_tokens.check(proven, expected, tokens.access_token, self._clock())
        return await self._identify(proven, tokens)

    async def _identify(self, proven: id_tokens.Proven, tokens: Tokens) -> Identity:
        """Many providers say no more than the subject in the ID token, and the rest to whoever has the access token."""
        said = proven.said
        groups_claim = self._registration.groups_claim
        wanted = ("email", "email_verified", "preferred_username", groups_claim)
        if tokens.access_token is not None and any(claim_mapping.find_claim(said, name) is None for name in wanted):
            more = await self._provider.user_claims(tokens.access_token)
            # It may be about somebody else, if an attacker put the access token there (OpenID Connect Core §5.3.2).
            if more and more.get("sub") != proven.claims.sub:
                raise oidc_errors.not_vouched_for("its userinfo is about somebody else")
            said = {**more, **{name: value for name, value in said.items() if value is not None}}
        return claim_mapping.read_identity(self._registration.issuer, proven.claims.sub, said, groups_claim, tokens.id_token)


def _random_text() -> str:
    """256 random bits; 43 letters, which is also the shortest verifier that PKCE allows."""
    return secrets.token_urlsafe(32)
