"""Signs checkpoints of the ledger: the sums of each closed day, in a hash chain. Pure.

The key is derived from PROMPT_HASH_SECRET, which all gateways share but the database doesn't hold: write access to the tables is not
enough to forge a checkpoint. The signature format is that of the audit log's anchors.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

import msgspec

from shared import audit_anchors
from shared.audit_anchors import Anchor
from shared.audit_chain import START, ChainHead
from shared.identity.node_keys import NodeKey
from shared.types import MeshName

_CHAIN = "ledger"
_FORM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerDay:
    """The sums of a closed day."""

    day: date
    entries: int
    included_micro: int
    balance_micro: int
    revenue_micro: int
    grants_micro: int
    payments_micro: int
    entries_hash: bytes
    #: Hash of each owner's balance after this day.
    balances_hash: bytes


@dataclass(frozen=True, slots=True)
class LedgerCheckpoint:
    closed: LedgerDay
    hash: bytes
    #: One line of JSON.
    anchor: str


class CheckpointSigner:
    def __init__(self, secret: str | None, mesh: MeshName) -> None:
        """Without the secret, hashes are checked and signatures are not: a test restore has no secrets."""
        self._key = None if secret is None else _signing_key(secret)
        self._mesh = mesh
        #: Verified hashes and anchors of the last chain: it has all days and is checked every minute.
        self._good: set[tuple[bytes, str]] = set()

    def sign(self, closed: LedgerDay, before: LedgerCheckpoint | None, at: datetime) -> LedgerCheckpoint:
        assert self._key is not None  # only a gateway closes days
        digest = _hash(closed, before)
        anchor = audit_anchors.sign(self._key, self._mesh, _CHAIN, ChainHead(closed.day.toordinal(), digest), at)
        return LedgerCheckpoint(closed, digest, audit_anchors.line(anchor).decode())

    def find_broken(self, chain: Sequence[LedgerCheckpoint]) -> tuple[str, ...]:
        """Describe each invalid checkpoint, in order of days."""
        findings = []
        before: LedgerCheckpoint | None = None
        for checkpoint in chain:
            if why := self._why_broken(checkpoint, before):
                findings.append(f"the checkpoint of {checkpoint.closed.day.isoformat()} {why}")
            before = checkpoint
        self._good &= {(checkpoint.hash, checkpoint.anchor) for checkpoint in chain}
        return tuple(findings)

    def _why_broken(self, checkpoint: LedgerCheckpoint, before: LedgerCheckpoint | None) -> str | None:
        day = checkpoint.closed.day
        if before is not None and day.toordinal() != before.closed.day.toordinal() + 1:
            return "does not follow the previous day: checkpoints are missing"
        if checkpoint.hash != _hash(checkpoint.closed, before):
            return "was changed after it was written"
        return None if (checkpoint.hash, checkpoint.anchor) in self._good else self._why_unsigned(checkpoint)

    def _why_unsigned(self, checkpoint: LedgerCheckpoint) -> str | None:
        try:
            anchor = msgspec.json.decode(checkpoint.anchor, type=Anchor)
        except msgspec.DecodeError:
            return "has no signature"
        if (anchor.chain, anchor.sequence, anchor.hash) != (_CHAIN, checkpoint.closed.day.toordinal(), checkpoint.hash.hex()):
            return "has another checkpoint's signature"
        if self._key is not None and not audit_anchors.check([anchor], [self._key.id]).good:
            return "is not signed by this mesh; was PROMPT_HASH_SECRET changed?"
        self._good.add((checkpoint.hash, checkpoint.anchor))
        return None


def _signing_key(secret: str) -> NodeKey:
    return audit_anchors.signing_key(hmac.digest(secret.encode(), b"aimesh/ledger-checkpoint/1", "sha256"))


def _hash(closed: LedgerDay, before: LedgerCheckpoint | None) -> bytes:
    sums = (closed.included_micro, closed.balance_micro, closed.revenue_micro, closed.grants_micro, closed.payments_micro)
    form = (_FORM, closed.day.isoformat(), closed.entries, sums, closed.entries_hash, closed.balances_hash)
    return hashlib.sha256((START.hash if before is None else before.hash) + msgspec.msgpack.encode(form)).digest()
