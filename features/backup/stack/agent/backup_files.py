"""Which files of a home go into a backup, and the archives of them."""

import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from shared import errors
from stack.stack_home import StackHome

#: Members that are made for the backup.
MODELS = "models.json"
#: What nodes keep beside their keys, by suffix. They contain no secret.
_OF_NODES = (".mesh", ".journal", ".receipts")
#: Files in the home's own folder that contain a secret.
_SECRET_PAGES = ("profile.toml", "admin.txt")
#: Larger files are read in pieces of this size, while they are written.
_PIECE_BYTES = 1 << 20
_TEMPORARY = (".lock", ".unfinished")


@dataclass(frozen=True, slots=True)
class BackedUpFiles:
    #: Paths below the home.
    secrets: tuple[Path, ...]
    files: tuple[Path, ...]


class ListedModel(msgspec.Struct, frozen=True):
    """One entry of ``models.json``: the models themselves can be pulled again."""

    path: str
    size: int


def collect(home: StackHome, recorded: Mapping[str, str]) -> BackedUpFiles:
    """Find everything that an empty home needs, but the database and the lines of the recovery log. ``recorded`` are the settings of the
    stack: files that they name are included if they are in the home. Blocks."""
    named = {Path(value) for name, value in recorded.items() if name.endswith(("_FILE", "_UPSTREAMS", "_YAML", "_CREDENTIALS"))}
    logs = Path(recorded.get("RECOVERY_LOG_DIR", home.recovery_log))
    secrets = {
        *_files_below(home.secrets),
        *(path for path in _files_below(home.keys) if path.suffix not in _OF_NODES),
        *(home.root / name for name in _SECRET_PAGES),
        *named,
    }
    files = {
        *(path for path in _files_below(home.keys) if path.suffix in _OF_NODES),
        *logs.glob("recovery_state*"),
        *logs.glob("usage_export-*.jsonl"),
        home.settings_file,
        home.restore_points,
        Path(recorded.get("AUDIT_ANCHOR_FILE", home.audit_anchors)),
    }
    return BackedUpFiles(_below(home, secrets - files), _below(home, files))


def _below(home: StackHome, paths: Iterable[Path]) -> tuple[Path, ...]:
    kept = (path for path in paths if path.is_relative_to(home.root) and path.is_file() and not path.name.endswith(_TEMPORARY))
    return tuple(sorted(path.relative_to(home.root) for path in kept))


def _files_below(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        # Our own temporary files begin with a dot.
        yield from (Path(place) / name for name in names if not name.startswith("."))


def list_models(folder: Path) -> bytes:
    """Return the JSON of ``models.json``. Blocks."""
    found = [ListedModel(str(path.relative_to(folder)), path.stat().st_size) for path in sorted(_files_below(folder)) if path.is_file()]
    return msgspec.json.encode(found)


def archive(root: Path, paths: Iterable[Path], made: Mapping[str, bytes] | None = None) -> Iterator[bytes]:
    """Yield the pieces of a tar of these files and of the ``made`` members. A file that was removed meanwhile is left out. Blocks."""
    for path in paths:
        try:
            with (root / path).open("rb") as file:
                yield from _file(str(path), file)
        except FileNotFoundError:
            continue
    for name, body in (made or {}).items():
        yield from _member(name, len(body), 0, iter((body,)))
    yield bytes(2 * tarfile.BLOCKSIZE)


def _file(name: str, file: BinaryIO) -> Iterator[bytes]:
    facts = os.fstat(file.fileno())
    if facts.st_size <= _PIECE_BYTES:
        body = file.read(_PIECE_BYTES)
        yield from _member(name, len(body), int(facts.st_mtime), iter((body,)))
    else:
        # It may grow meanwhile.
        yield from _member(name, facts.st_size, int(facts.st_mtime), iter(lambda: file.read(_PIECE_BYTES), b""))


def _member(name: str, size: int, changed_at: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, changed_at, 0o600
    yield member.tobuf(tarfile.PAX_FORMAT)
    left = size
    for piece in pieces:
        yield piece[:left]
        left -= len(piece[:left])
        if left == 0:
            break
    if left:
        raise errors.Unavailable(f"{name} was replaced while it was read", hint="try again")
    yield bytes(-size % tarfile.BLOCKSIZE)
