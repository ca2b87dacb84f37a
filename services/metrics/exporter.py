"""The scrape endpoint of the whole mesh on PROMETHEUS_PORT: `GET /metrics` and nothing else."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from services.metrics.settings import MetricsSettings
from shared.api.metrics import TextFormat
from shared.node import http
from shared.node.lifecycle import background
from shared.telemetry import formats

Text = Callable[[TextFormat], Awaitable[str]]


@asynccontextmanager
async def listening(settings: MetricsSettings, text: Text) -> AsyncIterator[None]:
    """Serve while the block runs, over TLS if the service does; raises BadSettings if the port is taken."""
    bound = http.listen(settings.host, settings.prometheus_port, "PROMETHEUS_PORT")
    try:
        async with background() as tasks:
            tasks.create_task(http.HttpServer(application(text), bound, settings).run(), name="PROMETHEUS_PORT")
            yield
    finally:
        bound.close()


def application(text: Text) -> http.App:
    """The ASGI application."""

    async def answer(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        if scope["type"] != "http":
            return
        content_type = "text/plain; charset=utf-8"
        if scope["path"] != "/metrics":
            status, body = 404, "the metrics are at /metrics\n"
        elif scope["method"] not in {"GET", "HEAD"}:
            status, body = 405, "/metrics answers GET\n"
        else:
            form = formats.choose(scope["headers"])
            status, body, content_type = 200, await text(form), formats.CONTENT_TYPES[form]
        await _respond(send, status, body.encode(), content_type)

    return answer


async def _respond(send: http.Send, status: int, body: bytes, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    if status == 405:
        headers.append((b"allow", b"GET, HEAD"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    # The server leaves the body out of the answer to a HEAD.
    await send({"type": "http.response.body", "body": body})
