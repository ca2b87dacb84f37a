"""Talk HTTP to the provider: its document, its keys, codes for tokens, and userinfo. Nothing else does.

The administrator chose the provider and its document names the addresses, so no user controls them. Even so, every answer is limited in
time and size, and no redirect is followed.
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import httpx
import msgspec

from services.auth.oidc import discovery, flow, id_tokens
from services.auth.oidc.discovery import ClientRegistration, ProviderMetadata
from services.auth.oidc.flow import TokenRequest
from services.auth.oidc.id_tokens import ProviderKey, TokenHeader
from shared import errors
from shared.transports.http_transport import HttpTransport

T = TypeVar("T")

#: For one whole answer, however slowly it arrives.
ANSWER_SECONDS = 5.0
#: A list of keys has about 10 kB, an ID token with very many groups 200 kB.
MAX_BYTES = 1024 * 1024
#: How long the document and the keys are cached.
CACHE_SECONDS = 3600.0
#: How often a caller that needs a newer answer can make us ask again.
RENEW_SECONDS = 10.0
#: Callers that waited for a failed request share the failure instead of asking again one by one.
FAILED_SECONDS = 1.0

_MAX_CONNECTIONS = 20


class ProviderTokens(msgspec.Struct, frozen=True):
    id_token: str
    access_token: str | None = None

    def __repr__(self) -> str:
        return "ProviderTokens(…)"


class _TokenError(msgspec.Struct, frozen=True):
    """RFC 6749 §5.2."""

    error: str = ""


@dataclass(frozen=True, slots=True)
class _ProviderResponse:
    status: int
    body: bytes = field(repr=False)


class CachedAnswer(Generic[T]):
    """One cached answer of the provider; concurrent callers share one request. Every method raises what ``fetch`` raises: Unavailable."""

    def __init__(self, fetch: Callable[[], Awaitable[T]], clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = asyncio.Lock()
        self._answer: T | None = None
        self._fetched_at = float("-inf")
        self._cached_until = float("-inf")
        self._failure: errors.Unavailable | None = None
        self._failed_until = float("-inf")

    async def get(self) -> T:
        async with self._lock:
            if self._answer is not None and self._clock() < self._cached_until:
                return self._answer
            return await self._ask()

    async def renew(self, seen: T) -> T:
        """Return an answer newer than ``seen``, or ``seen`` itself if the provider was asked a moment ago."""
        async with self._lock:
            if self._answer is not None and self._answer is not seen:
                return self._answer
            if self._clock() < self._fetched_at + RENEW_SECONDS:
                return seen
            return await self._ask()

    async def _ask(self) -> T:
        if self._failure is not None and self._clock() < self._failed_until:
            raise errors.Unavailable(self._failure.message, hint=self._failure.hint) from self._failure
        self._fetched_at = self._clock()
        try:
            answer = await self._fetch()
        except errors.Unavailable as failure:
            self._failure = failure
            self._failed_until = self._clock() + FAILED_SECONDS
            raise
        self._answer, self._failure = answer, None
        self._cached_until = self._clock() + CACHE_SECONDS
        return answer


@contextlib.asynccontextmanager
async def open_client(ca_file: Path | None) -> AsyncIterator[httpx.AsyncClient]:
    """Raises BadSettings for an unusable CA file."""
    try:
        trusted = ssl.create_default_context(cafile=ca_file)
    except (OSError, ValueError) as error:
        raise errors.BadSettings(
            "OIDC_CA_FILE cannot be used", hint="name a PEM file with the certificate authorities of the provider"
        ) from error
    limits = httpx.Limits(max_connections=_MAX_CONNECTIONS)
    # trust_env=False: ignore any proxy and .netrc in the environment.
    transport = HttpTransport(verify=trusted, limits=limits, trust_env=False)
    async with httpx.AsyncClient(transport=transport, timeout=ANSWER_SECONDS, follow_redirects=False, trust_env=False) as client:
        yield client


async def find_key(keys: CachedAnswer[tuple[ProviderKey, ...]], header: TokenHeader) -> ProviderKey | None:
    """Return the key for this token. An unknown key is looked up once more, because it may be new."""
    seen = await keys.get()
    return id_tokens.find_key(seen, header) or id_tokens.find_key(await keys.renew(seen), header)


class Provider:
    """Safe for concurrent logins. Every method may raise Unavailable, at the latest about 5 s after each request."""

    def __init__(self, registration: ClientRegistration, client: httpx.AsyncClient, clock: Callable[[], float]) -> None:
        self._registration = registration
        self._client = client
        self._metadata = CachedAnswer(self._fetch_metadata, clock)
        self._keys = CachedAnswer(self._fetch_keys, clock)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, registration: ClientRegistration, clock: Callable[[], float] = time.monotonic) -> AsyncIterator["Provider"]:
        """Send nothing yet, so auth starts without the provider. Raises BadSettings for an unusable CA file."""
        async with open_client(registration.ca_file) as client:
            yield cls(registration, client, clock)

    async def metadata(self) -> ProviderMetadata:
        return await self._metadata.get()

    async def find_key(self, header: TokenHeader) -> ProviderKey | None:
        return await find_key(self._keys, header)

    async def redeem(self, request: TokenRequest) -> ProviderTokens:
        """Raises NotAuthenticated if the provider refuses the code."""
        metadata = await self.metadata()
        headers = {} if request.authorization is None else {"Authorization": request.authorization}
        answer = await _request(self._client, "POST", metadata.token_endpoint, headers, request.form)
        if answer.status != httpx.codes.OK:
            raise _token_refusal(answer)
        tokens = discovery.decode_json(answer.body, ProviderTokens)
        if tokens is None:
            raise discovery.unavailable("did not answer with an ID token")
        return tokens

    async def user_claims(self, access_token: str) -> Mapping[str, object]:
        """Return the provider's userinfo; empty if it has none."""
        endpoint = (await self.metadata()).userinfo_endpoint
        if endpoint is None:
            return {}
        claims = discovery.decode_json(await get(self._client, endpoint, {"Authorization": f"Bearer {access_token}"}), dict[str, object])
        if claims is None:
            raise discovery.misconfigured("sends userinfo that cannot be read", "have the provider answer userinfo with plain JSON")
        return claims

    async def _fetch_metadata(self) -> ProviderMetadata:
        issuer = self._registration.issuer
        return discovery.read_metadata(await get(self._client, discovery.metadata_url(issuer)), issuer)

    async def _fetch_keys(self) -> tuple[ProviderKey, ...]:
        return id_tokens.read_keys(await get(self._client, (await self.metadata()).jwks_uri))


