"""Checks a model's file: reads its header and compares its digest with the catalog's.

Reading is slow (a minute for 40 GB) and runs in threads, once however many callers wait, and again if the file has changed.
`digests` caches the digests of earlier starts. While set-up still builds the engine, all checks wait for it: set-up also writes the default
model's file.
"""

import asyncio
import fcntl
import hashlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from services.inference.engine import gguf_header
from services.inference.engine.gguf_header import GgufHeader
from services.inference.models import digests
from services.inference.models.catalog import CatalogEntry
from services.inference.models.digests import KnownDigests, Stamps
from shared import model_folder

T = TypeVar("T")

#: Read between two checks for a stop.
_READ_BYTES = 4 * 1024 * 1024
_LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class FileCheck:
    """The result of reading a file's header."""

    #: Of all parts; they change with the files.
    stamps: Stamps
    header: GgufHeader | None
    size: int
    #: Why the model can't be served; empty if it can.
    problem: str = ""


class ModelFile:
    """One model's file. Calls ``changed`` after each result; its tasks run in ``tasks``."""

    def __init__(self, entry: CatalogEntry, tasks: asyncio.TaskGroup, changed: Callable[[], None], known: KnownDigests) -> None:
        self._entry = entry
        self._tasks = tasks
        self._changed = changed
        self._known = known
        self._stopped = threading.Event()
        self._looking: asyncio.Task[FileCheck] | None = None
        self._hashing: asyncio.Task[str] | None = None

    @property
    def step(self) -> str:
        """What the file's check is doing, for users."""
        return missing_engine() or "checking its file"

    @property
    def look(self) -> FileCheck | None:
        """The header's check; None until it is done."""
        return _result(self._looking)

    @property
    def digest(self) -> str:
        """The file's SHA-256; empty until the whole file has been read. A program's owner states the digest of its model."""
        if self._entry.program is not None:
            return self._entry.digest or ""
        return _result(self._hashing) or ""

    @property
    def problem(self) -> str:
        """Why the file can't be served; empty if no problem is known."""
        look = self.look
        if look is not None and look.problem:
            return look.problem
        wanted, found = self._entry.digest, _result(self._hashing)
        if wanted is None or found is None or found == wanted:
            return ""
        if not found:
            return f"{self._entry.file} could not be read to its end, so its SHA-256 is unknown; the catalog expects {wanted}"
        return f"{self._entry.file} is not the file in the catalog: its SHA-256 is {found}, but should be {wanted}"

    async def ensure_looked(self) -> None:
        """Read the header, unless the file is unchanged since the last time."""
        looking, look = self._looking, self.look
        if look is not None and look.stamps != await asyncio.to_thread(_stamps, self._entry.file) and self._looking is looking:
            self._looking = self._hashing = None
        if self._looking is None:
            self._looking = self._begin(self._look_when_built())
        await asyncio.shield(self._looking)

    async def ensure_digest(self) -> None:
        """Compute the digest, unless that was done or the file is not a model."""
        await self.ensure_looked()
        if self.look is None or self.look.problem or self._entry.program is not None:
            return
        if self._hashing is None:
            parts = model_folder.parts(self._entry.file)
            self._hashing = self._begin(asyncio.to_thread(self._known.digest, parts, partial(_sha256, self._stopped)))
        await asyncio.shield(self._hashing)

    async def ensure_served(self) -> None:
        """Make all checks that a load needs, and so set ``problem``."""
        if self._entry.digest is None:
            await self.ensure_looked()
        else:
            await self.ensure_digest()

    async def _look_when_built(self) -> FileCheck:
        if self._entry.program is not None:
            return FileCheck(_stamps(self._entry.file), None, 0)
        known = ""
        while missing := missing_engine():
            if missing != known:
                known = missing
                self._changed()
            await asyncio.sleep(_LOOK_SECONDS)
        return await asyncio.to_thread(_look, self._entry.file)

    def stop(self) -> None:
        """End the threads that read; they can't be canceled."""
        self._stopped.set()

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._tasks.create_task(work)
        task.add_done_callback(lambda _task: self._changed())
        return task


def missing_engine(environment: Path = Path(sys.prefix)) -> str:
    """Return why this virtual environment has no engine yet, for users; empty if it has one. Set-up (tools/setup.py) builds it."""
    left = environment / "engine-build.left"
    try:
        with (environment / ".setup-lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        # Set-up is running. It has this file while it builds the engine for a stack that has already started.
        with suppress(OSError):
            return f"the engine is being built, {left.read_text(encoding='utf-8')}"
    except OSError:
        pass
    importlib.invalidate_caches()
    return "" if importlib.util.find_spec("llama_cpp") else "the engine is not installed; run `make up`"


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
        return FileCheck(stamps, None, size, f"{file} is not a usable model: {error}")
    except OSError as error:
        return FileCheck(stamps, None, size, f"{file} cannot be read: {error.strerror}")
    if not stamps:
        return FileCheck(stamps, None, size, f"{file} is one of several parts, and some are missing")
    return FileCheck(stamps, header, size)


def _sha256(stopped: threading.Event, parts: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    try:
        for part in parts:
            with part.open("rb") as file:
                while (read := file.read(_READ_BYTES)) and not stopped.is_set():
                    digest.update(read)
    except OSError:
        return ""
    return "" if stopped.is_set() else digest.hexdigest()
