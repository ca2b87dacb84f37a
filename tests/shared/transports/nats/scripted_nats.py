"""A NATS server in this process that follows a test's script: it delays a PONG, or cuts a connection at any message.

It routes messages between its connections as a real server does, without authorization. Behavior that a real server can be made to
show is tested against a real one.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

#: Decides about one operation of a client: True cuts the connection instead of answering.
Cut = Callable[["ScriptedConnection", str], bool]


@dataclass
class ScriptedNats:
    """Fields may change while the server runs."""

    max_payload: int = 2 * 1024 * 1024
    info: dict[str, object] = field(default_factory=dict)
    #: True holds the PONG to this connection until ``release``.
    holds: Callable[["ScriptedConnection"], bool] = lambda connection: False
    cuts: Cut = lambda connection, verb: False
    connections: list["ScriptedConnection"] = field(default_factory=list)
    #: All connections that were ever accepted, including closed ones.
    accepted: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _serving: set[asyncio.Task[object]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1024 * 1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop as if killed: every connection breaks, and nothing listens."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in list(self.connections):
            connection.cut()
        if self._serving:
            await asyncio.wait(self._serving)

    def release(self) -> None:
        """Send every held PONG, and hold none from now on."""
        self.holds = lambda connection: False
        for connection in self.connections:
            connection.release()

    def route(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        groups: set[tuple[str, str]] = set()
        for connection in self.connections:
            for sid, (pattern, queue) in list(connection.subscriptions.items()):
                if not _matches(pattern, subject) or (queue and (pattern, queue) in groups):
                    continue
                groups.add((pattern, queue))
                connection.deliver(sid, subject, reply, headers, payload)

    def tell(self, **changes: object) -> None:
        """Send a further INFO to every client, as when the cluster changes or the server is about to shut down."""
        self.info.update(changes)
        for connection in self.connections:
            connection.send(self.greeting())

    def greeting(self) -> bytes:
        told = {"server_id": f"S{self.port}", "max_payload": self.max_payload, "headers": True, "nonce": "abc", **self.info}
        return b"INFO " + json.dumps(told).encode() + b"\r\n"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        connection = ScriptedConnection(self, reader, writer)
        self.connections.append(connection)
        try:
            await connection.serve()
        finally:
            self.connections.remove(connection)
            writer.close()


@dataclass(eq=False)
class ScriptedConnection:
    server: ScriptedNats
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    #: By sid: the subject with wildcards, and the queue group.
    subscriptions: dict[str, tuple[str, str]] = field(default_factory=dict)
    #: The options of the client's CONNECT.
    login: dict[str, object] = field(default_factory=dict)
    delivered: int = 0
    #: While this is cleared, the server reads nothing more, as when it is overloaded.
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    held_pongs: int = 0

    def send(self, data: bytes) -> None:
        if not self.writer.is_closing():
            self.writer.write(data)

    def cut(self) -> None:
        self.reads.set()
        self.writer.transport.abort()

    def release(self, most: int = 1_000) -> None:
        count = min(most, self.held_pongs)
        self.send(b"PONG\r\n" * count)
        self.held_pongs -= count

    def deliver(self, sid: str, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        self.delivered += 1
        to = f"{subject} {sid} {reply} " if reply else f"{subject} {sid} "
        sizes = f"{len(headers)} {len(headers) + len(payload)}" if headers else f"{len(payload)}"
        verb = "HMSG" if headers else "MSG"
        self.send(f"{verb} {to}{sizes}\r\n".encode() + headers + payload + b"\r\n")

    async def serve(self) -> None:
        self.reads.set()
        if self.server.cuts(self, "INFO"):
            return
        self.send(self.server.greeting())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await self.reader.readline():
                verb, *words = line.decode().split(maxsplit=1 if line.startswith(b"CONNECT") else -1)
                if self.server.cuts(self, verb):
                    self.cut()
                    return
                await self._operate(verb, words)
                await self.reads.wait()

    async def _operate(self, verb: str, words: list[str]) -> None:
        match verb:
            case "CONNECT":
                self.login = json.loads(words[0])
            case "PING":
                if self.server.holds(self):
                    self.held_pongs += 1
                else:
                    self.send(b"PONG\r\n")
            case "SUB":
                self.subscriptions[words[-1]] = (words[0], words[1] if len(words) == 3 else "")
            case "UNSUB":
                self.subscriptions.pop(words[0], None)
            case "PUB" | "HPUB":
                await self._published(verb, words)
            case _:
                pass

    async def _published(self, verb: str, words: list[str]) -> None:
        size, head = int(words[-1]), int(words[-2]) if verb == "HPUB" else 0
        body = (await self.reader.readexactly(size + 2))[:-2]
        if size > self.server.max_payload:
            self.send(b"-ERR 'Maximum Payload Violation'\r\n")
            await self.writer.drain()
            self.writer.close()
            return
        subject, *rest = words[: -2 if verb == "HPUB" else -1]
        self.server.route(subject, rest[0] if rest else "", body[:head], body[head:])


def _matches(pattern: str, subject: str) -> bool:
    wanted, words = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        return len(words) >= len(wanted) and _all_match(wanted[:-1], words)
    return len(words) == len(wanted) and _all_match(wanted, words)


def _all_match(wanted: list[str], words: list[str]) -> bool:
    return all(one in ("*", word) for one, word in zip(wanted, words, strict=False))


@asynccontextmanager
async def scripted_nats() -> AsyncIterator[ScriptedNats]:
    server = ScriptedNats()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
