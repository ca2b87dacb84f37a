"""Reads and writes the tables of files. Every method may raise Unavailable."""

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from features.files.contract import FileFacts, FileId, FilePurpose, ListFiles
from features.files.gateway.rules.sealed_parts import INLINE_BYTES
from shared import errors
from shared.amounts import show_bytes
from shared.protocol import public_ids
from shared.stores import database
from shared.stores.database import DatabaseRow, Transaction
from shared.types import TenantId, UserId

PREFIX = "file"
#: An upload ends within an hour; what is older has lost its gateway.
DEAD_SECONDS = 2 * 3600.0
_MAX_DEAD = 100


@dataclass(frozen=True, slots=True)
class FileOwner:
    """Whose files they are, who stores them, and how many bytes all of them may have; None: any number."""

    tenant: TenantId
    user: UserId
    most_bytes: int | None


@dataclass(frozen=True, slots=True)
class NewFile:
    """What is known of a file at the end of its upload."""

    name: str
    purpose: FilePurpose
    #: After its creation; None: never.
    expires_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class WrittenPart:
    size: int
    #: Sealed; None: an object on the store.
    content: bytes | None


@dataclass(frozen=True, slots=True)
class StoredFile:
    id: UUID
    tenant: TenantId
    facts: FileFacts


class FileRows:
    def __init__(self, opened: database.Database) -> None:
        self._database = opened

    async def begin(self, owner: FileOwner, file: UUID, announced: int) -> bool:
        """Return False if it is complete already. Raises NotAllowed if all files together would have too many bytes."""
        async with self._database.bound(owner.tenant) as transaction:
            await _ensure_room(transaction, owner, file, announced)
            return await transaction.row("begin_file", file, owner.tenant, owner.user, announced, DEAD_SECONDS) is not None

    async def finish(self, owner: FileOwner, file: UUID, new: NewFile, sha256: bytes, parts: Sequence[WrittenPart]) -> StoredFile:
        """Raises NotAllowed like ``begin``."""
        size, starts = 0, list[int]()
        for part in parts:
            starts.append(size)
            size += part.size
        async with self._database.bound(owner.tenant, deadline_seconds=30) as transaction:
            await _ensure_room(transaction, owner, file, size)
            row = await transaction.row("finish_file", file, new.name, new.purpose, size, sha256, new.expires_seconds)
            if row is None:
                raise errors.Unavailable("the upload took too long", hint="upload the file again")
            sizes, contents = [part.size for part in parts], [part.content for part in parts]
            await transaction.run("add_file_parts", file, owner.tenant, list(range(len(parts))), starts, sizes, contents)
        return _file(row)

    async def find(self, tenant: TenantId, file: FileId) -> StoredFile:
        """Raises NotFound."""
        return await self._find(tenant, public_ids.decode(PREFIX, file), file, for_job=False)

    async def find_used(self, tenant: TenantId, file: UUID) -> StoredFile:
        """Return a file for a job, also if its owner doesn't see it or its time is over. Raises NotFound."""
        return await self._find(tenant, file, public_ids.encode(PREFIX, file), for_job=True)

    async def _find(self, tenant: TenantId, file: UUID | None, shown: str, *, for_job: bool) -> StoredFile:
        async with self._database.bound(tenant) as transaction:
            row = await transaction.row("find_file", file, tenant, for_job)
        if row is None:
            raise missing(shown)
        return _file(row)

    async def page(self, tenant: TenantId, asked: ListFiles) -> list[FileFacts]:
        """Return one more than asked for, if there are more."""
        after = None if asked.after is None else public_ids.decode(PREFIX, asked.after)
        query = "list_files_newest" if asked.order == "desc" else "list_files_oldest"
        async with self._database.bound(tenant) as transaction:
            return [_file(row).facts for row in await transaction.rows(query, tenant, after, asked.purpose, asked.limit + 1)]

    async def list_parts(self, file: StoredFile) -> list[tuple[int, bool]]:
        """Return the sizes of the parts, and whether each is an object."""
        async with self._database.bound(file.tenant) as transaction:
            return [(row["bytes"], row["is_object"]) for row in await transaction.rows("list_file_parts", file.id)]

    async def read_part(self, file: StoredFile, number: int) -> bytes | None:
        async with self._database.bound(file.tenant) as transaction:
            content: bytes | None = await transaction.value("read_file_part", file.id, number)
            return content

    async def give_up(self, tenant: TenantId, file: UUID) -> bool:
        """Let nobody read it any more. Return False if there is none, or a job uses it."""
        async with self._database.bound(tenant) as transaction:
            return await transaction.run("give_up_file", file, tenant) == 1

    async def erase(self, tenant: TenantId) -> None:
        async with self._database.bound(tenant) as transaction:
            await transaction.run("erase_files", tenant)

    # --- of all tenants

    async def list_dead(self) -> list[UUID]:
        """Return files whose objects may go, after those that have expired."""
        await self._database.run("expire_files")
        return [row["id"] for row in await self._database.rows("list_dead_files", _MAX_DEAD)]

    async def drop(self, file: UUID) -> None:
        await self._database.run("drop_file", file)

    async def find_known(self, files: Collection[UUID]) -> set[UUID]:
        return {row["id"] for row in await self._database.rows("find_known_files", list(files))}

    async def ensure_store(self, write: Callable[[UUID], Awaitable[None]]) -> UUID:
        """Return the id of the store. The first gateway writes it to the store; one with another folder then does not find it."""
        row = await self._database.row("find_file_store")
        if row is None or not row["is_written"]:
            await self._database.run("ensure_file_store")
            async with self._database.transaction(deadline_seconds=30) as transaction:
                row = await transaction.row("lock_file_store")
                assert row is not None
                if not row["is_written"]:
                    await write(row["id"])
                    await transaction.run("mark_file_store")
        store: UUID = row["id"]
        return store

    async def measure(self) -> tuple[int, int]:
        """Return the bytes of all files of at most INLINE_BYTES, and of all others."""
        row = await self._database.row("measure_all_files", INLINE_BYTES, deadline_seconds=60)
        assert row is not None
        return row["small"], row["large"]

    async def take_search(self, seconds: float) -> bool:
        """Return whether this gateway looks for objects without a row."""
        return bool(await self._database.value("take_file_search", seconds))


def missing(file: str) -> errors.NotFound:
    return errors.NotFound(f"there is no file {file[:60]!r}", hint="GET /v1/files lists yours")


async def _ensure_room(transaction: Transaction, owner: FileOwner, file: UUID, size: int) -> None:
    if owner.most_bytes is None:
        return
    await transaction.run("lock_file_quota", owner.tenant)
    used: int = await transaction.value("measure_files", owner.tenant, file)
    if used + size > owner.most_bytes:
        raise errors.NotAllowed(
            f"your files have {show_bytes(used)} ({used} bytes); with {size} more they would exceed the limit of {owner.most_bytes} bytes",
            hint="delete files, or ask an administrator for a higher file_bytes of your plan",
        )


def _file(row: DatabaseRow) -> StoredFile:
    public = public_ids.encode(PREFIX, row["id"])
    facts = FileFacts(public, row["name"], FilePurpose(row["purpose"]), row["bytes"], row["created_at"], row["expires_at"])
    return StoredFile(row["id"], TenantId(row["tenant_id"]), facts)
