"""Talks to the provider: its document, its keys, the code against tokens, and what it knows of a person. Nothing else does.

The administrator chose the provider, and its addresses come from its own document: none of them from a user. Still nothing it
answers is trusted to end, to be small, or to be what it should.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import httpx
import msgspec

from services.auth.oidc import discovery, id_tokens, oidc_errors
from services.auth.oidc.cached_answer import CachedAnswer
from services.auth.oidc.client_registration import ClientRegistration
from services.auth.oidc.discovery import Metadata
from services.auth.oidc.flow import TokenRequest
from services.auth.oidc.id_tokens import ProviderKey, TokenHeader
from shared import errors

#: For one whole answer, however slowly it comes.
ANSWER_SECONDS = 5.0
#: A list of keys has some 10 kB, an ID token with very many groups 200 kB.
MOST_BYTES = 1024 * 1024

_MOST_CONNECTIONS = 20


class Tokens(msgspec.Struct, frozen=True):
    """What a code was redeemed for."""

    id_token: str
    access_token: str | None = None

    def __repr__(self) -> str:
        return "Tokens(…)"


class _Refusal(msgspec.Struct, frozen=True):
    """RFC 6749 §5.2."""

    error: str = ""


@dataclass(frozen=True, slots=True)
class _ProviderResponse:
    status: int
    body: bytes = field(repr=False)


class Provider:
    """Safe for any number of logins at once. Every method may raise Unavailable, within some 5 s for each question."""

    def __init__(self, registration: ClientRegistration, client: httpx.AsyncClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._registration = registration
        self._client = client
        self._metadata = CachedAnswer(self._fetch_metadata, clock)
        self._keys = CachedAnswer(self._fetch_keys, clock)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, registration: ClientRegistration, clock: Callable[[], float] = time.monotonic) -> AsyncIterator["Provider"]:
        """Asks nothing yet: auth starts without the provider. Raises BadSettings for a file of authorities that cannot be used."""
        try:
            trusted = ssl.create_default_context(cafile=registration.ca_file)
        except (OSError, ValueError) as error:
            raise errors.BadSettings(
                "OIDC_CA_FILE cannot be used", hint="the certificates in PEM of who vouches for the provider"
            ) from error
        limits = httpx.Limits(max_connections=_MOST_CONNECTIONS)
        # trust_env=False: neither a proxy nor a .netrc that auth's environment happens to name is a party to this.
        async with httpx.AsyncClient(
            verify=trusted, timeout=ANSWER_SECONDS, limits=limits, follow_redirects=False, trust_env=False
        ) as client:
            yield cls(registration, client, clock)

    async def metadata(self) -> Metadata:
        return await self._metadata.get()

    async def find_key(self, header: TokenHeader) -> ProviderKey | None:
        """The provider's key with which such a token can be signed. An unknown one is looked for once more: it may be new."""
        keys = await self._keys.get()
        return id_tokens.find_key(keys, header) or id_tokens.find_key(await self._keys.renew(keys), header)

    async def redeem(self, request: TokenRequest) -> Tokens:
        """Raises NotAuthenticated for a code that is not good."""
        metadata = await self.metadata()
        headers = {} if request.authorization is None else {"Authorization": request.authorization}
        answer = await self._ask("POST", metadata.token_endpoint, headers, request.form)
        if answer.status != httpx.codes.OK:
            raise _token_refusal(answer)
        try:
            return msgspec.json.decode(answer.body, type=Tokens)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise oidc_errors.unavailable("did not answer with an ID token") from error

    async def user_claims(self, access_token: str) -> Mapping[str, object]:
        """What the provider's userinfo says; empty where it has none."""
        endpoint = (await self.metadata()).userinfo_endpoint
        if endpoint is None:
            return {}
        body = await self._get(endpoint, {"Authorization": f"Bearer {access_token}"})
        try:
            return msgspec.json.decode(body, type=dict[str, object])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise oidc_errors.misconfigured(
                "does not say who somebody is in a form that can be read", "have the provider answer userinfo with plain JSON"
            ) from error

    async def _fetch_metadata(self) -> Metadata:
        issuer = self._registration.issuer
        return discovery.read(await self._get(discovery.document_of(issuer)), issuer)

    async def _fetch_keys(self) -> tuple[ProviderKey, ...]:
        return id_tokens.read_keys(await self._get((await self.metadata()).jwks_uri))

    async def _get(self, address: str, headers: Mapping[str, str] | None = None) -> bytes:
        answer = await self._ask("GET", address, headers or {})
        if answer.status != httpx.codes.OK:
            raise oidc_errors.unavailable(f"answers {answer.status} where it should answer 200")
        return answer.body

    async def _ask(self, method: str, address: str, headers: Mapping[str, str], form: Mapping[str, str] | None = None) -> _ProviderResponse:
        # `identity`: what is packed has no size that could be known before it is unpacked.
        asked = {"Accept": "application/json", "Accept-Encoding": "identity", **headers}
        try:
            async with asyncio.timeout(ANSWER_SECONDS), self._client.stream(method, address, headers=asked, data=form) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise oidc_errors.unavailable("packs its answers, though it was asked not to")
                return _ProviderResponse(response.status_code, await _read(response))
        except TimeoutError as error:
            raise oidc_errors.unavailable(f"does not answer within {ANSWER_SECONDS:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise oidc_errors.unavailable("cannot be reached") from error


async def _read(response: httpx.Response) -> bytes:
    read = bytearray()
    async for chunk in response.aiter_raw():
        read += chunk
        if len(read) > MOST_BYTES:
            raise oidc_errors.unavailable(f"answers with more than {MOST_BYTES} bytes")
    return bytes(read)


def _token_refusal(answer: _ProviderResponse) -> errors.AimeshError:
    try:
        said = msgspec.json.decode(answer.body, type=_Refusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = ""
    if said == "invalid_grant":
        return oidc_errors.start_again("the login provider does not take its own code: it was used, is too old, or is another login's")
    if said in ("invalid_client", "unauthorized_client") or answer.status == httpx.codes.UNAUTHORIZED:
        return oidc_errors.misconfigured("does not know this mesh", "check OIDC_CLIENT_ID and OIDC_CLIENT_SECRET")
    return oidc_errors.unavailable(f"answers {answer.status} where it should give tokens")
