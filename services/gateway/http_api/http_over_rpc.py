"""Serves `gateway.serveHttp`: HTTP requests to the vendors' APIs that come over the mesh, so that `aicli serve` knows none of them."""

import asyncio

from services.gateway.http_api.http_app import HttpApp
from services.gateway.http_api.http_call import HELD, Message
from shared import context, errors
from shared.api import gateway
from shared.api.gateway import HttpPart, HttpRequest
from shared.api.method import Nothing
from shared.protocol import request_memory
from shared.rpc import StreamCall, serves

#: The call itself says who asks, and which trace this belongs to.
_REPLACED = frozenset({b"authorization", b"x-api-key", b"traceparent"})


class HttpOverRpc:
    def __init__(self, app: HttpApp) -> None:
        self._app = app

    @serves(gateway.serve_http)
    async def serve_http(self, request: HttpRequest, stream: StreamCall[HttpPart]) -> Nothing:
        """If the caller cancels, so is this task, and with it the generation on the worker."""
        if not request.path.startswith(gateway.OVER_MESH):
            raise errors.NotFound(f"only {', '.join(gateway.OVER_MESH)} are served over the mesh", hint="call the method itself")
        exchange = _AsgiSide(request, stream)
        headers = [header for header in request.headers if header[0] not in _REPLACED]
        headers.append((b"authorization", f"Bearer {stream.credential}".encode()))
        if (current := context.current.get()) is not None:
            headers.append((b"traceparent", current.traceparent.encode()))
        scope = {
            "type": "http",
            "method": request.verb,
            "scheme": "http",
            "path": request.path,
            "query_string": request.query,
            "headers": headers,
            # A link shows no address, as for other methods.
            "client": None,
            HELD: request_memory.current.get(),
        }
        stream.is_counted = True
        await self._app(scope, exchange.receive, exchange.send)
        return Nothing()


class _AsgiSide:
    """The application's side of the call."""

    def __init__(self, request: HttpRequest, stream: StreamCall[HttpPart]) -> None:
        self._body: bytes | None = request.body
        self._stream = stream
        #: Waits for the first bytes of the body.
        self._head: Message | None = None

    async def receive(self) -> Message:
        if self._body is None:
            # A caller that leaves cancels the call.
            await asyncio.Event().wait()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, message: Message) -> None:
        """Wait for a slow reader. Raises Cancelled if it has left."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        head, self._head = self._head, None
        if head is None and not message["body"]:
            return  # the end of a stream
        part = HttpPart(message["body"]) if head is None else HttpPart(message["body"], head["status"], tuple(head["headers"]))
        try:
            await self._stream.send(part)
        except errors.LinkLost:
            raise errors.Cancelled("the caller disconnected") from None
