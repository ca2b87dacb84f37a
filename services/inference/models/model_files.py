"""Checks a model's file: reads its header and compares its digest with the catalog's.

Reading is slow (a minute for 40 GB) and runs in threads, once however many callers wait, and again if the file has changed.
While set-up still builds the engine, all checks wait for it: set-up also writes the default model's file.

Digests are cached in a file between starts, because reading a model of 40 GB takes a minute. One is reused only for the same path, size,
times and inode. If the cache is damaged, digests are computed again.
"""

import asyncio
import hashlib
import importlib.util
import itertools
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from services.inference.engine.file_stamps import Stamps, stamps_of
from services.inference.models import memory
from services.inference.models.catalog import CatalogAdapter, CatalogEntry
from shared import model_folder
from shared.background import tasks
from shared.gguf import gguf_header
from shared.gguf.gguf_header import GgufHeader
from shared.identity import private_file
from shared.models import manifest
from shared.telemetry import logs

T = TypeVar("T")
_Digests = tuple[str, ...]

#: Reading whole files takes minutes. In asyncio's own pool, which has few threads, a few large models would hold everything that needs one.
_HASHING = ThreadPoolExecutor(thread_name_prefix="digests")

log = logs.get()

#: Read between two checks for a stop.
_READ_BYTES = 4 * 1024 * 1024
_LOOK_SECONDS = 1.0
#: Twice as many models as a worker can announce.
MAX_MODELS = 128
MAX_BYTES = 1024 * 1024
#: The coarsest clock of a file system in use (FAT): two writes within a tick have the same time.
TICK_NS = 2_000_000_000


class _Known(msgspec.Struct, frozen=True, rename="camel"):
    stamps: Stamps
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _StoredDigest(msgspec.Struct, frozen=True):
    """The JSON file; the last read model is at the end."""

    models: tuple[_Known, ...] = ()


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_StoredDigest).decode


