import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from features.backup.stack.layout import BackupManifest
from features.backup.stack.restoring import backup_manifest_check
from shared.types import MeshName

FILES = {"PG_VERSION": b"18\n", "base/1/2": b"x" * 3_000_000, "empty": b""}
BACKUP = BackupManifest(
    name="b", mesh=MeshName("home"), site="here", term=1, system="77", timeline=1, segment_size=16 << 20, start_lsn=0x2000028,
    stop_lsn=0x3000000, started_at=datetime(2026, 1, 1, tzinfo=UTC), finished_at=datetime(2026, 1, 1, tzinfo=UTC), seconds=1.0,
    postgres=180000, version="0", migrations={}, parts=(), rows={}, ledger_entries=0, ledger_micro=0, audit_heads={}, log_heads={},
    secrets_salt="", secrets={}, machine="",
)  # fmt: skip


def manifest(system: int = 77, end: str = "0/2000120") -> bytes:
    """Return a manifest as PostgreSQL writes it, with a file name that is not UTF-8."""
    files = [
        f'{{ "{"Path" if name != "empty" else "Encoded-Path"}": "{name if name != "empty" else name.encode().hex()}", "Size": {len(body)},'
        f' "Last-Modified": "2026-01-01 00:00:00 GMT", "Checksum-Algorithm": "SHA256", "Checksum": "{hashlib.sha256(body).hexdigest()}" }}'
        for name, body in {**FILES, "tablespace_map": b""}.items()
    ]
    text = (
        f'{{ "PostgreSQL-Backup-Manifest-Version": 2,\n"System-Identifier": {system},\n"Files": [\n'
        + ",\n".join(files)
        + '\n],\n"WAL-Ranges": [\n'
        f'{{ "Timeline": 1, "Start-LSN": "0/2000028", "End-LSN": "{end}" }}\n],\n'
    ).encode()
    return text + f'"Manifest-Checksum": "{hashlib.sha256(text).hexdigest()}"}}\n'.encode()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, body in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(body)
    (tmp_path / "backup_manifest").write_bytes(manifest())
    for unlisted in ("pg_wal/archive_status/x", "postgresql.auto.conf", "recovery.signal"):
        (tmp_path / unlisted).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / unlisted).touch()
    return tmp_path


def edit(data: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (data / name).write_bytes(change((data / name).read_bytes()))


async def test_an_unchanged_copy_has_no_differences(data: Path) -> None:
    assert await backup_manifest_check.check(data, BACKUP) == []


async def test_all_differences_are_named_at_once(data: Path) -> None:
    edit(data, "base/1/2", lambda body: body[:-1] + b"y")
    edit(data, "empty", lambda _: b"1")
    (data / "PG_VERSION").unlink()
    (data / "base" / "extra").touch()
    assert await backup_manifest_check.check(data, BACKUP) == [
        "PG_VERSION is missing", "base/1/2 was changed", "base/extra is not in backup_manifest", "empty has 1 bytes instead of 0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (manifest(system=78), "is of another database cluster"),
        (manifest(end="0/3000001"), "needs the write-ahead log from 0/2000028 to 0/3000001"),
        (manifest().replace(b"PG_VERSION", b"PG_version"), "its checksum does not match"),
        (manifest()[:-9], "is truncated or was changed"),
    ],
)
async def test_a_wrong_manifest_is_refused(data: Path, body: bytes, why: str) -> None:
    (data / "backup_manifest").write_bytes(body)
    assert why in (await backup_manifest_check.check(data, BACKUP))[0]


async def test_a_missing_manifest_is_named(data: Path) -> None:
    (data / "backup_manifest").unlink()
    assert await backup_manifest_check.check(data, BACKUP) == ["backup_manifest is missing"]


async def test_a_thousand_differences_are_cut(data: Path) -> None:
    for number in range(1000):
        (data / f"extra{number}").touch()
    assert len(await backup_manifest_check.check(data, msgspec.structs.replace(BACKUP, system="78"))) == 20
