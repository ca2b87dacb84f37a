"""What the choice between one Valkey, Sentinels and a cluster costs each script call of a service.

calls      processor time of this process for a call, 64 at once: through ``Cache`` with one address, against the same connection
           without the cache's choice of a server; then with Sentinels and with a cluster, against one address
failover   with Sentinels: how long calls fail after the primary was killed

The servers are real: one Valkey; a primary, a replica and three Sentinels; a cluster of six.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from bench import calls, report
from bench.calls import Call
from bench.report import Options, Rows
from shared import errors
from shared.stores import resp
from shared.stores.cache import Cache
from shared.stores.valkey_client import ValkeyConnection
from tests import valkey_groups
from tests.servers import ValkeyServer, running
from tests.valkey_groups import ValkeyNode, Watched

AT_ONCE, ROUNDS = 64, 41
SCRIPT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
#: With default timeouts of the tests: Sentinels replace a server that was silent for 0.5 s.
FAILOVER_SECONDS = 10.0

KEYS = itertools.cycle([f"bench:{number}" for number in range(AT_ONCE)])


@dataclass(frozen=True, slots=True)
class Caches:
    one: Cache
    sentinels: Cache
    cluster: Cache
    watched: Watched


@asynccontextmanager
async def _caches(_options: Options) -> AsyncIterator[Caches]:
    with running(ValkeyServer) as server, valkey_groups.watched() as watched, valkey_groups.cluster() as cluster:
        await watched.settle()
        await cluster.form()
        async with AsyncExitStack() as stack:
            one, sentinels, many = [await stack.enter_async_context(Cache.open(url)) for url in (server.url, watched.url, cluster.url)]
            for cache in (one, sentinels, many):
                cache.script("count", SCRIPT)
                await cache.connect()
            yield Caches(one, sentinels, many, watched)


def _through(cache: Cache) -> Call:
    return lambda: cache.run("count", [next(KEYS)], [1])


def _without_choice(cache: Cache) -> Call:
    """``Cache.run`` and ``ValkeyConnection.ask`` as they were before there was a choice."""
    scripts = {name: (script, script.lane) for name, script in cache._scripts.items()}

    def ask(lane: object, command: bytes) -> Awaitable[object]:
        assert isinstance(lane, ValkeyConnection)
        if lane._session is not None:
            return lane._session.ask(command)
        raise ConnectionError

    async def run(name: str, keys: Sequence[str], args: Sequence[int], *, seconds: float | None = None) -> object:
        script, lane = scripts[name]
        waiting = None if seconds is None else asyncio.timeout(seconds)
        try:
            answer = ask(lane, resp.command(("EVALSHA", script.sha1, len(keys), *keys, *args)))
            try:
                return await (answer if waiting is None else asyncio.shield(answer))
            except resp.ReplyError as error:
                raise AssertionError("the script is known") from error
        except OSError as error:
            raise errors.Unavailable("Valkey does not answer") from error
        finally:
            if waiting is not None:
                waiting.reschedule(None)

    return lambda: run("count", [next(KEYS)], [1])


async def _measure_calls(rows: Rows, caches: Caches, options: Options) -> None:
    ways = {
        "one address": _through(caches.one),
        "without the choice": _without_choice(caches.one),
        "Sentinels": _through(caches.sentinels),
        "a cluster": _through(caches.cluster),
    }
    each = options.calls // AT_ONCE
    await report.take_turns({name: partial(calls.spent_us, call, AT_ONCE, each // 4) for name, call in ways.items()}, 1)
    found = await report.take_turns({name: partial(calls.spent_us, call, AT_ONCE, each) for name, call in ways.items()}, ROUNDS)
    one, before = found["one address"], found["without the choice"]
    rows.paired("a script call with one address", one, "µs", "without the choice of a server", before, at_most=1.02)
    for name in ("Sentinels", "a cluster"):
        # Calls in the same time.
        rates, ours = ([1e6 / each for each in found[way]] for way in (name, "one address"))
        rows.paired(f"script calls with {name}", rates, "calls/s", "with one address", ours, at_least=0.25)


async def _measure_failover(rows: Rows, caches: Caches, _options: Options) -> None:
    call = _through(caches.sentinels)
    primary: ValkeyNode = await caches.watched.primary()
    primary.kill()
    began = failed = time.monotonic()
    answered = False
    while not answered and failed - began < 3 * FAILOVER_SECONDS:
        try:
            await call()
            answered = True
        except errors.Unavailable:
            await asyncio.sleep(0.02)
        failed = time.monotonic()
    rows.alone("calls fail after the primary of Sentinels was killed", failed - began, "s", at_most=FAILOVER_SECONDS)


if __name__ == "__main__":
    report.run(
        __doc__,
        {"calls": _measure_calls, "failover": _measure_failover},
        limits=(300, 120),
        setting=_caches,
        calls=(12_800, 3_200),
    )
