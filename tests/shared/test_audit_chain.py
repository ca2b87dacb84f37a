"""The audit log's chains: after any change of the rows, the first changed row is reported."""

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from msgspec.structs import replace

from shared import audit_chain
from shared.api.audit import AuditedAct, AuditRow, ChainState, Result
from shared.audit_chain import ChainHead, ChainVerifier, Checkpoint
from shared.types import TenantId, UserId

TENANT = TenantId(UUID(int=7))
CHAIN = str(TENANT)
START = datetime(2026, 2, 1, tzinfo=UTC)
ROWS = 120


def act(number: int) -> AuditedAct:
    return AuditedAct(
        at=START + timedelta(microseconds=number),
        action="key.create",
        tenant_id=TENANT,
        actor=UserId(UUID(int=number)),
        target=f"key {number}",
        # One in three has no personal data.
        address="" if number % 3 == 0 else "203.0.113.9",
        details={} if number % 3 == 0 else {"name": f"n{number}", "after": "x"},
    )


def row_of(link: audit_chain.ChainLink) -> AuditRow:
    return AuditRow(
        chain=link.chain,
        sequence=link.sequence,
        act=link.act,
        actor_name="somebody",
        hash=link.hash.hex(),
        prev_hash=link.prev_hash.hex(),
        details_digest=link.details_digest.hex(),
        salt=link.salt.hex(),
    )


def chained(count: int, head: ChainHead = audit_chain.START, *, first: int = 1) -> list[AuditRow]:
    rows = []
    for number in range(first, first + count):
        link = audit_chain.link(CHAIN, head, act(number), number.to_bytes(16, "big"))
        head = link.head
        rows.append(row_of(link))
    return rows


def head_of(row: AuditRow) -> ChainHead:
    return ChainHead(row.sequence, bytes.fromhex(row.hash))


def anew(before: ChainHead, row: AuditRow) -> AuditRow:
    """Return the row with valid hashes, as a skilled attacker would write it."""
    link = audit_chain.link(CHAIN, before, row.act, bytes.fromhex(row.salt))
    return row_of(link)


def checkpoint(row: AuditRow) -> Checkpoint:
    return Checkpoint(sequence=row.sequence, hash=bytes.fromhex(row.hash), source=f"the anchor of row {row.sequence}")


def verified(rows: Sequence[AuditRow], checkpoints: Sequence[Checkpoint] = (), *, partial: bool = False) -> ChainState:
    verifier = ChainVerifier(CHAIN, checkpoints, partial=partial)
    for row in rows:
        verifier.take(row)
    return verifier.state()


GOOD = chained(ROWS)
ANCHORS = tuple(checkpoint(GOOD[number - 1]) for number in (40, 80, ROWS))


def test_an_untouched_chain_verifies() -> None:
    assert verified(GOOD, ANCHORS) == ChainState(CHAIN, ROWS, None, "", 3)
    assert verified([]) == ChainState(CHAIN, 0, None, "", 0)


# --- tampering -------------------------------------------------------------------------------------------------------

#: Gets the rows and an index, changes the rows, and returns the number of the first row that is wrong now.
Tampering = Callable[[list[AuditRow], int, random.Random], int]
EDITS: dict[str, Callable[[AuditRow], AuditRow]] = {
    "at": lambda row: replace(row, act=replace(row.act, at=row.act.at + timedelta(microseconds=1))),
    "action": lambda row: replace(row, act=replace(row.act, action="key.revoke")),
    "tenant": lambda row: replace(row, act=replace(row.act, tenant_id=None)),
    "actor": lambda row: replace(row, act=replace(row.act, actor=UserId(UUID(int=666)))),
    "nobody": lambda row: replace(row, act=replace(row.act, actor=None)),
    "result": lambda row: replace(row, act=replace(row.act, result=Result.REFUSED)),
    "target": lambda row: replace(row, act=replace(row.act, target="another")),
    "address": lambda row: replace(row, act=replace(row.act, address="198.51.100.1")),
    "request": lambda row: replace(row, act=replace(row.act, request_id="another")),
    "details": lambda row: replace(row, act=replace(row.act, details={"name": "another"})),
    "times": lambda row: replace(row, act=replace(row.act, times=2**70)),
    "hash": lambda row: replace(row, hash="00" * 32),
    "no hash": lambda row: replace(row, hash="nonsense"),
    "previous hash": lambda row: replace(row, prev_hash="ee" * 32),
    "digest": lambda row: replace(row, details_digest="00" * 32),
    "salt": lambda row: replace(row, salt="11" * 16),
    "chain": lambda row: replace(row, chain="house"),
}


