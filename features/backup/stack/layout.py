"""What is in the store and under which names: docs/howto/recovery.md shows the tree. Pure.

Objects never change, except ``state.json``, ``tests.json`` and the unfinished segment of the write-ahead log. Nothing is believed without
a signature.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TypeVar

import msgspec

from features.backup.stack import sealing
from features.backup.stack.sealing import SUFFIX, DamagedObject
from shared import errors
from shared.identity import node_keys
from shared.identity.node_keys import NodeKey
from shared.types import MeshName, Moment, NodeId

#: Raised when older code could not read what newer code writes.
FORMAT = 1
MESH = "mesh.json"
STATE = "state.json"
TESTS = "tests.json"
BASE = "base/"
WAL = "wal/"
RECOVERY_LOG = "log/"
#: The services with a recovery log.
LOG_SERVICES = ("auth", "gateway")
#: Beside their logs: the anchors of the audit log, and the restore points before upgrades.
ANCHORS, POINTS = "anchors", "points"
PROGRAM_LOGS = "logs/"
#: The parts of a backup. Only the operator can open the second.
DATA, SECRETS, FILES = "data", "secrets", "files"
#: PostgreSQL's sizes: a segment's name is its timeline and its number, split at 4 GiB.
_SEGMENTS_PER_ID_BYTES = 1 << 32
_BACKUP = re.compile(r"base/(?P<name>\d{8}T\d{6}Z-(?P<term>\d+))/(?P<file>[a-z.]+)")
_SEGMENT = re.compile(
    r"wal/[0-9A-F]{8}/(?P<timeline>[0-9A-F]{8})(?P<high>[0-9A-F]{8})(?P<low>[0-9A-F]{8})(?P<partial>\.partial)?\.zst\.age"
)
_HISTORY = re.compile(r"wal/(?P<timeline>[0-9A-F]{8})\.history\.zst\.age")
_PROGRAM_LOG = re.compile(r"logs/(?P<day>\d{4}-\d\d-\d\d)/[a-z0-9-]+\.log\.zst\.age")
_LOG = re.compile(r"log/(?P<service>[a-z]+)/(?P<first>\d{12})-(?P<last>\d{12})(-(?P<term>[1-9]\d*))?\.zst\.age")


class RestoreRefused(errors.BadSettings):
    """This cannot be restored. Nothing was changed."""


class Signed(msgspec.Struct, frozen=True):
    """A JSON object of the store: the text of one of the structs below, and its signature."""

    text: str
    key: NodeId
    signature: str


class StoreMesh(msgspec.Struct, frozen=True, kw_only=True):
    """``mesh.json``: whose store this is."""

    format: int
    mesh: MeshName
    #: PostgreSQL's identifier of the cluster, to which all write-ahead log belongs; empty until it is known.
    system: str
    #: The public halves of the keys that sign: the present one and earlier ones.
    keys: tuple[NodeId, ...]
    #: Who can open the backups: the operator's recipients, and the stack's own.
    recipients: tuple[str, ...]
    own_recipient: str


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """``state.json``: how far the store is, by PostgreSQL's clock."""

    term: int
    timeline: int
    #: Every commit before this moment and this position is in the store.
    until: Moment
    lsn: int
    #: Rows of the audit log then, for a restore to count what it loses: anchors are minutes apart.
    audit_rows: int = 0


class RestoreTests(msgspec.Struct, frozen=True, kw_only=True):
    """``tests.json``: what restore tests found, by PostgreSQL's clock."""

    #: The newest test, its backup, and why it failed.
    at: Moment
    backup: str
    ok: bool
    seconds: float
    why: str = ""
    #: Backup -> when it last passed.
    passed: dict[str, Moment] = {}


