"""A tiny HTTP server that replies by a script, with every fault that a server can have, and records its requests.

    with scripted_server.serving(Reply(…), Reply(…)) as server:
        aimesh.Client("aip_live_x", server.url)…

One reply for each request, in order; the last one repeats. Cancellations (DELETE) take none. The server runs in threads, so it serves
clients with and without asyncio.
"""

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

ID = "0" * 31 + "1"
ANSWER: Mapping[str, Any] = {
    "request_id": "0190c0de-0000-7000-8000-000000000001",
    "model": "echo",
    "finish_reason": "stop",
    "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
    "response_time_ms": 12,
}


class Then(Enum):
    """What follows the last part."""

    #: The end of the body; the connection stays open.
    END = auto()
    #: The server cuts the connection before the end of the body.
    BREAK = auto()
    #: Nothing, until the client disconnects.
    HANG = auto()
    #: The last part again and again, until the client disconnects.
    ENDLESS = auto()


@dataclass(frozen=True)
class Reply:
    #: Each is written separately.
    parts: Sequence[bytes] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    then: Then = Then.END
    #: Replaces the head; the parts are then sent unchanged.
    head: bytes | None = None


def whole(**more: object) -> Reply:
    return Reply([json.dumps({**ANSWER, "response": "three small words", **more}).encode()])


def failed(status: int, code: str, **headers: str) -> Reply:
    error = {"message": f"it is {code}", "type": "x", "code": code, "param": None, "hint": "do this", "request_id": "r-1"}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply([json.dumps({"error": error}).encode()], status=status, headers=named)


def text(number: int, piece: str) -> bytes:
    return f"id: {ID}-{number}\n".encode() + event({"text": piece})


def event(content: object) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()


END = event(ANSWER) + b"data: [DONE]\n\n"
COMMENT = b": still here\n\n"


def events(*parts: bytes, then: Then = Then.END) -> Reply:
    return Reply(parts, headers={"content-type": "text/event-stream; charset=utf-8"}, then=then)


@dataclass(frozen=True)
class ReceivedRequest:
    verb: str
    path: str
    headers: Mapping[str, str]
    body: Any


class Server:
    def __init__(self, replies: Sequence[Reply]) -> None:
        self._replies = list(replies)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopped = False
        self.received: list[ReceivedRequest] = []
        self.connections = 0
        #: Set when a client has left an answer that hangs or is endless.
        self.left = threading.Event()
        #: Set when an answer hangs.
        self.hanging = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def withdrawn(self) -> list[str]:
        """The idempotency keys of canceled requests."""
        with self._lock:
            return [one.headers["idempotency-key"] for one in self.received if (one.verb, one.path) == ("DELETE", "/api/inference")]

    def start(self) -> None:
        self._run(self._accept)

    def stop(self) -> None:
        self._stopped = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=5)
            assert not thread.is_alive()

    def _run(self, work: Any, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopped:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(connection)
            self.connections += 1
            self._run(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader, contextlib.suppress(OSError):
            while (request := _read(reader)) is not None and self._answer(connection, request):
                pass
        with self._lock:
            self._connections.discard(connection)

    def _answer(self, connection: socket.socket, request: ReceivedRequest) -> bool:
        """Answer the request, and return whether the connection can be used again."""
        with self._lock:
            self.received.append(request)
            reply = self._reply_to(request)
        connection.sendall(_head(reply))
        for part in reply.parts:
            connection.sendall(_chunk(reply, part))
        return self._end(connection, reply)

    def _reply_to(self, request: ReceivedRequest) -> Reply:
        if request.verb == "DELETE":
            return Reply([b"{}"])
        return self._replies.pop(0) if len(self._replies) > 1 else self._replies[0]

    def _end(self, connection: socket.socket, reply: Reply) -> bool:
        if reply.then is Then.END:
            if reply.head is None:
                connection.sendall(b"0\r\n\r\n")
            return reply.head is None
        if reply.then is Then.BREAK:
            if not reply.parts:
                # A reset, as of a killed program; after parts, it would also discard those that the client has not read yet.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        self.hanging.set()
        try:
            while reply.then is Then.ENDLESS:
                connection.sendall(_chunk(reply, reply.parts[-1]))
            connection.recv(1)
        finally:
            self.left.set()
        return False


@contextmanager
def serving(*replies: Reply) -> Iterator[Server]:
    server = Server(replies)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _head(reply: Reply) -> bytes:
    if reply.head is not None:
        return reply.head
    headers = {"content-type": "application/json", "transfer-encoding": "chunked", **reply.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {reply.status} X\r\n{lines}\r\n".encode()


def _chunk(reply: Reply, part: bytes) -> bytes:
    return part if reply.head is not None else b"%x\r\n%b\r\n" % (len(part), part)


def _read(reader: Any) -> ReceivedRequest | None:
    line = reader.readline()
    if not line:
        return None
    verb, path, _ = line.decode().split(" ")
    headers: dict[str, str] = {}
    while line := reader.readline().strip():
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    content = reader.read(int(headers.get("content-length", "0")))
    return ReceivedRequest(verb, path, headers, json.loads(content) if content else None)
