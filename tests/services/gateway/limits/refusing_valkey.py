"""A running Valkey that refuses writes, for each possible reason."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import redis.asyncio as redis
from redis import exceptions


@asynccontextmanager
async def refusing(url: str, reason: str) -> AsyncIterator[None]:
    """Make Valkey refuse writes for ``reason``, the first word of its error, until the block ends."""
    ways = {
        "MISCONF": _cannot_save,
        "NOREPLICAS": _without_replicas,
        "OOM": _full,
        "READONLY": _replica,
        "MASTERDOWN": _lost_replica,
        "BUSY": _busy,
    }
    async with redis.Redis.from_url(url) as client, ways[reason](client, url):
        yield


@asynccontextmanager
async def _without_replicas(client: Any, _url: str) -> AsyncIterator[None]:
    await client.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        await client.config_set("min-replicas-to-write", 0)


@asynccontextmanager
async def _full(client: Any, _url: str) -> AsyncIterator[None]:
    before = await client.config_get("maxmemory", "maxmemory-policy")
    await client.set("test:ballast", b"x" * 2**21)
    await client.config_set("maxmemory-policy", "noeviction")
    await client.config_set("maxmemory", "1mb")
    try:
        yield
    finally:
        for name, value in before.items():
            await client.config_set(name, value)
        await client.delete("test:ballast")


@asynccontextmanager
async def _replica(client: Any, _url: str) -> AsyncIterator[None]:
    await client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        await client.execute_command("REPLICAOF", "NO", "ONE")


@asynccontextmanager
async def _lost_replica(client: Any, url: str) -> AsyncIterator[None]:
    await client.config_set("replica-serve-stale-data", "no")
    async with _replica(client, url):
        yield
    await client.config_set("replica-serve-stale-data", "yes")


@asynccontextmanager
async def _cannot_save(client: Any, _url: str) -> AsyncIterator[None]:
    """Put a folder in place of Valkey's file."""
    found = await client.config_get("dir", "dbfilename", "save")
    file, kept = Path(found["dir"]) / found["dbfilename"], Path(found["dir"]) / "kept.rdb"
    with suppress(FileNotFoundError):
        file.rename(kept)
    file.mkdir()
    await client.config_set("save", "86400 1000000")
    try:
        await _save(client, "err")
        yield
    finally:
        file.rmdir()
        await _save(client, "ok")
        file.unlink()
        await client.config_set("save", found["save"])
        with suppress(FileNotFoundError):
            kept.rename(file)


async def _save(client: Any, ends: str) -> None:
    await client.bgsave()
    async with asyncio.timeout(30):
        while not await _has_saved(client, ends):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def _has_saved(client: Any, ends: str) -> bool:
    found = await client.info("persistence")
    return not found["rdb_bgsave_in_progress"] and bool(found["rdb_last_bgsave_status"] == ends)


@asynccontextmanager
async def _busy(client: Any, url: str) -> AsyncIterator[None]:
    """Run an endless script: after a while, other clients get the error that the server is busy."""
    before = await client.config_get("busy-reply-threshold")
    await client.config_set("busy-reply-threshold", 1)
    async with redis.Redis.from_url(url, socket_timeout=60) as other:
        endless = asyncio.ensure_future(other.eval("while true do end", 0))
        try:
            async with asyncio.timeout(30):
                while not await _says_busy(client):  # noqa: ASYNC110 - there is no event to wait for
                    await asyncio.sleep(0.01)
            yield
        finally:
            await client.execute_command("SCRIPT", "KILL")
            with suppress(exceptions.ResponseError):
                await endless
    await client.config_set("busy-reply-threshold", before["busy-reply-threshold"])


async def _says_busy(client: Any) -> bool:
    try:
        await client.ping()
    except exceptions.ResponseError as error:
        return str(error).startswith("BUSY")
    return False
