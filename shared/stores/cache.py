"""Stores short-lived data in Valkey (or Redis) and runs atomic scripts, each call with a deadline.

Nothing here is the only copy of anything durable. If Valkey does not answer, calls raise ``errors.Unavailable``, and the caller decides
what to do without it. No call is repeated: a script may have run before the connection was lost. Only a cluster's server that refers us
to another one has not run anything.

In a cluster, all keys of a script are on one server, because each has a hash tag or gets its first word as one: ``auth:x`` becomes
``{auth}:x``. A script that builds keys itself starts them with a key that it was given.
"""

import asyncio
import contextlib
import hashlib
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from shared import errors
from shared.api.gateway import Check
from shared.stores import valkey_client, valkey_url
from shared.stores.resp import Reply, ReplyError, Word
from shared.stores.valkey_client import LoginRefused, ValkeyConnection
from shared.stores.valkey_url import ValkeyUrl

if TYPE_CHECKING:
    from shared.stores.redis_clients import ClusterLane

NO_VALKEY = "Valkey does not answer"
#: Turns of the event loop, each of which reads what has arrived. An idle loop makes them at once.
_TURNS = 20

LOG_WAIT_SECONDS = 1.0
_LOG_ENTRIES = 100
#: Keys that one step of a scan looks at, and may have to delete at once.
_SCANNED = 500
_LOG_BEGINNING = b"0-0"

#: Errors of a working Valkey: it cannot save to disk, has too few replicas or no memory left, is a replica or lacks its primary, is
#: blocked by a script, or denies permission.
_REFUSALS = frozenset({"MISCONF", "NOREPLICAS", "OOM", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "UNKILLABLE", "NOPERM"})
_REPLICAS = frozenset({"READONLY", "MASTERDOWN"})
#: Errors while it is not ready: it is loading its data, rejects the login, has just become a replica, or its cluster is moving the keys.
_AWAY = frozenset({"LOADING", "NOAUTH", "WRONGPASS", "UNBLOCKED", "MOVED", "ASK", "TRYAGAIN"})
_TOO_MANY = "ERR max number of clients reached"
_CHECKED = "aimesh:checked"
#: ``shared.node`` allows 2 s for all checks of a service together.
_CHECK_SECONDS = 1.5

_HINT = "use redis://, rediss://, unix:///path, redis+sentinel://host1,host2/name or redis+cluster://host1,host2"

#: An answer that means that the call itself is wrong, such as a command for another type of value.
UnexpectedReply = ReplyError


class CacheRefuses(errors.Unavailable):
    """Valkey answers but refuses the call. It may accept others, such as reads."""


Lane: TypeAlias = "ValkeyConnection | ClusterLane"


@dataclass(frozen=True, slots=True)
class _Script:
    lane: Lane
    text: str
    sha1: str


