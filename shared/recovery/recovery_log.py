"""Copies the recovery log to this replica's file, makes answers to restricting calls wait for it, and streams it to the backup agent.

The table is the source: triggers write it in the transaction of the change. If the file cannot be written, the change stands, the reply
says so, and the copy continues as soon as the disk allows it. A full disk never blocks a revocation.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Container, Sequence
from contextvars import ContextVar
from typing import TypeVar

import msgspec
from prometheus_client import Gauge

from shared import errors
from shared.api.recovery import RecoveryLines
from shared.node import lifecycle
from shared.recovery import recovery_lines
from shared.recovery.log_place import LogPlace
from shared.recovery.recovery_lines import LogEnd, RecoveryLine
from shared.recovery.recovery_store import RecoveryStore
from shared.rpc import StreamCall
from shared.stores.signed_lines import LineFile
from shared.telemetry import logs
from shared.timing.bounded_waits import wait_until_set

R = TypeVar("R", bound=msgspec.Struct)

#: An answer waits so long for the disk.
WAIT_SECONDS = 2.0
_RETRY_SECONDS = 5.0
_RELISTEN_SECONDS = 1.0
#: Of the lines in one item of a stream, which has to fit into a message. A line with a long policy takes 50 KB.
_ITEM_BYTES = 256 * 1024

#: Set in a call that did a restricting act: its answer waits for the file.
_restricted: ContextVar[bool] = ContextVar("restricted", default=False)

_log = logs.get(part="recovery")


def noting(restricting: Container[str]) -> Callable[[str], None]:
    """Return what must be called with each act of the audit log."""

    def note(action: str) -> None:
        if action in restricting:
            _restricted.set(True)

    return note


class RecoveryLog:
    """``begin`` says where the file ends, then ``run`` is the task that alone writes it. If the database was replaced while the service
    runs, it raises Internal: the next start replays the log."""

    def __init__(self, rows: RecoveryStore, place: LogPlace, behind: Gauge, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rows = rows
        self._behind = behind
        self._clock = clock
        self._encode = _signer(place)
        self._file = None if place.file is None else LineFile(place.file, self._lines_after, self._encode)
        #: The last line in the file, and the last line that was read from the table.
        self._end = self._fetched = recovery_lines.START
        self._wake = asyncio.Event()
        #: Set and replaced after each attempt to write.
        self._tried = asyncio.Event()
        self._is_failing = False
        #: Since when there are lines that the file lacks; None if it has all.
        self._behind_since: float | None = None

    def begin(self, end: LogEnd) -> None:
        self._end = self._fetched = end
        if self._file is not None:
            self._file.last = end.number

    async def run(self) -> None:
        """Run until canceled. Raises Internal."""
        if self._file is None:
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            tasks.create_task(self._copy_new())
            tasks.create_task(self._measure())

    @property
    def end(self) -> LogEnd:
        """The last line that was read from the table."""
        return self._fetched

    async def finish(self, reply: R) -> R:
        """Wait until the file has what this call recorded. If it has not, say so in a reply with a field for it."""
        if self._file is None or not _restricted.get():
            return reply
        _restricted.set(False)
        if await self.is_written():
            return reply
        _log.warning("answered before the recovery log was on disk", reply=type(reply).__name__)
        return msgspec.structs.replace(reply, logged=False) if "logged" in reply.__struct_fields__ else reply

    async def is_written(self) -> bool:
        """Return whether everything committed so far is in the file, within WAIT_SECONDS."""
        assert self._file is not None
        with contextlib.suppress(TimeoutError, errors.Unavailable):
            async with asyncio.timeout(WAIT_SECONDS):
                number = (await self._rows.head()).number
                while self._file.last < number:
                    tried = self._tried
                    self._woken()
                    await tried.wait()
                    if self._is_failing:
                        return self._file.last >= number
                return True
        return False

    async def copy(self) -> None:
        """Bring the file up to date, or log why not: a round of ``run``, and the last one after it has ended. Raises Internal."""
        if self._file is None:
            return
        try:
            await self._file.catch_up()
        except OSError as error:
            if not self._is_failing:
                _log.error("the recovery log cannot be written", file=str(self._file.path), reason=error.strerror)
            self._is_failing = True
            self._behind_since = self._clock() if self._behind_since is None else self._behind_since
        except errors.Unavailable as error:
            _log.info("the recovery log could not be read; trying again", reason=error.message)
        else:
            self._is_failing, self._behind_since = False, None
        finally:
            tried, self._tried = self._tried, asyncio.Event()
            tried.set()

    async def stream(self, after: int, stream: StreamCall[RecoveryLines], ending: asyncio.Event) -> None:
        """Send the lines after a number, and every new one, signed as in the file, until ``ending`` is set. Raises Unavailable."""
        async with lifecycle.background() as tasks:
            sending, ended = tasks.create_task(self._send(after, stream)), tasks.create_task(ending.wait())
            await asyncio.wait({sending, ended}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                raise sending.result()

    async def _send(self, after: int, stream: StreamCall[RecoveryLines]) -> errors.Unavailable:
        try:
            async with contextlib.aclosing(self._rows.follow()) as changes:
                async for _ in changes:
                    while (page := await self._rows.lines_after(after))[0]:
                        for item in await asyncio.to_thread(self._sign, page[0]):
                            await stream.send(item)
                            after = item.last
        except errors.Unavailable as error:
            return error
        return errors.Unavailable("the recovery log cannot be followed", hint="call again")

    def _sign(self, lines: Sequence[RecoveryLine]) -> list[RecoveryLines]:
        items: list[RecoveryLines] = []
        for line in lines:
            text, number = self._encode(line), line.number
            if items and len(items[-1].lines) + len(text) <= _ITEM_BYTES:
                items[-1] = RecoveryLines(first=items[-1].first, last=number, lines=items[-1].lines + text)
            else:
                items.append(RecoveryLines(first=number, last=number, lines=text))
        return items

    async def _lines_after(self, number: int) -> tuple[Sequence[RecoveryLine], int]:
        # The file asks for what follows its last line.
        self._end = self._fetched if self._fetched.number == number else self._end
        lines, last = await self._rows.lines_after(number)
        if lines and (lines[0].number, lines[0].previous_hash) != (self._end.number + 1, self._end.hash):
            raise replaced()
        self._fetched = LogEnd(last, lines[-1].hash) if lines else self._end
        return lines, last

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(errors.Unavailable):
                async with contextlib.aclosing(self._rows.follow()) as changes:
                    async for _ in changes:
                        self._woken()
            await asyncio.sleep(_RELISTEN_SECONDS)

    async def _copy_new(self) -> None:
        while True:
            await wait_until_set(self._wake, _RETRY_SECONDS)
            self._wake.clear()
            if self._behind_since is not None:
                await self.copy()

    async def _measure(self) -> None:
        """Not after a write, because a disk that hangs ends no write."""
        while True:
            self._behind.set(0 if self._behind_since is None else self._clock() - self._behind_since)
            await asyncio.sleep(_RETRY_SECONDS)

    def _woken(self) -> None:
        self._behind_since = self._clock() if self._behind_since is None else self._behind_since
        self._wake.set()


def replaced() -> errors.Internal:
    return errors.Internal(
        "the database was replaced by another one while the service ran", hint="the service restarts and replays the recovery log"
    )


def _signer(place: LogPlace) -> Callable[[RecoveryLine], bytes]:
    return lambda line: recovery_lines.encode(recovery_lines.sign(line, place.keys.current, place.mesh))
