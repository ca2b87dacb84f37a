"""Carries files of versions to and from the mesh, in pieces. A lost connection continues."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cli.output.progress_line import ProgressLine
from shared import api, errors, http_refusals
from shared.api.gateway import HttpRequest
from shared.api.inference import PullProgress
from shared.timing.backoff import Backoff
from shared.timing.transfer_speed import TransferSpeed

if TYPE_CHECKING:
    from cli.connection import CliConnection
    from shared.api.models import BlobUpload

#: A piece of a transfer, and what is read from a disk at a time.
PIECE_BYTES, READ_BYTES = 8 << 20, 1 << 20
CHECK_SECONDS = 0.5
#: Failures in a row.
MAX_FAILURES = 10
BACKOFF = Backoff(first_seconds=0.5, longest_seconds=15.0)

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Blob:
    """What is uploaded: a file, or a few bytes."""

    digest: str
    size: int
    content: Path | bytes

    def read(self, start: int) -> bytes:
        if isinstance(self.content, bytes):
            return self.content[start : start + PIECE_BYTES]
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(PIECE_BYTES)


class Transfer:
    """Shows how far all files together are."""

    def __init__(self, step: str, total: int, show: ProgressLine) -> None:
        self._step, self._total, self._show = step, total, show
        self._speed = TransferSpeed(time.monotonic())
        #: ``done`` counts what an earlier transfer left, too.
        self.done = self.moved = 0

    def add(self, size: int) -> None:
        self.done, self.moved = self.done + size, self.moved + size
        self._show(PullProgress(self._step, self.done, self._total, self._speed.measure(time.monotonic(), self.moved)))

    def wait(self) -> None:
        self._show(PullProgress("checking", self.done, self._total))


async def upload(connection: "CliConnection", blobs: Sequence[Blob], show: ProgressLine) -> None:
    """Upload what the mesh lacks. Raises BadRequest if a file changes meanwhile."""
    transfer, before = Transfer("uploading", sum(blob.size for blob in blobs), show), 0
    for blob in blobs:
        failures, is_begun = 0, False
        while not (found := await persist(lambda: _find(connection, blob))).is_stored:  # noqa: B023
            if is_begun and found.actual_digest is not None:
                raise errors.BadRequest(f"{blob.digest} arrived as {found.actual_digest}: the file has changed", hint="push it again")
            at, is_begun = 0 if found.actual_digest else found.next_offset, True
            transfer.done = before + at
            if at == blob.size:
                transfer.wait()
                await asyncio.sleep(CHECK_SECONDS)
                continue
            try:
                while at < blob.size:
                    size = await _send(connection, blob, at)
                    at, failures = at + size, 0
                    transfer.add(size)
            except (errors.PeerError, errors.AlreadyExists) as error:
                # The connection broke, or an earlier piece arrived after all.
                failures = await _pause(failures, error)
        before += blob.size


async def read(connection: "CliConnection", digest: str, max_bytes: int) -> bytes:
    """Return a small blob. Raises BadRequest if it is longer, and PeerError if it is another one."""
    from shared.models import manifest

    data, size = await persist(lambda: _receive(connection, digest, 0, max_bytes))
    if size > max_bytes:
        raise errors.BadRequest(f"{digest} has {size} bytes; the max is {max_bytes}", hint="push the model again")
    if (actual := manifest.digest_of(data)) != digest:
        raise _damaged(digest, actual)
    return data


async def download(connection: "CliConnection", digest: str, size: int, partial: Path, transfer: Transfer) -> None:
    """Write a blob, after what is there of it. Raises PeerError if the mesh has another one."""
    whole = sha256()
    at = await asyncio.to_thread(_continue, partial, size, whole.update)
    transfer.done += at

    def append(data: bytes) -> None:
        whole.update(data)
        with partial.open("ab") as file:
            file.write(data)

    while at < size:
        data, _ = await persist(lambda: _receive(connection, digest, at, min(PIECE_BYTES, size - at)))  # noqa: B023
        await asyncio.to_thread(append, data)
        at += len(data)
        transfer.add(len(data))
    if (actual := f"sha256:{whole.hexdigest()}") != digest:
        os.truncate(partial, 0)
        raise _damaged(digest, actual)


async def persist(ask: Callable[[], Awaitable[Found]]) -> Found:
    """Ask again while gateways are lost or restart. Raises the last error."""
    failures = 0
    while True:
        try:
            return await ask()
        except errors.PeerError as error:
            failures = await _pause(failures, error)


def read_file(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            yield data


async def _pause(failures: int, error: errors.AimeshError) -> int:
    """Return the number of failures in a row. Raises the error after several."""
    if failures + 1 == MAX_FAILURES:
        raise error
    await asyncio.sleep(BACKOFF.pause(failures + 1))
    return failures + 1


async def _find(connection: "CliConnection", blob: Blob) -> "BlobUpload":
    (found,) = (await connection.call(api.models.find_model_blobs, api.models.FindModelBlobs((blob.digest,)))).blobs
    return found


async def _send(connection: "CliConnection", blob: Blob, start: int) -> int:
    """Upload the piece at ``start``, and return its size. Raises the gateway's error."""
    data = await asyncio.to_thread(blob.read, start)
    content_range = b"bytes %d-%d/%d" % (start, start + len(data) - 1, blob.size)
    headers = ((b"content-range", content_range), (b"content-type", b"application/octet-stream"))
    await ask_http(connection, HttpRequest("PATCH", f"/api/models/blobs/{blob.digest}", headers=headers, body=data))
    return len(data)


async def _receive(connection: "CliConnection", digest: str, start: int, length: int) -> tuple[bytes, int]:
    """Return bytes of a blob and its size. Raises the gateway's error."""
    wanted = ((b"range", b"bytes=%d-%d" % (start, start + length - 1)),)
    headers, data = await ask_http(connection, HttpRequest("GET", f"/api/models/blobs/{digest}", headers=wanted))
    whole = headers.get(b"content-range", b"").rpartition(b"/")[2]
    if not 0 < len(data) <= length or not whole.isdigit():
        raise errors.ProtocolViolation(f"{len(data)} bytes of {digest} came instead of {length}")
    return data, int(whole)


async def ask_http(connection: "CliConnection", request: HttpRequest) -> tuple[dict[bytes, bytes], bytes]:
    """Return the headers and the body of an answer. Raises the gateway's error."""
    status, headers, body = 0, dict[bytes, bytes](), bytearray()
    async with connection.http(request) as parts:
        async for part in parts:
            status, headers = status or part.status, headers or dict(part.headers)
            body += part.body
    if status >= 400:
        raise http_refusals.read(status, bytes(body))
    return headers, bytes(body)


def _continue(partial: Path, size: int, hash_also: Callable[[bytes], None]) -> int:
    """Return how much of a blob is there."""
    partial.touch()
    if partial.stat().st_size > size:
        os.truncate(partial, 0)
    for data in read_file(partial):
        hash_also(data)
    return partial.stat().st_size


def _damaged(digest: str, actual: str) -> errors.PeerError:
    return errors.PeerError(f"the mesh's store has {actual} under {digest}", hint="push the version again, and then export it")
