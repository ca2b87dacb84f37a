"""auth's tables audit_heads, audit_log, audit_details and audit_anchors. Every method may raise Unavailable."""

import secrets
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, cast

import msgspec

from services.auth import audit_records
from services.auth.store import AuthTables
from shared import audit_chain, errors
from shared.api.audit import AuditedAct, AuditRow, Result
from shared.audit_anchors import Anchor
from shared.audit_chain import ChainHead, ChainLink
from shared.stores import database
from shared.types import UserId

#: Rows read at once: some milliseconds of work, so other tasks are not delayed.
_PAGE = 500
#: Personal parts erased per transaction.
_SHRED_BATCH = 5000
_ANCHORS_PAGE = 1000
#: The highest possible row number.
_LAST: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuery:
    """A filter of rows; None matches every row."""

    chain: str | None = None
    actor: UserId | None = None
    #: A complete action, or its part before a dot.
    action: str | None = None
    result: Result | None = None
    since: datetime | None = None
    before: datetime | None = None


@dataclass(frozen=True, slots=True)
class ChainEnd:
    """Where a chain ends, according to its head and to its rows."""

    #: None if the head is missing, which no code of ours causes.
    head: ChainHead | None
    last_row: int


class AuditStore(AuthTables):
    async def append(self, transaction: database.Transaction, new: Iterable[AuditedAct]) -> None:
        """Takes two round trips per chain. The chains stay locked until the transaction ends, so call this last."""
        by_chain: dict[str, list[AuditedAct]] = {}
        for act in new:
            by_chain.setdefault(audit_chain.chain_of(act.tenant_id), []).append(audit_records.fitted(act))
        # The same order everywhere, so that no two transactions wait for each other.
        for chain in sorted(by_chain):
            await self._append_to(transaction, chain, by_chain[chain])

    async def _append_to(self, transaction: database.Transaction, chain: str, new: Sequence[AuditedAct]) -> None:
        head = await _locked_head(transaction, chain)
        links: list[ChainLink] = []
        for act in new:
            links.append(audit_chain.link(chain, head, act, secrets.token_bytes(audit_chain.SALT_BYTES)))
            head = links[-1].head
        columns = zip(*map(_columns, links), strict=True)
        tenant = new[0].tenant_id
        await transaction.run("add_audit_rows", chain, tenant, *map(list, columns), head.sequence, head.hash)

    async def list_rows(self, query: AuditQuery, limit: int) -> tuple[AuditRow, ...]:
        """List the newest rows, and all that share the time of the last one."""
        result = None if query.result is None else query.result.value
        rows = await self._db.rows(
            "list_audit_rows", query.chain, query.actor, query.action, result, query.since, query.before, limit, deadline_seconds=10
        )
        return tuple(map(_row, rows))

    async def read_chain(self, chain: str, *, after: int = 0, until: int = _LAST) -> AsyncGenerator[list[AuditRow], None]:
        """Yield all rows between these numbers, page by page."""
        while page := await self._db.rows("read_audit_chain", chain, after, until, _PAGE, deadline_seconds=30):
            rows = list(map(_row, page))
            yield rows
            after = rows[-1].sequence

    async def chains(self) -> tuple[str, ...]:
        return tuple(row["chain"] for row in await self._db.rows("list_audit_chains", deadline_seconds=30))

    async def end_of(self, chain: str) -> ChainEnd:
        row = await self._db.row("find_audit_head", chain)
        assert row is not None  # a SELECT without FROM has a row
        head = None if row["sequence"] is None else ChainHead(row["sequence"], row["hash"])
        return ChainEnd(head, row["last_row"] or 0)

    async def first_since(self, chain: str, since: datetime) -> int | None:
        """Return the number of the first row of the period, or None."""
        found: int | None = await self._db.value("find_audit_row_since", chain, since, deadline_seconds=30)
        return found

    async def shred_before(self, moment: datetime) -> int:
        """Erase the personal parts of older rows in batches; return how many."""
        total = 0
        while shredded := await self._db.run("shred_audit_details_before", moment, _SHRED_BATCH, deadline_seconds=30):
            total += shredded
        return total

    async def shred_of(self, transaction: database.Transaction, user_id: UserId) -> int:
        """Erase the personal parts of everything that a user did; the chain still verifies. Idempotent.

        The transaction must see every tenant's rows.
        """
        return await transaction.run("shred_audit_details_of", user_id)

    async def unanchored(self) -> tuple[tuple[str, ChainHead], ...]:
        """Return the heads of chains that have grown since their last anchor."""
        rows = await self._db.rows("list_unanchored_heads", deadline_seconds=30)
        return tuple((row["chain"], ChainHead(row["sequence"], row["hash"])) for row in rows)

    async def add_anchors(self, anchors: Sequence[Anchor]) -> None:
        chains, sequences = [anchor.chain for anchor in anchors], [anchor.sequence for anchor in anchors]
        hashes = [bytes.fromhex(anchor.hash) for anchor in anchors]
        texts = [msgspec.json.encode(anchor).decode() for anchor in anchors]
        await self._db.run("add_audit_anchors", chains, sequences, hashes, texts, deadline_seconds=30)

    async def anchors_after(self, number: int) -> tuple[tuple[Anchor, ...], int]:
        """Return some of the anchors after this one, and the number to continue from."""
        rows = await self._db.rows("list_anchors_after", number, _ANCHORS_PAGE)
        return tuple(map(_anchor, rows)), (rows[-1]["number"] if rows else number)

    async def last_anchor(self) -> int:
        return int(await self._db.value("last_anchor_number"))

    async def anchors_of(self, chain: str) -> tuple[Anchor, ...]:
        return tuple(map(_anchor, await self._db.rows("list_anchors_of_chain", chain, deadline_seconds=30)))

    async def anchored_chains(self) -> tuple[str, ...]:
        return tuple(row["chain"] for row in await self._db.rows("list_anchored_chains", deadline_seconds=30))


