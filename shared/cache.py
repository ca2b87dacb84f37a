"""Valkey (or Redis): short-lived facts and atomic scripts, each call with a deadline.

Nothing here is the only copy of anything that must last. That Valkey does not answer becomes ``errors.Unavailable``; what
that means (refuse, or do without) is the caller's decision. No call is repeated: a script may have run before the
connection died.
"""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis.asyncio as redis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared import errors
from shared.api.gateway import Check

#: Beyond this many at once, calls wait for a connection; the default pool of redis-py would raise instead.
_CONNECTIONS = 64
_SECONDS = 1.0
#: Of the loop: reading an answer takes three. One that has nothing else to do makes them at once.
_TURNS = 60

#: Not there, or not ready.
_GONE = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)
#: The first words of answers with which it refuses for now what is no mistake of ours: it cannot save to its disk, too few replicas
#: follow it, it has no memory left, it is a replica itself or one without its primary, a script keeps it busy, or it may not.
_REFUSALS = frozenset({"MISCONF", "NOREPLICAS", "OOM", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "UNKILLABLE", "NOPERM"})


class CacheRefuses(errors.Unavailable):
    """Valkey is there, answers, and does not take what it is given. It may answer other calls meanwhile, such as those that only read."""


@dataclass(frozen=True, slots=True)
class _Script:
    text: str
    sha1: str


class Cache:
    """One pool for one service; keys begin with the service's name. Every method may raise ``errors.Unavailable``."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._scripts: dict[str, _Script] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Cache"]:
        """``url`` is unix://, redis:// or rediss://. Does not connect yet: a service without Valkey starts, and /readyz says so."""
        try:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=_SECONDS,
                socket_timeout=_SECONDS,
                socket_connect_timeout=_SECONDS,
                retry=Retry(NoBackoff(), 0),
                # RESP3 would make the client ask for a push feature that only Redis Enterprise has.
                protocol=2,
            )
        except ValueError as error:
            raise errors.BadSettings(f"REDIS_URL cannot be used: {error}", hint="say redis://, rediss:// or unix:///path") from error
        client = redis.Redis(connection_pool=pool)
        try:
            yield cls(client)
        finally:
            await client.aclose(close_connection_pool=True)

    async def connect(self, connections: int) -> None:
        """Have so many open and every script known, so that the first calls need not wait until they are."""
        async with _deadline():
            for script in self._scripts.values():
                await self._client.script_load(script.text)
            pool = self._client.connection_pool
            async with contextlib.AsyncExitStack() as opened:
                for _ in range(connections):
                    connection = await pool.get_connection()  # type: ignore[no-untyped-call]
                    opened.push_async_callback(pool.release, connection)

    def script(self, name: str, lua: str) -> None:
        """Register a script under a name, before its first ``run``."""
        # Not a signature: SHA-1 is the name that Valkey gives to a script.
        self._scripts[name] = _Script(lua, hashlib.sha1(lua.encode(), usedforsecurity=False).hexdigest())

    async def run(
        self, script: str, keys: Sequence[str], args: Sequence[str | int | float | bytes], *, seconds: float | None = None
    ) -> Any:
        """The script's answer: int, bytes, None or a list of these. With ``seconds`` Valkey has no more than that to answer; time
        in which this program was busy with other things is not held against it."""
        chosen = self._scripts[script]
        async with _deadline(seconds):
            try:
                return await self._client.evalsha(chosen.sha1, len(keys), *keys, *args)
            except exceptions.NoScriptError:
                # The first run since Valkey started; EVAL also stores it. Nothing has run yet, so this is no repetition.
                return await self._client.eval(chosen.text, len(keys), *keys, *args)

    async def get(self, key: str) -> bytes | None:
        async with _deadline():
            return _bytes(await self._client.get(key))

    async def set(self, key: str, value: bytes | str, *, ttl_seconds: float) -> None:
        async with _deadline():
            await self._client.set(key, value, px=max(1, round(ttl_seconds * 1000)))

    async def prolong(self, key: str, *, ttl_seconds: float) -> bytes | None:
        """Read a value and let it live for ``ttl_seconds`` from now; None if it has gone, which it then stays."""
        async with _deadline():
            return _bytes(await self._client.getex(key, px=max(1, round(ttl_seconds * 1000))))

    async def take(self, key: str) -> bytes | None:
        """Read and delete in one step: of several takers one gets the value."""
        async with _deadline():
            return _bytes(await self._client.getdel(key))

    async def delete(self, *keys: str) -> int:
        """How many of them were there."""
        async with _deadline():
            return int(await self._client.delete(*keys))

    async def check(self) -> Check:
        """Whether Valkey answers, for /readyz; within 2 s."""
        try:
            async with _deadline():
                await self._client.ping()
        except errors.Unavailable as error:
            return Check("valkey", ok=False, detail=f"{error.message} ({error.__cause__ or 'no answer in time'}); {error.hint}")
        return Check("valkey", ok=True)


@contextlib.asynccontextmanager
async def _deadline(seconds: float | None = None) -> AsyncIterator[None]:
    """Waiting for a connection, connecting and the answer have 1 s each; all together they have 2, or ``seconds``."""
    try:
        async with asyncio.timeout(2 * _SECONDS) as deadline:
            impatient = None if seconds is None else _Impatient(deadline, seconds)
            try:
                yield
            finally:
                if impatient is not None:
                    impatient.stop()
    except _GONE as error:
        raise errors.Unavailable("Valkey does not answer", hint="is it running, and is REDIS_URL right?") from error
    except exceptions.ResponseError as error:
        if (word := _first_word(error)) not in _REFUSALS:
            raise
        raise CacheRefuses(f"Valkey refuses: {word}", hint="see its log, its disk and its memory") from error


class _Impatient:
    """Ends a deadline early, but not before the loop has looked around: an answer that has arrived while the loop was busy is
    taken a few turns later, and no slow answer."""

    def __init__(self, deadline: asyncio.Timeout, seconds: float) -> None:
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._seconds = seconds
        self._began, self._worked = self._loop.time(), time.thread_time()
        self._next: asyncio.Handle = self._loop.call_later(seconds, self._look)

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
        if turns:
            self._next = self._loop.call_soon(self._look_around, turns - 1)
        else:
            self._deadline.reschedule(self._loop.time())


def _first_word(error: exceptions.ResponseError) -> str:
    """redis-py takes it away where it has a class for it."""
    return error.status_code or str(error).partition(" ")[0]


def _bytes(value: object) -> bytes | None:
    return value if isinstance(value, bytes) else None
