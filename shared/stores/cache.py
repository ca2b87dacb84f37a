"""Valkey (or Redis): short-lived facts and atomic scripts, each call with a deadline.

Nothing here is the only copy of anything that must last. That Valkey does not answer becomes ``errors.Unavailable``; what
that means (refuse, or do without) is the caller's decision. No call is repeated: a script may have run before the
connection died.
"""

import asyncio
import contextlib
import hashlib
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from shared import errors
from shared.api.gateway import Check
from shared.stores.valkey import resp, valkey_client, valkey_url
from shared.stores.valkey.resp import Reply, ReplyError, Word
from shared.stores.valkey.valkey_client import LoginRefused, ValkeyConnection

#: Of the loop: with each it reads what has come. One that has nothing else to do makes them at once.
_TURNS = 20

#: Less than a connection may be silent.
LOG_WAIT_SECONDS = 1.0
#: Read at once.
_LOG_ENTRIES = 100
#: Before the first entry of a log.
_LOG_BEGINNING = b"0-0"

#: The first words of answers with which it refuses for now what is no mistake of ours: it cannot save to its disk, too few replicas
#: follow it, it has no memory left, it is a replica itself or one without its primary, a script keeps it busy, or it may not.
_REFUSALS = frozenset({"MISCONF", "NOREPLICAS", "OOM", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "UNKILLABLE", "NOPERM"})
_REPLICAS = frozenset({"READONLY", "MASTERDOWN"})
#: Not ready: it reads its file back, it does not let us in, or it has just become a replica and ended a call that waited.
_AWAY = frozenset({"LOADING", "NOAUTH", "WRONGPASS", "UNBLOCKED"})
_TOO_MANY = "ERR max number of clients reached"
#: What the health check writes.
_CHECKED = "aimesh:checked"
#: ``shared.node`` gives all checks of a service 2 s together.
_CHECK_SECONDS = 1.5


#: An answer that no method expects: it says that the call itself is wrong, such as a command for another type of value.
UnexpectedReply = ReplyError


class CacheRefuses(errors.Unavailable):
    """Valkey is there, answers, and does not take what it is given. It may answer other calls meanwhile, such as those that only read."""


@dataclass(frozen=True, slots=True)
class _Script:
    lane: ValkeyConnection
    text: str
    sha1: str