class Cache:
    """The cache of one service. Keys begin with the service's name. Every method may raise ``errors.Unavailable``, within about 2 s."""

    def __init__(self, values: Lane, urgent: Lane, following: Lane) -> None:
        """``urgent`` is for urgent scripts, ``following`` for reads that wait for something new."""
        self._values = values
        self._urgent = urgent
        self._following = following
        self._scripts: dict[str, _Script] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Cache"]:
        """See ``valkey_url``. Does not connect yet: a service starts without Valkey, and /readyz reports it."""
        try:
            where = valkey_url.parse(url)
            trusted = ssl.create_default_context(cafile=where.ca_file) if where.tls else None
        except (ValueError, OSError) as error:
            raise errors.BadSettings(f"REDIS_URL is invalid: {error}", hint=_HINT) from error
        async with contextlib.AsyncExitStack() as stack:
            tasks = asyncio.TaskGroup()
            await tasks.__aenter__()
            # A callback, so that the TaskGroup does not wrap the block's own errors in an ExceptionGroup.
            stack.push_async_callback(tasks.__aexit__, None, None, None)
            lanes = _lanes(where, trusted, tasks)
            for lane in lanes:
                stack.callback(lane.close)
            yield cls(*lanes)

    async def connect(self) -> None:
        """Load every script, which opens the connections, so that the first calls need not wait."""
        await asyncio.gather(*(self._everywhere(script.lane, "SCRIPT", "LOAD", script.text) for script in self._scripts.values()))

    def script(self, name: str, lua: str, *, urgent: bool = False) -> None:
        """Register a script before its first ``run``. Urgent scripts have their own connection, where large values do not delay them."""
        # Not a signature: Valkey names scripts by their SHA-1.
        sha1 = hashlib.sha1(lua.encode(), usedforsecurity=False).hexdigest()
        self._scripts[name] = _Script(self._urgent if urgent else self._values, lua, sha1)

    async def run(
        self, script: str, keys: Sequence[str], args: Sequence[str | int | float | bytes], *, seconds: float | None = None
    ) -> Any:
        """Return the script's answer: int, bytes, None or a list of these. ``seconds`` limits Valkey's time to answer; time in which this
        program was busy does not count."""
        chosen = self._scripts[script]
        waiting = None if seconds is None else _WaitLimit(seconds)
        try:
            answer = chosen.lane.ask(("EVALSHA", chosen.sha1, len(keys), *keys, *args))
            try:
                return await (answer if waiting is None else waiting.watch(answer))
            except ReplyError as error:
                if error.word != "NOSCRIPT":
                    raise
            # First run since Valkey started. EVAL also stores the script. Nothing has run yet, so this is no repetition.
            answer = chosen.lane.ask(("EVAL", chosen.text, len(keys), *keys, *args))
            return await (answer if waiting is None else waiting.watch(answer))
        except (OSError, ReplyError) as error:
            _raise(error)
        finally:
            if waiting is not None:
                waiting.stop()

    async def get(self, key: str) -> bytes | None:
        return _bytes(await self._ask("GET", key))

    async def set(self, key: str, value: bytes | str, *, ttl_seconds: float) -> None:
        await self._ask("SET", key, value, "PX", _milliseconds(ttl_seconds))

    async def take(self, key: str) -> bytes | None:
        """Read and delete a value in one step, so that only one caller gets it."""
        return _bytes(await self._ask("GETDEL", key))

    async def delete(self, *keys: str) -> int:
        """Return how many of the keys existed."""
        deleted = await self._ask("DEL", *keys)
        assert isinstance(deleted, int)
        return deleted

    async def delete_matching(self, pattern: str) -> None:
        """Delete all keys that match, in small steps. Other keys of the server stay, because it may be shared."""
        for part in await self._parts(self._values):
            cursor = b"0"
            while True:
                cursor, keys = await self._ask("SCAN", cursor, "MATCH", pattern, "COUNT", _SCANNED, lane=part)
                # One key each, because the keys of a part of a cluster have different slots.
                await asyncio.gather(*(self._ask("UNLINK", key) for key in keys))
                if cursor == b"0":
                    break

    async def append(self, log: str, entry: bytes, *, most: int) -> None:
        """Append to a log that keeps about the newest ``most`` entries. Not delayed by large values."""
        await self._ask("XADD", log, "MAXLEN", "~", most, "*", "e", entry, lane=self._urgent)

    async def newest(self, log: str, *, most: int) -> list[bytes]:
        """Return the newest entries of a log, newest first."""
        return [fields[1] for _, fields in await self._ask("XREVRANGE", log, "+", "-", "COUNT", most, lane=self._values)]

    async def log_end(self, log: str) -> bytes:
        """Return the id of the newest entry."""
        newest = await self._ask("XREVRANGE", log, "+", "-", "COUNT", 1, lane=self._following)
        return newest[0][0] if newest else _LOG_BEGINNING

    async def read_log(self, log: str, after: bytes) -> tuple[list[bytes], bytes]:
        """Return the entries after ``after`` and the last id. Waits up to LOG_WAIT_SECONDS for one. One reader at a time."""
        words = ("XREAD", "COUNT", _LOG_ENTRIES, "BLOCK", _milliseconds(LOG_WAIT_SECONDS), "STREAMS", log, after)
        found = await self._ask(*words, lane=self._following)
        if not found:
            return [], after
        entries = found[0][1]
        return [fields[1] for _, fields in entries], entries[-1][0]

    async def check(self) -> Check:
        """Return whether Valkey answers and accepts writes, for /readyz, before the caller's timeout. The write also makes the connections
        leave a replica, which would answer reads for ever."""
        try:
            await self._write_everywhere()
        except errors.Unavailable as error:
            return Check("valkey", ok=False, detail=f"{error.message} ({error.__cause__}); {error.hint}")
        return Check("valkey", ok=True)

    async def _write_everywhere(self) -> None:
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                lanes = (self._values, self._urgent)
                await asyncio.gather(*(self._ask("SET", _CHECKED, "", "PX", 1000, lane=lane) for lane in lanes))
                await self._everywhere(self._values, "PING")
        except TimeoutError:
            _raise(TimeoutError("no answer in time"))

    async def _everywhere(self, lane: Lane, *words: Word) -> None:
        await asyncio.gather(*(self._ask(*words, lane=part) for part in await self._parts(lane)))

    async def _parts(self, lane: Lane) -> Sequence[ValkeyConnection]:
        try:
            return await lane.parts()
        except OSError as error:
            _raise(error)

    async def _ask(self, *words: Word, lane: "Lane | None" = None) -> Any:
        try:
            return await (lane or self._values).ask(words)
        except (OSError, ReplyError) as error:
            _raise(error)


def _lanes(where: ValkeyUrl, trusted: ssl.SSLContext | None, tasks: asyncio.TaskGroup) -> Sequence[Lane]:
    if where.nodes:
        # Not for one address: redis-py needs 0.2 s to import.
        from shared.stores import redis_clients  # noqa: PLC0415

        return redis_clients.lanes(where, trusted, tasks, 3)
    return [ValkeyConnection(where, trusted, tasks) for _ in range(3)]


def _raise(error: OSError | ReplyError) -> NoReturn:
    if isinstance(error, ReplyError):
        if error.word in _REFUSALS:
            hint = "REDIS_URL must lead to the primary" if error.word in _REPLICAS else "see its log, its disk and its memory"
            raise CacheRefuses(f"Valkey refuses: {error.word}", hint=hint) from error
        if not isinstance(error, LoginRefused) and error.word not in _AWAY and str(error) != _TOO_MANY:
            raise error
    raise errors.Unavailable(NO_VALKEY, hint="is it running, and is REDIS_URL right?") from error


class _WaitLimit:
    """Ends a wait early, but first lets the loop read what has arrived: an answer that came while the loop was busy still counts."""

    __slots__ = ("_answer", "_began", "_loop", "_next", "_seconds", "_worked")

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._answer: asyncio.Future[Reply] | None = None
        self._began, self._worked = self._loop.time(), time.thread_time()
        self._next: asyncio.Handle = self._loop.call_later(seconds, self._look)

    def watch(self, answer: "asyncio.Future[Reply]") -> "asyncio.Future[Reply]":
        """End the wait for this answer from now on, instead of the answer before."""
        self._answer = answer
        return answer

    def stop(self) -> None:
        self._next.cancel()

    def _look(self) -> None:
        # Time that this thread spent computing is not Valkey's.
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
