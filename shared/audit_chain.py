"""Hashes and verifies the chains of the audit log. Pure.

Auditors verify an exported log with `aicli`, without any service.

A row's hash is SHA-256 over the previous row's hash and the canonical form of the row. Address and details are personal, so only a
salted digest of them is hashed: after salt and text are erased the row still proves its place, and nobody can guess what was erased.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from shared.api.audit import AuditedAct, AuditRow, ChainState
from shared.types import TenantId

#: The chain of everything that belongs to no tenant.
PLATFORM_CHAIN = "house"
SALT_BYTES = 16

#: The version of the canonical form. It comes first, so that two forms are never confused.
_FORM = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
#: How many rows back inserted rows can be located.
_REMEMBERED = 4096

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The last row of a chain."""

    sequence: int
    hash: bytes


START = ChainHead(0, bytes(32))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLink:
    """A row to be written."""

    chain: str
    sequence: int
    act: AuditedAct
    salt: bytes
    details_digest: bytes
    prev_hash: bytes
    hash: bytes

    @property
    def head(self) -> ChainHead:
        return ChainHead(self.sequence, self.hash)


def chain_of(tenant: TenantId | None) -> str:
    return PLATFORM_CHAIN if tenant is None else str(tenant)


def link(chain: str, before: ChainHead, act: AuditedAct, salt: bytes) -> ChainLink:
    """Return the row that follows ``before``."""
    if not (act.address or act.details):
        salt = b""
    digest, sequence = _digest_of(act, salt), before.sequence + 1
    made = _hash(before.hash, chain, sequence, act, digest)
    return ChainLink(chain=chain, sequence=sequence, act=act, salt=salt, details_digest=digest, prev_hash=before.hash, hash=made)


def _digest_of(act: AuditedAct, salt: bytes) -> bytes:
    """Return the digest of the personal part; empty if there is none."""
    if not (act.address or act.details):
        return b""
    return hashlib.sha256(salt + _encode((act.address, sorted(act.details.items())))).digest()


def _hash(before: bytes, chain: str, sequence: int, act: AuditedAct, digest: bytes) -> bytes:
    return hashlib.sha256(before + _canonical(chain, sequence, act, digest)).digest()


def _canonical(chain: str, sequence: int, act: AuditedAct, digest: bytes) -> bytes:
    """Return the shortest MessagePack form. New fields go at the end, with a new ``_FORM``."""
    return _encode(
        (
            _FORM,
            chain,
            sequence,
            microseconds(act.at),
            _id(act.tenant_id),
            act.action,
            _id(act.actor),
            act.result,
            act.target,
            act.request_id,
            act.times,
            digest,
        )
    )


