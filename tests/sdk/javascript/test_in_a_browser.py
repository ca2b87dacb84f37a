"""The JavaScript client in a real Chromium: from its unbundled files, with the browser's own fetch."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.acceptance import chromium
from tests.stacks import REPOSITORY

SOURCES = REPOSITORY / "sdk" / "javascript" / "src"
SECONDS = 30
REQUEST = "0192f0c1000070008000000000000001"
END = {
    "request_id": "0192f0c1-0000-7000-8000-000000000001",
    "model": "echo",
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
    "response_time_ms": 5,
}
PROGRAM = """
(async () => {
  const { AIInferenceClient } = await import('/src/index.js')
  const client = new AIInferenceClient({ apiKey: 'aip_live_page', baseUrl: location.origin })
  const pieces = []
  const stream = client.stream({ prompt: 'hi' })
  for await (const piece of stream) pieces.push(piece)
  const left = client.stream({ prompt: 'hang' })
  for await (const _ of left) left.abort()
  const refused = await client.usage().catch((error) => [error.name, error.code, error.retryAfterMs])
  return JSON.stringify({ pieces, answer: stream.answer, left: left.answer, refused })
})()
"""


class Gateway(ThreadingHTTPServer):
    """Serves a page with the client, and a scripted /api; it cuts the first stream of each key after the first word."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), GatewayHandler)
        #: The verb and the idempotency key.
        self.received: list[tuple[str, str | None]] = []
        self.withdrawn = threading.Event()


class GatewayHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def gateway(self) -> Gateway:
        assert isinstance(self.server, Gateway)
        return self.server

    def log_message(self, *_: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        if self.path == "/":
            self.respond(200, "text/html", b"<title>a page</title>")
        elif self.path.startswith("/src/"):
            self.respond(200, "text/javascript", (SOURCES / self.path.removeprefix("/src/")).read_bytes())
        else:
            problem = {"error": {"message": "no more today", "code": "budget_exhausted"}}
            self.respond(402, "application/json", json.dumps(problem).encode(), **{"retry-after-ms": "7"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.gateway.received.append(("POST", self.headers["idempotency-key"]))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        if self.headers["last-event-id"] == f"{REQUEST}-1":
            self.send_event(2, " two")
            self.send_event(3, " three")
            self.wfile.write(f"data: {json.dumps(END)}\n\ndata: [DONE]\n\n".encode())
            return
        self.send_event(1, "one")
        if body["prompt"] == "hang":
            self.gateway.withdrawn.wait(timeout=SECONDS)

    def do_DELETE(self) -> None:
        self.gateway.received.append(("DELETE", self.headers["idempotency-key"]))
        self.gateway.withdrawn.set()
        self.respond(200, "application/json", b"{}")

    def send_event(self, number: int, text: str) -> None:
        self.wfile.write(f"id: {REQUEST}-{number}\ndata: {json.dumps({'text': text})}\n\n".encode())
        self.wfile.flush()

    def respond(self, status: int, kind: str, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving() -> Iterator[Gateway]:
    gateway = Gateway()
    thread = threading.Thread(target=gateway.serve_forever)
    thread.start()
    try:
        yield gateway
    finally:
        gateway.withdrawn.set()
        gateway.shutdown()
        gateway.server_close()
        thread.join()


async def test_page_streams_across_a_break_stops_and_gets_errors() -> None:
    with serving() as gateway:
        async with chromium.launch() as browser:
            page = await browser.open()
            await page.goto(f"http://127.0.0.1:{gateway.server_port}")
            result: dict[str, Any] = json.loads(await page.evaluate(PROGRAM))
            assert await asyncio.to_thread(gateway.withdrawn.wait, SECONDS)
    assert result["pieces"] == ["one", " two", " three"]
    assert (result["answer"]["text"], result["left"]) == ("one two three", None)
    assert result["refused"] == ["BudgetExhausted", "budget_exhausted", 7]
    first, again, hanging, withdrawn = gateway.received
    assert first == again != hanging
    assert withdrawn == ("DELETE", hanging[1])