class BackupPart(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    size: int
    sha256: str
    #: Before it was compressed: an upper bound while unpacking.
    plain_size: int


class DatabaseFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the copied database contains at least, for a test restore to compare. Empty if it is not copied."""

    #: Schema, or schema/feature -> its newest migration.
    migrations: dict[str, int] = {}
    #: schema.table -> rows.
    rows: dict[str, int] = {}
    ledger_entries: int = 0
    ledger_micro: int = 0
    #: Chain of the audit log -> its newest row.
    audit_heads: dict[str, int] = {}
    #: Service -> newest line of its recovery log, which the store has, too.
    log_heads: dict[str, int] = {}


class BackupManifest(DatabaseFacts, frozen=True, kw_only=True):
    """``manifest.json`` of a backup. It is written last, so a backup without it does not exist."""

    format: int = FORMAT
    name: str
    label: str = ""
    mesh: MeshName
    site: str
    term: int
    system: str
    timeline: int
    #: Bytes of a segment of the write-ahead log.
    segment_size: int
    start_lsn: int
    stop_lsn: int
    #: By PostgreSQL's clock. It contains every commit before ``started_at``, and is consistent from ``finished_at`` on.
    started_at: Moment
    finished_at: Moment
    seconds: float
    #: server_version_num, and the version of aimesh.
    postgres: int
    version: str
    parts: tuple[BackupPart, ...]
    #: File of the secrets part -> SHA-256 of salt and content.
    secrets_salt: str
    secrets: dict[str, str]
    machine: str
    #: A copy of ``mesh.json``, in case that is lost.
    store: StoreMesh | None = None

    @property
    def size(self) -> int:
        """Return its bytes in the store."""
        return sum(part.size for part in self.parts)

    def part(self, name: str) -> BackupPart:
        return next(part for part in self.parts if part.name == name)


class WalObject(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment's object contains."""

    data: bytes
    #: Every commit before this moment is in this segment or an earlier one.
    until: Moment
    #: The highest position that is known to be in it.
    lsn: int


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    timeline: int
    number: int
    #: Unfinished: overwritten until it is complete.
    is_partial: bool = False

    def file(self, segment_size: int) -> str:
        """Return PostgreSQL's name of it."""
        per_id = _SEGMENTS_PER_ID_BYTES // segment_size
        return f"{self.timeline:08X}{self.number // per_id:08X}{self.number % per_id:08X}"

    def end(self, segment_size: int) -> int:
        """Return the position behind its last byte."""
        return (self.number + 1) * segment_size

    def object(self, segment_size: int) -> str:
        return f"{WAL}{self.timeline:08X}/{self.file(segment_size)}{'.partial' if self.is_partial else ''}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class BackupName:
    name: str
    term: int


@dataclass(frozen=True, slots=True)
class LogPart:
    service: str
    first: int
    last: int
    #: Of the site that wrote it; 0 before the first restore that accepted a gap.
    term: int = 0

    @property
    def is_cut(self) -> bool:
        """Return whether it has no lines: a restore accepted a gap, and gave up the lines of earlier terms from ``first`` on."""
        return self.last < self.first

    @property
    def object(self) -> str:
        return f"{RECOVERY_LOG}{self.service}/{self.first:012}-{self.last:012}{f'-{self.term}' if self.term else ''}{SUFFIX}"


S = TypeVar("S", bound=msgspec.Struct)


def name_backup(at: datetime, term: int) -> str:
    return f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}-{term}"


def manifest_object(backup: str) -> str:
    return f"{BASE}{backup}/manifest.json"


def part_object(backup: str, part: str) -> str:
    return f"{BASE}{backup}/{part}.tar{SUFFIX}"


def history_object(timeline: int) -> str:
    return f"{WAL}{timeline:08X}.history{SUFFIX}"


def program_log_object(day: date, program: str) -> str:
    return f"{PROGRAM_LOGS}{day}/{program}.log{SUFFIX}"


def parse_backup(name: str) -> tuple[BackupName, str] | None:
    """Return which backup an object belongs to, and its file; None for another object."""
    match = _BACKUP.fullmatch(name)
    if match is None:
        return None
    return BackupName(match["name"], int(match["term"])), match["file"]


