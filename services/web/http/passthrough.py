"""Forward /api, /rpc, the APIs of vendors and the API reference to the gateway and stream the responses back. An ASGI application.

Nothing is buffered in either direction, so backpressure reaches the gateway. If a client disconnects, its upstream request is canceled,
which stops the generation. Cookies are never forwarded: a browser session must not authorize API calls.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
from litestar.types import HTTPScope, Message, Receive, Send

from services.web.http import json_errors
from services.web.http.upload_forms import UploadForm
from shared import client_address, context, errors, http_refusals
from shared.api import gateway
from shared.identity import credentials
from shared.transports.http_transport import HttpTransport
from shared.types import Credential

CONNECT_SECONDS = 3.0
#: Retry a failed connection once: nothing has been sent, and the delay may have been ours.
CONNECT_RETRIES = 1
#: Web waits this much longer than the gateway's deadline, so that the gateway times out first.
SLACK_SECONDS = 30.0
#: A client or gateway that reads or sends nothing for this long is considered stalled.
STALLED_SECONDS = 30.0
#: Streams last for minutes, so this bounds the concurrent requests. The gateway's own limit is 2,000.
MAX_CONNECTIONS = 2000
#: Less than uvicorn's 5 s, so that web never reuses a connection while the gateway closes it.
KEEPALIVE_SECONDS = 3.0

Header = tuple[bytes, bytes]

_PREFIXES = ("/api/", *gateway.HTTP_PREFIXES, "/rpc/", "/docs/", "/webhooks/")
_EXACT = frozenset({"/api", "/v1", "/docs", "/openapi.json", "/.well-known/jwks.json"})

#: Headers that web sets itself or must not leak.
_NOT_FORWARDED = frozenset({b"cookie", b"forwarded", b"host", b"traceparent", b"x-real-ip", client_address.SECRET})


class _ClientDisconnected(Exception):
    """Raised when the client closed its connection."""


def accepts(scope: HTTPScope) -> bool:
    """Return whether a request belongs to the gateway. `/api-keys` is a page, but not for an API key: its client has a wrong base URL."""
    return scope["path"] in _EXACT or scope["path"].startswith(_PREFIXES) or any(map(_is_api_key, scope["headers"]))


def _is_api_key(header: Header) -> bool:
    name, value = header
    text = value.decode("latin-1").removeprefix("Bearer ") if name in (b"authorization", b"x-api-key") else ""
    return credentials.looks_like_api_key(text)


class RequestBody:
    """The only reader of a request's messages: first the body, then the disconnect."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._finished = asyncio.Event()

    def skip(self) -> None:
        """Mark the request as having no body."""
        self._finished.set()

    async def chunks(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            try:
                async with asyncio.timeout(STALLED_SECONDS):
                    message = await self._receive()
            except TimeoutError:
                raise errors.BadRequest(f"the request body stalled for {STALLED_SECONDS:.0f} s", hint="send the request again") from None
            if message["type"] != "http.request":
                raise _ClientDisconnected
            if message["body"]:
                yield message["body"]
            more = message["more_body"]
        self._finished.set()

    async def client_gone(self) -> None:
        """Wait until the client closes its connection."""
        await self._finished.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Passthrough:
    """The ASGI application. Safe for concurrent requests."""

    def __init__(self, client: httpx.AsyncClient, gateway_url: str, hop_secret: str | None = None) -> None:
        self._client = client
        self._hop_secret = hop_secret
        self._url = httpx.URL(gateway_url)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, gateway_url: str, ca_file: Path | None = None, hop_secret: str | None = None, *, request_seconds: float = 300.0
    ) -> AsyncIterator["Passthrough"]:
        """Open the HTTP client. ``ca_file`` verifies the gateway's certificate; None means the public CAs. ``request_seconds`` is the
        gateway's request timeout."""
        verify = ssl.create_default_context(cafile=ca_file)
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=64, keepalive_expiry=KEEPALIVE_SECONDS)
        timeout = httpx.Timeout(request_seconds + SLACK_SECONDS, connect=CONNECT_SECONDS, write=STALLED_SECONDS, pool=CONNECT_SECONDS)
        # trust_env=False: HTTP_PROXY is for external hosts, and the gateway is internal.
        transport = HttpTransport(verify=verify, limits=limits, retries=CONNECT_RETRIES, trust_env=False)
        async with httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as client:
            yield cls(client, gateway_url, hop_secret)

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        body = RequestBody(receive)
        async with asyncio.TaskGroup() as tasks:
            relay = tasks.create_task(self._relay(scope, body, send))
            gone = tasks.create_task(body.client_gone())
            await asyncio.wait((relay, gone), return_when=asyncio.FIRST_COMPLETED)
            relay.cancel()
            gone.cancel()

    async def post(self, path: str, credential: Credential, form: UploadForm) -> bytes:
        """Send a user's form as it arrives, and return the answer. Raises the gateway's error."""
        headers = {"authorization": f"Bearer {credential}", "content-type": form.content_type, "content-length": str(form.size)}
        try:
            answer = await self._client.post(self._url.join(path), content=form.pieces(), headers=headers)
        except httpx.TransportError as error:
            raise _problem_of(error) from error
        if answer.is_error:
            raise http_refusals.read(answer.status_code, answer.content)
        return answer.content

    async def healthy(self) -> str:
        """Return an empty string if the gateway is healthy, else the problem."""
        try:
            answer = await self._client.get(self._url.join("/healthz"), timeout=1.5)
        except httpx.HTTPError as error:
            return f"{self._url} is not responding ({type(error).__name__}); check GATEWAY_URL and start the gateway"
        return "" if answer.status_code == httpx.codes.OK else f"{self._url}/healthz returned {answer.status_code}"

    async def _relay(self, scope: HTTPScope, body: RequestBody, send: Send) -> None:
        try:
            try:
                response = await self._client.send(self._request(scope, body), stream=True)
            except errors.AimeshError as error:
                await _refuse(error, send)
                return
            except httpx.TransportError as error:
                await _refuse(_problem_of(error), send)
                return
            # aiter_raw keeps content encodings such as gzip.
            async with aclosing(response):
                await _answer(response, send)
        except (_ClientDisconnected, TimeoutError):
            # The client left or stopped reading. Returning without the last chunk makes the server close the connection.
            return

    def _request(self, scope: HTTPScope, body: RequestBody) -> httpx.Request:
        # Clients and servers resolve dot segments differently, so reject them: they must not lead out of these paths.
        if not {".", ".."}.isdisjoint(scope["path"].split("/")):
            raise errors.NotFound("paths with dot segments are not supported", hint="see /docs for the available paths")
        headers = _forwarded(scope, self._hop_secret)
        has_body = any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])
        if not has_body:
            body.skip()
        query = scope["query_string"]
        raw_path = scope["raw_path"]
        return httpx.Request(
            scope["method"],
            self._url,
            headers=headers,
            content=body.chunks() if has_body else None,
            # The raw bytes of the request line; httpx would normalize them.
            extensions={"target": raw_path + b"?" + query if query else raw_path, "timeout": self._client.timeout.as_dict()},
        )


