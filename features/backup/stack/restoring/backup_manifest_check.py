"""Checks an unpacked database against PostgreSQL's own ``backup_manifest``, because the wheel's pg_verifybackup crashes.

https://www.postgresql.org/docs/current/backup-manifest-format.html
"""

import asyncio
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from features.backup.stack import layout
from features.backup.stack.layout import BackupManifest

_NAME = "backup_manifest"
#: What PostgreSQL does not list, or what belongs to the restored server: as pg_verifybackup has it.
_UNLISTED = frozenset({_NAME, "postgresql.auto.conf", "standby.signal", "recovery.signal"})
#: Empty, because there are no tablespaces, and not unpacked.
_NO_TABLESPACES = ("tablespace_map", 0)
_WAL_FOLDER = "pg_wal/"
_MAX_FINDINGS = 20


class ManifestFile(
    msgspec.Struct,
    frozen=True,
    rename={"path": "Path", "encoded": "Encoded-Path", "size": "Size", "kind": "Checksum-Algorithm", "sha256": "Checksum"},
):
    size: int
    kind: Literal["SHA256"]
    sha256: str
    path: str = ""
    #: In hex, if the path is not UTF-8.
    encoded: str = ""

    @property
    def name(self) -> str:
        return os.fsdecode(bytes.fromhex(self.encoded)) if self.encoded else self.path


class WalRange(msgspec.Struct, frozen=True, rename={"timeline": "Timeline", "start": "Start-LSN", "end": "End-LSN"}):
    timeline: int
    start: str
    end: str


class ClusterManifest(
    msgspec.Struct,
    frozen=True,
    rename={"system": "System-Identifier", "files": "Files", "wal": "WAL-Ranges", "sha256": "Manifest-Checksum"},
):
    files: tuple[ManifestFile, ...]
    wal: tuple[WalRange, ...]
    sha256: str
    #: Since PostgreSQL 17.
    system: int | None = None


def parse(text: bytes) -> ClusterManifest:
    """Raises ValueError if the manifest is truncated or was changed."""
    manifest = msgspec.json.decode(text, type=ClusterManifest)
    signed = text[: text.rstrip(b"\n").rfind(b"\n") + 1]
    if hashlib.sha256(signed).hexdigest() != manifest.sha256:
        raise ValueError("its checksum does not match")
    return manifest


def find_differences(manifest: ClusterManifest, backup: BackupManifest, found: Mapping[str, int]) -> Iterator[str]:
    """``found``: the files that are there, with their sizes. Their content is compared elsewhere."""
    if manifest.system is not None and str(manifest.system) != backup.system:
        yield f"{_NAME} is of another database cluster"
    for part in manifest.wal:
        is_inside = backup.start_lsn <= layout.parse_lsn(part.start) <= layout.parse_lsn(part.end) <= backup.stop_lsn
        if part.timeline == backup.timeline and not is_inside:
            yield f"{_NAME} needs the write-ahead log from {part.start} to {part.end}, which this backup does not name"
    listed = {file.name: file.size for file in manifest.files if (file.name, file.size) != _NO_TABLESPACES}
    for name, size in listed.items():
        if name not in found:
            yield f"{name} is missing"
        elif found[name] != size:
            yield f"{name} has {found[name]} bytes instead of {size}"
    for name in sorted(found.keys() - listed.keys() - _UNLISTED):
        if not name.startswith(_WAL_FOLDER):
            yield f"{name} is not in {_NAME}"


async def check(data: Path, backup: BackupManifest) -> list[str]:
    """Describe each difference; at most 20. Reads every file, on all cores. Raises OSError."""
    try:
        manifest = parse(await asyncio.to_thread((data / _NAME).read_bytes))
    except FileNotFoundError:
        return [f"{_NAME} is missing"]
    except (ValueError, msgspec.MsgspecError) as error:
        return [f"{_NAME} is truncated or was changed: {error}"]
    found = await asyncio.to_thread(_list_files, data)
    findings = list(find_differences(manifest, backup, found))
    limit = asyncio.Semaphore(os.cpu_count() or 1)

    async def compare(file: ManifestFile) -> None:
        async with limit:
            if await asyncio.to_thread(_sha256, data / file.name) != file.sha256:
                findings.append(f"{file.name} was changed")

    async with asyncio.TaskGroup() as tasks:
        for file in manifest.files:
            if found.get(file.name) == file.size:
                tasks.create_task(compare(file))
    return sorted(findings)[:_MAX_FINDINGS]


def _list_files(data: Path) -> dict[str, int]:
    found = {}
    for folder, _, names in os.walk(data):
        for path in (Path(folder) / name for name in names):
            found[str(path.relative_to(data))] = path.lstat().st_size
    return found


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
