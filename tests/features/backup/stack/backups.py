"""Backups of a real PostgreSQL, made without the agent, in a folder as the store: the data, two archives and the write-ahead log."""

import asyncio
import hashlib
import io
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import ClassVar

import asyncpg
import msgspec

from features.backup.settings import BackupSettings
from features.backup.stack import layout, sealing
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.layout import BackupManifest, BackupPart, Segment, StoreMesh, StoreState, WalObject
from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from shared.stores import objects
from shared.types import MeshName
from stack.servers import postgres
from stack.stack_home import StackHome
from tests.servers import PostgresServer

SEGMENT = 16 << 20


@dataclass
class BackupMaker:
    """Does the agent's work: ``base`` makes a backup, ``ship`` copies the log."""

    folder: Path
    server: PostgresServer
    mesh: ClassVar[MeshName] = MeshName("home")
    key: NodeKey = field(default_factory=lambda: NodeKey(node_keys.new_seed()))
    identity: str = field(default_factory=sealing.new_identity)
    own_identity: str = field(default_factory=sealing.new_identity)
    #: (time, log position)
    marks: list[tuple[datetime, int]] = field(default_factory=list)
    shipped: set[Segment] = field(default_factory=set)
    #: If false, damaged pages go into the backup.
    checks_pages: bool = True

    def __post_init__(self) -> None:
        self.store = objects.open_store(str(self.folder), {})
        self.recipients = [sealing.recipient_of(self.identity), sealing.recipient_of(self.own_identity)]

    @property
    def store_mesh(self) -> StoreMesh:
        return StoreMesh(
            format=layout.FORMAT, mesh=self.mesh, system="1", keys=(self.key.id,),
            recipients=(self.recipients[0],), own_recipient=self.recipients[1],
        )  # fmt: skip

    def place(self, home: StackHome) -> BackupPlace:
        """Return the backup place that the agent of a restored home uses."""
        return BackupPlace(home, BackupSettings(), self.store, self.store_mesh, self.key, self.own_identity)

    async def begin(self) -> None:
        """Set up the cluster: it keeps its log, and has the superuser and the database of a stack."""
        await self.run("ALTER SYSTEM SET wal_keep_size = '512MB'", "SELECT pg_reload_conf()")
        await self.run("CREATE ROLE aimesh_admin SUPERUSER LOGIN", "CREATE DATABASE aimesh")
        await self.store.put(layout.MESH, layout.sign(layout.MESH, self.store_mesh, self.key))

    async def run(self, *statements: str, database: str = "postgres") -> object:
        connection = await asyncpg.connect(self.server.url(database))
        try:
            return [await connection.fetchval(statement) for statement in statements][-1]
        finally:
            await connection.close()

    async def now(self) -> datetime:
        found = await self.run("SELECT clock_timestamp()")
        assert isinstance(found, datetime)
        return found

    async def base(
        self, *, label: str = "", term: int = 1, secrets: Mapping[str, bytes] | None = None, files: Mapping[str, bytes] | None = None
    ) -> BackupManifest:
        started = await self.now()
        data = await asyncio.to_thread(self._basebackup)
        with tarfile.TarFile.open(fileobj=io.BytesIO(data)) as members:
            described = members.extractfile("backup_manifest")
            assert described is not None
            written = msgspec.json.decode(described.read())
        (reach,) = written["WAL-Ranges"]
        finished = await self.now()
        name = layout.name_backup(finished, term)
        parts = [
            await self.put_part(name, layout.DATA, data, self.recipients),
            await self.put_part(name, layout.SECRETS, archive(secrets or {}), self.recipients[:1]),
            await self.put_part(name, layout.FILES, archive(files or {}), self.recipients),
        ]
        manifest = BackupManifest(
            name=name, label=label, mesh=self.mesh, site="here", term=term, system=str(written["System-Identifier"]),
            timeline=await self._timeline(), segment_size=SEGMENT,
            start_lsn=layout.parse_lsn(reach["Start-LSN"]), stop_lsn=layout.parse_lsn(reach["End-LSN"]),
            started_at=started, finished_at=finished, seconds=1.0, postgres=180000, version="0", migrations={}, parts=tuple(parts),
            rows={}, ledger_entries=0, ledger_micro=0, audit_heads={}, log_heads={}, secrets_salt="salt", machine="",
            secrets={name: hashlib.sha256(b"salt" + content).hexdigest() for name, content in (secrets or {}).items()},
        )  # fmt: skip
        await self.store.put(layout.manifest_object(name), layout.sign(layout.manifest_object(name), manifest, self.key))
        await self.ship()
        return manifest

    async def put_part(self, backup: str, part: str, plain: bytes, recipients: list[str]) -> BackupPart:
        digest = sealing.CountedDigest()
        async with sealing.sealed(io.BytesIO(plain), recipients) as pieces:
            await self.store.put_stream(layout.part_object(backup, part), digest.over(pieces))
        return BackupPart(name=part, size=digest.size, sha256=digest.sha256, plain_size=len(plain))

    async def ship(self) -> StoreState:
        """Copy the log that is on disk, including the unfinished segment."""
        at = await self.now()
        lsn = int(str(await self.run("SELECT pg_current_wal_flush_lsn()")))  # asyncpg decodes positions
        self.marks.append((at, lsn))
        for path in sorted((self.server.server.data / "pg_wal").iterdir()):
            if path.suffix == ".history":
                name = layout.history_object(int(path.stem, 16))
                await self.store.put(name, self._sealed(name, path.read_bytes()))
            found = layout.parse_segment(f"wal/{path.name[:8]}/{path.name}.zst.age", SEGMENT)
            if found is not None and found.number * SEGMENT <= lsn and found not in self.shipped:
                await self._put(path, found, lsn)
        state = StoreState(term=1, timeline=await self._timeline(), until=at, lsn=lsn)
        await self.store.put(layout.STATE, layout.sign(layout.STATE, state, self.key))
        return state

    async def _put(self, path: Path, segment: Segment, lsn: int) -> None:
        end = min(lsn, (segment.number + 1) * SEGMENT)
        until, known = max(mark for mark in [self.marks[0], *self.marks] if mark[1] <= end or mark == self.marks[0])
        if end < lsn:
            self.shipped.add(segment)
        else:
            segment = Segment(segment.timeline, segment.number, is_partial=True)
        name = segment.object(SEGMENT)
        wal = WalObject(data=await asyncio.to_thread(path.read_bytes), until=until, lsn=min(known, end))
        await self.store.put(name, self._sealed(name, msgspec.msgpack.encode(wal)))

    def _sealed(self, name: str, data: bytes) -> bytes:
        return sealing.seal_bytes(name, data, self.key, self.mesh, self.recipients)

    async def put_log(self, service: str, first: int, lines: list[bytes]) -> None:
        name = layout.LogPart(service, first, first + len(lines) - 1).object
        await self.store.put(name, self._sealed(name, b"".join(lines)))

    async def _timeline(self) -> int:
        return int(str(await self.run("SELECT timeline_id FROM pg_control_checkpoint()")))

    def _basebackup(self) -> bytes:
        words = ["-h", str(self.server.folder), "-U", "admin", "-D", "-", "-Ft", "-X", "none", "-c", "fast"]
        words += ["--manifest-checksums=SHA256", *([] if self.checks_pages else ["--no-verify-checksums"])]
        return subprocess.run(
            postgres.unprivileged(str(postgres.binaries() / "pg_basebackup"), *words),
            env={"PATH": "/usr/bin:/bin", "PGPASSWORD": self.server.server.admin_password.read_text(encoding="ascii")},
            check=True, timeout=60, capture_output=True,
        ).stdout  # fmt: skip


def archive(files: Mapping[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with tarfile.TarFile.open(fileobj=sink, mode="w") as members:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o600
            members.addfile(member, io.BytesIO(content))
    return sink.getvalue()
