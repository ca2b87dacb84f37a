"""Compresses and encrypts what goes into the store: zstandard, then age. Streams in bounded memory; the work is done in threads."""

import asyncio
import contextlib
import fcntl
import functools
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

import msgspec

from shared import errors
from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from shared.node.lifecycle import background
from shared.types import MeshName, NodeId

if TYPE_CHECKING:
    from pyrage.x25519 import Identity

SUFFIX = ".zst.age"
#: 250 MB/s per core; level 3 takes twice the time for a tenth less.
_LEVEL = 1
_PIECE_BYTES = 1 << 20
_PURPOSE = "backup-object"
_USE_ANOTHER = "use another backup: aicli stack backups"
#: The largest object that is sealed in memory: a segment of the write-ahead log has up to 1 GiB, by default 16 MiB.
MAX_BYTES = 1 << 30


class WrongIdentity(errors.BadSettings):
    """The given identity opens none of this."""


class DamagedObject(errors.BadSettings):
    """An object of the store was truncated, changed or swapped. The message names it."""


class SignedObject(msgspec.Struct, frozen=True, array_like=True):
    """What a small object contains: only this mesh's key can make one, and only for this name."""

    data: bytes
    key: NodeId
    signature: bytes


def new_identity() -> str:
    """Return a secret in the form of age's own tools."""
    from pyrage import x25519

    return str(x25519.Identity.generate())


def recipient_of(identity: str) -> str:
    return str(_identity(identity).to_public())


def read_identities(path: Path) -> tuple[str, ...]:
    """Read a file of age identities, one on each line. Raises BadSettings."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.BadSettings(f"the identity {path} cannot be read: {error}", hint="give the file that `keygen` wrote") from error
    found = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not found:
        raise errors.BadSettings(f"{path} contains no identity", hint="give the file that `keygen` wrote")
    for text in found:
        _identity(text)
    return found


@contextlib.asynccontextmanager
async def sealed(source: BinaryIO, recipients: Sequence[str]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Give the sealed pieces of ``source``, whose end the caller brings about: close it, or end the program that writes it."""
    reading, writing = open_pipe()

    def work() -> None:
        with os.fdopen(writing, "wb", _PIECE_BYTES) as sink:
            _seal(source, sink, recipients)

    loop = asyncio.get_running_loop()
    stream = asyncio.StreamReader(limit=_PIECE_BYTES)
    protocol = asyncio.StreamReaderProtocol(stream)
    working = _start(work)
    transport, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(reading, "rb", 0))

    async def pieces() -> AsyncIterator[bytes]:
        while piece := await stream.read(_PIECE_BYTES):
            yield piece
        # Only now is it known that nothing is missing.
        await working

    try:
        yield pieces()
    finally:
        transport.close()
        await asyncio.wait([working])
        working.exception()
        # The transport closes its end of the pipe in the next round of the loop.
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def unsealed(pieces: AsyncIterator[bytes], identities: Sequence[str], most_bytes: int) -> AsyncIterator[BinaryIO]:
    """Give the content as a file to read in a thread. More than ``most_bytes`` are refused. Raises WrongIdentity and DamagedObject."""
    sealed_end, feed = open_pipe()
    plain_end, plain = open_pipe()
    #: The first one explains the others.
    failures: list[Exception] = []

    def work() -> None:
        source, opened = os.fdopen(sealed_end, "rb", _PIECE_BYTES), os.fdopen(plain, "wb", _PIECE_BYTES)
        with contextlib.suppress(BrokenPipeError), source, opened:
            try:
                _open(source, opened, identities, most_bytes)
            except (errors.AimeshError, OSError) as error:
                # Before the reader sees the end.
                failures.append(error)

    file, sink = os.fdopen(plain_end, "rb", _PIECE_BYTES), os.fdopen(feed, "wb", _PIECE_BYTES)
    working = _start(work)

    causes: list[Exception] = []
    try:
        async with background() as tasks:
            tasks.create_task(_fill(pieces, sink, failures))
            try:
                yield file
            finally:
                causes = [error for error in failures if not isinstance(error, BrokenPipeError)]
                await asyncio.wait([_start(file.close), _start(functools.partial(_close, sink)), working])
    except BaseException as error:
        if causes and isinstance(error, Exception):
            raise causes[0] from error
        raise
    if causes:
        raise causes[0]


async def _fill(pieces: AsyncIterator[bytes], sink: BinaryIO, failures: list[Exception]) -> None:
    def write(piece: bytes) -> None:
        sink.write(piece)
        sink.flush()

    try:
        async for piece in pieces:
            writing = _start(functools.partial(write, piece))
            try:
                await asyncio.shield(writing)
            finally:
                # The reader of ``sink`` ends when its own reader or its source has ended, and that ends this.
                await asyncio.wait([writing])
                writing.exception()
    except BrokenPipeError:  # it has given up, and says why
        pass
    except (errors.AimeshError, OSError, ValueError) as error:  # ValueError: ``sink`` was closed
        failures.append(error)
    await _start(functools.partial(_close, sink))


def salted_digests(root: Path, paths: Iterable[Path], salt: str) -> dict[str, str]:
    """Return the SHA-256 of salt and content of each file below ``root``. Blocks."""
    return {str(path): hashlib.sha256(salt.encode() + (root / path).read_bytes()).hexdigest() for path in paths}


