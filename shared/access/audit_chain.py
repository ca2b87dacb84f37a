"""The hash chains of the audit log: what a row's hash covers, and which row is the first that is not as it was written. Pure.

Shared, because an auditor checks an exported log with `aicli` and without any service.

The hash of a row is SHA-256 over the hash of the row before it and the canonical form of all that the row shows. Address and details
are personal and so are covered by a salted digest alone: without salt and text the row still proves its place, and nobody can guess
what stood there.
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

#: The chain of what belongs to no tenant.
HOUSE = "house"
SALT_BYTES = 16

#: The first member of the canonical form, so that another form is never mistaken for this one.
_FORM = 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
#: How many rows back the place is found where somebody put others in.
_REMEMBERED = 4096

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The last row of a chain."""

    sequence: int
    hash: bytes


#: Before the first row.
START = ChainHead(0, bytes(32))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLink:
    """A row as it is to be written."""

    chain: str
    sequence: int
    act: AuditedAct
    #: Empty where there is nothing personal.
    salt: bytes
    details_digest: bytes
    prev_hash: bytes
    hash: bytes

    @property
    def head(self) -> ChainHead:
        return ChainHead(self.sequence, self.hash)


def chain_of(tenant: TenantId | None) -> str:
    return HOUSE if tenant is None else str(tenant)


def tenant_of(chain: str) -> TenantId | None:
    """Raises ValueError for what is no chain's name."""
    return None if chain == HOUSE else TenantId(UUID(chain))


def link(chain: str, before: ChainHead, act: AuditedAct, salt: bytes) -> ChainLink:
    """The row that follows ``before``."""
    if not (act.address or act.details):
        salt = b""
    digest, sequence = _digest_of(act, salt), before.sequence + 1
    made = _hash(before.hash, chain, sequence, act, digest)
    return ChainLink(chain=chain, sequence=sequence, act=act, salt=salt, details_digest=digest, prev_hash=before.hash, hash=made)


def _digest_of(act: AuditedAct, salt: bytes) -> bytes:
    """Of the personal part; empty where there is none."""
    if not (act.address or act.details):
        return b""
    return hashlib.sha256(salt + _encode((act.address, sorted(act.details.items())))).digest()


def _hash(before: bytes, chain: str, sequence: int, act: AuditedAct, digest: bytes) -> bytes:
    return hashlib.sha256(before + _canonical(chain, sequence, act, digest)).digest()