async def _locked_head(transaction: database.Transaction, chain: str) -> ChainHead:
    row = await transaction.row("lock_audit_head", chain)
    if row is None:
        # Several callers may create the chain at once; the second query waits for the first of them.
        await transaction.run("ensure_audit_head", chain, audit_chain.START.hash)
        row = await transaction.row("lock_audit_head", chain)
    if row is None:
        raise errors.Unavailable("the audit log has no head for this chain", hint="was the table audit_heads changed by hand?")
    return ChainHead(row["sequence"], row["hash"])


def _columns(link: ChainLink) -> tuple[object, ...]:
    act = link.act
    return (
        link.sequence,
        act.at,
        act.actor,
        act.action,
        act.result.value,
        act.target,
        act.request_id,
        act.times,
        link.details_digest,
        link.prev_hash,
        link.hash,
        link.salt,
        act.address,
        msgspec.json.encode(act.details).decode(),
    )


def _row(row: database.DatabaseRow) -> AuditRow:
    salt: bytes | None = row["salt"]
    act = AuditedAct(
        at=row["at"],
        action=row["action"],
        tenant_id=row["tenant_id"],
        actor=row["actor"],
        # Unchecked: a row that was changed by hand must be reported, and not break the verification.
        result=cast("Result", row["result"]),
        target=row["target"],
        address=row["address"] or "",
        request_id=row["request_id"],
        details={} if salt is None else _details(row["details"]),
        times=row["times"],
    )
    digest: bytes = row["details_digest"]
    return AuditRow(
        chain=row["chain"],
        sequence=row["sequence"],
        act=act,
        actor_name=row["username"] or "",
        hash=row["hash"].hex(),
        erased=bool(digest) and salt is None,
        prev_hash=row["prev_hash"].hex(),
        details_digest=digest.hex(),
        salt="" if salt is None else salt.hex(),
    )


def _details(text: str) -> dict[str, str]:
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except msgspec.ValidationError:  # no text of ours
        return {"": text}


def _anchor(row: database.DatabaseRow) -> Anchor:
    return msgspec.json.decode(row["anchor"], type=Anchor)