def _start(work: Callable[[], None]) -> "asyncio.Future[None]":
    """Run it in its own thread: it closes its ends of the pipes, and others wait for that, so it must not wait for a free thread."""
    pool = ThreadPoolExecutor(1)
    try:
        return asyncio.get_running_loop().run_in_executor(pool, work)
    finally:
        pool.shutdown(wait=False)


def open_pipe() -> tuple[int, int]:
    """Return a pipe that takes a whole piece: with 64 KiB, the threads at its ends wait for each other, which takes a third longer."""
    reading, writing = os.pipe()
    with contextlib.suppress(OSError, AttributeError):  # this user has too many, or it is not Linux
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIECE_BYTES)
    return reading, writing


def _close(sink: BinaryIO) -> None:
    with contextlib.suppress(BrokenPipeError):
        sink.close()


def seal_bytes(name: str, data: bytes, key: NodeKey, mesh: MeshName, recipients: Sequence[str]) -> bytes:
    """Seal a small object, signed together with its name. Blocks."""
    signed = SignedObject(data, key.id, key.sign(_PURPOSE, _signed_text(mesh, name, data)))
    sink = BytesIO()
    _seal(BytesIO(msgspec.msgpack.encode(signed)), sink, recipients)
    return sink.getvalue()


def open_bytes(name: str, body: bytes, identities: Sequence[str], keys: Collection[NodeId], mesh: MeshName) -> bytes:
    """Blocks. Raises WrongIdentity, and DamagedObject if it was changed, or written by another mesh or for another name."""
    sink = BytesIO()
    try:
        _open(BytesIO(body), sink, identities, MAX_BYTES)
        signed = msgspec.msgpack.decode(sink.getbuffer(), type=SignedObject)
    except (DamagedObject, msgspec.DecodeError) as error:
        raise damaged(name) from error
    if signed.key not in keys or not node_keys.verify(signed.key, _PURPOSE, _signed_text(mesh, name, signed.data), signed.signature):
        raise DamagedObject(
            f"{name} was not written by this mesh, or not under this name", hint="somebody swapped it; check who can write to the store"
        )
    return signed.data


def damaged(name: str) -> DamagedObject:
    return DamagedObject(f"{name} is truncated or was changed", hint=_USE_ANOTHER)


def missing(name: str) -> DamagedObject:
    return DamagedObject(f"{name} is missing", hint=_USE_ANOTHER)


class CountedDigest:
    """Size and SHA-256 of what passes through."""

    def __init__(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()

    async def over(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            self.size += len(piece)
            # A megabyte takes 1 ms; hashlib releases the lock of the interpreter.
            self._sha256.update(piece)
            yield piece

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


def _seal(source: BinaryIO, sink: BinaryIO, recipients: Sequence[str]) -> None:
    import pyrage
    import zstandard

    compressed = zstandard.ZstdCompressor(level=_LEVEL).stream_reader(source, read_size=_PIECE_BYTES)
    try:
        pyrage.encrypt_io(compressed, sink, [pyrage.x25519.Recipient.from_str(each) for each in recipients])
    except pyrage.EncryptError as error:  # of the source or the sink
        raise (BrokenPipeError if "Broken pipe" in str(error) else OSError)(str(error)) from error


def _open(source: BinaryIO, sink: BinaryIO, identities: Sequence[str], most_bytes: int) -> None:
    import pyrage
    import zstandard

    bounded = _BoundedSink(sink, most_bytes)
    plain = zstandard.ZstdDecompressor().stream_writer(cast("IO[bytes]", bounded), closefd=False)
    try:
        pyrage.decrypt_io(source, plain, [_identity(each) for each in identities])
        plain.flush()  # type: ignore[no-untyped-call]
    except pyrage.DecryptError as error:
        if "matching keys" in str(error):
            raise WrongIdentity("this identity does not open the backup", hint="give another one with --identity") from error
        raise DamagedObject(f"it is truncated or was changed: {error}") from error
    except zstandard.ZstdError as error:
        raise DamagedObject(f"it cannot be decompressed: {error}") from error
    except OSError as error:
        if bounded.is_full:
            raise DamagedObject("it contains more than its manifest says") from error
        if bounded.error is not None:
            raise bounded.error from None
        raise DamagedObject("it is truncated or was changed") from error


class _BoundedSink:
    def __init__(self, sink: BinaryIO, most_bytes: int) -> None:
        self._sink = sink
        self._left = most_bytes
        self.is_full = False
        #: Of the sink: pyrage reports errors of both ends alike.
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            self.is_full = True
            raise OSError("too large")
        try:
            return self._sink.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._sink.flush()


def _identity(text: str) -> "Identity":
    from pyrage import IdentityError, x25519

    try:
        return x25519.Identity.from_str(text.strip())
    except IdentityError as error:
        raise errors.BadSettings(
            "it is no age identity", hint="it starts with AGE-SECRET-KEY-1; give the file that `keygen` wrote"
        ) from error


def _signed_text(mesh: MeshName, name: str, data: bytes) -> bytes:
    return msgspec.msgpack.encode((mesh, name, hashlib.sha256(data).digest()))
