"""Finds the primaries behind Sentinels or in a cluster with redis-py, and sends each call to the right one.

Only this module knows redis-py, and only to find servers: calls use ``ValkeyConnection``, at a seventh of redis-py's CPU time. Only a call
that a server of a cluster has refused because another one has its keys is sent again, once.
"""

import asyncio
import re
import ssl
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from shared.stores import valkey_client
from shared.stores.resp import Reply, ReplyError, Word
from shared.stores.valkey_client import ValkeyConnection
from shared.stores.valkey_url import ValkeyUrl

_Address = tuple[str, int]

#: What redis-py raises, also about an answer that it does not understand.
_NOT_FOUND = (RedisError, RedisClusterException, OSError, ValueError, LookupError)

#: For one server to answer. Three that hang leave time for a fourth within ``CONNECT_SECONDS``.
_ANSWER_SECONDS = 0.25
_FIND_SECONDS = 1.0
#: While a server does not answer, the cluster is asked this often who replaced it.
_AGAIN_SECONDS = 0.25
#: Where a command has its key, if not in its second word.
_KEY_AT = {"EVAL": 3, "EVALSHA": 3, "XREAD": 6}
_ELSEWHERE = frozenset({"MOVED", "ASK"})
_STALE = frozenset({"MOVED", "CLUSTERDOWN", "READONLY", "LOADING", "MASTERDOWN"})


def lanes(
    where: ValkeyUrl, trusted: ssl.SSLContext | None, tasks: asyncio.TaskGroup, number: int
) -> "Sequence[ValkeyConnection | ClusterLane]":
    """Return so many lanes, each with its own connections."""
    if not where.is_cluster:
        return [ValkeyConnection(where, trusted, tasks, partial(_find_primary, where)) for _ in range(number)]
    servers = _ClusterMap(where, tasks)

    def connect(server: _Address) -> ValkeyConnection:
        return ValkeyConnection(_at(where, server), trusted, tasks, partial(servers.reconnect, server))

    return [ClusterLane(servers, connect) for _ in range(number)]


def _at(where: ValkeyUrl, server: _Address) -> ValkeyUrl:
    return replace(where, host=server[0], port=server[1])


