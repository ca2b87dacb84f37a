"""Caches the SHA-256 digests of model files in a file, because reading a model of 40 GB takes a minute.

A digest is reused only for the same path, size, times and inode. If the cache is damaged, digests are computed again.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from shared.identity import private_file
from shared.telemetry import logs

log = logs.get()

#: Twice as many models as a worker can announce.
MOST_MODELS = 128
MOST_BYTES = 1024 * 1024
#: The coarsest clock of a file system in use (FAT): two writes within a tick have the same time.
TICK_NS = 2_000_000_000


class Stamp(msgspec.Struct, frozen=True, rename="camel"):
    """Identifies the content of one file."""

    path: str
    size: int
    modified_ns: int
    #: The inode's time, which, unlike the one above, can't be set back.
    changed_ns: int
    inode: int


Stamps = tuple[Stamp, ...]


class _Known(msgspec.Struct, frozen=True, rename="camel"):
    stamps: Stamps
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class _StoredDigest(msgspec.Struct, frozen=True):
    """The JSON file; the last read model is at the end."""

    models: tuple[_Known, ...] = ()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_StoredDigest).decode


def stamps_of(files: Iterable[Path]) -> Stamps:
    """Return an empty tuple if a file is missing."""
    try:
        found = [(path, path.stat()) for path in files]
    except OSError:
        return ()
    return tuple(Stamp(_text_of(path), one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino) for path, one in found)


class KnownDigests:
    """Reads and writes the cache, so it blocks; safe to use from many threads. Without a file nothing is cached."""

    def __init__(self, file: Path | None, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._file = file
        self._clock_ns = clock_ns
        self._writing = threading.Lock()

    def digest(self, files: tuple[Path, ...], compute: Callable[[tuple[Path, ...]], str]) -> str:
        """Return the digest, cached or computed. ``compute`` returns an empty text on failure."""
        looked_at, before = self._clock_ns(), stamps_of(files)
        if before and (found := self._find(before)) is not None:
            return found
        computed = compute(files)
        is_settled = all(max(stamp.modified_ns, stamp.changed_ns) < looked_at - TICK_NS for stamp in before)
        if computed and before and is_settled and stamps_of(files) == before:
            self._remember(_Known(before, computed))
        return computed

    def _find(self, stamps: Stamps) -> str | None:
        return next((known.sha256 for known in self._read() if known.stamps == stamps), None)

    def _remember(self, known: _Known) -> None:
        if self._file is None:
            return
        paths = [stamp.path for stamp in known.stamps]
        with self._writing:
            others = (other for other in self._read() if [stamp.path for stamp in other.stamps] != paths)
            kept = (*others, known)[-MOST_MODELS:]
            while len(body := _encode(_StoredDigest(kept))) > MOST_BYTES:
                kept = kept[1:]
            try:
                # Not synced: digests lost in a power cut are computed again.
                private_file.replace(self._file, body)
            except OSError as error:
                log.warning("digests_not_saved", file=str(self._file), reason=error.strerror)

    def _read(self) -> tuple[_Known, ...]:
        if self._file is None:
            return ()
        try:
            with self._file.open("rb") as file:
                # Anyone who can write the cache could make another file pass for the catalog's model.
                if os.fstat(file.fileno()).st_mode & 0o022:
                    return ()
                body = file.read(MOST_BYTES + 1)
            return _decode(body).models[-MOST_MODELS:] if len(body) <= MOST_BYTES else ()
        except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return ()


def _text_of(path: Path) -> str:
    """Escape bytes that are not UTF-8, which JSON can't hold."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
