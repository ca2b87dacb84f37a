"""Stores and reads whole files: sealed parts, quotas, and the end of files that are deleted or have expired.

Memory is bounded: an upload holds a part that arrives and one that is being stored, a download one part.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from typing import TYPE_CHECKING
from uuid import UUID

from features.files import contract as api
from features.files import feature
from features.files.contract import FileFacts, FileId, FilePurpose
from features.files.feature import FILE
from features.files.gateway.file_objects import FileObjects
from features.files.gateway.rules import sealed_parts
from features.files.gateway.rules.sealed_parts import INLINE_BYTES, PART_BYTES, PartPlace, PartSplitter
from features.files.gateway.store import FileOwner, FileRows, NewFile, StoredFile, WrittenPart
from shared import context, errors
from shared.api.auth import Principal
from shared.api.gateway import Check
from shared.api.method import Nothing
from shared.background.items import BackgroundItems
from shared.protocol.request_memory import HeldRequest, RequestMemory
from shared.rpc import RpcCall, serves
from shared.rpc.audit_reporting import AuditReporting
from shared.telemetry import logs
from shared.types import TenantId, UserId

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

#: Of a part in memory: plain and sealed, and of an upload one more, which arrives. Sealing one needs four more for a moment.
_UPLOAD_COPIES, _DOWNLOAD_COPIES = 3, 2
#: Looking for objects without a row lists the whole store.
_SEARCH_SECONDS = 24 * 3600.0

#: ``shared.node`` allows 2 s for all checks of a service together.
_CHECK_SECONDS = 1.5

_log = logs.get(part="files")


#: Seals a part, and adds it to the hash of its file.
Seal = Callable[[PartPlace, bytearray, "Hash"], Awaitable[bytes]]


class FileStorage:
    """Raises Unavailable without a store."""

    def __init__(
        self,
        rows: FileRows,
        objects: FileObjects | None,
        memory: RequestMemory,
        audit_reporting: AuditReporting,
        *,
        items: BackgroundItems,
        secret: str,
    ) -> None:
        self._items = items
        self._rows, self._objects, self._memory, self._audit_reporting, self._secret = rows, objects, memory, audit_reporting, secret
        #: One part is sealed or opened at a time.
        self._sealing = asyncio.Lock()

    async def store(
        self, owner: FileOwner, pieces: AsyncIterator[bytes], describe: Callable[[], NewFile], *, announced: int = 0
    ) -> FileFacts:
        """Store a file, or nothing. ``describe`` is called at its end; ``announced``: its least size.

        Raises what ``pieces`` and ``describe`` raise; TooLarge, NotAllowed for a full quota, InsufficientStorage; Limited and Overloaded.
        """
        objects = await self._get_objects()
        _ensure_allowed(announced)
        with self._memory.hold(0, owner.tenant) as held:
            file = context.new_request_id()
            if announced:
                await objects.ensure_room(announced)
            await self._rows.begin(owner, file, announced)
            try:
                writing = _Writing(objects, owner.tenant, file, self._seal, held, most_bytes=feature.MAX_FILE_BYTES)
                await writing.run(pieces)
                new = describe()
                _ensure_allowed(writing.size, new.purpose)
                return (await self._rows.finish(owner, file, new, writing.digest(), writing.parts)).facts
            except Exception:
                with suppress(errors.AimeshError):  # the next round of ``clean`` does it
                    await self.give_up(owner.tenant, file)
                raise

    async def write(self, tenant: TenantId, user: UserId, file: UUID, pieces: AsyncIterator[bytes], new: NewFile) -> None:
        """Store what a job has, under its own id and whatever the quota; nothing if that is done. Several gateways may do so, one after
        another's end, with the same bytes: what one leaves is written again. Raises what ``pieces`` raises, InsufficientStorage,
        Overloaded, and NotFound while an old one is being deleted."""
        objects, owner = await self._get_objects(), FileOwner(tenant, user, None)
        with self._memory.hold(0) as held:
            if not await self._rows.begin(owner, file, 0):
                # One that was left half-written for hours is deleted first.
                await self._rows.find_used(tenant, file)
                return
            writing = _Writing(objects, tenant, file, self._seal, held)
            await writing.run(pieces)
            await self._rows.finish(owner, file, new, writing.digest(), writing.parts)

    async def give_up(self, tenant: TenantId, file: UUID) -> None:
        """Delete a file that nobody has seen, unless a job uses it."""
        if await self._rows.give_up(tenant, file):
            await self._drop(file)

    async def find(self, tenant: TenantId, file: FileId) -> StoredFile:
        """Raises NotFound."""
        await self._get_objects()
        return await self._rows.find(tenant, file)

    async def find_used(self, tenant: TenantId, file: UUID) -> StoredFile:
        """Return a file for a job, also if its owner doesn't see it or its time is over. Raises NotFound."""
        await self._get_objects()
        return await self._rows.find_used(tenant, file)

    async def read(self, file: StoredFile, start: int, end: int) -> AsyncGenerator[bytes]:
        """Yield the bytes from ``start`` to ``end``. Raises FileDamaged, NotFound if it is deleted meanwhile, Limited and Overloaded."""
        objects = await self._get_objects()
        with self._memory.hold(_DOWNLOAD_COPIES * min(PART_BYTES, file.facts.size), file.tenant):
            parts = await self._rows.list_parts(file)
            if sum(size for size, _ in parts) != file.facts.size:
                await self._rows.find_used(file.tenant, file.id)
                raise errors.FileDamaged("a part of the file is missing", hint="upload the file again")
            for number, wanted in sealed_parts.slices([size for size, _ in parts], start, end):
                size, is_object = parts[number]
                try:
                    sealed = await objects.get(file.id, number) if is_object else await self._rows.read_part(file, number)
                except errors.FileDamaged:
                    await self._rows.find_used(file.tenant, file.id)
                    raise
                place = PartPlace(file.tenant, file.id, number, is_last=number == len(parts) - 1)
                async with self._sealing:
                    plain = await asyncio.to_thread(place.unseal, sealed or b"", size, self._secret)
                del sealed
                yield plain[wanted] if wanted != slice(0, size) else plain

    # --- methods

    @serves(api.list_files)
    async def list(self, request: api.ListFiles, call: RpcCall) -> api.Files:
        return await self.list_of(call.principal.tenant_id, request)

    async def list_of(self, tenant: TenantId, request: api.ListFiles) -> api.Files:
        if self._objects is None:
            return api.Files(())
        await self._get_objects()
        found = await self._rows.page(tenant, request)
        return api.Files(tuple(found[: request.limit]), has_more=len(found) > request.limit)

    @serves(api.get_file)
    async def get(self, request: api.GetFile, call: RpcCall) -> FileFacts:
        return (await self.find(call.principal.tenant_id, request.id)).facts

    @serves(api.delete_file)
    async def delete(self, request: api.DeleteFile, call: RpcCall) -> Nothing:
        await self.delete_of(call.principal, request.id)
        return Nothing()

    async def delete_of(self, by: Principal, file: FileId) -> None:
        """Raises NotFound, and InUse. What the store doesn't delete now is deleted later, and can't be read meanwhile."""
        found = await self.find(by.tenant_id, file)
        if not await self._rows.give_up(by.tenant_id, found.id):
            await self._rows.find(by.tenant_id, file)
            raise errors.InUse(f"a job uses the file {file}", hint="cancel the batch, or wait for its end")
        self._audit_reporting.report_action("file.delete", by, tenant=by.tenant_id, target=file)
        try:
            await self._drop(found.id)
        except errors.Unavailable as error:
            _log.warning("the objects of a deleted file stay for now", file=file, reason=error.message)

    async def erase(self, tenant: TenantId) -> None:
        """``clean`` removes the objects."""
        await self._rows.erase(tenant)

    # --- jobs

    async def clean(self) -> None:
        """Delete what has expired, what uploads and deletions that broke off have left and, once a day over all gateways, objects that no
        file has."""
        objects = await self._get_objects()
        while dead := await self._rows.list_dead():
            await self._items.each(FILE, dead, self._drop, str)
        if await self._rows.take_search(_SEARCH_SECONDS) and (deleted := await objects.delete_orphans()):
            _log.info("objects without a file deleted", objects=deleted)
        await objects.measure()

    async def checks(self) -> tuple[Check, ...]:
        """Return whether files can be read, if this mesh has files; before the caller's timeout."""
        if self._objects is None:
            return ()
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                await self._objects.ensure_own()
        except TimeoutError:
            return (Check("files", ok=False, detail="the store does not answer in time", needed=False),)
        except errors.Unavailable as error:
            return (Check("files", ok=False, detail=f"{error.message}; {error.hint}", needed=False),)
        return (Check("files", ok=True, needed=False),)

    async def _seal(self, place: PartPlace, part: bytearray, whole: "Hash") -> bytes:
        def seal() -> bytes:
            whole.update(part)
            return place.seal(part, self._secret)

        async with self._sealing:
            return await asyncio.to_thread(seal)

    async def _drop(self, file: UUID) -> None:
        await (await self._get_objects()).delete(file)
        await self._rows.drop(file)

    async def _get_objects(self) -> FileObjects:
        if self._objects is None:
            raise errors.Unavailable("this mesh has no store for files", hint="set OBJECT_STORE or FILES_URL for the gateway")
        await self._objects.ensure_own()
        return self._objects


