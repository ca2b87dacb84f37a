"""A model's file on this machine: what its header says, and whether it is the file that the catalogue means.

Reading is slow (a minute for 40 GB) and happens in threads; each look is taken once, however many wait for it, and again
when the file has changed. Digests are known from earlier starts (`digests`).
"""

import asyncio
import hashlib
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from services.inference.engine.gguf import gguf_header
from services.inference.engine.gguf.gguf_header import GgufHeader
from services.inference.models import digests
from services.inference.models.catalog import CatalogEntry
from services.inference.models.digests import KnownDigests, Stamps
from shared import model_folder

T = TypeVar("T")

#: Between two looks at whether anybody still wants the digest.
_READ_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What one look at the file found."""

    #: Of all parts; other ones mean another file.
    stamps: Stamps
    #: None where ``problem`` says why.
    header: GgufHeader | None
    #: Of all parts.
    size: int
    #: Why it cannot be served; empty when it can.
    problem: str = ""


class ModelFile:
    """``changed`` is called when something is newly known. Its tasks belong to the TaskGroup that it is given."""

    def __init__(self, entry: CatalogEntry, tasks: asyncio.TaskGroup, changed: Callable[[], None], known: KnownDigests) -> None:
        self._entry = entry
        self._tasks = tasks
        self._changed = changed
        self._known = known
        self._stopped = threading.Event()
        self._looking: asyncio.Task[FileCheck] | None = None
        self._hashing: asyncio.Task[str] | None = None

    @property
    def look(self) -> FileCheck | None:
        """None until the header has been read."""
        return _result(self._looking)

    @property
    def digest(self) -> str:
        """Empty until the whole file has been read."""
        return _result(self._hashing) or ""

    @property
    def problem(self) -> str:
        """Why it is not served; empty where nothing is known against it."""
        look = self.look
        if look is not None and look.problem:
            return look.problem
        wanted, found = self._entry.digest, _result(self._hashing)
        if wanted is None or found is None or found == wanted:
            return ""
        if not found:
            return f"{self._entry.file} could not be read to its end, so its SHA-256 is not known; the catalogue says {wanted}"
        return f"{self._entry.file} is another file than the catalogue means: its SHA-256 is {found}, and should be {wanted}"

    async def ensure_looked(self) -> None:
        """Read the header, unless that was done for the file as it is now."""
        looking, look = self._looking, self.look
        if look is not None and look.stamps != await asyncio.to_thread(_stamps, self._entry.file) and self._looking is looking:
            self._looking = self._hashing = None
        if self._looking is None:
            self._looking = self._begin(asyncio.to_thread(_look, self._entry.file))
        await asyncio.shield(self._looking)

    async def ensure_digest(self) -> None:
        """Read the whole file, unless that was done; does nothing for a file that is no model."""
        await self.ensure_looked()
        if self.look is None or self.look.problem:
            return
        if self._hashing is None:
            parts = model_folder.parts(self._entry.file)
            self._hashing = self._begin(asyncio.to_thread(self._known.digest, parts, partial(_sha256, self._stopped)))
        await asyncio.shield(self._hashing)

    async def ensure_served(self) -> None:
        """All that must be known before it is loaded: then ``problem`` is the last word."""
        if self._entry.digest is None:
            await self.ensure_looked()
        else:
            await self.ensure_digest()

    def stop(self) -> None:
        """Whatever still reads, ends; a thread cannot be cancelled."""
        self._stopped.set()

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._tasks.create_task(work)
        task.add_done_callback(lambda _task: self._changed())
        return task


def _result(task: asyncio.Task[T] | None) -> T | None:
    return task.result() if task is not None and task.done() and not task.cancelled() else None


def _stamps(file: Path) -> Stamps:
    return digests.stamps_of(model_folder.parts(file))


def _look(file: Path) -> FileCheck:
    stamps = _stamps(file)
    size = sum(stamp.size for stamp in stamps)
    try:
        with file.open("rb") as opened:
            header = gguf_header.read_header(opened, file.stat().st_size)
    except gguf_header.NotAModel as error:
        return FileCheck(stamps, None, size, f"{file} is no usable model: {error}")
    except OSError as error:
        return FileCheck(stamps, None, size, f"{file} cannot be read: {error.strerror}")
    if not stamps:
        return FileCheck(stamps, None, size, f"{file} is one of several parts, and not all of them are there")
    return FileCheck(stamps, header, size)


def _sha256(stopped: threading.Event, parts: tuple[Path, ...]) -> str:
    """Of the parts as one; empty when stopped, or when one cannot be read any more."""
    digest = hashlib.sha256()
    try:
        for part in parts:
            with part.open("rb") as file:
                while (read := file.read(_READ_BYTES)) and not stopped.is_set():
                    digest.update(read)
    except OSError:
        return ""
    return "" if stopped.is_set() else digest.hexdigest()
