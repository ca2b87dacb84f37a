"""A command's connection over HTTPS: calls to /rpc of a gateway or of web, for machines that are not on the mesh.

It needs neither NATS nor Hyperswarm, only a URL and an API key.
"""

import asyncio
import math
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic
from urllib.parse import urlsplit

import msgspec

from cli.profile import Profile
from shared import errors
from shared.api.method import End, Item, Method, Reply, Request, StreamMethod
from shared.types import Credential, NodeId, Role

# httpx would import its own command line with rich and Pygments, which takes as long as httpx itself.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
import httpx  # noqa: E402

CONNECT_SECONDS = 5.0
#: The gateway sends heartbeats every 15 s.
_SILENCE_SECONDS = 45.0
#: The server answers at its deadline; its error is better than ours.
_SLACK_SECONDS = 1.0
#: Above the limit of a mesh message, also with JSON's escapes.
_MAX_BYTES = 16 * 1024 * 1024
#: Methods that only read start with one of these; repeating them is safe.
_READING = ("count", "get", "list", "name", "read", "review", "verify")


class _ErrorDetails(msgspec.Struct):
    code: str
    message: str
    hint: str = ""


class _ErrorBody(msgspec.Struct):
    error: _ErrorDetails


class HttpsAnswer(Generic[Item, End]):
    """A running stream: iterate it, then read ``end``."""

    #: Set at the end of the iteration.
    end: End

    def __init__(self, method: StreamMethod[Request, Item, End], response: httpx.Response, place: str) -> None:
        self._method, self._response = method, response
        #: The address: HTTP does not show which gateway is behind it.
        self.node = NodeId(place)

    async def __aiter__(self) -> AsyncIterator[Item]:
        decoder = msgspec.json.Decoder(self._method.item)
        async for name, content in _events(self._response):
            try:
                if name == b"error":
                    raise _from_body(content)
                if name == b"end":
                    self.end = msgspec.json.decode(content, type=self._method.end)
                    return
                item = decoder.decode(content)
            except msgspec.MsgspecError as error:
                raise errors.ProtocolViolation(f"an event of {self._method.name} does not fit the contract: {error}") from error
            yield item
        raise errors.LinkLost(f"{self.node} closed the connection before the end of the answer", retry_after_seconds=0)


class HttpsConnection:
    """See ``CliConnection``."""

    def __init__(self, client: httpx.AsyncClient, url: str, key: Credential | None) -> None:
        self._client = client
        self._url = url.rstrip("/")
        self._place = urlsplit(url).netloc
        self._key = key

    async def call(
        self,
        method: Method[Request, Reply],
        request: Request,
        *,
        to: NodeId | None = None,
        deadline_seconds: float = 10,
        credential: Credential | None = None,
    ) -> Reply:
        """Repeat a call once if its connection broke before anything was sent, or the method only reads."""
        until = time.monotonic() + deadline_seconds
        only_reads = method.name.partition(".")[2].startswith(_READING)
        try:
            return await self._call_once(method, request, to, until, credential)
        except (errors.NotReachable, errors.LinkLost) as error:
            if isinstance(error, errors.LinkLost) and not only_reads:
                raise
        return await self._call_once(method, request, to, until, credential)

    @asynccontextmanager
    async def stream(
        self, method: StreamMethod[Request, Item, End], request: Request, *, deadline_seconds: float = 300
    ) -> AsyncIterator[HttpsAnswer[Item, End]]:
        async with self._ask(method.name, request, deadline_seconds, _SILENCE_SECONDS, self._key) as response:
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise _not_ours(response, self._place)
            yield HttpsAnswer(method, response, self._place)

    def alive(self, role: Role) -> list[NodeId]:
        raise errors.BadSettings(f"{self._place} does not show the nodes of the mesh", hint="use a profile of `aicli mesh connect`")

    async def _call_once(
        self, method: Method[Request, Reply], request: Request, to: NodeId | None, until: float, credential: Credential | None
    ) -> Reply:
        seconds = until - time.monotonic()
        query: dict[str, str] = {} if to is None or method.served_by is Role.GATEWAY else {"to": to}
        key = credential or self._key
        async with self._ask(method.name, request, seconds, seconds + _SLACK_SECONDS, key, **query) as response:
            body = await _read_body(response)
        try:
            return msgspec.json.decode(body, type=method.reply)
        except msgspec.MsgspecError as error:
            raise _not_ours(response, self._place) from error

    @asynccontextmanager
    async def _ask(
        self, method: str, request: msgspec.Struct, seconds: float, silence_seconds: float, key: Credential | None, **query: str
    ) -> AsyncIterator[httpx.Response]:
        """Send a call. Raises the error of the answer, or of the connection, in the block as well."""
        query["deadline_ms"] = str(max(1, math.ceil(seconds * 1000)))
        headers = {"content-type": "application/json", "accept-encoding": "identity"} | ({"authorization": f"Bearer {key}"} if key else {})
        sent = self._client.build_request(
            "POST", f"{self._url}/rpc/{method}", params=query, headers=headers, content=msgspec.json.encode(request),
            timeout=httpx.Timeout(silence_seconds, connect=min(CONNECT_SECONDS, silence_seconds)),
        )  # fmt: skip
        deadline = asyncio.timeout(seconds + _SLACK_SECONDS)
        try:
            async with deadline:
                response = await self._client.send(sent, stream=True)
                try:
                    if not response.is_success:
                        raise await _error_of(response, self._place)
                    yield response
                finally:
                    await response.aclose()
        except TimeoutError:
            if not deadline.expired():
                raise
            raise errors.DeadlineExceeded(f"{method} did not answer in time", hint="try again, or give it longer") from None
        except httpx.TransportError as error:
            raise _problem_of(error, self._place, method) from error


