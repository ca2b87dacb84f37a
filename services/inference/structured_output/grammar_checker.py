"""Checks in a separate process whether llama.cpp can use a grammar, and caches the verdicts.

A worker has one `Checker` per model, because the cost of a grammar depends on the vocabulary. The process starts with the first
grammar, ends after an idle minute, and is restarted if it died.
"""

import asyncio
import hashlib
import os
import socket
import sys
from asyncio import subprocess
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from services.inference.structured_output import checker_messages
from services.inference.structured_output.checker_messages import GrammarVerdict, Judgement
from shared import errors
from shared.telemetry import logs

log = logs.get()

#: Cached verdicts; a set of tools is one grammar, and an application has few of them.
MOST_VERDICTS = 256
#: Waiting requests; only one grammar is checked at a time, for at most checker_messages.WALL_SECONDS.
MOST_WAITING = 32
WAIT_SECONDS = 30.0
#: The process holds the vocabulary, which takes dozens of MB.
IDLE_SECONDS = 60.0
#: Enough for a vocabulary of 256,000 tokens on a slow disk.
START_SECONDS = 30.0
EXIT_SECONDS = 2.0
#: In addition to WALL_SECONDS, before the process counts as hung.
GRACE_SECONDS = 5.0

#: Followed by the number of the socket, the id of this process and the model's path.
PROGRAM = (sys.executable, "-P", "-m", "services.inference.structured_output.checker_process")

_MESSAGES = {
    Judgement.REFUSED: "llama.cpp rejects the grammar: {reason}",
    Judgement.NO_BEGINNING: "no token of this model can start an answer that fits the grammar",
    Judgement.TOO_COSTLY: f"the grammar needs more than {checker_messages.CPU_SECONDS} s or {checker_messages.MEMORY_BYTES >> 20} MiB",
    Judgement.HUNG: f"the grammar was not compiled within {checker_messages.WALL_SECONDS:g} s",
}


@dataclass(frozen=True, slots=True)
class _CheckerProcess:
    process: subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def end(self) -> None:
        """Close the socket, which ends the process even during a check; kill it if it is stuck."""
        self.writer.close()
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


class Checker:
    """Safe to use from many tasks; grammars are checked one at a time."""

    def __init__(self, model: Path, environment: Mapping[str, str], program: tuple[str, ...] = PROGRAM) -> None:
        """``environment`` is the process's whole environment: without secrets, with PYTHONPATH."""
        self._model = model
        self._environment = environment
        self._program = program
        #: SHA-256 of a grammar -> verdict; the most recently used one is last.
        self._verdicts: OrderedDict[bytes, GrammarVerdict] = OrderedDict()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._running: _CheckerProcess | None = None
        self._idle: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """End its process; the next grammar starts another one."""
        self._stay_up()
        await self._end()

    @property
    def pid(self) -> int | None:
        """None while no process runs."""
        return None if self._running is None else self._running.process.pid

    async def check(self, grammar: str, *, field: str = "format") -> None:
        """Raises BadRequest, which starts with the field, if llama.cpp can't use the grammar, Overloaded if too many wait, and
        Unavailable if the process can't be started."""
        body = grammar.encode("utf-8", "replace")
        verdict = await self._find_verdict(hashlib.sha256(body).digest(), body)
        if verdict.judgement is not Judgement.FITS:
            message = _MESSAGES[verdict.judgement].format(reason=verdict.reason)
            raise errors.BadRequest(f"{field}: {message}", hint="make it smaller: fewer alternatives, fewer and shorter repeats")

    async def _find_verdict(self, key: bytes, grammar: bytes) -> GrammarVerdict:
        if (known := self._recall(key)) is not None:
            return known
        async with self._in_turn():
            # An earlier request may have checked the same grammar.
            if (known := self._recall(key)) is not None:
                return known
            verdict = await self._request_verdict(grammar)
            if verdict.judgement is not Judgement.HUNG:
                self._verdicts[key] = verdict
                if len(self._verdicts) > MOST_VERDICTS:
                    self._verdicts.popitem(last=False)
            return verdict

    def _recall(self, key: bytes) -> GrammarVerdict | None:
        if key in self._verdicts:
            self._verdicts.move_to_end(key)
        return self._verdicts.get(key)

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        if self._waiting >= MOST_WAITING:
            raise _overloaded()
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise _overloaded() from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    async def _request_verdict(self, grammar: bytes) -> GrammarVerdict:
        """Send a grammar to the process. If the process dies or hangs, the verdict is HUNG, and the next call starts another one."""
        self._stay_up()
        running = await self._ensure_running()
        answered = False
        try:
            running.writer.write(checker_messages.framed(grammar))
            async with asyncio.timeout(checker_messages.WALL_SECONDS + GRACE_SECONDS):
                verdict = await _read(running.reader)
            answered = True
            return verdict
        except (TimeoutError, OSError, asyncio.IncompleteReadError, msgspec.MsgspecError) as error:
            log.warning("grammar_process_lost", pid=running.process.pid, error=repr(error))
            return GrammarVerdict(Judgement.HUNG)
        finally:
            # Also after a cancellation: else the pending verdict would be read for the next grammar.
            if not answered:
                await asyncio.shield(self._end())
            self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._rest)

    async def _ensure_running(self) -> _CheckerProcess:
        if self._running is not None and self._running.process.returncode is None:
            return self._running
        await self._end()
        started = False
        try:
            self._running = await self._start()
            async with asyncio.timeout(START_SECONDS):
                verdict = await _read(self._running.reader)
            started = verdict.judgement is Judgement.FITS
        except (TimeoutError, OSError, asyncio.IncompleteReadError, msgspec.MsgspecError) as error:
            raise _unavailable(f"the process does not start: {error!r}") from error
        finally:
            if not started:
                await asyncio.shield(self._end())
        if not started or self._running is None:
            raise _unavailable(f"llama.cpp can't load a vocabulary from {self._model}")
        return self._running

    async def _start(self) -> _CheckerProcess:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    *(*self._program, str(theirs.fileno()), str(os.getpid()), str(self._model)),
                    stdin=subprocess.DEVNULL,
                    env=dict(self._environment),
                    pass_fds=(theirs.fileno(),),
                )
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return _CheckerProcess(process, reader, writer)

    async def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            await running.end()

    def _stay_up(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _rest(self) -> None:
        """End the idle process by closing its socket; asyncio reaps it."""
        self._idle = None
        if self._running is not None:
            self._running.writer.close()
            self._running = None


async def _read(reader: asyncio.StreamReader) -> GrammarVerdict:
    (length,) = checker_messages.LENGTH.unpack(await reader.readexactly(checker_messages.LENGTH.size))
    return checker_messages.decoder.decode(await reader.readexactly(min(length, checker_messages.MOST_BYTES)))


def _overloaded() -> errors.Overloaded:
    return errors.Overloaded(
        "too many new grammars and schemas are being checked on this worker", hint="try again in a moment", retry_after_seconds=2.0
    )


def _unavailable(reason: str) -> errors.Unavailable:
    return errors.Unavailable(f"this worker cannot check grammars: {reason}", hint="send no format, or use another worker")
