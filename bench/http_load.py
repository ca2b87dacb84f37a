"""Generate HTTP requests in a separate process, and record the outcome of each.

    outcome = await http_load.make(Load(port=…, path=…, keys=(…), body=…, pace=Steady(at_once=16, seconds=5)))

The process is `python -m bench.http_load FILE`; it reads the load on its standard input and writes the outcome to the file. It can send
some thousand requests a second per core, so that the gateway and not its client is the bottleneck.
"""

import asyncio
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from bench import report

#: Give up this long after the last request was started.
PATIENCE_SECONDS = 120.0

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
#: The end of a chunked response.
_LAST_CHUNK = b"\r\n0\r\n\r\n"
#: A piece of text; the first event of OpenAI's streams has an empty one.
_TEXT = re.compile(rb'"(?:content|text)": ?"[^"]')
_WHOLE = re.compile(rb'\[DONE\]|"finish_reason": ?"')


class Steady(msgspec.Struct, frozen=True, tag=True):
    """Keep this many requests running."""

    at_once: int
    seconds: float


class Paced(msgspec.Struct, frozen=True, tag=True):
    """Start requests at a fixed rate, however long earlier ones take."""

    rate: float
    seconds: float


class Burst(msgspec.Struct, frozen=True, tag=True):
    """Start this many requests within some seconds."""

    count: int
    seconds: float


class Load(msgspec.Struct, frozen=True, kw_only=True):
    port: int
    path: str
    #: Used in turn.
    keys: tuple[str, ...]
    body: str
    pace: Steady | Paced | Burst


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


class Outcome(msgspec.Struct, frozen=True):
    answers: tuple[Answer, ...]
    #: By the clock that all processes of the machine share.
    start: float = 0.0

    @property
    def good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 200 and answer.whole]

    @property
    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)

    def rate(self) -> float:
        """Return successful answers a second, until the last one."""
        return len(self.good) / max(answer.began + answer.took for answer in self.answers)

    def percentile(self, share: float, what: str = "took") -> float:
        """Return milliseconds of the successful answers."""
        return 1000 * report.percentile([getattr(answer, what) for answer in self.good], share)


async def make(load: Load) -> Outcome:
    """Run the load in a separate process."""
    # A file, because asyncio can lose the end of a pipe when the process exits.
    with tempfile.NamedTemporaryFile(prefix="aimesh-load-") as file:
        words = [sys.executable, "-m", "bench.http_load", file.name]
        process = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.PIPE)
        try:
            await process.communicate(msgspec.json.encode(load))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, "the load generator failed: see above"
        return msgspec.json.decode(file.read(), type=Outcome)


# --- in the load process -------------------------------------------------------------------------------------------------


class _Connection(asyncio.Protocol):
    """A keep-alive connection for one request at a time."""

    def __init__(self) -> None:
        self.broken = False
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._body = 0
        self._length: int | None = None
        self._first = 0.0
        self._ended: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.broken = True
        self._end()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._body:
            end = self._received.find(_HEAD_END)
            if end < 0:
                return
            self._body = end + len(_HEAD_END)
            length = _LENGTH.search(self._received, 0, end)
            self._length = int(length[1]) if length else None
        if not self._first and _TEXT.search(self._received, self._body):
            self._first = time.perf_counter()
        if self._length is None:
            if self._received.endswith(_LAST_CHUNK):
                self._end()
        elif len(self._received) >= self._body + self._length:
            self._end()

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def ask(self, request: bytes, start: float) -> Answer:
        assert self._transport is not None
        self._received.clear()
        self._body, self._length, self._first = 0, None, 0.0
        self._ended = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self._transport.write(request)
        await self._ended
        ended = time.perf_counter()
        status = int(self._received[9:12]) if self._body else 0
        first = self._first - began if self._first else 0.0
        pieces = len(_TEXT.findall(self._received))
        whole = not self.broken and _WHOLE.search(self._received) is not None
        return Answer(began - start, ended - began, first, status, pieces, whole)


class _Caller:
    def __init__(self, load: Load) -> None:
        self._load = load
        self._requests = [_request(load, key) for key in load.keys]
        self._next = 0
        self._idle: list[_Connection] = []
        self.start = 0.0
        self.answers: list[Answer] = []

    async def run(self) -> None:
        self.start = time.perf_counter()
        match self._load.pace:
            case Steady(at_once, seconds):
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(at_once):
                        tasks.create_task(self._again_and_again(seconds))
            case Paced(rate, seconds):
                await self._begin(int(rate * seconds), seconds)
            case Burst(count, seconds):
                await self._begin(count, seconds)

    async def _again_and_again(self, seconds: float) -> None:
        while time.perf_counter() < self.start + seconds:
            await self._ask()

    async def _begin(self, count: int, seconds: float) -> None:
        async with asyncio.TaskGroup() as tasks:
            for number in range(count):
                delay = self.start + number * seconds / count - time.perf_counter()
                if delay > 0:
                    await asyncio.sleep(delay)
                tasks.create_task(self._ask())

    async def _ask(self) -> None:
        request = self._requests[self._next % len(self._requests)]
        self._next += 1
        while self._idle and self._idle[-1].broken:
            self._idle.pop()
        if self._idle:
            connection = self._idle.pop()
        else:
            try:
                _, connection = await asyncio.get_running_loop().create_connection(_Connection, "127.0.0.1", self._load.port)
            except OSError:
                self.answers.append(Answer(time.perf_counter() - self.start, 0.0, 0.0, 0, 0, whole=False))
                return
        self.answers.append(await connection.ask(request, self.start))
        if not connection.broken:
            self._idle.append(connection)


def _request(load: Load, key: str) -> bytes:
    lines = (
        f"POST {load.path} HTTP/1.1",
        "host: 127.0.0.1",
        "content-type: application/json",
        f"content-length: {len(load.body)}",
        f"authorization: Bearer {key}",
    )
    return ("\r\n".join(lines) + "\r\n\r\n" + load.body).encode()


async def _run(load: Load) -> Outcome:
    caller = _Caller(load)
    async with asyncio.timeout(load.pace.seconds + PATIENCE_SECONDS):
        await caller.run()
    return Outcome(tuple(caller.answers), caller.start)


def main() -> None:
    load = msgspec.json.decode(sys.stdin.buffer.read(), type=Load)
    Path(sys.argv[1]).write_bytes(msgspec.json.encode(uvloop.run(_run(load))))


if __name__ == "__main__":
    main()
