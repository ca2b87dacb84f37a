"""PostgreSQL shuts down, or vanishes, at every possible point: between any two of its messages.

No test can time a shutdown so exactly, so a proxy between the pool and the server counts the messages. It cuts one connection
and passes all later ones.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from shared import errors
from shared.node import lifecycle
from shared.stores import database
from shared.stores.database import Database
from tests import tiers
from tests.servers import PostgresServer
from tests.shared.stores.test_database import QUERIES, TABLE

#: PostgreSQL sends this to every client when it is stopped: FATAL, admin_shutdown.
_FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
_STOPPING = b"E" + (len(_FIELDS) + 4).to_bytes(4, "big") + _FIELDS
#: The last message, and whether the cut is in the middle of an answer.
_WAYS = ((_STOPPING, True), (_STOPPING, False), (b"", True), (b"", False))
#: More messages than the server sends for a connection and the statements below.
_MAX_MESSAGES = 100


@dataclass(frozen=True)
class Cut:
    """When and how a connection ends."""

    after_messages: int
    last_words: bytes
    #: Cut only after the client has sent a further request, so that the cut is in the middle of an answer.
    in_an_answer: bool


class Between:
    """A proxy that passes everything, but cuts the next connection as ``cut`` says."""

    def __init__(self, server: Path) -> None:
        self._server = server
        self.cut: Cut | None = None
        #: Whether the last cut has happened.
        self.has_cut = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_unix_connection(self._server)
        cut, self.cut = self.cut, None
        with contextlib.closing(writer), contextlib.closing(to_server):
            async with lifecycle.background() as tasks:
                tasks.create_task(_pass_all(reader, to_server))
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    if cut is None:
                        await _pass_all(from_server, writer)
                    else:
                        await _pass_messages(from_server, writer, cut)
                        self.has_cut = True


async def _pass_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _pass_messages(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut: Cut) -> None:
    for _ in range(cut.after_messages):
        head = await reader.readexactly(5)
        writer.write(head + await reader.readexactly(int.from_bytes(head[1:], "big") - 4))
        await writer.drain()
    if cut.in_an_answer:
        await reader.readexactly(1)
    writer.write(cut.last_words)
    await writer.drain()


@pytest.fixture
async def between(postgres: PostgresServer) -> AsyncIterator[tuple[Between, str]]:
    """The proxy, and the URL of a new database behind it."""
    name = await postgres.new_database()
    with tempfile.TemporaryDirectory(prefix="aimesh-") as folder:
        socket = next(path for path in postgres.folder.glob(".s.PGSQL.*") if path.is_socket())
        stand_in = Between(socket)
        async with (
            lifecycle.background() as tasks,
            await asyncio.start_unix_server(lambda *streams: tasks.create_task(stand_in.serve(*streams)), Path(folder, socket.name)),
        ):
            yield stand_in, postgres.url(name).replace(quote(str(socket.parent), safe=""), quote(folder, safe=""))


async def _read(db: Database) -> None:
    await db.rows("list")


async def _write(db: Database) -> None:
    with contextlib.suppress(database.UniqueViolation):
        await db.run("add_quietly", "lamp")


async def _transact(db: Database) -> None:
    async with db.transaction() as transaction:
        await transaction.rows("list")
        await transaction.row("tell", "one")


async def _listen(db: Database) -> None:
    async with contextlib.aclosing(db.listen("things")) as payloads:
        await anext(payloads)
        payload = None
        while payload is None:  # at first and after each reconnect: earlier notifications may be lost
            with contextlib.suppress(errors.Unavailable):
                await db.row("tell", "one")
            payload = await anext(payloads)


@pytest.mark.parametrize("way", range(len(_WAYS)), ids=["goodbye-in-an-answer", "goodbye", "silence-in-an-answer", "silence"])
@pytest.mark.parametrize("use", [_read, _write, _transact, _listen], ids=lambda use: use.__name__.strip("_"))
async def test_a_cut_at_any_message_is_unavailable_and_nothing_else(
    between: tuple[Between, str], tmp_path: Path, use: Callable[[Database], Awaitable[None]], way: int
) -> None:
    """At night, each message in all four ways; in `make test`, each in one of them."""
    (tmp_path / "queries.sql").write_text(QUERIES)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_pre_things.sql").write_text(TABLE)
    stand_in, url = between
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
    cuts = 0
    first, step = (0, 1) if tiers.is_nightly() else (way, len(_WAYS))
    last_words, in_an_answer = _WAYS[way]
    for after_messages in range(first, _MAX_MESSAGES, step):
        async with Database.open(url, schema="shop", package=tmp_path) as db:
            stand_in.cut, stand_in.has_cut = Cut(after_messages, last_words, in_an_answer), False
            with contextlib.suppress(errors.Unavailable):
                await asyncio.wait_for(use(db), 30)
            was_cut = stand_in.has_cut
            stand_in.cut = None
            await db.rows("list")
        if not was_cut:
            break
        cuts += 1
    assert 10 < cuts * step < _MAX_MESSAGES
    assert complaints == []
