"""The worker's store of models that people pulled or added: files by their digest, and names that refer to them.

Below its folder are `blobs/sha256/DIGEST` (a folder for a model in parts), `names/NAME.json`, `refused/NAME` for what the mesh must not put
there, and `partial/KEY`, a download that can be resumed. A file gets its final name when it is complete and synced, so a killed process
leaves at most a partial file. Several processes may use a store.
"""

import contextlib
import itertools
import os
import re
import shutil
import stat
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import msgspec

from shared import errors
from shared.amounts import show_bytes
from shared.api.inference import PullProgress, StoredModel
from shared.api.model_copies import VERSION_SOURCE
from shared.gguf import gguf_header
from shared.gguf.gguf_header import NotAModel
from shared.identity import private_file
from shared.models import manifest, version_names
from shared.models.manifest import Version
from shared.protocol.directory import ModelPull
from shared.types import ModelName

#: Left free for everything else on the machine.
RESERVED_BYTES = 256 * 1024 * 1024
#: As many fit into a worker's announcements.
MAX_PULLS = 8
_MAX_REFERENCE_BYTES = 16 * 1024
_PROGRESS_BYTES = 1024
#: Of the files beside a partial one; its lock is the last.
_SUFFIXES = (".json", ".progress", ".blocks", ".bitmap", ".lock")
_HINT = "remove models with `aicli models remove` and `aicli models prune`, or "
_DIGEST = re.compile("[0-9a-f]{64}")
#: Up to catalog.MAX_NAME_CHARACTERS. Parts start with a letter or digit, so none is `..`.
_NAME = re.compile(r"(?=.{1,100}\Z)[A-Za-z0-9][A-Za-z0-9._:@+-]*(/[A-Za-z0-9][A-Za-z0-9._:@+-]*)*")


def check_store_name(text: str) -> ModelName:
    """Raises BadRequest."""
    if not _NAME.fullmatch(text):
        raise errors.BadRequest(
            f"{text[:80]!r} can't be the name of a model: it has up to 100 letters, digits and ._:@+-/, and starts with a letter or digit",
            hint="choose another one with --name",
        )
    return ModelName(text)