class KnownDigests:
    """Reads and writes the cache, so it blocks; safe to use from many threads. Without a file nothing is cached."""

    def __init__(self, file: Path | None, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._file = file
        self._clock_ns = clock_ns
        self._writing = threading.Lock()

    def digest(self, files: tuple[Path, ...], compute: Callable[[tuple[Path, ...]], str]) -> str:
        """Return the digest, cached or computed. ``compute`` returns an empty text on failure."""
        looked_at, before = self._clock_ns(), stamps_of(files)
        for known in self._read() if before else ():
            if known.stamps == before:
                return known.sha256
        computed = compute(files)
        is_settled = all(max(stamp.modified_ns, stamp.changed_ns) < looked_at - TICK_NS for stamp in before)
        if computed and before and is_settled and stamps_of(files) == before:
            self._remember(_Known(before, computed))
        return computed

    def _remember(self, known: _Known) -> None:
        if self._file is None:
            return
        paths = [stamp.path for stamp in known.stamps]
        with self._writing:
            others = (other for other in self._read() if [stamp.path for stamp in other.stamps] != paths)
            kept = (*others, known)[-MAX_MODELS:]
            while len(body := _encode(_StoredDigest(kept))) > MAX_BYTES:
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
                body = file.read(MAX_BYTES + 1)
            return _decode(body).models[-MAX_MODELS:] if len(body) <= MAX_BYTES else ()
        except (OSError, ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return ()


@dataclass(frozen=True, slots=True)
class FileCheck:
    """The result of reading a file's header."""

    #: Change with the files, and cover all parts.
    stamps: Stamps
    header: GgufHeader | None
    size: int
    #: What the file for images needs.
    projector_bytes: int = 0
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
        self._checking: asyncio.Task[FileCheck] | None = None
        #: Gives the digests of the model, one for each part of a version, and then of its projector.
        self._hashing: asyncio.Task[tuple[_Digests, ...]] | None = None

    @property
    def step(self) -> str:
        """What the file's check is doing, for users."""
        return missing_engine() or "checking its file"

    @property
    def checked(self) -> FileCheck | None:
        """The header's check; None until it is done."""
        return _result(self._checking)

    @property
    def digest(self) -> str:
        """The file's SHA-256; empty until the whole file has been read. A program's owner states the digest of its model."""
        if self._entry.program is not None:
            return self._entry.digest or ""
        return _whole((_result(self._hashing) or ((),))[0])

    @property
    def digest_with_projector(self) -> str:
        """The digest of what the model computes if it sees images: another projector makes other tokens of them."""
        return self.digest if self._entry.projector is None else joined(tuple(map(_whole, _result(self._hashing) or ((),))))

    @property
    def hashes(self) -> tuple[str, ...]:
        """The SHA-256 of each file of a version; empty until all have been read."""
        return tuple(itertools.chain.from_iterable(_result(self._hashing) or ()))

    @property
    def problem(self) -> str:
        """Why the file can't be served; empty if no problem is known."""
        check = self.checked
        if check is not None and check.problem:
            return check.problem
        wanted, found = self._entry.digest, self.digest
        if wanted is None or _result(self._hashing) is None or found == wanted:
            return ""
        if not found:
            return f"{self._entry.file} could not be read to its end, so its SHA-256 is unknown; the catalog expects {wanted}"
        return f"{self._entry.file} is not the file in the catalog: its SHA-256 is {found}, but should be {wanted}"

    async def ensure_checked(self) -> None:
        """Read the header, unless the file is unchanged since the last time."""
        checking, check = self._checking, self.checked
        if check is not None and check.stamps != await asyncio.to_thread(self._stamps) and self._checking is checking:
            self._checking = self._hashing = None
        if self._checking is None:
            self._checking = self._begin(self._check_when_built())
        await asyncio.shield(self._checking)

    async def ensure_digest(self) -> None:
        """Compute the digest, unless that was done or the file is not a model."""
        await self.ensure_checked()
        if self.checked is None or self.checked.problem or self._entry.program is not None:
            return
        if self._hashing is None:
            self._hashing = self._begin(self._hash())
        await asyncio.shield(self._hashing)

    async def _hash(self) -> tuple[_Digests, ...]:
        digests: tuple[_Digests, ...] = ((),)

        async def note_digests() -> None:
            nonlocal digests
            digests = tuple([await self._hash_file(file) for file in (self._entry.file, self._entry.projector) if file is not None])

        await tasks.attempt("read model", note_digests)
        return digests

    async def _hash_file(self, file: Path) -> _Digests:
        parts, compute = model_folder.parts(file), partial(_sha256, self._stopped)
        run, known = asyncio.get_running_loop().run_in_executor, self._known
        # A manifest has the digest of each part, other catalogs that of all parts in a row.
        groups = [parts] if self._entry.version is None else [(part,) for part in parts]
        return tuple([await run(_HASHING, known.digest, group, compute) for group in groups])

    async def ensure_served(self) -> None:
        """Make all checks that a load needs, and so set ``problem``."""
        if self._entry.digest is None:
            await self.ensure_checked()
        else:
            await self.ensure_digest()

    async def _check_when_built(self) -> FileCheck:
        if self._entry.program is not None:
            return FileCheck(_stamps(self._entry.file), None, 0)
        known = ""
        while missing := missing_engine():
            if missing != known:
                known = missing
                self._changed()
            await asyncio.sleep(_LOOK_SECONDS)
        found: FileCheck | None = None

        async def note_check() -> None:
            nonlocal found
            found = await asyncio.to_thread(self._check)

        # Raised in this group, an odd file would end the worker.
        await tasks.attempt("check model", note_check)
        return found or FileCheck((), None, 0, problem=f"{self._entry.file} can't be read; the worker's log has the reason")

    def _stamps(self) -> Stamps:
        """Identify what ``_check`` reads."""
        return _stamps(self._entry.file) + _stamps(self._entry.projector)

    def _check(self) -> FileCheck:
        file, projector = self._entry.file, self._entry.projector
        own, header, problem = _stamps(file), None, ""
        try:
            header = gguf_header.check_parts(file)
        except gguf_header.NotAModel as error:
            problem = f"{file} is not a usable model: {str(error).removeprefix(f'{file}: ')}"
        return FileCheck(own + _stamps(projector), header, _size(own), memory.projector_bytes(projector), problem)

    def stop(self) -> None:
        """End the threads that read; they can't be canceled."""
        self._stopped.set()

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = self._tasks.create_task(work)
        task.add_done_callback(lambda _task: self._changed())
        return task


class AdapterFile(ModelFile):
    """The file of a LoRA adapter, which is loaded with its model."""

    def __init__(
        self, adapter: CatalogAdapter, model: Path, tasks: asyncio.TaskGroup, changed: Callable[[], None], known: KnownDigests
    ) -> None:
        super().__init__(CatalogEntry(name=adapter.name, file=adapter.file), tasks, changed, known)
        self.adapter = adapter
        self._model = model
        #: Why the engine couldn't use it when it last loaded the model; empty if it could.
        self.refused = ""

    @property
    def problem(self) -> str:
        return super().problem or self.refused

    def digest_with(self, base: str) -> str:
        """Return the digest of what a model with the digest ``base`` computes with it; empty until both files have been read."""
        return joined((base, self.digest, str(self.adapter.scale)))

    def _stamps(self) -> Stamps:
        return super()._stamps() + _stamps(self._model)

    def _check(self) -> FileCheck:
        stamps, self.refused = self._stamps(), ""
        (problem,) = gguf_header.check_adapters(self._model, [self.adapter.file])
        return FileCheck(stamps, None, _size(super()._stamps()), problem=problem)


def missing_engine() -> str:
    """Return why this virtual environment has no engine, for users; empty if it has one."""
    # Set-up may install it meanwhile.
    importlib.invalidate_caches()
    return "" if importlib.util.find_spec("llama_cpp") else "the engine is not installed; run `make up`"


def _result(task: asyncio.Task[T] | None) -> T | None:
    return task.result() if task is not None and task.done() and not task.cancelled() else None


def _stamps(file: Path | None) -> Stamps:
    return () if file is None else stamps_of(model_folder.parts(file))


def _whole(digests: _Digests) -> str:
    """Return the digest of a model in parts; empty if one is."""
    return manifest.weights_digest(digests) if digests and all(digests) else ""


def joined(digests: _Digests) -> str:
    """Return the digest of several; empty if one is."""
    return hashlib.sha256(":".join(digests).encode()).hexdigest() if all(digests) else ""


def _size(stamps: Stamps) -> int:
    return sum(stamp.size for stamp in stamps)


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
