"""A command's connection over HTTPS: calls to /rpc of a gateway or of web, for machines that are not on the mesh.

It needs neither NATS nor Hyperswarm, only a URL and an API key. HTTP is the Python SDK's; the types and errors are those of the mesh.
"""

import math
import ssl
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Generic
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from cli.profile import Profile
from shared import errors
from shared.api.gateway import MAX_REQUEST_SECONDS, HttpPart, HttpRequest
from shared.api.method import End, Item, Method, Reply, Request, StreamMethod
from shared.types import Credential, NodeId, Role

# httpx would import its own command line with rich and Pygments, which takes as long as httpx itself.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
import httpx  # noqa: E402
from aimesh import settings  # noqa: E402
from aimesh.actions import AnswerHead, OpenRequest, WireLost  # noqa: E402
from aimesh.async_io import AsyncConnection  # noqa: E402
from aimesh.errors import ProtocolError  # noqa: E402
from aimesh.event_stream import SseParser  # noqa: E402

#: The gateway sends heartbeats every 15 s.
_SILENCE_SECONDS = 45.0
_STREAMS = ("text/event-stream", "application/x-ndjson")
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


class _HttpsCall:
    """One request to a method. Its methods raise the errors of the mesh."""

    def __init__(self, http: httpx.AsyncClient, url: str, method: str, seconds: float) -> None:
        self._connection = AsyncConnection(http, url)
        self._method = method
        self._seconds = seconds
        self._until = time.monotonic() + seconds + _SLACK_SECONDS
        self.place = urlsplit(url).netloc
        self.head = AnswerHead(0, {})

    async def open(self, body: msgspec.Struct, key: Credential | None, silence_seconds: float, **query: str) -> None:
        """Send the request. Raises the error that the answer reports."""
        query["deadline_ms"] = str(max(1, math.ceil(self._seconds * 1000)))
        headers = {"content-type": "application/json", "accept-encoding": "identity"} | _bearer(key)
        await self.send("POST", f"/rpc/{self._method}?{urlencode(query)}", headers, msgspec.json.encode(body), silence_seconds)
        if not 200 <= self.head.status < 300:
            raise self._refusal(await self.read_all())

    async def send(self, verb: str, path: str, headers: Mapping[str, str], body: bytes | None, silence_seconds: float) -> None:
        request = OpenRequest(
            verb=verb, path=path, headers=headers, body=body, silence_seconds=silence_seconds, seconds=max(0.0, self._left())
        )
        try:
            self.head = await self._connection.open(request)
        except WireLost as lost:
            raise self._problem(lost) from lost

    async def pieces(self, silence_seconds: float = math.inf) -> AsyncIterator[bytes]:
        try:
            while piece := await self._connection.read(min(silence_seconds, self._left())):
                yield piece
        except WireLost as lost:
            raise self._problem(lost) from lost

    async def read_all(self) -> bytes:
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > _MAX_BYTES:
                raise errors.ProtocolViolation(f"the answer has more than {_MAX_BYTES} bytes")
        return bytes(body)

    async def close(self) -> None:
        await self._connection.close()

    async def parts(self) -> AsyncIterator[HttpPart]:
        """Return the head and the body of any response. Streams have heartbeats."""
        names = ((name.encode("latin-1"), value.encode("latin-1")) for name, value in self.head.headers.items())
        yield HttpPart(b"", self.head.status, tuple(names))
        is_stream = self.head.headers.get("content-type", "").startswith(_STREAMS)
        async for piece in self.pieces(_SILENCE_SECONDS if is_stream else math.inf):
            yield HttpPart(piece)

    def not_ours(self) -> errors.AimeshError:
        """Describe an answer that neither the gateway nor web wrote."""
        to = f" to {self.head.headers['location'][:200]}" if "location" in self.head.headers else ""
        status = f"{self.head.status} {httpx.codes.get_reason_phrase(self.head.status)}{to}"
        if self.head.status >= 500:
            hint = "a proxy is there, but the service behind it is not; try again in a moment"
            return errors.Unavailable(f"{self.place} answered {status}", hint=hint, retry_after_seconds=1)
        return errors.ProtocolViolation(f"{self.place} answered {status}, which is not from aimesh", hint="check the URL of the profile")

    def _refusal(self, body: bytes) -> errors.AimeshError:
        after = self.head.headers.get("retry-after-ms", "")
        try:
            return _from_body(body, int(after) if after.isdecimal() else None)
        except msgspec.MsgspecError:
            return self.not_ours()

    def _left(self) -> float:
        return self._until - time.monotonic()

    def _problem(self, lost: WireLost) -> errors.AimeshError:
        if self._left() <= 0:
            return errors.DeadlineExceeded(f"{self._method} did not answer in time", hint="try again, or give it longer")
        if "CERTIFICATE_VERIFY_FAILED" in lost.why:
            reason = lost.why.partition("CERTIFICATE_VERIFY_FAILED] certificate verify failed: ")[2].partition(" (_ssl")[0] or lost.why
            hint = "if it has a private CA, use --ca-file FILE with `aicli login`, or set AIMESH_CA_FILE"
            return errors.BadSettings(f"the certificate of {self.place} is not trusted: {reason}", hint=hint)
        if not lost.may_have_arrived:
            why = lost.why.removeprefix("ConnectError: ")
            return errors.NotReachable(
                f"cannot connect to {self.place}: {why}", hint="check the URL and your network; is the gateway running?"
            )
        return errors.LinkLost(f"the connection to {self.place} broke during {self._method}: {lost.why}", hint="try again")


