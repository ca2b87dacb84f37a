"""A superuser changes rows directly in the database, and the verifier reports the first bad one (T25)."""

import random
from collections.abc import Awaitable, Callable

import asyncpg

from services.auth.audit.anchoring import Anchoring
from services.auth.audit.audit_store import AuditStore
from services.auth.audit.verification import Verification
from shared import audit_chain
from shared.api.audit import AuditedAct, Result
from shared.audit_chain import ChainHead
from tests import tiers
from tests.services.auth.audit.deeds import TENANT, act, fill, superuser

#: Three of the verifier's pages; the last one is not full.
ROWS = 1_200
#: At least three of each kind.
TRIES = tiers.volume(100, least=24)
CHAIN = str(TENANT)
#: Changes rows from this number on, and returns the number of the first bad row.
Tampering = Callable[[asyncpg.Connection, int, random.Random], Awaitable[int]]

EDITS = (
    "at = at + interval '1 microsecond'",
    "tenant_id = NULL",
    "actor = gen_random_uuid()",
    "actor = NULL",
    "action = 'key.revoke'",
    "result = 'refused'",
    "target = target || '.'",
    "request_id = ''",
    "times = times + 1",
    "details_digest = decode('00', 'hex')",
    "details_digest = ''",
    "prev_hash = hash",
    "hash = prev_hash",
)
EDITS_OF_DETAILS = ("address = '198.51.100.1'", "details = '{}'", "details = '[1]'", "salt = '\\x00'")


async def edit(db: asyncpg.Connection, number: int, rng: random.Random) -> int:
    if rng.random() < 0.25:
        await db.execute(f"UPDATE audit_details SET {rng.choice(EDITS_OF_DETAILS)} WHERE chain = $1 AND sequence = $2", CHAIN, number)
    else:
        await db.execute(f"UPDATE audit_log SET {rng.choice(EDITS)} WHERE chain = $1 AND sequence = $2", CHAIN, number)
    return number


async def edit_with_its_hash(db: asyncpg.Connection, number: int, rng: random.Random) -> int:
    """Change a row and its hash, as someone who has read the code would."""
    row = await db.fetchrow("SELECT * FROM audit_log WHERE chain = $1 AND sequence = $2", CHAIN, number)
    changed = AuditedAct(at=row["at"], action="user.role", tenant_id=row["tenant_id"], actor=row["actor"], result=Result(row["result"]))
    link = audit_chain.link(CHAIN, ChainHead(number - 1, row["prev_hash"]), changed, b"")
    await db.execute(
        "UPDATE audit_log SET action = 'user.role', target = '', request_id = '', details_digest = '', hash = $3"
        " WHERE chain = $1 AND sequence = $2",
        CHAIN,
        number,
        link.hash,
    )
    await db.execute("DELETE FROM audit_details WHERE chain = $1 AND sequence = $2", CHAIN, number)
    # The last row has no successor that would reveal the change, but the head of its chain does.
    return number


async def delete(db: asyncpg.Connection, number: int, rng: random.Random) -> int:
    last = number + rng.randint(0, 3)
    await db.execute("DELETE FROM audit_log WHERE chain = $1 AND sequence BETWEEN $2 AND $3", CHAIN, number, last)
    return number


async def move(db: asyncpg.Connection, first: int, by: int) -> None:
    await db.execute("UPDATE audit_log SET sequence = -sequence WHERE chain = $1 AND sequence >= $2", CHAIN, first)
    await db.execute("UPDATE audit_log SET sequence = -sequence + $2 WHERE chain = $1 AND sequence < 0", CHAIN, by)
    await db.execute("UPDATE audit_details SET sequence = -sequence WHERE chain = $1 AND sequence >= $2", CHAIN, first)
    await db.execute("UPDATE audit_details SET sequence = -sequence + $2 WHERE chain = $1 AND sequence < 0", CHAIN, by)