@asynccontextmanager
async def open_(profile: Profile) -> AsyncIterator[HttpsConnection]:
    """Raises BadSettings if the CA file cannot be read."""
    assert profile.url is not None
    is_encrypted = profile.url.startswith("https://")
    try:
        verify = ssl.create_default_context(cafile=profile.ca_file) if profile.ca_file else is_encrypted
    except OSError as error:
        raise errors.BadSettings(f"cannot use the CA file {profile.ca_file}: {error.strerror or error}") from error
    # A proxy of the environment would see the key of an unencrypted connection.
    async with httpx.AsyncClient(verify=verify, trust_env=is_encrypted, follow_redirects=False) as client:
        yield HttpsConnection(client, profile.url, profile.api_key)


async def _read_body(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _MAX_BYTES:
            raise errors.ProtocolViolation(f"the answer has more than {_MAX_BYTES} bytes")
    return bytes(body)


async def _events(response: httpx.Response) -> AsyncIterator[tuple[bytes, bytes]]:
    """Return the name and the content of each event. Heartbeats are comments, which are skipped."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            fields = dict(line.partition(b": ")[::2] for line in event.split(b"\n"))
            if b"data" in fields:
                yield fields.get(b"event", b""), fields[b"data"]
        if len(rest) > _MAX_BYTES:
            raise errors.ProtocolViolation(f"an event has more than {_MAX_BYTES} bytes")


async def _error_of(response: httpx.Response, place: str) -> errors.AimeshError:
    after = response.headers.get("retry-after-ms", "")
    try:
        return _from_body(await _read_body(response), int(after) if after.isdecimal() else None)
    except msgspec.MsgspecError:
        return _not_ours(response, place)


def _from_body(content: bytes, retry_after_ms: int | None = None) -> errors.AimeshError:
    found = msgspec.json.decode(content, type=_ErrorBody).error
    return errors.from_problem(errors.Problem(found.code, found.message, found.hint, retry_after_ms=retry_after_ms))


def _not_ours(response: httpx.Response, place: str) -> errors.AimeshError:
    """Describe an answer that neither the gateway nor web wrote."""
    to = f" to {response.headers['location'][:200]}" if "location" in response.headers else ""
    status = f"{response.status_code} {response.reason_phrase}{to}"
    if response.is_server_error:
        hint = "a proxy is there, but the service behind it is not; try again in a moment"
        return errors.Unavailable(f"{place} answered {status}", hint=hint, retry_after_seconds=1)
    return errors.ProtocolViolation(f"{place} answered {status}, which is not from aimesh", hint="check the URL of the profile")


def _problem_of(error: httpx.TransportError, place: str, method: str) -> errors.AimeshError:
    cause = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in cause:
        reason = cause.partition("CERTIFICATE_VERIFY_FAILED] certificate verify failed: ")[2].partition(" (_ssl")[0] or cause
        hint = "if it has a private CA, use --ca-file FILE with `aicli login`, or set AIMESH_CA_FILE"
        return errors.BadSettings(f"the certificate of {place} is not trusted: {reason}", hint=hint)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout | httpx.ProxyError):
        why = f"no answer within {CONNECT_SECONDS:g} s" if isinstance(error, httpx.TimeoutException) else cause
        return errors.NotReachable(f"cannot connect to {place}: {why}", hint="check the URL and your network; is the gateway running?")
    return errors.LinkLost(f"the connection to {place} broke during {method}: {cause}", hint="try again")