def edit(rows: list[AuditRow], at: int, rng: random.Random) -> int:
    rows[at] = EDITS[rng.choice(sorted(EDITS))](rows[at])
    return at + 1


def edit_with_its_hash(rows: list[AuditRow], at: int, rng: random.Random) -> int:
    before = head_of(rows[at - 1]) if at else audit_chain.START
    rows[at] = anew(before, replace(rows[at], act=replace(rows[at].act, target="another")))
    return at + 1


def delete(rows: list[AuditRow], at: int, rng: random.Random) -> int:
    del rows[at : at + rng.randint(1, 3)]
    return at + 1


def delete_and_renumber(rows: list[AuditRow], at: int, rng: random.Random) -> int:
    del rows[at]
    rows[at:] = [replace(row, sequence=row.sequence - 1) for row in rows[at:]]
    return at + 1


def insert(rows: list[AuditRow], at: int, rng: random.Random) -> int:
    """Insert rows with valid hashes, and renumber the following ones."""
    count, before = rng.randint(1, 5), head_of(rows[at - 1]) if at else audit_chain.START
    added = chained(count, before, first=1000)
    rows[at:] = added + [replace(row, sequence=row.sequence + count) for row in rows[at:]]
    return at + 1


def insert_clumsily(rows: list[AuditRow], at: int, rng: random.Random) -> int:
    rows[at:] = [rows[at], *(replace(row, sequence=row.sequence + 1) for row in rows[at:])]
    return at + 2


def reorder(rows: list[AuditRow], at: int, rng: random.Random) -> int:
    other = rng.choice([index for index in range(len(rows)) if index != at])
    first, second = sorted((at, other))
    here, there = rows[first], rows[second]
    rows[first], rows[second] = replace(there, sequence=here.sequence), replace(here, sequence=there.sequence)
    return first + 1


def swap_what_they_say(rows: list[AuditRow], at: int, rng: random.Random) -> int:
    other = rng.choice([index for index in range(len(rows)) if index != at])
    rows[at], rows[other] = replace(rows[at], act=rows[other].act), replace(rows[other], act=rows[at].act)
    return min(at, other) + 1


def renumber(rows: list[AuditRow], at: int, rng: random.Random) -> int:
    rows[at:] = [replace(row, sequence=row.sequence + 1) for row in rows[at:]]
    return at + 1


def truncate(rows: list[AuditRow], at: int, rng: random.Random) -> int:
    del rows[at:]
    return at + 1


ALL: tuple[Tampering, ...] = (
    edit,
    edit_with_its_hash,
    delete,
    delete_and_renumber,
    insert,
    insert_clumsily,
    reorder,
    swap_what_they_say,
    renumber,
    truncate,
)


@pytest.mark.parametrize("tampering", [pytest.param(one, id=one.__name__) for one in ALL])
def test_the_first_bad_row_is_named_in_100_of_100_tries(tampering: Tampering) -> None:
    rng = random.Random(tampering.__name__)
    for _ in range(100):
        rows = list(GOOD)
        first_bad = tampering(rows, rng.randrange(ROWS), rng)
        state = verified(rows, ANCHORS)
        assert (state.first_bad, bool(state.why)) == (first_bad, True), state


@pytest.mark.parametrize("name", sorted(EDITS))
def test_every_field_of_a_row_is_covered(name: str) -> None:
    for at in (0, 1, ROWS - 1):
        rows = list(GOOD)
        rows[at] = EDITS[name](rows[at])
        assert verified(rows).first_bad == at + 1


def test_the_tested_fields_are_all_fields_of_a_row() -> None:
    """If a new field of a row were missing from the canonical form, anyone could change it unnoticed."""
    assert set(AuditedAct.__struct_fields__) == {
        "at", "action", "tenant_id", "actor", "result", "target", "address", "request_id", "details", "times",
    }  # fmt: skip
    assert set(AuditRow.__struct_fields__) - {"actor_name", "erased"} == {
        "chain", "sequence", "act", "hash", "prev_hash", "details_digest", "salt",
    }  # fmt: skip