async def get(client: httpx.AsyncClient, address: str, headers: Mapping[str, str] | None = None) -> bytes:
    answer = await _request(client, "GET", address, headers or {})
    if answer.status != httpx.codes.OK:
        raise discovery.unavailable(f"answered {answer.status} instead of 200")
    return answer.body


async def _request(
    client: httpx.AsyncClient, method: str, address: str, headers: Mapping[str, str], form: Mapping[str, str] | None = None
) -> _ProviderResponse:
    # `identity`: the size of a compressed answer is unknown until it is decompressed.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity", **headers}
    try:
        async with asyncio.timeout(ANSWER_SECONDS), client.stream(method, address, headers=headers, data=form) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                raise discovery.unavailable("compresses its answers although asked not to")
            return _ProviderResponse(response.status_code, await _read_body(response))
    except TimeoutError as error:
        raise discovery.unavailable(f"did not answer within {ANSWER_SECONDS:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise discovery.unavailable("cannot be reached") from error


async def _read_body(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_BYTES:
            raise discovery.unavailable(f"answered with more than {MAX_BYTES} bytes")
    return bytes(body)


def _token_refusal(answer: _ProviderResponse) -> errors.AimeshError:
    reason = (discovery.decode_json(answer.body, _TokenError) or _TokenError()).error
    if reason == "invalid_grant":
        return flow.start_again("the login provider refuses its code: it was already used, has expired or belongs to another login")
    if reason in ("invalid_client", "unauthorized_client") or answer.status == httpx.codes.UNAUTHORIZED:
        return discovery.misconfigured("rejects the credentials of this mesh", "check OIDC_CLIENT_ID and OIDC_CLIENT_SECRET")
    return discovery.unavailable(f"answered {answer.status} instead of sending tokens")