def list_manifests(names: Iterable[str]) -> list[str]:
    """Return the manifests among these objects, oldest first."""
    return sorted(name for name in names if (parsed := parse_backup(name)) is not None and parsed[1] == "manifest.json")


def parse_segment(name: str, segment_size: int) -> Segment | None:
    match = _SEGMENT.fullmatch(name)
    if match is None:
        return None
    number = int(match["high"], 16) * (_SEGMENTS_PER_ID_BYTES // segment_size) + int(match["low"], 16)
    return Segment(int(match["timeline"], 16), number, match["partial"] is not None)


def parse_history(name: str) -> int | None:
    match = _HISTORY.fullmatch(name)
    return None if match is None else int(match["timeline"], 16)


def parse_log(name: str) -> LogPart | None:
    match = _LOG.fullmatch(name)
    return None if match is None else LogPart(match["service"], int(match["first"]), int(match["last"]), int(match["term"] or 0))


def choose_log(parts: Collection[LogPart]) -> tuple[list[tuple[LogPart, int]], list[LogPart]]:
    """Return the objects in the order of their lines, each with how many of its first lines earlier ones have, and those behind a gap.
    An interrupted attempt leaves lines in two objects."""
    cuts = [part for part in parts if part.is_cut]
    chosen: list[tuple[LogPart, int]] = []
    behind: list[LogPart] = []
    last = 0
    for part in sorted(parts, key=lambda each: (each.first, -each.last)):
        if part.is_cut or any(cut.term > part.term and cut.first <= part.first for cut in cuts):
            continue
        if part.first > last + 1 or behind:
            behind.append(part)
        elif part.last > last:
            chosen.append((part, last + 1 - part.first))
            last = part.last
    return chosen, behind


def newest_known_line(service: str, parts: Collection[LogPart], backups: Iterable[BackupManifest]) -> int:
    """Return the newest line that a backup knows to be in the store, except those that a restore has given up since."""
    cuts = [part for part in parts if part.is_cut]
    kept = (min([backup.log_heads.get(service, 0), *(cut.first - 1 for cut in cuts if cut.term > backup.term)]) for backup in backups)
    return max(kept, default=0)


def parse_program_log(name: str) -> date | None:
    match = _PROGRAM_LOG.fullmatch(name)
    return None if match is None else date.fromisoformat(match["day"])


def parse_lsn(text: str) -> int:
    """Parse PostgreSQL's form, such as 0/16B3748."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def sign(name: str, content: msgspec.Struct, key: NodeKey) -> bytes:
    """Return the object. The signature covers its name, so that it cannot be used as another one."""
    text = msgspec.json.encode(content).decode()
    signature = key.sign(_purpose(name), text.encode()).hex()
    return msgspec.json.format(msgspec.json.encode(Signed(text, key.id, signature)), indent=1)


def read_signed(name: str, body: bytes, kind: type[S], keys: Collection[NodeId] | None) -> S:
    """Verify and decode an object. ``keys`` None: any key, for the first look at ``mesh.json``. Raises DamagedObject, and BadSettings if
    a newer version of aimesh wrote it."""
    try:
        signed = msgspec.json.decode(body, type=Signed)
        is_right = node_keys.verify(signed.key, _purpose(name), signed.text.encode(), bytes.fromhex(signed.signature))
    except (ValueError, UnicodeError) as error:  # msgspec's errors are ValueErrors
        raise sealing.damaged(name) from error
    if not is_right or (keys is not None and signed.key not in keys):
        raise DamagedObject(f"{name} is not signed by this mesh", hint="somebody forged it; check who can write to the store")
    try:
        content = msgspec.json.decode(signed.text, type=kind)
    except msgspec.DecodeError as error:
        raise errors.BadSettings(
            f"{name} cannot be understood: {error}", hint="a newer version of aimesh wrote it: use that one"
        ) from error
    if getattr(content, "format", FORMAT) > FORMAT:
        raise errors.BadSettings(f"{name} was written by a newer version of aimesh", hint="use that version")
    return content


def _purpose(name: str) -> str:
    return f"backup:{name}"
