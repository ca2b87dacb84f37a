"""Objects in a folder, on S3 or in Google Cloud Storage.

An object appears whole or not at all, and is on the disk, or confirmed by the store, when ``put`` returns. Names are relative paths.
"""

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

import obstore
from obstore import store as stores
from obstore.exceptions import AlreadyExistsError, BaseError

from shared import errors
from shared.stores import object_credentials

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

S3_CREDENTIALS = tuple(name for name, address in object_credentials.STORES.items() if address == object_credentials.S3)
GOOGLE_CREDENTIALS = tuple(name for name, address in object_credentials.STORES.items() if address == object_credentials.GOOGLE)
#: One request, and between two pieces of a long answer.
_REQUEST_SECONDS = 60
_READ_SECONDS = 30
#: S3 allows 10,000 parts; a part is kept in memory until it is stored.
_PARTS = 5_000
_MIN_PART_BYTES = 5 << 20
_PARTS_AT_ONCE = 2
#: What is read at a time, and given to the caller at a time.
_RANGE_BYTES, _PIECE_BYTES = 8 << 20, 1 << 20
#: obstore writes an unfinished object of a folder under such a name. Another process may be writing one now.
_UNFINISHED = re.compile(r"#\d+$")
_ABANDONED_SECONDS = 3600
#: S3's code for a bucket that does not exist.
_NO_BUCKET = "NoSuchBucket"


class StoreUnavailable(errors.Unavailable):
    """The store does not answer, refuses, or lost what it had confirmed."""