async def delete_and_renumber(db: asyncpg.Connection, number: int, rng: random.Random) -> int:
    await db.execute("DELETE FROM audit_log WHERE chain = $1 AND sequence = $2", CHAIN, number)
    await db.execute("DELETE FROM audit_details WHERE chain = $1 AND sequence = $2", CHAIN, number)
    await move(db, number + 1, -1)
    return number


async def insert(db: asyncpg.Connection, number: int, rng: random.Random) -> int:
    """Insert a row with the right hash, and renumber the rows after it."""
    before = await db.fetchrow("SELECT prev_hash FROM audit_log WHERE chain = $1 AND sequence = $2", CHAIN, number)
    added = audit_chain.link(CHAIN, ChainHead(number - 1, before["prev_hash"]), act(5, address="", details={}), b"")
    await move(db, number, 1)
    await db.execute(
        "INSERT INTO audit_log"
        " (chain, sequence, at, tenant_id, actor, action, result, target, request_id, times, details_digest, prev_hash, hash)"
        " VALUES ($1, $2, $3, $4, $5, $6, 'done', $7, $8, 1, '', $9, $10)",
        *(CHAIN, number, added.act.at, TENANT, added.act.actor, added.act.action, added.act.target, added.act.request_id),
        *(added.prev_hash, added.hash),
    )
    return number


async def reorder(db: asyncpg.Connection, number: int, rng: random.Random) -> int:
    other = rng.choice([number - 1, number + 1, rng.randint(1, ROWS)]) % ROWS + 1
    if other == number:
        other = number % ROWS + 1
    for table in ("audit_log", "audit_details"):
        for before, after in ((number, -1), (other, number), (-1, other)):
            await db.execute(f"UPDATE {table} SET sequence = $3 WHERE chain = $1 AND sequence = $2", CHAIN, before, after)
    return min(number, other)


async def renumber(db: asyncpg.Connection, number: int, rng: random.Random) -> int:
    await move(db, number, rng.randint(1, 3))
    return number


async def truncate(db: asyncpg.Connection, number: int, rng: random.Random) -> int:
    await db.execute("DELETE FROM audit_log WHERE chain = $1 AND sequence >= $2", CHAIN, number)
    # Half of the truncations also change the head; then only the anchor reveals them.
    if rng.random() < 0.5 and number > 1:
        await db.execute(
            "UPDATE audit_heads SET sequence = $2 - 1, hash = (SELECT hash FROM audit_log WHERE chain = $1 AND sequence = $2 - 1)"
            " WHERE chain = $1",
            CHAIN,
            number,
        )
    return number


ALL: tuple[Tampering, ...] = (edit, edit_with_its_hash, delete, delete_and_renumber, insert, reorder, renumber, truncate)
SAVE = """
CREATE TABLE saved_log AS TABLE audit_log; CREATE TABLE saved_details AS TABLE audit_details; CREATE TABLE saved_heads AS TABLE audit_heads;
ALTER TABLE audit_log DROP CONSTRAINT audit_log_sequence_check
"""
RESTORE = """
TRUNCATE audit_log, audit_details, audit_heads;
INSERT INTO audit_log TABLE saved_log; INSERT INTO audit_details TABLE saved_details; INSERT INTO audit_heads TABLE saved_heads
"""


async def test_any_row_changed_by_a_superuser_is_named(
    rows: AuditStore, anchoring: Anchoring, verification: Verification, postgres_url: str
) -> None:
    await fill(rows, *(act(number) for number in range(ROWS)))
    await anchoring.write()
    report = await verification.report(None)
    assert (report.is_whole, report.chains[0].rows, report.chains[0].anchors) == (True, ROWS, 1)
    rng = random.Random(25)
    missed = []
    async with superuser(postgres_url) as db:
        await db.execute(SAVE)
        for attempt in range(TRIES):
            tampering = ALL[attempt % len(ALL)]
            first_bad = await tampering(db, rng.randint(1, ROWS), rng)
            (state,) = (await verification.report(CHAIN)).chains
            if state.first_bad != first_bad:
                missed.append((tampering.__name__, first_bad, state))
            await db.execute(RESTORE)
    assert missed == []
    assert (await verification.report(None)).is_whole
