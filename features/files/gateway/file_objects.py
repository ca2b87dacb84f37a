"""Keeps the parts of large files on an object store, and makes sure that it is the store that PostgreSQL knows."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import UUID

from features.files import instruments
from features.files.gateway.rules import sealed_parts
from features.files.gateway.store import FileRows
from shared import config, errors
from shared.amounts import show_bytes
from shared.stores import object_credentials, objects
from shared.stores.objects import ObjectMissing, ObjectStore, StoreUnavailable
from shared.telemetry import Metrics

#: Says which store it is.
_NAME = "aimesh-store"
#: A store may be exchanged, or its folder unmounted, while a gateway runs.
_TRUSTED_SECONDS = 60.0
#: The store is tried so often, and must answer in time. The alert files_unavailable counts on a failure in each minute.
_TRY_SECONDS, _ANSWER_SECONDS = 15.0, 10.0
#: Stays free on the disk of a folder.
_RESERVE_BYTES = 1 << 30
_ORPHAN_AGE = timedelta(days=1)
#: How many objects are looked up at once.
_BATCH = 1000


class OtherStore(errors.Unavailable):
    """The store isn't the one with the files that PostgreSQL knows."""


class FileObjects:
    """Every method raises Unavailable."""

    def __init__(self, store: ObjectStore, rows: FileRows, metrics: Metrics, scheme: str = "file") -> None:
        self._store, self._rows = store, rows
        self._errors, self._bytes = metrics.counter(instruments.FILE_STORE_ERRORS), metrics.gauge(instruments.FILES_BYTES)
        #: The label of the store.
        self._scheme = scheme
        self._errors.labels(scheme)
        self._trusted_until = 0.0

    @classmethod
    def open(cls, address: str, settings: config.Settings, rows: FileRows, metrics: Metrics) -> "FileObjects":
        """Raises BadSettings."""
        return cls(objects.open_store(address, object_credentials.of(settings)), rows, metrics, urlsplit(address).scheme or "file")

    async def watch(self) -> None:
        """Try the store until canceled, so that a failure is seen also while no file is needed."""
        while True:
            with suppress(errors.Unavailable, TimeoutError), self._counted():
                async with asyncio.timeout(_ANSWER_SECONDS):
                    await self._ensure_own()
            await asyncio.sleep(_TRY_SECONDS)

    async def measure(self) -> None:
        small, large = await self._rows.measure()
        self._bytes.labels("database").set(small)
        self._bytes.labels(self._scheme).set(large)

    async def ensure_own(self) -> None:
        """Raise OtherStore unless it is the store that PostgreSQL knows."""
        if time.monotonic() >= self._trusted_until:
            with self._counted():
                await self._ensure_own()

    async def _ensure_own(self) -> None:
        expected = await self._rows.ensure_store(self._write_id)
        try:
            found = (await self._store.get(_NAME)).decode(errors="replace")
        except ObjectMissing:
            found = "none"
        if found != str(expected):
            raise OtherStore(
                f"the store of files has the id {found[:40]}, not {expected}",
                hint=f"let FILES_URL name the store with the files; to go on without lost ones, write {expected} to its object {_NAME}",
            )
        self._trusted_until = time.monotonic() + _TRUSTED_SECONDS

    async def _write_id(self, store: UUID) -> None:
        await self._store.put_if_absent(_NAME, str(store).encode())

    async def ensure_room(self, size: int) -> None:
        """Raise InsufficientStorage unless a folder's disk has room."""
        free = await self._store.free_bytes()
        if free is not None and free < size + _RESERVE_BYTES:
            room = show_bytes(max(0, free - _RESERVE_BYTES))
            raise errors.InsufficientStorage(
                f"the file needs {show_bytes(size)}, and {room} are free", hint="free disk space at the gateway, or set FILES_URL"
            )

    async def put(self, file: UUID, number: int, sealed: bytes) -> None:
        """Raises InsufficientStorage, too."""
        await self.ensure_room(len(sealed))
        with self._counted():
            try:
                await self._store.put(sealed_parts.object_name(file, number), sealed)
            except StoreUnavailable:
                # A full disk, or quota, looks like any other failure.
                await self.ensure_room(len(sealed))
                raise

    async def get(self, file: UUID, number: int) -> bytes:
        """Raises FileDamaged."""
        try:
            with self._counted():
                return await self._store.get(sealed_parts.object_name(file, number))
        except ObjectMissing as error:
            raise errors.FileDamaged(f"part {number} of the file is missing in the store", hint="upload the file again") from error

    async def delete(self, file: UUID) -> None:
        await self._store.delete([found.name async for found in self._store.list(sealed_parts.folder(file))])

    async def delete_orphans(self) -> int:
        """Delete objects of files that PostgreSQL doesn't know, if they are a day old. Return how many."""
        await self._store.delete_unfinished()
        deleted = 0
        async for names in self._old_objects():
            known = await self._rows.find_known({file for file in names.values() if file is not None})
            orphans = [name for name, file in names.items() if file not in known]
            await self._store.delete(orphans)
            deleted += len(orphans)
        return deleted

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except (StoreUnavailable, OtherStore, TimeoutError):
            self._errors.labels(self._scheme).inc()
            raise

    async def _old_objects(self) -> AsyncIterator[dict[str, UUID | None]]:
        """Yield names of objects with their files; None for what is none."""
        before, batch = datetime.now(UTC) - _ORPHAN_AGE, dict[str, UUID | None]()
        async for found in self._store.list("files"):
            if found.changed_at < before:
                batch[found.name] = _file_of(found.name)
            if len(batch) == _BATCH:
                yield batch
                batch = {}
        yield batch


def _file_of(name: str) -> UUID | None:
    try:
        return UUID(name.split("/")[1])
    except (ValueError, IndexError):
        return None
