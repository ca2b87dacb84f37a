"""Checks a restored database: `python -m services.auth.recovery_check` reads DATABASE_URL and prints JSON.

It verifies every row of the audit log and compares it with anchors from outside the database. Rows that only the anchors know are lost;
that is no fault of the backup, which may be older than the anchors.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from services.auth import store
from services.auth.audit import verification
from services.auth.audit.audit_store import AuditStore
from shared import audit_anchors, errors
from shared.audit_anchors import Anchor
from shared.stores import recovery_check, signed_lines
from shared.stores.recovery_check import RecoveryCheck
from shared.types import NodeId

#: How long before a strict restore's target nothing is trusted.
_STRICT_BEFORE = timedelta(minutes=10)
_STRICT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class AnchorFile:
    """The anchors that decide: the hash of one covers all earlier rows of its chain. Newest: by time."""

    #: The newest anchor of each chain whose row is in the database.
    known: dict[str, Anchor] = field(default_factory=dict)
    #: The newest anchor of each chain whose row is not.
    lost: dict[str, Anchor] = field(default_factory=dict)
    #: Numbers of unreadable lines.
    unreadable: list[int] = field(default_factory=list)


def read_anchors(file: Path, heads: Mapping[str, int]) -> AnchorFile:
    """``heads``: each chain's newest row. Blocks; raises OSError."""
    found = AnchorFile()
    for number, text in enumerate(signed_lines.read(file), start=1):
        anchors, unreadable = audit_anchors.read_lines([text])
        # The file may have been copied while auth wrote its last line.
        if unreadable and text.endswith(b"\n"):
            found.unreadable.append(number)
        for anchor in anchors:
            kind = found.lost if anchor.sequence > heads.get(anchor.chain, 0) else found.known
            if anchor.chain not in kind or kind[anchor.chain].at <= anchor.at:
                kind[anchor.chain] = anchor
    # After an earlier restore, rows with the same numbers were written again, and anchored later than those that it lost.
    for chain in found.lost.keys() & found.known.keys():
        if found.lost[chain].at < found.known[chain].at:
            del found.lost[chain]
    return found


async def check(url: str, *, anchor_file: Path | None, keys: frozenset[NodeId], strict_before: datetime | None) -> RecoveryCheck:
    """Without ``keys``, anchors are not compared."""
    facts = await recovery_check.read_facts(url, "auth", Path(__file__).parent)
    async with store.opened(url) as database:
        rows = AuditStore(database)
        heads = {chain: (await rows.end_of(chain)).last_row for chain in await verification.list_chains(rows, ())}
        filed = AnchorFile()
        if anchor_file is not None:
            try:
                filed = await asyncio.to_thread(read_anchors, anchor_file, heads)
            except OSError as error:
                raise errors.BadSettings(f"the anchors {anchor_file} cannot be read: {error.strerror}", hint="check --anchors") from error
        lost = audit_anchors.check(filed.lost.values(), keys)
        failures = [f"audit log: line {line} of the anchor file is invalid" for line in filed.unreadable[:1]]
        failures += [f"audit log: {finding.why}" for finding in lost.findings if keys]
        for chain in sorted({*heads, *filed.known}):
            anchors = [filed.known[chain]] if chain in filed.known else []
            state = await verification.verify_chain(rows, chain, anchors, keys or None)
            if state.first_bad is not None:
                failures.append(f"audit log: row {state.first_bad} of the chain {chain}: {state.why}")
        revoked, disabled = 0, 0
        if strict_before is not None:
            async with database.transaction(deadline_seconds=_STRICT_SECONDS) as transaction:
                # Not recorded: the log's files may have further lines, which auth replays when it starts.
                await transaction.row("lock_recovery")
                ended = await transaction.row("end_recent_access", strict_before - _STRICT_BEFORE)
                assert ended is not None  # a SELECT without FROM has a row
                revoked, disabled = ended["keys"], ended["users"]
    return RecoveryCheck(
        facts=facts,
        failures=(*facts.failures, *failures),
        audit_heads=heads,
        lost_rows=sum(anchor.sequence - heads.get(anchor.chain, 0) for anchor in lost.good),
        revoked_keys=revoked,
        disabled_users=disabled,
    )


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m services.auth.recovery_check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--anchors", type=Path, metavar="FILE", help="the audit log's anchors (AUDIT_ANCHOR_FILE)")
    parser.add_argument("--anchor-key", action="append", default=[], metavar="KEY", help="a public key that signs anchors; may be repeated")
    parser.add_argument(
        "--strict-before",
        type=_moment,
        metavar="TIME",
        help="revoke the keys and disable the accounts that changed in the 10 minutes before",
    )
    given = parser.parse_args()
    keys = frozenset(map(NodeId, given.anchor_key))
    checked = partial(check, anchor_file=given.anchors, keys=keys, strict_before=given.strict_before)
    return recovery_check.run(checked)


if __name__ == "__main__":
    sys.exit(main())