# --- what only an anchor reveals -------------------------------------------------------------------------------------


def test_a_rewritten_chain_is_exposed_by_the_next_anchor() -> None:
    rows, before = GOOD[:50], head_of(GOOD[49])
    for row in GOOD[50:]:
        rows.append(anew(before, replace(row, act=replace(row.act, actor=UserId(UUID(int=666))))))
        before = head_of(rows[-1])
    assert verified(rows).first_bad is None
    state = verified(rows, ANCHORS)
    assert (state.first_bad, state.anchors) == (80, 1)
    assert state.why == "the anchor of row 80 disagrees: rows 41 to 80 were rewritten"


def test_a_row_that_was_lost_in_a_restore_and_written_anew_is_named() -> None:
    """Both rows were signed: the present row, and the row that a restore has lost."""
    lost = replace(GOOD[-1], act=replace(GOOD[-1].act, actor=UserId(UUID(int=666))))
    other = Checkpoint(sequence=ROWS, hash=bytes.fromhex(anew(head_of(GOOD[-2]), lost).hash), source="another anchor")
    state = verified(GOOD, (*ANCHORS, other))
    assert (state.first_bad, state.why) == (ROWS, f"another anchor disagrees: row {ROWS} was rewritten")


def test_a_missing_tail_is_only_exposed_by_an_anchor() -> None:
    assert verified(GOOD[:100]).first_bad is None
    state = verified(GOOD[:100], ANCHORS)
    assert (state.first_bad, state.why) == (101, f"rows 101 to {ROWS} are missing: the anchor of row {ROWS} counts them")
    assert verified([], ANCHORS).first_bad == 1


def test_a_rewritten_row_is_told_from_one_without_a_predecessor() -> None:
    """Row 60 is valid but does not follow row 59: row 61 shows which of the two is wrong."""
    rows = list(GOOD)
    rows[59] = anew(ChainHead(59, bytes(32)), rows[59])
    assert verified(rows).first_bad == 60
    assert verified(rows[:60]).first_bad == 59, "nobody knows better"
    assert verified(rows[:60], [checkpoint(GOOD[59])]).first_bad == 60, "but an anchor does"


# --- erasing, and parts of a chain -----------------------------------------------------------------------------------


def test_erased_details_leave_the_chain_intact() -> None:
    rows = [replace(row, act=replace(row.act, address="", details={}), salt="", erased=True) for row in GOOD]
    assert verified(rows, ANCHORS).first_bad is None


def test_nothing_can_replace_erased_or_absent_details() -> None:
    rows = list(GOOD)
    rows[1] = replace(rows[1], salt="")
    assert verified(rows).first_bad == 2
    rows = list(GOOD)
    assert not rows[2].salt
    rows[2] = replace(rows[2], act=replace(rows[2].act, address="203.0.113.1"))
    assert verified(rows).first_bad == 3
    rows[2] = replace(rows[2], salt="22" * 16)
    assert verified(rows).first_bad == 3


def test_part_of_a_chain_can_be_verified_as_a_part() -> None:
    part = GOOD[60:]
    assert verified(part).first_bad == 1
    assert verified(part, ANCHORS, partial=True) == ChainState(CHAIN, 60, None, "", 2)
    assert verified(GOOD[40:], ANCHORS, partial=True) == ChainState(CHAIN, 80, None, "", 3)
    assert verified(GOOD, ANCHORS, partial=True) == ChainState(CHAIN, ROWS, None, "", 3)
    assert verified([*part[:3], *part[4:]], ANCHORS, partial=True).first_bad == 64


def test_the_row_before_a_part_is_compared_with_its_anchor() -> None:
    before = ChainHead(40, bytes(32))
    rows = []
    for row in GOOD[40:80]:
        rows.append(anew(before, row))
        before = head_of(rows[-1])
    assert verified(rows, partial=True).first_bad is None
    assert verified(rows, ANCHORS, partial=True).first_bad == 40


def test_a_repeated_row_is_named() -> None:
    assert verified([*GOOD[:10], GOOD[6]]).first_bad == 7
