"""The mesh as a local server: an ASGI application that passes requests for the APIs of vendors to the mesh, with the profile's key.

It knows none of them: the gateway reads every body. Only programs of this machine may use it, and pages that this machine serves.
"""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from shared import addresses, errors, features
from shared.api import gateway
from shared.api.gateway import HttpPart, HttpRequest
from shared.errors import Fault
from shared.protocol import wire
from shared.protocol.request_memory import HeldRequest, RequestMemory
from shared.telemetry import version
from shared.timing.backoff import Backoff
from shared.timing.bounded_waits import BoundedWaits, wait_until_set

if TYPE_CHECKING:
    from cli.connection import CliConnection, Connect
    from cli.profile import Profile

#: A program of this machine sends its body at once, and reads what it asked for.
_BODY_SECONDS, _STALLED_SECONDS = 30.0, 30.0
#: A worker of this machine that looks for an Ollama must not share the mesh with itself.
_OURS = (b"server", version.PROGRAM.encode())
#: How long requests wait when the command has just begun.
_OPEN_SECONDS = 10.0
#: How old the profile may be that a request is sent with.
_PROFILE_SECONDS = 1.0
_LOGIN_HINT = "run `aicli login`; the new key is used at once"
_RETRY = Backoff(first_seconds=0.5, longest_seconds=15.0, jitter=0.5)

