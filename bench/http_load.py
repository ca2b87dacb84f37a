"""Send HTTP requests as a bench needs them, from this process or another one, and record the outcome of each.

    outcome = await http_load.make(Load(port=…, requests=(http_load.post(…),), pace=Steady(at_once=16, seconds=5)))
    answer, response = await Client(port).ask(http_load.get("/readyz").encode())

The other process is `python -m bench.http_load`; it reads the load on its standard input and writes the outcome on its standard output. It
can send some thousand requests a second per core, so that the gateway and not its client is the bottleneck.
"""

import asyncio
import itertools
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import cast

import msgspec
import uvloop

from bench import calls, processes, report

#: Give up this long after the last request was started.
PATIENCE_SECONDS = 120.0

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
#: The end of a chunked response.
_LAST_CHUNK = b"\r\n0\r\n\r\n"
#: A piece of text; the first event of OpenAI's streams has an empty one.
_TEXT = re.compile(rb'"(?:content|text)": ?"[^"]')
_MAX_MATCH = 13


class Steady(msgspec.Struct, frozen=True, tag=True):
    """Keep this many requests running."""

    at_once: int
    seconds: float


class Spread(msgspec.Struct, frozen=True, tag=True):
    """Start this many requests at even intervals, however long earlier ones take."""

    count: int
    seconds: float


Pace = Steady | Spread


class Load(msgspec.Struct, frozen=True, kw_only=True):
    port: int
    #: Whole HTTP requests, used in turn.
    requests: tuple[str, ...]
    pace: Pace
    #: So many are made before the load starts.
    connections: int = 0


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """One request; times in seconds."""

    #: Since the start of the load.
    began: float
    took: float
    #: Time to the first text; 0 if there was none.
    first: float
    #: 0 if the connection broke.
    status: int
    #: Pieces of text.
    pieces: int
    whole: bool

    @property
    def is_good(self) -> bool:
        return self.status == 200 and self.whole


class Outcome(msgspec.Struct, frozen=True):
    answers: tuple[Answer, ...]

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.is_good]

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    @property
    def seconds(self) -> float:
        """The time until the last answer."""
        return max(answer.began + answer.took for answer in self.answers)

    def rate(self) -> float:
        """Return successful answers a second."""
        return len(self.good) / self.seconds

    def percentile(self, share: float, what: str = "took") -> float:
        """Return milliseconds of the successful answers."""
        return 1000 * report.percentile([getattr(answer, what) for answer in self.good], share)


def get(path: str, *headers: str) -> str:
    return "\r\n".join((f"GET {path} HTTP/1.1", "host: 127.0.0.1", *headers)) + "\r\n\r\n"


def post(path: str, body: str, *headers: str) -> str:
    """``body`` is ASCII."""
    head = (f"POST {path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json", f"content-length: {len(body)}", *headers)
    return "\r\n".join(head) + "\r\n\r\n" + body


async def make(load: Load) -> Outcome:
    """Run the load in a separate process."""
    pipe = asyncio.subprocess.PIPE
    async with processes.started(sys.executable, "-m", "bench.http_load", stdin=pipe, stdout=pipe) as process:
        out, _ = await process.communicate(msgspec.json.encode(load))
    assert process.returncode == 0, "the load generator failed: see above"
    return msgspec.json.decode(out, type=Outcome)


class Connection(asyncio.Protocol):
    """A keep-alive connection for one request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.is_broken = False
        self._ended: asyncio.Future[None] | None = None
        self.begin(None)

    def begin(self, on_text: Callable[[], None] | None) -> None:
        self.received = bytearray()
        self.pieces = self._body = self._searched = 0
        self.first = 0.0
        self.is_complete = False
        self._length: int | None = None
        self._on_text = on_text

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.is_broken = True
        self._end()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self.received += data
        if not self._body:
            end = self.received.find(_HEAD_END)
            if end < 0:
                return
            self._body = self._searched = end + len(_HEAD_END)
            length = _LENGTH.search(self.received, 0, self._body)
            self._length = int(length[1]) if length else None
        for match in _TEXT.finditer(self.received, self._searched):
            self.first = self.first or now
            self.pieces, self._searched = self.pieces + 1, match.end()
            if self._on_text is not None:
                self._on_text()
        # A match may still lack its end.
        self._searched = max(self._searched, len(self.received) - _MAX_MATCH)
        if self._length is None:
            self.is_complete = self.received.endswith(_LAST_CHUNK)
        else:
            self.is_complete = len(self.received) >= self._body + self._length
        if self.is_complete:
            self._end()

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def ask(self, request: bytes, on_text: Callable[[], None] | None, start: float) -> Answer:
        self.begin(on_text)
        self._ended = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self.transport.write(request)
        await self._ended
        return self.answer(start, began)

    def answer(self, start: float, began: float) -> Answer:
        """Return what has arrived so far."""
        is_stream = b"text/event-stream" in self.received[: self._body]
        return Answer(
            began=began - start,
            took=time.perf_counter() - began,
            first=self.first - began if self.first else 0.0,
            status=int(self.received[9:12]) if self._body else 0,
            pieces=self.pieces,
            whole=self.is_complete and (not is_stream or b"[DONE]" in self.received or b"event: end" in self.received),
        )


class Client:
    """Keep-alive connections to one port, as many as requests run at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []

    async def connect(self) -> None:
        _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self._port)
        self._idle.append(connection)

    async def ask(self, request: bytes, on_text: Callable[[], None] | None = None, start: float = 0.0) -> tuple[Answer, bytearray]:
        """Send one request and read its response to the end. ``on_text`` is called for each piece of text."""
        while self._idle and self._idle[-1].is_broken:
            self._idle.pop()
        if not self._idle:
            try:
                await self.connect()
            except OSError:
                return Answer(time.perf_counter() - start, 0.0, 0.0, 0, 0, whole=False), bytearray()
        connection = self._idle.pop()
        try:
            answer = await connection.ask(request, on_text, start)
        except asyncio.CancelledError:
            connection.transport.abort()
            raise
        if not connection.is_broken:
            self._idle.append(connection)
        return answer, connection.received

    def close(self) -> None:
        while self._idle:
            self._idle.pop().transport.close()


async def run(load: Load) -> Outcome:
    client, answers, requests = Client(load.port), list[Answer](), itertools.cycle([request.encode() for request in load.requests])
    for _ in range(load.connections):
        await client.connect()
    start = time.perf_counter()

    async def ask() -> None:
        answer, _ = await client.ask(next(requests), start=start)
        answers.append(answer)

    async with asyncio.timeout(load.pace.seconds + PATIENCE_SECONDS):
        match load.pace:
            case Steady(at_once, seconds):
                await calls.keep_running(ask, at_once, lambda: time.perf_counter() < start + seconds)
            case Spread(count, seconds):
                await calls.spread(ask, count, seconds)
    client.close()
    return Outcome(tuple(answers))


if __name__ == "__main__":
    result = msgspec.json.encode(uvloop.run(run(msgspec.json.decode(sys.stdin.buffer.read(), type=Load))))
    # With PYTHONUNBUFFERED, sys.stdout.buffer is the bare file, which may write a part only.
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:
        out.write(result)