class ObjectMissing(errors.NotFound):
    """The store has no object of this name."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    name: str
    size: int
    #: By the store's clock.
    changed_at: datetime


class ObjectStore(Protocol):
    """Every method raises StoreUnavailable; those that read raise ObjectMissing."""

    async def put(self, name: str, data: bytes) -> None: ...

    async def put_stream(self, name: str, pieces: AsyncIterator[bytes], expected_bytes: int = 0) -> int:
        """Store an object of unknown size in bounded memory, and return its size. ``expected_bytes`` decides the size of its parts."""
        ...

    async def put_if_absent(self, name: str, data: bytes) -> bool:
        """Return False if the object exists. Of two callers at once, one gets True."""
        ...

    async def get(self, name: str, start: int = 0, end: int | None = None) -> bytes: ...

    def read(self, name: str) -> AsyncIterator[bytes]:
        """Yield the pieces of a large object."""
        ...

    async def head(self, name: str) -> StoredObject: ...

    def list(self, prefix: str = "") -> AsyncIterator[StoredObject]:
        """Yield all objects below a folder."""
        ...

    async def delete(self, names: Sequence[str]) -> None:
        """Missing ones are ignored."""
        ...

    async def free_bytes(self) -> int | None:
        """Return what is free on the disk of a folder; None for other stores."""
        ...

    async def delete_unfinished(self) -> None:
        """Delete what uploads that were killed an hour ago left in a folder. S3 does that by a lifecycle rule of the bucket."""
        ...


def open_store(address: str, credentials: Mapping[str, str]) -> ObjectStore:
    """Open ``/folder``, ``s3://bucket/prefix`` or ``gs://bucket/prefix``. ``credentials`` has some of those named above; without
    any, the identity of the machine counts. Raises BadSettings."""
    options: ClientConfig = {"timeout": timedelta(days=1), "read_timeout": timedelta(seconds=_READ_SECONDS)}
    retries: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=_REQUEST_SECONDS)}
    parts = urlsplit(address)
    try:
        if parts.scheme == "s3":
            if credentials.get("AWS_ENDPOINT_URL", "").startswith("http://"):
                options["allow_http"] = True
            chosen: Any = {name: credentials[name] for name in S3_CREDENTIALS if name in credentials}
            return _ObstoreObjects(stores.S3Store.from_url(address, client_options=options, retry_config=retries, config=chosen))
        if parts.scheme == "gs":
            chosen = {name: credentials[name] for name in GOOGLE_CREDENTIALS if name in credentials}
            return _ObstoreObjects(stores.GCSStore.from_url(address, client_options=options, retry_config=retries, config=chosen))
        if parts.scheme or not address.startswith("/"):
            raise errors.BadSettings(f"{address} is no store", hint="give a folder, s3://bucket/prefix or gs://bucket/prefix")
        folder = Path(address)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _ObstoreObjects(stores.LocalStore(folder, mkdir=True), folder)
    except OSError as error:
        raise errors.BadSettings(f"{address} cannot be opened: {error.strerror}", hint="check the folder and its mode") from error
    except BaseError as error:
        raise errors.BadSettings(f"{address} cannot be opened: {_reason(error)}", hint="check the address and its credentials") from error


class _ObstoreObjects:
    def __init__(self, store: stores.S3Store | stores.GCSStore | stores.LocalStore, folder: Path | None = None) -> None:
        self._store = store
        #: Of a store that is a folder.
        self._folder = folder

    async def put(self, name: str, data: bytes) -> None:
        async with _errors(name):
            await obstore.put_async(self._store, name, data, use_multipart=False)
        await self._confirm(name, len(data))

    async def put_stream(self, name: str, pieces: AsyncIterator[bytes], expected_bytes: int = 0) -> int:
        size = 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for piece in pieces:
                size += len(piece)
                yield piece

        part = max(_MIN_PART_BYTES, expected_bytes // _PARTS)
        # The caller's source sets the pace, so only the client's own timeouts apply.
        async with _errors(name, has_deadline=False):
            await obstore.put_async(self._store, name, counted(), use_multipart=True, chunk_size=part, max_concurrency=_PARTS_AT_ONCE)
        await self._confirm(name, size)
        return size

    async def put_if_absent(self, name: str, data: bytes) -> bool:
        async with _errors(name):
            try:
                await obstore.put_async(self._store, name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        await self._confirm(name, len(data))
        return True

    async def get(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        async with _errors(name):
            if end is not None:
                return bytes(await obstore.get_range_async(self._store, name, start=start, end=end))
            got = await obstore.get_async(self._store, name, options={"range": {"offset": start}} if start else None)
            return bytes(await got.bytes_async())

    async def read(self, name: str) -> AsyncIterator[bytes]:
        """By ranges: obstore's stream of a file takes ten times the time."""
        size = (await self.head(name)).size
        for start in range(0, size, _RANGE_BYTES):
            found = await self.get(name, start, min(start + _RANGE_BYTES, size))
            for at in range(0, len(found), _PIECE_BYTES):
                yield found[at : at + _PIECE_BYTES]

    async def head(self, name: str) -> StoredObject:
        async with _errors(name):
            found = await obstore.head_async(self._store, name)
        return StoredObject(name, found["size"], found["last_modified"])

    async def list(self, prefix: str = "") -> AsyncIterator[StoredObject]:
        pages = aiter(obstore.list(self._store, prefix or None, chunk_size=1000))
        while True:
            async with _errors(prefix):
                try:
                    page = await anext(pages)
                except StopAsyncIteration:
                    return
                except BaseError as error:
                    if _NO_BUCKET in str(error):  # as for ``get``: some servers make it with its first object
                        return
                    raise
            for found in page:
                yield StoredObject(found["path"], found["size"], found["last_modified"])

    async def delete(self, names: Sequence[str]) -> None:
        for name in names:
            async with _errors(name):
                with contextlib.suppress(FileNotFoundError):
                    await obstore.delete_async(self._store, name)
            if self._folder is not None:
                await asyncio.to_thread(_remove_empty, self._folder, (self._folder / name).parent)

    async def free_bytes(self) -> int | None:
        return None if self._folder is None else (await asyncio.to_thread(shutil.disk_usage, self._folder)).free

    async def delete_unfinished(self) -> None:
        if self._folder is not None:
            await asyncio.to_thread(_remove_unfinished, self._folder)

    async def _confirm(self, name: str, size: int) -> None:
        """Make sure that the object is there and survives a power failure. Raises StoreUnavailable."""
        if self._folder is not None:
            try:
                await asyncio.to_thread(_sync, self._folder / name)
            except OSError as error:
                raise StoreUnavailable(f"{name} cannot be written: {error.strerror}") from error
        try:
            found = await self.head(name)
        except ObjectMissing:
            found = None
        if found is None or found.size != size:
            raise StoreUnavailable(f"the store confirmed {name} but does not have it", hint="check the store; aimesh tries again")


@contextlib.asynccontextmanager
async def _errors(name: str, *, has_deadline: bool = True) -> AsyncIterator[None]:
    seconds = _REQUEST_SECONDS if has_deadline else None
    try:
        async with asyncio.timeout(seconds):
            yield
    except FileNotFoundError as error:
        raise ObjectMissing(f"the store has no {name}") from error
    except TimeoutError as error:
        raise StoreUnavailable(f"the store did not answer about {name} in {seconds:.0f} s") from error
    except OSError as error:
        raise StoreUnavailable(f"the store failed at {name}: {error.strerror or type(error).__name__}") from error
    except BaseError as error:
        raise StoreUnavailable(f"the store failed at {name}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the first line: the rest is a dump of Rust structures, with addresses and headers."""
    return str(error).partition("\n")[0][:300]


def _sync(path: Path) -> None:
    for each in (path, path.parent):
        handle = os.open(each, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove_empty(root: Path, folder: Path) -> None:
    while folder != root:
        try:
            folder.rmdir()
        except OSError:  # not empty
            return
        folder = folder.parent


def _remove_unfinished(root: Path) -> None:
    for path in _files(root):
        with contextlib.suppress(FileNotFoundError):  # it was finished meanwhile
            if _UNFINISHED.search(path.name) and path.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                path.unlink()


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder) / name for name in names)