def _canonical(chain: str, sequence: int, act: AuditedAct, digest: bytes) -> bytes:
    """MessagePack in its shortest form. A field that the log learns later goes to the end, under another ``_FORM``."""
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
    """Since 1970, exactly; what says no zone is UTC."""
    return ((at if at.tzinfo is not None else at.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def _id(value: UUID | None) -> bytes | None:
    return None if value is None else value.bytes


# --- verifying -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What a row's hash was at some time, from elsewhere than the row: a signed anchor, or the head."""

    sequence: int
    hash: bytes
    #: Such as `the anchor of 2026-02-01 10:00`.
    source: str
    #: By a key; the head, which lies beside the rows, is not.
    is_signed: bool = True


@dataclass(frozen=True, slots=True)
class _Broken:
    sequence: int
    why: str


class ChainVerifier:
    """One chain: ``take`` its rows in their order, then ask for the ``state``. Holds no more than the hashes of the latest rows.

    It names the first row that is not as it was written. Where somebody has made a run of rows anew, hashes and all, only a
    checkpoint gives it away, and the row that is named is the first one that cannot be right.
    """

    def __init__(self, chain: str, checkpoints: Iterable[Checkpoint] = (), *, partial: bool = False) -> None:
        """``partial``: the rows begin somewhere, and not with the chain's first one."""
        self.chain = chain
        self._checkpoints = sorted(checkpoints, key=lambda checkpoint: checkpoint.sequence)
        #: How many of them the rows have passed, how many of these were signed and agreed, and the row of the last that did.
        self._compared = 0
        self._signed = 0
        self._known_good = 0
        self._partial = partial
        self._before = START
        self._rows = 0
        #: hash -> its row, of the latest rows.
        self._seen: OrderedDict[bytes, int] = OrderedDict({START.hash: 0})
        self._broken: _Broken | None = None
        #: The first checkpoint that says otherwise. A later row may still tell where before it the wrong ones begin.
        self._contradicted: _Broken | None = None
        #: A row that is right in itself and follows another than the one before it: the next one tells which of the two is wrong.
        self._doubted: ChainHead | None = None

    @property
    def is_over(self) -> bool:
        """No further row can change what was found."""
        return self._broken is not None

    @property
    def rows(self) -> int:
        return self._rows

    def take(self, row: AuditRow) -> None:
        self._rows += 1
        if self._broken is not None:
            return
        if self._doubted is not None:
            self._settle(row)
            return
        if self._partial and self._rows == 1:
            self._begin(row)
        self._broken = self._misplaced(row) or self._check(row)
        if self._broken is None and self._doubted is None:
            self._accept(row)

    def state(self) -> ChainState:
        """After the last row."""
        if self._doubted is not None:
            self._settle(None)
        tail = None if self._contradicted or self._broken else self._check_tail()
        found = min(filter(None, (self._contradicted, self._broken, tail)), key=lambda broken: broken.sequence, default=None)
        first_bad, why = (None, "") if found is None else (found.sequence, found.why)
        return ChainState(self.chain, self._rows, first_bad, why, self._signed)

    def _begin(self, row: AuditRow) -> None:
        """Of the row before the first one, all that is known is the hash that this one tells, and perhaps a checkpoint."""
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
            return _Broken(due, f"a row of the chain {row.chain!r} stands in its place")
        if row.sequence > due:
            return _Broken(due, _missing(due, row.sequence - 1))
        if row.sequence < due:
            return _Broken(row.sequence, "the row comes twice, or out of its order")
        return None

    def _check(self, row: AuditRow) -> _Broken | None:
        due = self._before.sequence + 1
        stored, told = _bytes(row.hash), _bytes(row.prev_hash)
        fits = _own_hash(row, self._before.hash) == stored
        if told != self._before.hash:
            return self._diagnose(row, told, fits=fits)
        if not fits:
            return _Broken(due, "the row is not as it was written")
        if not _personal_part_is_right(row):
            return _Broken(due, "the row's address or details are not as they were written")
        self._compare(ChainHead(due, stored))
        return None

    def _diagnose(self, row: AuditRow, told: bytes, *, fits: bool) -> _Broken | None:
        """The row says that it follows another than the one before it. None where the next row has to tell."""
        due = self._before.sequence + 1
        if fits:
            return _Broken(due, "the row is not as it was written: its hash fits, what it says of the row before does not")
        if (original := self._seen.get(_bytes(row.hash))) is not None:
            return _Broken(due, f"the row is a copy of row {original}")
        known = self._seen.get(told)
        if known is not None and _own_hash(row, told, known + 1) == _bytes(row.hash):
            return _Broken(known + 1, f"{_rows(known + 1, due - 1)} put in: row {due} once followed row {known}")
        if _own_hash(row, told) == _bytes(row.hash) and due > 1:
            self._doubted = ChainHead(due, _bytes(row.hash))
            return None
        return _Broken(due, "the row is not as it was written, or stood elsewhere")

    def _settle(self, successor: AuditRow | None) -> None:
        """Who follows the doubted row says whether it was there; where nobody does, a checkpoint may."""
        assert self._doubted is not None  # its callers have looked
        doubted, self._doubted = self._doubted, None
        known = {checkpoint.sequence: checkpoint.hash for checkpoint in self._checkpoints if checkpoint.sequence == doubted.sequence}
        said = known.get(doubted.sequence, doubted.hash) if successor is None else _bytes(successor.prev_hash)
        if said == doubted.hash:
            before = doubted.sequence - 1
            self._broken = _Broken(before, f"the row was made anew, hash and all: row {doubted.sequence} followed another")
        else:
            self._broken = _Broken(doubted.sequence, "the row was made anew and follows no row of this chain")

    def _compare(self, head: ChainHead) -> None:
        while self._compared < len(self._checkpoints) and self._checkpoints[self._compared].sequence <= head.sequence:
            checkpoint = self._checkpoints[self._compared]
            self._compared += 1
            if self._contradicted is not None:
                continue
            if checkpoint.hash == head.hash:
                self._signed += checkpoint.is_signed
                self._known_good = head.sequence
            else:
                why = f"{checkpoint.source} says otherwise: {_rows(self._known_good + 1, head.sequence)} made anew"
                self._contradicted = _Broken(head.sequence, why)

    def _check_tail(self) -> _Broken | None:
        """Rows that once were there and would have to follow the last one."""
        if self._partial and not self._rows:
            return None
        beyond = [checkpoint for checkpoint in self._checkpoints[self._compared :] if checkpoint.sequence > self._before.sequence]
        if not beyond:
            return None
        due = self._before.sequence + 1
        return _Broken(due, f"{_missing(due, beyond[-1].sequence)}: {beyond[-1].source} counts them")


def _own_hash(row: AuditRow, before: bytes, sequence: int | None = None) -> bytes:
    """With the number that it has, or that it may once have had."""
    try:
        return _hash(before, row.chain, row.sequence if sequence is None else sequence, row.act, _bytes(row.details_digest))
    except (OverflowError, UnicodeEncodeError):  # a number or a text that no row of ours has
        return b""


def _personal_part_is_right(row: AuditRow) -> bool:
    digest, salt = _bytes(row.details_digest), _bytes(row.salt)
    if digest and salt:
        return _digest_of(row.act, salt) == digest
    # Erased, or never there: nothing may stand there now.
    return not (salt or row.act.address or row.act.details)


def _bytes(text: str) -> bytes:
    """Of hexadecimal digits; what is none equals no hash."""
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b"?"


def _missing(first: int, last: int) -> str:
    return f"row {first} is missing" if first == last else f"rows {first} to {last} are missing"


def _rows(first: int, last: int) -> str:
    return f"row {first} was" if first == last else f"rows {first} to {last} were"