class ModelStore:
    """Blocks; safe to use from several processes."""

    def __init__(self, root: Path, quota_bytes: int | None = None) -> None:
        self._root = root
        self._quota_bytes = quota_bytes
        self._blobs, self._names, self._partial = root / "blobs" / "sha256", root / "names", root / "partial"
        self._lists = root / "lists"
        self._refused = root / "refused"

    def ensure_folders(self) -> None:
        for folder in (self._blobs, self._names, self._partial, self._refused, self._lists):
            folder.mkdir(parents=True, exist_ok=True)

    def blob(self, digest: str) -> Path:
        return self._blobs / digest

    def file(self, model: StoredModel) -> Path:
        """Return the file to open: the first part of several, which are in a folder under the names that llama.cpp expects."""
        return self.blob(model.digest) if model.parts == 1 else self.blob(model.digest) / _part(1, model.parts)

    def projector(self, model: StoredModel) -> Path | None:
        return self.blob(model.projector) if model.projector else None

    def list_of_blocks(self, digest: str) -> Path:
        """Return the place of the list of blocks with this SHA-256, of a file that other workers may copy."""
        return self._lists / digest

    def copied(self, digest: str) -> Path:
        """Return the place of a whole file that was copied from other workers, for the program that pulls it."""
        return self._partial / f"{digest}.copied"

    def find_file(self, digest: str) -> Path | None:
        """Return a whole file by its SHA-256, also a part of a model, or a list of blocks."""
        for path in (self.blob(digest), self.list_of_blocks(digest)):
            if path.is_file():
                return path
        for model in self.models():
            if digest in model.part_digests:
                return self.blob(model.digest) / _part(model.part_digests.index(digest) + 1, model.parts)
        return None

    def models(self) -> tuple[StoredModel, ...]:
        """Return all models by name, without damaged references; empty if there is no store."""
        found = (self._read(file) for file in sorted(self._names.glob("*.json")))
        return tuple(model for model in found if model is not None)

    def find(self, name: str) -> StoredModel | None:
        return self._read(self._reference(name))

    def get(self, name: str) -> StoredModel:
        """Raises NotFound."""
        if (found := self.find(name)) is None:
            names = ", ".join(model.name for model in self.models()) or "none"
            raise errors.NotFound(f"no model {name[:80]!r} is in the store {self._root}; it has: {names}")
        return found

    @contextlib.contextmanager
    def partial(self, key: str, waits: Callable[[], None]) -> Iterator[Path]:
        """Lock a source's partial file for the block. Calls ``waits`` before it waits for another process."""
        partial = self._partial / key
        with _locked(partial.with_suffix(".lock"), waits):
            yield partial
            if not partial.exists():
                for suffix in _SUFFIXES:
                    partial.with_suffix(suffix).unlink(missing_ok=True)

    def note_progress(self, key: str, name: ModelName, progress: PullProgress) -> None:
        """Let other processes see the progress of the download whose partial file this process has locked."""
        pull = ModelPull(
            name, progress.done_bytes, progress.total_bytes, progress.bytes_per_second, progress.from_peers_bytes, progress.peers
        )
        # Overwritten in place: ext4 writes out a file that replaces another, which waits for the download's own data.
        with contextlib.suppress(OSError):
            handle = os.open(self._partial / f"{key}.progress", os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(handle, "wb", 0) as file:
                file.write(msgspec.json.encode(pull).ljust(_PROGRESS_BYTES))

    def pulls(self) -> tuple[ModelPull, ...]:
        """Return the progress of the downloads that run in any process."""
        return tuple(pull for file in sorted(self._partial.glob("*.progress"))[:MAX_PULLS] if (pull := self._read_pull(file)) is not None)

    def assigned(self) -> tuple[ModelName, ...]:
        """Return the models that the mesh has put here."""
        return tuple(model.name for model in self.models() if model.assignment is not None)

    def refused(self) -> tuple[ModelName, ...]:
        """Return the models, without versions, that people removed and that the mesh must not put here again."""
        return tuple(ModelName(urllib.parse.unquote(file.name)) for file in sorted(self._refused.glob("[!.]*")))

    def refuse(self, name: ModelName) -> None:
        """Keep a model's versions from coming back. Raises BadRequest for what can't be a name."""
        self.ensure_folders()
        self._refusal(check_store_name(name)).touch()
        _sync(self._refused)

    def accept(self, *names: ModelName) -> None:
        """Let the mesh put these models here again."""
        for name in names:
            self._refusal(name).unlink(missing_ok=True)

    def _refusal(self, name: ModelName) -> Path:
        return self._refused / urllib.parse.quote(version_names.strip_version(name), safe="")

    def _read_pull(self, file: Path) -> ModelPull | None:
        try:
            with contextlib.suppress(BlockingIOError), _locked(file.with_suffix(".lock"), _refuse_to_wait):
                return None
            with file.open("rb") as opened:
                return msgspec.json.decode(opened.read(_MAX_REFERENCE_BYTES), type=ModelPull)
        except (OSError, ValueError):
            # The files of another user can't be opened.
            return None

    def check_room(self, more_bytes: int) -> None:
        """Raises TooLarge if the disk or the quota has no room for so many more bytes."""
        free = shutil.disk_usage(self._root).free - RESERVED_BYTES
        used = self.used_bytes()
        if more_bytes > free:
            text = f"the disk of {self._root} is too full: {show_bytes(more_bytes)} more are needed, {show_bytes(max(0, free))} can be used"
            raise errors.TooLarge(text, hint=f"{_HINT}set MODEL_STORE to a folder on another disk")
        if self._quota_bytes is not None and used + more_bytes > self._quota_bytes:
            text = (
                f"the store may use {show_bytes(self._quota_bytes)} and uses {show_bytes(used)}; {show_bytes(more_bytes)} more are needed"
            )
            raise errors.TooLarge(text, hint=f"{_HINT}increase MODEL_STORE_QUOTA")

    def used_bytes(self) -> int:
        # Another process may just have moved a file.
        return sum(disk_bytes(file) for file in itertools.chain(self._blobs.rglob("*"), self._partial.rglob("*")))

    def version(self, model: StoredModel) -> Version | None:
        """Return the manifest of a version of the mesh; None for other models, or if it is missing or damaged: then no rule trusts it."""
        with contextlib.suppress(OSError, errors.BadRequest):
            return _read_version(self.blob(digest)) if (digest := _manifest_digest(model)) else None
        return None

    def commit(self, partials: Sequence[Path], model: StoredModel, manifest_text: bytes = b"") -> None:
        """Move complete and synced parts, and behind them the projector, to their place and let the name refer to them. A version has a
        ``manifest_text``. Raises BadRequest if they are not a model."""
        parts, projectors = partials[: model.parts], partials[model.parts :]
        try:
            check_model(parts[0], len(parts))
            for projector in projectors:
                _check_projector(projector)
        except errors.BadRequest:
            for partial in partials:
                partial.unlink()
            raise
        with _locked(self._root / "lock"):
            before, blob = self.find(model.name), self.blob(model.digest)
            if len(parts) == 1:
                parts[0].replace(blob)
            else:
                blob.mkdir(exist_ok=True)
                for number, partial in enumerate(parts, 1):
                    partial.replace(blob / _part(number, len(parts)))
                _sync(blob)
            for projector in projectors:
                projector.replace(self.blob(model.projector))
            if manifest_text:
                private_file.replace(self.blob(_manifest_digest(model)), manifest_text, synced=True)
            _sync(self._blobs)
            self._write(model)
            if model.assignment is None:
                self.accept(model.name)
            if before is not None:
                self._drop_unnamed(_digests(before))

    def update(self, model: StoredModel) -> None:
        """Replace the reference of a stored model, if it is still the same one."""
        with _locked(self._root / "lock"):
            known = self.find(model.name)
            if known is not None and known != model and _digests(known) == _digests(model):
                self._write(model)

    def remove(self, name: str) -> tuple[StoredModel, int]:
        """Remove a name, and its blob if no other name refers to it. Returns the bytes freed; raises NotFound."""
        with _locked(self._root / "lock"):
            model = self.get(name)
            self._reference(name).unlink()
            _sync(self._names)
            return model, self._drop_unnamed(_digests(model))

    def quarantine(self, name: str) -> None:
        """Make a model's damaged file a partial one again, whose sound blocks the next copy keeps. Raises NotFound."""
        with _locked(self._root / "lock"):
            model = self.get(name)
            self.blob(model.digest).replace(self._partial / model.digest)
            for other in self.models():
                if other.digest == model.digest:
                    self._reference(other.name).unlink()
            _sync(self._names)

    def prune(self) -> int:
        """Remove partial downloads that no process continues, blobs without a name, and lists of blocks, with which other workers copy.
        Returns the bytes freed."""
        freed = sum(map(_unlink, self._lists.glob("*")))
        for lock in self._partial.glob("*.lock"):
            with contextlib.suppress(BlockingIOError), _locked(lock, _refuse_to_wait):
                freed += sum(_unlink(file) for file in (lock.with_suffix(""), *map(lock.with_suffix, _SUFFIXES)))
        with _locked(self._root / "lock"):
            return freed + self._drop_unnamed({file.name for file in self._blobs.iterdir()})

    def _drop_unnamed(self, digests: set[str]) -> int:
        return sum(_unlink(self._blobs / digest) for digest in digests.difference(*map(_digests, self.models())))

    def _read(self, file: Path) -> StoredModel | None:
        try:
            with file.open("rb") as opened:
                model = msgspec.json.decode(opened.read(_MAX_REFERENCE_BYTES), type=StoredModel)
        except (OSError, ValueError):
            return None  # so the mesh doesn't serve it
        is_sound = _NAME.fullmatch(model.name) and all(map(_DIGEST.fullmatch, _digests(model))) and self._reference(model.name) == file
        return model if is_sound else None

    def _write(self, model: StoredModel) -> None:
        private_file.replace(self._reference(model.name), msgspec.json.encode(model), synced=True)
        _sync(self._names)

    def _reference(self, name: str) -> Path:
        return self._names / f"{urllib.parse.quote(name[:200], safe=':@+')}.json"


def disk_bytes(file: Path) -> int:
    """Return what a file has of its disk, which is less than its size while blocks are missing; 0 for none. Blocks."""
    with contextlib.suppress(FileNotFoundError):
        found = file.stat()
        return min(found.st_size, found.st_blocks * 512) if stat.S_ISREG(found.st_mode) else 0
    return 0


def check_model(file: Path, parts: int = 1) -> None:
    """Check the header of a model's first part. Raises BadRequest."""
    try:
        with file.open("rb") as opened:
            header = gguf_header.read_header(opened, file.stat().st_size)
    except NotAModel as error:
        raise errors.BadRequest(f"the file is not a usable model: {error}", hint="models are files in the format GGUF") from error
    if max(1, header.split_count) != parts:
        raise errors.BadRequest(
            f"the file is one of {header.split_count} parts of a model, not of {parts}",
            hint="pull it from a hub or registry, which list all parts, or serve it from a folder: MODELS_DIR",
        )


def _check_projector(file: Path) -> None:
    """Raises BadRequest."""
    try:
        with file.open("rb") as opened:
            if gguf_header.read_header(opened, file.stat().st_size).architecture != gguf_header.PROJECTOR:
                raise NotAModel("it is not a projector")
    except NotAModel as error:
        raise errors.BadRequest(f"the file for images is not usable: {error}", hint="name another one with --projector, or none") from error


def _digests(model: StoredModel) -> set[str]:
    return {model.digest, *filter(None, (model.projector, _manifest_digest(model)))}


def _manifest_digest(model: StoredModel) -> str:
    """Return the SHA-256 of a version's manifest in hex; empty for other models."""
    prefix = f"{VERSION_SOURCE}sha256:"
    return model.source.removeprefix(prefix) if model.source.startswith(prefix) else ""


@lru_cache(maxsize=128)
def _read_version(file: Path) -> Version:
    """Raises OSError and BadRequest."""
    with file.open("rb") as opened:
        version = manifest.read(opened.read(manifest.MAX_MANIFEST_BYTES + 1))
    if version.digest != f"sha256:{file.name}":
        raise errors.BadRequest(f"{file} is damaged")
    return version


def _part(number: int, count: int) -> str:
    return f"model-{number:05}-of-{count:05}.gguf"


@contextlib.contextmanager
def _locked(file: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Lock a file with flock(2), which ends with the process. Calls ``waits`` before it waits for another process."""
    import fcntl  # noqa: PLC0415 - Windows, where no models of ours are, has none

    while True:
        with file.open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits()
                fcntl.flock(lock, fcntl.LOCK_EX)
            # Another process may have removed the file since it was opened.
            if file.exists() and os.path.samestat(os.fstat(lock.fileno()), file.stat()):
                yield
                return


def _refuse_to_wait() -> None:
    raise BlockingIOError


def _unlink(file: Path) -> int:
    """Remove a file, or a folder of parts. Returns the bytes freed."""
    if file.is_dir():
        size = sum(part.stat().st_size for part in file.iterdir())
        shutil.rmtree(file)
        return size
    size = file.stat().st_size if file.exists() else 0
    file.unlink(missing_ok=True)
    return size


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
