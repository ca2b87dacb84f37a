"""Watches one server: whether it answers, which kind it is, and how busy it is. Every page is read with a deadline and a limit."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from features.remote_servers.worker.http_server_client import ProbeReply, Server
from features.remote_servers.worker.remote_models import RemoteModels
from features.remote_servers.worker.rules.dialects import DIALECTS, DialectRow, LoadPage
from features.remote_servers.worker.rules.event_stream import UNREADABLE, BadStream
from features.remote_servers.worker.upstreams import Dialect
from shared.telemetry import logs

log = logs.get()

#: From one look's start to the next one's. With the deadline below, a server that hangs is out within 3 s.
LOOK_SECONDS = 2.0
HEALTH_SECONDS = 0.9
#: A llama-server that computes a large batch answers only after it.
LOAD_SECONDS = 1.0
IDENTITY_SECONDS = 2.0
#: vLLM's metrics of one model have about 100 KB.
MAX_PAGE_BYTES = 1024 * 1024
#: After this many wrong answers in a row, a server is out, or its load isn't read any more.
STRIKES = 3


@dataclass(slots=True)
class ServerHealth:
    """Judges a server by the answers to its probes.  Pure."""

    #: Why the server gets no requests; empty if it does.
    out: str = ""
    strikes: int = 0

    def judge(self, reply: ProbeReply, *, was_heard: bool) -> None:
        """``was_heard``: it sent parts of other answers meanwhile, so it is only slow."""
        if reply.status is None:
            self.out = self.out if was_heard else reply.trouble
        elif reply.status == 503:
            # Such as a llama-server that loads its model, or a vLLM whose engine died.
            self.out = "is not ready (status 503)"
        elif reply.status < 500:
            self.out, self.strikes = "", 0
        else:
            self.strikes += 1
            if self.strikes >= STRIKES:
                self.out = f"fails with status {reply.status}"


class ServerWatch:
    """Recognizes the server by its answers, unless its owner named the dialect or it is a provider's."""

    def __init__(self, server: Server, models: RemoteModels, models_path: str) -> None:
        self._server = server
        self._models = models
        self._given = server.source.upstream.dialect
        self._models_path = models_path
        self._health = ServerHealth()
        self._is_identified = False
        #: It may be a kind that forwards models to providers: it did not answer when it was asked.
        self.may_forward = False
        self._pages: tuple[LoadPage, ...] = ()
        self._strikes = 0
        self.dialect = self._given or Dialect.COMPATIBLE

    @property
    def row(self) -> DialectRow:
        return DIALECTS[self.dialect]

    @property
    def forwards_path(self) -> str:
        return self.row.forwards_path

    async def run(self) -> None:
        """Look every LOOK_SECONDS until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + LOOK_SECONDS
            await self.look()
            await asyncio.sleep(max(0.0, due - clock()))

    async def look(self) -> None:
        if not self.row.health_path and self._models.is_external:
            # Providers limit requests. Their list of models is fetched anyway, less often.
            return
        started = asyncio.get_running_loop().time()
        reply = await self._server.probe(self.row.health_path or self._models_path, HEALTH_SECONDS, most=MAX_PAGE_BYTES)
        self._health.judge(reply, was_heard=self._server.heard_at >= started)
        self._models.set_out(self._health.out)
        if self._health.out:
            # Another program may come back at this address.
            self._is_identified = False
        else:
            await self._look_at_load()

    async def identify(self, owners: Collection[str]) -> bool:
        """Find out what the server is, once after it came back; ``owners`` are those of its models. Return whether it did."""
        if self._is_identified or (self._given is None and self._models.is_external):
            return False
        found, self._is_identified, self.may_forward = self._given or Dialect.COMPATIBLE, True, False
        pages: tuple[LoadPage, ...] = ()
        for dialect, row in DIALECTS.items():
            is_possible = dialect is self._given or (self._given is None and (not row.owner or row.owner in owners))
            if is_possible and row.identity_path and (slots := await self._ask_identity(row)) is not None:
                found, pages = dialect, row.load_pages
                self._models.set_slots(slots or row.usual_slots)
                log.info("upstream_recognized", server=self._server.source.name, dialect=dialect, slots=slots)
                break
        self.dialect, self._pages, self._strikes = found, pages, 0
        return True

    async def _ask_identity(self, row: DialectRow) -> int | None:
        """Return the server's slots, 0 if unknown; None if it is something else."""
        reply = await self._server.probe(row.identity_path, IDENTITY_SECONDS, most=MAX_PAGE_BYTES)
        if reply.status is None:
            # Too busy now: ask again with the next list.
            self._is_identified = False
            self.may_forward = self.may_forward or bool(row.forwards_path)
        if reply.status != 200 or reply.is_cut:
            return None
        try:
            return row.read_identity(reply.body, reply.program)
        except UNREADABLE:
            return None

    async def _look_at_load(self) -> None:
        if not self._pages:
            return
        reply = await self._server.probe(self._pages[0].path, LOAD_SECONDS, most=MAX_PAGE_BYTES)
        if reply.status is None:
            # Busy, so the last load is the best guess.
            return
        if 400 <= reply.status < 600 and reply.status != 503:
            self._pages = self._pages[1:]
            return
        try:
            if reply.is_cut or reply.status != 200:
                raise BadStream(f"status {reply.status}, or more than {MAX_PAGE_BYTES} bytes")
            self._models.set_load(self._pages[0].read(reply.body))
            self._strikes = 0
        except (BadStream, ValueError, *UNREADABLE) as wrong:
            self._strikes += 1
            log.warning("upstream_load_unreadable", server=self._server.source.name, reason=self._server.source.cleaned(str(wrong)))
            if self._strikes >= STRIKES:
                self._pages = ()
                self._models.set_load(None)