class HttpsAnswer(Generic[Item, End]):
    """A running stream: iterate it, then read ``end``."""

    #: Set at the end of the iteration.
    end: End

    def __init__(self, method: StreamMethod[Request, Item, End], call: _HttpsCall) -> None:
        self._method, self._call = method, call
        #: The address: HTTP does not show which gateway is behind it.
        self.node = NodeId(call.place)

    async def __aiter__(self) -> AsyncIterator[Item]:
        decoder, parser = msgspec.json.Decoder(self._method.item), SseParser(_MAX_BYTES)
        async for piece in self._call.pieces():
            try:
                for event in parser.push(piece):
                    if event.name == "error":
                        raise _from_body(event.data)
                    if event.name == "end":
                        self.end = msgspec.json.decode(event.data, type=self._method.end)
                        return
                    yield decoder.decode(event.data)
            except (msgspec.MsgspecError, ProtocolError) as error:
                raise errors.ProtocolViolation(f"an event of {self._method.name} does not fit the contract: {error}") from error
        raise errors.LinkLost(f"{self.node} closed the connection before the end of the answer", retry_after_seconds=0)


class HttpsConnection:
    """See ``CliConnection``."""

    def __init__(self, client: httpx.AsyncClient, url: str, key: Credential | None) -> None:
        self._client = client
        self._url = url.rstrip("/")
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
        call = _HttpsCall(self._client, self._url, method.name, deadline_seconds)
        try:
            await call.open(request, self._key, _SILENCE_SECONDS)
            if not call.head.headers.get("content-type", "").startswith("text/event-stream"):
                raise call.not_ours()
            yield HttpsAnswer(method, call)
        finally:
            await call.close()

    @asynccontextmanager
    async def http(self, request: HttpRequest, key: Credential | None = None) -> AsyncIterator[AsyncIterator[HttpPart]]:
        call = _HttpsCall(self._client, self._url, request.path, MAX_REQUEST_SECONDS)
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers if name != b"host"}
        path = quote(request.path) + (f"?{request.query.decode('latin-1')}" if request.query else "")
        try:
            headers = {"accept-encoding": "identity", **given, **_bearer(key or self._key)}
            await call.send(request.verb, path, headers, request.body or None, MAX_REQUEST_SECONDS)
            yield call.parts()
        finally:
            await call.close()

    def alive(self, role: Role) -> list[NodeId]:
        raise errors.BadSettings(
            f"{urlsplit(self._url).netloc} does not show the nodes of the mesh", hint="use a profile of `aicli mesh connect`"
        )

    async def _call_once(
        self, method: Method[Request, Reply], request: Request, to: NodeId | None, until: float, credential: Credential | None
    ) -> Reply:
        seconds = until - time.monotonic()
        query: dict[str, str] = {} if to is None or method.served_by is Role.GATEWAY else {"to": to}
        call = _HttpsCall(self._client, self._url, method.name, seconds)
        try:
            await call.open(request, credential or self._key, seconds + _SLACK_SECONDS, **query)
            return msgspec.json.decode(await call.read_all(), type=method.reply)
        except msgspec.MsgspecError as error:
            raise call.not_ours() from error
        finally:
            await call.close()


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
    trust_env = is_encrypted and settings.uses_proxy_settings(profile.url)
    async with httpx.AsyncClient(verify=verify, trust_env=trust_env, limits=settings.CONNECTION_LIMITS) as client:
        yield HttpsConnection(client, profile.url, profile.api_key)


def _bearer(key: Credential | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def _from_body(content: bytes, retry_after_ms: int | None = None) -> errors.AimeshError:
    found = msgspec.json.decode(content, type=_ErrorBody).error
    return errors.from_problem(errors.Problem(found.code, found.message, found.hint, retry_after_ms=retry_after_ms))
