"""Read the whole audit log and find the first changed row of each chain."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime

import msgspec

from services.auth.audit.anchoring import Anchoring
from services.auth.audit.audit_store import AuditStore, ChainEnd
from shared import audit_anchors
from shared.api.audit import AuditReport, ChainState
from shared.audit_anchors import Anchor, AnchorFinding
from shared.audit_chain import ChainVerifier, Checkpoint
from shared.telemetry import Metrics, logs
from shared.types import NodeId

_log = logs.get(part="audit")

#: Instead of a chain's name, for lines of the anchors' file.
_FILE = "anchors"


class Verification:
    """Holds one page of rows at a time."""

    def __init__(
        self, rows: AuditStore, anchoring: Anchoring, metrics: Metrics, restores: Callable[[], Sequence[datetime]] = lambda: ()
    ) -> None:
        self._rows = rows
        self._anchoring = anchoring
        self._metrics = metrics
        #: When the database was restored.
        self._restores = restores

    async def report(self, chain: str | None) -> AuditReport:
        """Verify one chain or all. Raises Unavailable."""
        filed, unreadable = await self._anchoring.read()
        by_chain: dict[str, list[Anchor]] = {}
        for anchor in filed:
            by_chain.setdefault(anchor.chain, []).append(anchor)
        states = [ChainState(_FILE, 0, line, f"line {line} of the anchor file is invalid", 0) for line in unreadable[:1]]
        names = [chain] if chain is not None else await list_chains(self._rows, by_chain)
        keys, restores = self._anchoring.keys.ids, self._restores()
        states += [await verify_chain(self._rows, name, by_chain.get(name, []), keys, restores) for name in names]
        broken = [state for state in states if state.first_bad is not None]
        if broken:
            worst = broken[0]
            _log.error("the audit log was changed", chain=worst.chain, first_bad=worst.first_bad, why=worst.why)
        # Not before the first full report: one intact chain says nothing about the others.
        if broken or chain is None:
            self._metrics.audit_chain_valid.set(not broken)
        return AuditReport(tuple(states), self._anchoring.keys.current.id)


async def list_chains(rows: AuditStore, filed: Iterable[str]) -> list[str]:
    """Includes chains of which only an anchor is left."""
    return sorted({*await rows.chains(), *await rows.anchored_chains(), *filed})


async def verify_chain(
    rows: AuditStore, chain: str, filed: Sequence[Anchor], keys: Collection[NodeId] | None, restores: Sequence[datetime] = ()
) -> ChainState:
    """``filed`` are the anchors of the file, and ``keys`` those that sign; without keys, anchors are not compared. ``restores``: when the
    database was restored."""
    checked = audit_anchors.check([] if keys is None else [*await rows.anchors_of(chain), *filed], keys or ())
    end = await rows.end_of(chain)
    kept, lost = await _without_lost(rows, chain, end.last_row, checked.good, restores)
    checked = replace(checked, good=kept)
    verifier = ChainVerifier(chain, [*checked.checkpoints(chain), *_head_of(end)])
    until = end.last_row if end.head is None else end.head.sequence
    async for page in rows.read_chain(chain, until=until):
        for row in page:
            verifier.take(row)
        if verifier.is_over:
            break
    state = msgspec.structs.replace(verifier.state(), lost=lost)
    return _with_findings(state, end, checked.finding(chain)) if state.first_bad is None else state


async def _without_lost(
    rows: AuditStore, chain: str, last_row: int, anchors: tuple[Anchor, ...], restores: Sequence[datetime]
) -> tuple[tuple[Anchor, ...], str]:
    """Return the anchors without those of rows that a restore has lost, and which these are.

    Only anchors from before a restore, of rows that are missing or were written after it. Anchors from after it cover all rows before them,
    so this hides no change of a row.
    """
    lost: list[str] = []
    for restored_at in sorted(restores):
        first = await rows.first_since(chain, restored_at)
        kept = last_row if first is None else first - 1
        newest = max((anchor.sequence for anchor in anchors if anchor.at <= restored_at), default=0)
        if newest > kept:
            lost.append(f"rows {kept + 1} to {newest} were lost by the restore of {restored_at:%Y-%m-%d %H:%M:%S} UTC")
            anchors = tuple(anchor for anchor in anchors if anchor.at > restored_at or anchor.sequence <= kept)
    return anchors, "; ".join(lost)


def _head_of(end: ChainEnd) -> list[Checkpoint]:
    if end.head is None or not end.head.sequence:
        return []
    return [Checkpoint(sequence=end.head.sequence, hash=end.head.hash, source="the chain's head", is_signed=False)]


def _with_findings(state: ChainState, end: ChainEnd, forged: AnchorFinding | None) -> ChainState:
    """Add what is wrong around rows that are right in themselves."""
    first_bad, why = None, ""
    if forged is not None:
        first_bad, why = forged.sequence, forged.why
    elif end.head is None and end.last_row:
        first_bad, why = end.last_row + 1, "the chain's head is gone: rows may have followed"
    elif end.head is not None and end.last_row > end.head.sequence:
        first_bad, why = end.head.sequence + 1, "the row was inserted behind the chain's head"
    return msgspec.structs.replace(state, first_bad=first_bad, why=why)