#: What only a browser or a proxy sends. The call has the credential.
_NOT_FORWARDED = gateway.HOP_BY_HOP | {b"authorization", b"content-length", b"cookie", b"forwarded", b"origin", b"x-api-key"}
_NOT_FORWARDED |= {b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"}

Headers = Mapping[bytes, bytes]
#: ASGI's.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class MeshLink:
    """The connection to the mesh, which ``run`` opens again and again, and the profile, which `aicli login` may replace at any time."""

    def __init__(self, connect: "Connect", load: "Callable[[], Profile]", note: Callable[[str], None]) -> None:
        """Raises what ``load`` raises."""
        self._connect, self._load, self._note = connect, load, note
        self._profile, self._read_at = load(), time.monotonic()
        self._refused: Profile | None = None
        self._connection: CliConnection | None = None
        self._problem: errors.AimeshError = errors.Unavailable("the connection to the mesh is not open yet", retry_after_seconds=1)
        #: The first attempt to reach the mesh of this profile has an outcome.
        self._tried = asyncio.Event()
        #: The profile is of another mesh now.
        self._has_moved = asyncio.Event()

    @asynccontextmanager
    async def http(self, request: HttpRequest) -> AsyncIterator[AsyncIterable[HttpPart]]:
        """Send a request with the profile's present key. Waits for the first attempt; raises why there is no connection."""
        self._read_profile()
        await wait_until_set(self._tried, _OPEN_SECONDS)
        if self._connection is None:
            raise self._problem
        try:
            async with self._connection.http(request, self._profile.api_key) as parts:
                yield parts
        except errors.NotAuthenticated as error:
            self._read_at = 0.0
            if self._refused != self._profile:
                self._refused = self._profile
                self._note(f"{error.message}; {_LOGIN_HINT}")
            raise errors.NotAuthenticated(error.message, hint=_LOGIN_HINT) from error

    async def run(self) -> None:
        """Stay connected. Raises errors that only the user can fix."""
        failures = 0
        while True:
            try:
                async with self._connect(self._profile) as self._connection:
                    failures = 0
                    self._tried.set()
                    await self._has_moved.wait()
                self._has_moved.clear()
                continue
            except* errors.AimeshError as group:
                self._problem = errors.first_of(group)
                self._tried.set()
            finally:
                self._connection = None
            if self._problem.fault is Fault.CALLER:
                raise self._problem
            failures += 1
            if failures == 1:
                self._note(f"{self._problem.message}; trying again")
            await asyncio.sleep(_RETRY.pause(failures))

    def _read_profile(self) -> None:
        """Raises what ``load`` raises."""
        if time.monotonic() - self._read_at < _PROFILE_SECONDS:
            return
        before, self._profile, self._read_at = self._profile, self._load(), time.monotonic()
        if replace(before, api_key=self._profile.api_key, username=self._profile.username) != self._profile:
            self._tried.clear()
            self._has_moved.set()


class Loopback:
    def __init__(self, mesh: MeshLink) -> None:
        self._mesh = mesh
        self._memory = RequestMemory()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request; cancel it on the mesh if the client leaves."""
        if scope["type"] != "http":
            return
        response = _LocalResponse(dict(scope["headers"]), scope["path"], send)
        try:
            response.page = find_page(response.asked)
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in response.asked:
                await response.answer(200, b"")
                return
            path = target(scope["path"])
            with self._memory.hold(0) as held:
                body = await _read_body(receive, response.asked, held)
                headers = tuple((name, value) for name, value in scope["headers"] if name not in _NOT_FORWARDED)
                request = HttpRequest(scope["method"], path, scope["query_string"], headers, body)
                async with asyncio.TaskGroup() as tasks:
                    passing = tasks.create_task(self._pass(request, response))
                    leaving = tasks.create_task(_until_disconnect(receive))
                    await asyncio.wait((passing, leaving), return_when=asyncio.FIRST_COMPLETED)
                    passing.cancel()
                    leaving.cancel()
        except errors.AimeshError as error:
            await response.fail(error)
        finally:
            response.close()

    async def _pass(self, request: HttpRequest, response: "_LocalResponse") -> None:
        try:
            async with self._mesh.http(request) as parts:
                async for part in parts:
                    if part.status == errors.NotAuthenticated.status:
                        raise errors.NotAuthenticated("the mesh refuses the key of this profile")
                    if part.status:
                        await response.start(part.status, part.headers)
                    await response.write(part.body, more=True)
            await response.write(b"", more=False)
        except errors.AimeshError as error:
            await response.fail(error)


def find_page(headers: Headers) -> bytes | None:
    """Return the origin of the page of this machine that asks, if one does. Raises NotAllowed for a name that is not this machine's, with
    which a web page could reach us (DNS rebinding), and for pages of other machines. Pure."""
    host = headers.get(b"host", b"").decode("latin-1")
    if not addresses.is_loopback(_host_of(f"//{host}")):
        hint = "use http://localhost, or give the programs of other machines the mesh's own address"
        raise errors.NotAllowed(f"this port serves only this machine, not {host[:80]!r}", hint=hint)
    origin = headers.get(b"origin")
    if origin is not None and not addresses.is_loopback(_host_of(origin.decode("latin-1"))):
        raise errors.NotAllowed("a page of another machine may not use this mesh", hint="open the page from localhost")
    return origin


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def target(path: str) -> str:
    """Return where the gateway serves a path. Raises NotFound. Pure."""
    root = next((api for api in features.http_apis() if api.is_at_root), None)
    if root is not None and (path == "/" or path.startswith("/api/")):
        path = f"{root.prefix}{path[1:]}"
    if not path.startswith(gateway.HTTP_PREFIXES):
        hint = "OpenAI's API is below /v1" + (f", and {root.vendor}'s below /api" if root else "")
        raise errors.NotFound(f"there is no {path[:80]!r} here", hint=hint)
    return path


async def _read_body(receive: Receive, headers: Headers, held: HeldRequest) -> bytes:
    """Return the body. If it is too long for a gateway, it is cut, and the gateway refuses it in the API's own words."""
    announced = headers.get(b"content-length", b"0")
    held.resize(min(int(announced) if announced.isdigit() else 0, wire.MAX_REQUEST_BYTES))
    body, more = bytearray(), True
    while more and len(body) <= wire.MAX_REQUEST_BYTES:
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                message = await receive()
        except TimeoutError:
            raise errors.BadRequest("the body did not arrive in time", hint="send the whole body immediately") from None
        if message["type"] != "http.request":
            raise errors.Cancelled("the client disconnected")
        body += message.get("body", b"")
        held.resize(max(held.size, min(len(body), wire.MAX_REQUEST_BYTES)))
        more = message.get("more_body", False)
    return bytes(body)


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class _LocalResponse:
    """The response to one request."""

    def __init__(self, asked: Headers, path: str, send: Send) -> None:
        self.asked = asked
        #: The origin of the page that may read the response.
        self.page: bytes | None = None
        self._is_openais = path.startswith("/v1")
        self._send = send
        self._is_started = False
        self._writes = BoundedWaits(_STALLED_SECONDS)
        self.close = self._writes.close

    async def start(self, status: int, headers: gateway.HttpHeaders) -> None:
        self._is_started = True
        kept = [_OURS, *((name, value) for name, value in headers if name not in gateway.NOT_RETURNED)]
        if self.page is not None:
            kept += [(b"access-control-allow-origin", self.page), (b"vary", b"origin"), (b"access-control-allow-methods", b"*")]
            kept.append((b"access-control-allow-headers", self.asked.get(b"access-control-request-headers", b"*")))
        await self._write({"type": "http.response.start", "status": status, "headers": kept})

    async def write(self, body: bytes, *, more: bool) -> None:
        await self._write({"type": "http.response.body", "body": body, "more_body": more})

    async def answer(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        await self.start(status, ((b"content-length", b"%d" % len(body)), *headers))
        await self.write(body, more=False)

    async def fail(self, error: errors.AimeshError) -> None:
        """Send an error that is not the gateway's. One in the middle of a response leaves it unfinished, so that the client notices."""
        if self._is_started:
            return
        text = f"{error.message} – {error.hint}" if error.hint else error.message
        code = errors.code_of(error)
        # One form for both of OpenAI's and Anthropic's clients, and a text for others.
        details: object = {"message": text, "type": "api_error", "code": code, "param": None} if self._is_openais else text
        content = msgspec.json.encode({"type": "error", "error": details, "code": code})
        seconds = error.retry_after_seconds or float(error.status == 503)
        after = [(b"retry-after", b"%d" % max(1, round(seconds)))] if seconds else []
        with suppress(errors.Cancelled):
            await self.answer(error.status, content, (b"content-type", b"application/json"), *after)

    async def _write(self, message: Message) -> None:
        try:
            with self._writes:
                await self._send(message)
        except TimeoutError:
            raise errors.Cancelled("the client stopped reading") from None