class _Writing:
    """Writes a part while the next one arrives."""

    def __init__(
        self, objects: FileObjects, tenant: TenantId, file: UUID, seal: Seal, held: HeldRequest, *, most_bytes: int | None = None
    ) -> None:
        self._objects, self._tenant, self._file, self._seal, self._held = objects, tenant, file, seal, held
        self._most_bytes = most_bytes
        self._hash = sha256()
        self.size = 0
        self.parts: list[WrittenPart] = []

    async def run(self, pieces: AsyncIterator[bytes]) -> None:
        parts = self._collect(pieces)
        part, is_last = await anext(parts)
        while not is_last:
            # If one fails, the other still ends: obstore may finish a write that is canceled, after the file was given up.
            written, following = await asyncio.gather(self._write(part, is_last=False), anext(parts), return_exceptions=True)
            for each in (written, following):
                if isinstance(each, BaseException):
                    raise each
            assert isinstance(following, tuple)
            part, is_last = following
        await self._write(part, is_last=True)

    def digest(self) -> bytes:
        return self._hash.digest()

    async def _collect(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytearray, bool]]:
        """Yield the parts, and whether each is the last."""
        splitter = PartSplitter()
        async for piece in pieces:
            self.size += len(piece)
            if self._most_bytes is not None:
                _ensure_allowed(self.size)
            self._held.resize(_UPLOAD_COPIES * min(PART_BYTES, self.size))
            for part in splitter.push(piece):
                yield part, False
        yield splitter.end(), True

    async def _write(self, part: bytearray, *, is_last: bool) -> None:
        place, size = PartPlace(self._tenant, self._file, len(self.parts), is_last), len(part)
        sealed = await self._seal(place, part, self._hash)
        is_inline = is_last and self.size <= INLINE_BYTES
        if not is_inline:
            await self._objects.put(self._file, place.number, sealed)
        self.parts.append(WrittenPart(size, sealed if is_inline else None))


def _ensure_allowed(size: int, purpose: FilePurpose | None = None) -> None:
    most = feature.MAX_BATCH_BYTES if purpose is FilePurpose.BATCH else feature.MAX_FILE_BYTES
    if size > most:
        what = "a file for a batch" if purpose is FilePurpose.BATCH else "a file"
        raise errors.TooLarge(f"{what} may have at most {most} bytes", hint="split it into several files")
