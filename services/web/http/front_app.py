"""Route each request to the pages or the gateway, and add its request id, security headers and metrics. The outermost ASGI application."""

import asyncio
import re
import time
from collections.abc import Iterable, Mapping
from typing import cast

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from services.web.http import passthrough
from services.web.http.passthrough import Header
from shared import context, errors
from shared.telemetry import Metrics, tracing
from shared.telemetry.metrics_registry import Exemplars

#: No third-party hosts, no inline scripts, no framing, Trusted Types.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; object-src 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

_ALWAYS: tuple[Header, ...] = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    # `no-referrer` would make browsers send `Origin: null` with our own forms, which the origin check rejects.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    # Do not resolve hosts in links that a model wrote until the user opens one.
    (b"x-dns-prefetch-control", b"off"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
    # Pages are personal. Static files override this.
    (b"cache-control", b"no-store"),
)
#: Two years, only over TLS: it would lock browsers out of a plain-HTTP test address.
_STRICT_TRANSPORT: Header = (b"strict-transport-security", b"max-age=63072000; includeSubDomains")
#: The parameter types in a route pattern.
_TYPE = re.compile(r":\w+(?=})")
_VERBS = frozenset({"GET", "HEAD", "POST"})


class FrontApp:
    def __init__(
        self, pages: ASGIApp, gateway: passthrough.Passthrough, metrics: Metrics, traces: tracing.Traces, *, always_over_tls: bool
    ) -> None:
        self._pages = pages
        self._gateway = gateway
        self._metrics = metrics
        self._exemplars = Exemplars()
        self._traces = traces
        #: PUBLIC_URL is https: a proxy in front of web terminates TLS.
        self._always_over_tls = always_over_tls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._pages(scope, receive, send)
            return
        new_id = context.new_request_id()
        with self._traces.enter(_method_label(scope), tracing.of_headers(scope["headers"]), new_id) as span:
            status = await self._answer(scope, receive, send, str(new_id).encode())
            span.name = _method_label(scope)
            span.error = "" if status == "success" else status

    async def _answer(self, scope: HTTPScope, receive: Receive, send: Send, request_id: bytes) -> str:
        over_tls = self._always_over_tls or scope["scheme"] == "https"
        # Litestar has no HEAD routes; HTTP requires HEAD wherever GET works.
        is_head = scope["method"] == "HEAD"
        began, status = time.perf_counter(), 0

        async def secured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message["headers"])
                if not any(name.lower() == b"x-request-id" for name, _ in headers):
                    headers.append((b"x-request-id", request_id))
                message["headers"] = with_security_headers(headers, over_tls=over_tls)
            elif message["type"] == "http.response.body" and is_head:
                message["body"] = b""
            await send(message)

        try:
            if passthrough.accepts(scope):
                await self._gateway(scope, receive, secured)
            else:
                if is_head:
                    scope["method"] = "GET"
                await self._answer_with_page(scope, receive, secured)
        finally:
            service, method = self._metrics.service, _method_label(scope)
            self._metrics.requests.labels(service=service, method=method, status=_status_label(status)).inc()
            self._metrics.request_duration.labels(service=service, method=method, model="").observe(
                time.perf_counter() - began, self._exemplars.of_request()
            )
        return _status_label(status)

    async def _answer_with_page(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """End quietly when the client stops reading. Without the last part of the answer, the server closes the connection."""
        loop, reading = asyncio.get_running_loop(), asyncio.timeout(None)

        async def bounded(message: Message) -> None:
            reading.reschedule(loop.time() + passthrough.STALLED_SECONDS)
            await send(message)
            reading.reschedule(None)

        try:
            async with reading:
                await self._pages(scope, receive, bounded)
        except TimeoutError:
            if not reading.expired():
                raise


def with_security_headers(headers: Iterable[Header], *, over_tls: bool) -> list[Header]:
    """Return ``headers`` plus every security header that they do not set already."""
    result = list(headers)
    present = {name.lower() for name, _ in result}
    wanted = (*_ALWAYS, _STRICT_TRANSPORT) if over_tls else _ALWAYS
    result.extend(header for header in wanted if header[0] not in present)
    return result


def _method_label(scope: HTTPScope) -> str:
    if passthrough.accepts(scope):
        return "passthrough"
    verb = scope["method"] if scope["method"] in _VERBS else "OTHER"
    # Use the route pattern, not the path, to keep the number of label values small.
    pattern = cast("Mapping[str, object]", scope).get("path_template")
    return f"{verb} other" if pattern is None else f"{verb} {_TYPE.sub('', str(pattern))}"


def _status_label(status: int) -> str:
    """Return `success`, or the error code for this status. Status 0 means that the client left before the response."""
    if not status:
        return errors.Cancelled.code
    return "success" if status < 400 else _CODES.get(status, f"http_{status}")


#: status -> its general error code; the error tree lists general errors before special ones.
_CODES = {kind.status: kind.code for kind in reversed(errors.BY_CODE.values())}
