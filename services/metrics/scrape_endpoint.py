"""Serve the metrics of the whole mesh on PROMETHEUS_PORT: `GET /metrics` and nothing else."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from services.metrics.settings import MetricsSettings
from shared.api.metrics import MetricsTextFormat
from shared.node import http_server
from shared.node.lifecycle import background
from shared.telemetry import text_formats

Text = Callable[[MetricsTextFormat], Awaitable[str]]


@asynccontextmanager
async def listening(settings: MetricsSettings, text: Text) -> AsyncIterator[None]:
    """Serve until the block ends, over TLS if the service does. Raises BadSettings if the port is taken."""
    bound = http_server.listen(settings.host, settings.prometheus_port, "PROMETHEUS_PORT")
    try:
        async with background() as tasks:
            tasks.create_task(http_server.HttpServer(application(text), bound, settings).run(), name="PROMETHEUS_PORT")
            yield
    finally:
        bound.close()


def application(text: Text) -> http_server.App:
    async def answer(scope: http_server.Scope, receive: http_server.Receive, send: http_server.Send) -> None:
        if scope["type"] != "http":
            return
        content_type = "text/plain; charset=utf-8"
        if scope["path"] != "/metrics":
            status, body = 404, "the metrics are at /metrics\n"
        elif scope["method"] not in {"GET", "HEAD"}:
            status, body = 405, "/metrics answers GET\n"
        else:
            form = text_formats.choose(scope["headers"])
            status, body, content_type = 200, await text(form), text_formats.CONTENT_TYPES[form]
        await _respond(send, status, body.encode(), content_type)

    return answer


async def _respond(send: http_server.Send, status: int, body: bytes, content_type: str) -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    if status == 405:
        headers.append((b"allow", b"GET, HEAD"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    # The server omits the body of a HEAD response.
    await send({"type": "http.response.body", "body": body})