def _forwarded(scope: HTTPScope, hop_secret: str | None) -> list[Header]:
    unwanted = gateway.HOP_BY_HOP | _NOT_FORWARDED
    if any(name == b"transfer-encoding" for name, _ in scope["headers"]):
        # RFC 9112 §6.3: having both allows request smuggling, so drop the length.
        unwanted |= {b"content-length"}
    headers = [(name, value) for name, value in _without(scope["headers"], unwanted) if not name.startswith(b"x-forwarded-")]
    host = next((value for name, value in scope["headers"] if name == b"host"), b"")
    client = scope["client"]
    # Replace the headers: client-supplied values are untrusted, and uvicorn has already resolved trusted proxies.
    headers += client_address.headers(hop_secret, None if client is None else client[0], scope["scheme"])
    headers.append((b"x-forwarded-host", host))
    if (current := context.current.get()) is not None:
        headers.append((b"traceparent", current.traceparent.encode()))
    return headers


def _without(headers: Iterable[Header], unwanted: frozenset[bytes]) -> list[Header]:
    listed = [(name.lower(), value) for name, value in headers]
    named = {word.strip().lower() for name, value in listed if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in listed if name not in unwanted and name not in named]


async def _answer(response: httpx.Response, send: Send) -> None:
    """Stream the response. If it breaks, leave it unterminated, so that the client does not mistake it for a complete one."""
    headers = _without(response.headers.raw, gateway.NOT_RETURNED)
    is_events = response.headers.get("content-type", "").startswith("text/event-stream")
    between_events = True
    try:
        await _send(send, {"type": "http.response.start", "status": response.status_code, "headers": headers})
        async for chunk in response.aiter_raw():
            await _send(send, {"type": "http.response.body", "body": chunk, "more_body": True})
            between_events = chunk.endswith(b"\n\n")
    except httpx.TransportError as error:
        if not (is_events and between_events):
            return
        event = b"data: " + json_errors.to_json(_problem_of(error)) + b"\n\n"
        await _send(send, {"type": "http.response.body", "body": event, "more_body": True})
    await _send(send, {"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, message: Message) -> None:
    async with asyncio.timeout(STALLED_SECONDS):
        await send(message)


def _problem_of(error: httpx.TransportError) -> errors.AimeshError:
    if isinstance(error, httpx.LocalProtocolError):
        return errors.BadRequest("the request is not valid HTTP", hint=str(error))
    if isinstance(error, httpx.ReadTimeout):
        return errors.DeadlineExceeded(
            "the gateway exceeded its own deadline", hint="retry; if it keeps failing, run `aicli stack logs gateway`"
        )
    if isinstance(error, httpx.PoolTimeout):
        return errors.Overloaded(f"more than {MAX_CONNECTIONS} requests are running", hint="retry in a moment", retry_after_seconds=1)
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return errors.NotReachable(
            "the gateway is not responding", hint="retry in a moment; if it keeps failing, run `aicli stack status`", retry_after_seconds=1
        )
    return errors.LinkLost("the connection to the gateway broke", hint="send the request again", retry_after_seconds=1)


async def _refuse(error: errors.AimeshError, send: Send) -> None:
    content = json_errors.to_json(error)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if after := json_errors.retry_after(error):
        headers.append((b"retry-after", after.encode()))
    await _send(send, {"type": "http.response.start", "status": error.status, "headers": headers})
    await _send(send, {"type": "http.response.body", "body": content, "more_body": False})
