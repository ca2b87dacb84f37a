"""Searches the process arguments, logs, PostgreSQL and Valkey of a running stack for secrets, in all encodings."""

import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import redis.asyncio

from stack import secret_files, stack_plan
from tests.stacks import RunningStack

MAIL = "mail, printed because SMTP_URL is not set"


@dataclass(slots=True)
class Hidden:
    """The secrets of a run, by kind, in every encoding in which they could leak."""

    forms: dict[str, set[bytes]] = field(default_factory=dict)

    def add(self, kind: str, *found: str | bytes) -> None:
        for one in found:
            raw = one if isinstance(one, bytes) else one.encode()
            assert len(raw) >= 10, f"{kind}: too short to be searched for"
            known = self.forms.setdefault(kind, set())
            known |= {raw, raw.hex().encode(), raw.hex().upper().encode()}
            known |= {encode(raw).rstrip(b"=") for encode in (base64.b64encode, base64.urlsafe_b64encode)}

    def kinds_in(self, text: bytes) -> set[str]:
        return {kind for kind, forms in self.forms.items() if any(form in text for form in forms)}


@dataclass(frozen=True, slots=True, order=True)
class Hit:
    where: str
    kind: str


async def search(stack: RunningStack, hidden: Hidden) -> set[Hit]:
    hits = {Hit(where, kind) for where, text in (*_arguments(), *_log_lines(stack)) for kind in hidden.kinds_in(text)}
    async for where, text in _rows(stack):
        hits |= {Hit(where, kind) for kind in hidden.kinds_in(text)}
    async for where, text in _entries(stack):
        hits |= {Hit(where, kind) for kind in hidden.kinds_in(text)}
    return hits


def _arguments() -> Iterator[tuple[str, bytes]]:
    """Yield the arguments of every process on this machine, as `ps` shows them."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield f"ps {path.parent.name}", path.read_bytes()
        except OSError:
            continue  # the process has ended


def _log_lines(stack: RunningStack) -> Iterator[tuple[str, bytes]]:
    for path in sorted(stack.place.logs.iterdir()):
        for line in path.read_bytes().splitlines():
            yield f"log {path.stem}{' mail' if is_mail(line) else ''}", line
    anchors = stack.home / "audit_anchors.jsonl"
    if anchors.exists():
        yield "anchors", anchors.read_bytes()
    for file in (stack.home / "recovery_log").glob("*"):
        yield "recovery log", file.read_bytes()


def is_mail(line: bytes) -> bool:
    try:
        return bool(json.loads(line).get("event") == MAIL)
    except (ValueError, AttributeError):
        return False


async def _rows(stack: RunningStack) -> AsyncIterator[tuple[str, bytes]]:
    """Yield the rows of all tables as text. Reads as the superuser, who bypasses row-level security."""
    connection = await superuser(stack)
    try:
        tables = await connection.fetch(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        assert {("auth", "users"), ("gateway", "request_logs")} <= {tuple(table) for table in tables}
        for schema, table in tables:
            for (row,) in await connection.fetch(f'SELECT t::text FROM "{schema}"."{table}" AS t'):
                yield f"table {schema}.{table}", row.encode()
    finally:
        await connection.close(timeout=5)


async def superuser(stack: RunningStack) -> asyncpg.Connection:
    server = stack_plan.postgres_of(stack.place)
    url = server.url(server.admin, secret_files.read(stack.place, secret_files.POSTGRES_ADMIN))
    return await asyncpg.connect(url, timeout=30)


@asynccontextmanager
async def valkey(stack: RunningStack) -> AsyncIterator["redis.asyncio.Redis"]:
    client = redis.asyncio.Redis.from_url(stack_plan.valkey_of(stack.place).url)
    try:
        yield client
    finally:
        await client.aclose()


async def _entries(stack: RunningStack) -> AsyncIterator[tuple[str, bytes]]:
    async with valkey(stack) as client:
        read: dict[str, Callable[[str], Awaitable[object]]] = {
            "string": client.get,
            "hash": client.hgetall,
            "set": client.smembers,
            "list": lambda key: client.lrange(key, 0, -1),
            "zset": lambda key: client.zrange(key, 0, -1),
        }
        for found in await client.keys():
            key = _flat(found).decode("latin-1")
            kind = _flat(await client.type(key)).decode()
            # The key may have expired since.
            value = "" if kind == "none" else await read[kind](key)
            yield f"valkey {key}", _flat([key, value])


def _flat(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        return b" ".join(_flat(part) for pair in value.items() for part in pair)
    if isinstance(value, list | set | tuple):
        return b" ".join(_flat(part) for part in value)
    return str(value).encode("latin-1", "backslashreplace")