def microseconds(at: datetime) -> int:
    """Return the microseconds since 1970. A time without a zone is UTC."""
    return ((at if at.tzinfo is not None else at.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def _id(value: UUID | None) -> bytes | None:
    return None if value is None else value.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a row's hash was at some time, according to another source: a signed anchor, or the stored head."""

    sequence: int
    hash: bytes
    source: str
    #: Anchors are signed; the head, stored beside the rows, is not.
    is_signed: bool = True


@dataclass(frozen=True, slots=True)
class _Broken:
    sequence: int
    why: str


class ChainVerifier:
    """Verifies one chain: ``take`` its rows in order, then read ``state``. Keeps only the hashes of the latest rows.

    It names the first row that was changed. If a run of rows was rewritten including the hashes, only a checkpoint reveals it; the row
    named is then the first that cannot be right.
    """

    def __init__(self, chain: str, checkpoints: Iterable[Checkpoint] = (), *, partial: bool = False) -> None:
        """``partial``: the first row given is not the chain's first."""
        self.chain = chain
        self._checkpoints = sorted(checkpoints, key=lambda checkpoint: checkpoint.sequence)
        #: How many checkpoints were passed, how many of these were signed and agreed, and the row of the last that agreed.
        self._compared = 0
        self._signed = 0
        self._known_good = 0
        self._partial = partial
        self._before = START
        self._rows = 0
        self._seen: OrderedDict[bytes, int] = OrderedDict({START.hash: 0})
        self._broken: _Broken | None = None
        #: The first checkpoint that disagrees. A later row may still show where before it the changed rows begin.
        self._mismatch: _Broken | None = None
        #: A row that is consistent in itself but follows another row than its predecessor: the next row shows which of the two is wrong.
        self._suspect: ChainHead | None = None

    @property
    def is_over(self) -> bool:
        """Return whether no further row can change the result."""
        return self._broken is not None

    def take(self, row: AuditRow) -> None:
        self._rows += 1
        if self._broken is not None:
            return
        if self._suspect is not None:
            self._settle(row)
            return
        if self._partial and self._rows == 1:
            self._begin(row)
        self._broken = self._misplaced(row) or self._check(row)
        if self._broken is None and self._suspect is None:
            self._accept(row)

    def state(self) -> ChainState:
        """Return the result, after the last row."""
        if self._suspect is not None:
            self._settle(None)
        tail = None if self._mismatch or self._broken else self._check_tail()
        found = min(filter(None, (self._mismatch, self._broken, tail)), key=lambda broken: broken.sequence, default=None)
        first_bad, why = (None, "") if found is None else (found.sequence, found.why)
        return ChainState(self.chain, self._rows, first_bad, why, self._signed)

    def _begin(self, row: AuditRow) -> None:
        """Start in the middle of a chain: the previous row is known only by the hash in this one, and perhaps by a checkpoint."""
        if row.sequence > 1:
            self._before = ChainHead(row.sequence - 1, _bytes(row.prev_hash))
            self._seen = OrderedDict({self._before.hash: self._before.sequence})
            self._checkpoints = [checkpoint for checkpoint in self._checkpoints if checkpoint.sequence >= self._before.sequence]
            self._compare(self._before)

    def _accept(self, row: AuditRow) -> None:
        self._before = ChainHead(row.sequence, _bytes(row.hash))
        self._seen[self._before.hash] = row.sequence
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)

    def _misplaced(self, row: AuditRow) -> _Broken | None:
        due = self._before.sequence + 1
        if row.chain != self.chain:
            return _Broken(due, f"a row of the chain {row.chain!r} is in its place")
        if row.sequence > due:
            return _Broken(due, _missing(due, row.sequence - 1))
        if row.sequence < due:
            return _Broken(row.sequence, "the row is duplicated or out of order")
        return None

    def _check(self, row: AuditRow) -> _Broken | None:
        due = self._before.sequence + 1
        stored, prev_hash = _bytes(row.hash), _bytes(row.prev_hash)
        fits = _own_hash(row, self._before.hash) == stored
        if prev_hash != self._before.hash:
            return self._diagnose(row, prev_hash, fits=fits)
        if not fits:
            return _Broken(due, "the row was changed")
        if not _personal_part_is_right(row):
            return _Broken(due, "the row's address or details were changed")
        self._compare(ChainHead(due, stored))
        return None

    def _diagnose(self, row: AuditRow, prev_hash: bytes, *, fits: bool) -> _Broken | None:
        """Find out why the row claims another predecessor. Returns None if the next row has to decide."""
        due = self._before.sequence + 1
        if fits:
            return _Broken(due, "the row was changed: its hash is right, but the hash it gives for the previous row is not")
        if (original := self._seen.get(_bytes(row.hash))) is not None:
            return _Broken(due, f"the row is a copy of row {original}")
        known = self._seen.get(prev_hash)
        if known is not None and _own_hash(row, prev_hash, known + 1) == _bytes(row.hash):
            return _Broken(known + 1, f"{_rows(known + 1, due - 1)} inserted: row {due} originally followed row {known}")
        if _own_hash(row, prev_hash) == _bytes(row.hash) and due > 1:
            self._suspect = ChainHead(due, _bytes(row.hash))
            return None
        return _Broken(due, "the row was changed or moved")

    def _settle(self, successor: AuditRow | None) -> None:
        """Decide about the suspect row by the row that follows it, or by a checkpoint if there is none."""
        assert self._suspect is not None
        suspect, self._suspect = self._suspect, None
        known = {checkpoint.sequence: checkpoint.hash for checkpoint in self._checkpoints if checkpoint.sequence == suspect.sequence}
        successor_hash = known.get(suspect.sequence, suspect.hash) if successor is None else _bytes(successor.prev_hash)
        if successor_hash == suspect.hash:
            before = suspect.sequence - 1
            self._broken = _Broken(before, f"the row was rewritten, hash included: row {suspect.sequence} followed another row")
        else:
            self._broken = _Broken(suspect.sequence, "the row was rewritten and follows no row of this chain")

    def _compare(self, head: ChainHead) -> None:
        while self._compared < len(self._checkpoints) and self._checkpoints[self._compared].sequence <= head.sequence:
            checkpoint = self._checkpoints[self._compared]
            self._compared += 1
            if self._mismatch is not None:
                continue
            if checkpoint.hash == head.hash:
                self._signed += checkpoint.is_signed
                self._known_good = head.sequence
            else:
                # Another checkpoint of the same row may have agreed: after a restore, both rows were signed.
                first = min(self._known_good + 1, head.sequence)
                why = f"{checkpoint.source} disagrees: {_rows(first, head.sequence)} rewritten"
                self._mismatch = _Broken(head.sequence, why)

    def _check_tail(self) -> _Broken | None:
        """Find rows missing after the last one."""
        if self._partial and not self._rows:
            return None
        beyond = [checkpoint for checkpoint in self._checkpoints[self._compared :] if checkpoint.sequence > self._before.sequence]
        if not beyond:
            return None
        due = self._before.sequence + 1
        return _Broken(due, f"{_missing(due, beyond[-1].sequence)}: {beyond[-1].source} counts them")


def _own_hash(row: AuditRow, before: bytes, sequence: int | None = None) -> bytes:
    """``sequence``: the number that the row may once have had."""
    try:
        return _hash(before, row.chain, row.sequence if sequence is None else sequence, row.act, _bytes(row.details_digest))
    except (OverflowError, UnicodeEncodeError):  # not a value that we write
        return b""


def _personal_part_is_right(row: AuditRow) -> bool:
    digest, salt = _bytes(row.details_digest), _bytes(row.salt)
    if digest and salt:
        return _digest_of(row.act, salt) == digest
    # Erased or never present: nothing may be there now.
    return not (salt or row.act.address or row.act.details)


def _bytes(text: str) -> bytes:
    """Parse hex digits; anything else equals no hash."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b"?"


def _missing(first: int, last: int) -> str:
    return f"row {first} is missing" if first == last else f"rows {first} to {last} are missing"


def _rows(first: int, last: int) -> str:
    return f"row {first} was" if first == last else f"rows {first} to {last} were"