class Cache:
    """One for one service; keys begin with the service's name. Every method may raise ``errors.Unavailable``, within some 2 s."""

    def __init__(self, values: ValkeyConnection, urgent: ValkeyConnection, following: ValkeyConnection) -> None:
        """``urgent``: for the scripts that are registered as that. ``following``: for reads that wait for something new."""
        self._values = values
        self._urgent = urgent
        self._following = following
        self._scripts: dict[str, _Script] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Cache"]:
        """``url`` is unix://, redis:// or rediss://. Does not connect yet: a service without Valkey starts, and /readyz says so."""
        try:
            where = valkey_url.parse(url)
            trusted = ssl.create_default_context(cafile=where.ca_file) if where.tls else None
        except (ValueError, OSError) as error:
            raise errors.BadSettings(f"REDIS_URL cannot be used: {error}", hint="say redis://, rediss:// or unix:///path") from error
        async with contextlib.AsyncExitStack() as stack:
            tasks = asyncio.TaskGroup()
            await tasks.__aenter__()
            # A callback, because what the block raises is not for the group: it would come out of it as an ExceptionGroup.
            stack.push_async_callback(tasks.__aexit__, None, None, None)
            lanes = [ValkeyConnection(where, trusted, tasks) for _ in range(3)]
            for lane in lanes:
                stack.callback(lane.close)
            yield cls(*lanes)

    async def connect(self) -> None:
        """Have every script known, which takes the connections that they go over, so that the first calls need not wait for that."""
        await asyncio.gather(*(self._ask("SCRIPT", "LOAD", script.text, lane=script.lane) for script in self._scripts.values()))

    def script(self, name: str, lua: str, *, urgent: bool = False) -> None:
        """Register a script under a name, before its first ``run``. The urgent ones have a connection of their own, where no large
        value holds their answers up."""
        # Not a signature: SHA-1 is the name that Valkey gives to a script.
        sha1 = hashlib.sha1(lua.encode(), usedforsecurity=False).hexdigest()
        self._scripts[name] = _Script(self._urgent if urgent else self._values, lua, sha1)

    async def run(
        self, script: str, keys: Sequence[str], args: Sequence[str | int | float | bytes], *, seconds: float | None = None
    ) -> Any:
        """The script's answer: int, bytes, None or a list of these. With ``seconds`` Valkey has no more than that to answer; time
        in which this program was busy with other things is not held against it."""
        chosen = self._scripts[script]
        waiting = None if seconds is None else _Impatient(seconds)
        try:
            answer = chosen.lane.ask(resp.command(("EVALSHA", chosen.sha1, len(keys), *keys, *args)))
            try:
                return await (answer if waiting is None else waiting.for_(answer))
            except ReplyError as error:
                if error.word != "NOSCRIPT":
                    raise
            # The first run since Valkey started; EVAL also stores it. Nothing has run yet, so this is no repetition.
            answer = chosen.lane.ask(resp.command(("EVAL", chosen.text, len(keys), *keys, *args)))
            return await (answer if waiting is None else waiting.for_(answer))
        except (OSError, ReplyError) as error:
            _raise(error)
        finally:
            if waiting is not None:
                waiting.stop()

    async def get(self, key: str) -> bytes | None:
        return _bytes(await self._ask("GET", key))

    async def set(self, key: str, value: bytes | str, *, ttl_seconds: float) -> None:
        await self._ask("SET", key, value, "PX", _milliseconds(ttl_seconds))

    async def prolong(self, key: str, *, ttl_seconds: float) -> bytes | None:
        """Read a value and let it live for ``ttl_seconds`` from now; None if it has gone, which it then stays."""
        return _bytes(await self._ask("GETEX", key, "PX", _milliseconds(ttl_seconds)))

    async def take(self, key: str) -> bytes | None:
        """Read and delete in one step: of several takers one gets the value."""
        return _bytes(await self._ask("GETDEL", key))

    async def delete(self, *keys: str) -> int:
        """How many of them were there."""
        deleted = await self._ask("DEL", *keys)
        assert isinstance(deleted, int)
        return deleted

    async def append(self, log: str, entry: bytes, *, most: int) -> None:
        """Add an entry to a log that keeps about the newest ``most``. It does not wait behind large values."""
        await self._ask("XADD", log, "MAXLEN", "~", most, "*", "e", entry, lane=self._urgent)

    async def log_end(self, log: str) -> bytes:
        """The id of the newest entry, to read on from."""
        newest = await self._ask("XREVRANGE", log, "+", "-", "COUNT", 1, lane=self._following)
        return newest[0][0] if newest else _LOG_BEGINNING

    async def read_log(self, log: str, after: bytes) -> tuple[list[bytes], bytes]:
        """The entries behind ``after``, and the id of the last of them. Waits up to LOG_WAIT_SECONDS for one. For one reader at a time."""
        words = ("XREAD", "COUNT", _LOG_ENTRIES, "BLOCK", _milliseconds(LOG_WAIT_SECONDS), "STREAMS", log, after)
        found = await self._ask(*words, lane=self._following)
        if not found:
            return [], after
        entries = found[0][1]
        return [fields[1] for _, fields in entries], entries[-1][0]

    async def check(self) -> Check:
        """Whether Valkey answers and takes writes, over each connection, for /readyz; sooner than its asker gives up, who would not hear
        why. A replica, which answers those that only read for ever, is left by this."""
        try:
            await self._write_everywhere()
        except errors.Unavailable as error:
            return Check("valkey", ok=False, detail=f"{error.message} ({error.__cause__}); {error.hint}")
        return Check("valkey", ok=True)

    async def _write_everywhere(self) -> None:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await asyncio.gather(*(self._ask("SET", _CHECKED, "", "PX", 1000, lane=lane) for lane in (self._values, self._urgent)))
        except TimeoutError:
            _raise(TimeoutError("no answer in time"))

    async def _ask(self, *words: Word, lane: ValkeyConnection | None = None) -> Any:
        try:
            return await (lane or self._values).ask(resp.command(words))
        except (OSError, ReplyError) as error:
            _raise(error)


def _raise(error: OSError | ReplyError) -> NoReturn:
    """What an error of the client means to who uses the cache."""
    if isinstance(error, ReplyError):
        if error.word in _REFUSALS:
            hint = "REDIS_URL must lead to the primary" if error.word in _REPLICAS else "see its log, its disk and its memory"
            raise CacheRefuses(f"Valkey refuses: {error.word}", hint=hint) from error
        if not isinstance(error, LoginRefused) and error.word not in _AWAY and str(error) != _TOO_MANY:
            raise error
    raise errors.Unavailable("Valkey does not answer", hint="is it running, and is REDIS_URL right?") from error


class _Impatient:
    """Ends a wait early, but not before the loop has looked around: an answer that has arrived while the loop was busy is taken a few
    turns later, and no slow answer."""

    __slots__ = ("_answer", "_began", "_loop", "_next", "_seconds", "_worked")

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._answer: asyncio.Future[Reply] | None = None
        self._began, self._worked = self._loop.time(), time.thread_time()
        self._next: asyncio.Handle = self._loop.call_later(seconds, self._look)

    def for_(self, answer: "asyncio.Future[Reply]") -> "asyncio.Future[Reply]":
        """Of several, one after the other, the last is ended."""
        self._answer = answer
        return answer

    def stop(self) -> None:
        self._next.cancel()

    def _look(self) -> None:
        # What this thread computed meanwhile is not Valkey's time.
        idle = self._loop.time() - self._began - (time.thread_time() - self._worked)
        if idle < self._seconds:
            self._next = self._loop.call_later(max(0.001, self._seconds - idle), self._look)
        else:
            self._look_around(_TURNS)

    def _look_around(self, turns: int) -> None:
        if turns or self._answer is None or self._answer.done():
            self._next = self._loop.call_soon(self._look_around, max(0, turns - 1))
        else:
            valkey_client.fail(self._answer, TimeoutError(f"no answer within {self._seconds:g} s"))


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _bytes(value: object) -> bytes | None:
    return value if isinstance(value, bytes) else None