async def _find_primary(where: ValkeyUrl) -> ValkeyUrl:
    """Ask the Sentinels in turn. Raises OSError."""
    options = {"password": where.sentinel_password, **_options(where)}
    sentinels = Sentinel(where.nodes, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
    try:
        return _at(where, await sentinels.discover_master(where.primary or ""))
    except _NOT_FOUND as error:
        raise ConnectionError(f"no Sentinel has a primary: {error}") from error
    finally:
        await sentinels.aclose()


def _options(where: ValkeyUrl) -> dict[str, Any]:
    tls = {"ssl": True, "ssl_ca_certs": where.ca_file and str(where.ca_file)} if where.tls else {}
    seconds = {"socket_timeout": _ANSWER_SECONDS, "socket_connect_timeout": _ANSWER_SECONDS}
    return {"retry": Retry(NoBackoff(), 0), "protocol": 2, **seconds, **tls}


class _ClusterMap:
    """Knows which server has which keys, for all lanes."""

    def __init__(self, where: ValkeyUrl, tasks: asyncio.TaskGroup) -> None:
        self._where = where
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self.cluster: RedisCluster | None = None
        self._reading: asyncio.Task[None] | None = None
        self._read_at = 0.0
        self._problem: Exception | None = None
        self._is_closed = False

    def find(self, key: str) -> _Address:
        """Raises OSError."""
        try:
            if self.cluster is not None and (node := self.cluster.get_node_from_key(key)) is not None:
                return node.host, int(node.port)
        except _NOT_FOUND as error:  # nobody has these keys
            self._problem = error
        raise ConnectionError(f"no server of the cluster has the key: {self._problem}")

    def primaries(self) -> set[_Address]:
        return set() if self.cluster is None else {(node.host, int(node.port)) for node in self.cluster.get_primaries()}

    def read(self) -> "asyncio.Task[None]":
        """Ask the cluster, unless that is already under way."""
        if self._reading is None:
            self._reading = self._tasks.create_task(self._read())
        return self._reading

    def read_soon(self) -> None:
        """Ask the cluster, unless it was asked just now, or this is closed."""
        if not self._is_closed and self._loop.time() >= self._read_at + _AGAIN_SECONDS:
            self.read()

    def close(self) -> None:
        """The tasks end now; calls that fail meanwhile start no new one."""
        self._is_closed = True

    async def reconnect(self, server: _Address) -> ValkeyUrl:
        """Ask the cluster whether the server was replaced: calls to each server, such as health checks, name none."""
        self.read_soon()
        return _at(self._where, server)

    async def _read(self) -> None:
        self._read_at = self._loop.time()
        where = self._where
        # Both the known servers and the given addresses: all of the former may have been replaced meanwhile.
        nodes = [ClusterNode(host, port) for host, port in self.primaries() | set(where.nodes)]
        login: dict[str, Any] = {"username": where.username, "password": where.password}
        found = RedisCluster(startup_nodes=nodes, require_full_coverage=False, **login, **_options(where))
        try:
            async with asyncio.timeout(_FIND_SECONDS):
                await found.initialize()
            self.cluster = found
        except _NOT_FOUND as error:
            self._problem = error
        finally:
            self._reading = None
            await found.aclose()


class ClusterLane:
    """A connection to each primary of a cluster. See ``ValkeyConnection``."""

    def __init__(self, servers: _ClusterMap, connect: Callable[[_Address], ValkeyConnection]) -> None:
        self._servers = servers
        self._connect = connect
        self._loop = asyncio.get_running_loop()
        self._connections: dict[_Address, ValkeyConnection] = {}
        #: Calls that wait for the map.
        self._waiting = 0

    def ask(self, words: Sequence[Word]) -> "asyncio.Future[Reply]":
        words = _with_hash_tags(words)
        answer: asyncio.Future[Reply] = self._loop.create_future()
        if self._servers.cluster is not None:
            self._send(words, answer)
        elif self._waiting >= valkey_client.MAX_CALLS:
            raise ConnectionError("too many calls wait for the cluster")
        else:
            self._waiting += 1
            self._servers.read().add_done_callback(lambda _: self._begin(words, answer))
        return answer

    async def parts(self) -> Sequence[ValkeyConnection]:
        """Raises OSError."""
        if self._servers.cluster is None:
            await asyncio.shield(self._servers.read())
        self._servers.find("")  # raises if the cluster did not answer
        return [self._connection(address) for address in self._servers.primaries()]

    def close(self) -> None:
        self._servers.close()
        for connection in self._connections.values():
            connection.close()

    def _begin(self, words: Sequence[Word], answer: "asyncio.Future[Reply]") -> None:
        self._waiting -= 1
        self._send(words, answer)

    def _send(self, words: Sequence[Word], answer: "asyncio.Future[Reply]", sent_by: ReplyError | None = None) -> None:
        """``sent_by``: the refusal that names the server to ask."""
        if answer.done():
            return
        try:
            connection = self._connection(self._servers.find(_key(words)) if sent_by is None else _named(sent_by))
            if sent_by is not None and sent_by.word == "ASK":
                connection.ask(("ASKING",))
            connection.ask(words).add_done_callback(lambda reply: self._answered(reply, words, answer, may_repeat=sent_by is None))
        except OSError as error:
            self._servers.read_soon()
            valkey_client.fail(answer, error)

    def _answered(
        self, reply: "asyncio.Future[Reply]", words: Sequence[Word], answer: "asyncio.Future[Reply]", *, may_repeat: bool
    ) -> None:
        error = reply.exception()
        if isinstance(error, OSError) or (isinstance(error, ReplyError) and error.word in _STALE):
            self._servers.read_soon()
        if isinstance(error, ReplyError) and error.word in _ELSEWHERE and may_repeat:
            self._send(words, answer, sent_by=error)
        elif isinstance(error, Exception):
            valkey_client.fail(answer, error)
        elif not answer.done():
            answer.set_result(reply.result())

    def _connection(self, address: _Address) -> ValkeyConnection:
        if address not in self._connections:
            for gone in self._connections.keys() - self._servers.primaries():
                self._connections.pop(gone).close()
            self._connections[address] = self._connect(address)
        return self._connections[address]


def _key(words: Sequence[Word]) -> str:
    key = words[_KEY_AT.get(str(words[0]), 1)]
    return key.decode() if isinstance(key, bytes) else str(key)


def _with_hash_tags(words: Sequence[Word]) -> Sequence[Word]:
    """Give each key of a script a hash tag, as ``cache`` says."""
    if words[0] not in {"EVAL", "EVALSHA"}:
        return words
    end = 3 + int(words[2])
    keys = (key if "{" in key else re.sub("^[^:]*", r"{\g<0>}", key) for key in map(str, words[3:end]))
    return (*words[:3], *keys, *words[end:])


def _named(error: ReplyError) -> _Address:
    """Return the server that ``MOVED slot host:port`` names. Raises OSError."""
    host, _, port = str(error).rpartition(" ")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise ConnectionError(f"the cluster names no server: {error}") from error
    return host, int(port)
