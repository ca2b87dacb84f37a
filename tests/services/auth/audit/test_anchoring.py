"""Anchors in their table and their file: when they are written, and which tampering only they reveal."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from services.auth import store
from services.auth.audit.anchoring import Anchoring
from services.auth.audit.audit_log import AuditLog, AuditUpkeep
from services.auth.audit.audit_store import AuditStore
from services.auth.audit.verification import Verification
from shared import audit_anchors, audit_chain
from shared.api.audit import ChainState
from shared.audit_anchors import Anchor, AnchorKeys
from shared.audit_chain import ChainHead
from shared.telemetry import Metrics
from shared.types import MeshName
from tests.services.auth.audit.conftest import KEYS
from tests.services.auth.audit.deeds import BEGIN, TENANT, act, all_rows, fill, refusal, superuser

CHAIN = str(TENANT)


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines() if file.exists() else []


def in_file(file: Path) -> list[Anchor]:
    anchors, unreadable = audit_anchors.read_lines(lines_of(file))
    assert unreadable == []
    return anchors


def put(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def mode_of(file: Path) -> int:
    return file.stat().st_mode & 0o777


async def state_of(verification: Verification, chain: str = CHAIN) -> ChainState:
    (state,) = (await verification.report(chain)).chains
    return state


async def test_grown_chains_are_anchored_once(rows: AuditStore, anchoring: Anchoring, anchor_file: Path) -> None:
    await anchoring.write()
    assert in_file(anchor_file) == []
    await fill(rows, act(1), act(2), act(3, tenant_id=None))
    await anchoring.write()
    await anchoring.write()
    assert [(anchor.chain, anchor.sequence) for anchor in in_file(anchor_file)] == [(CHAIN, 2), (audit_chain.PLATFORM_CHAIN, 1)]
    await fill(rows, act(4))
    await anchoring.write()
    (last,) = in_file(anchor_file)[2:]
    assert (last.mesh, last.chain, last.sequence, last.count, last.hash) == ("test", CHAIN, 3, 3, (await all_rows(rows))[2].hash)
    assert mode_of(anchor_file) == 0o600
    assert audit_anchors.check(in_file(anchor_file), KEYS.ids).findings == ()


@pytest.fixture
async def other(postgres_url: str, tmp_path: Path) -> AsyncIterator[Anchoring]:
    """Another replica, on another machine."""
    async with store.opened(postgres_url) as database:
        yield Anchoring(AuditStore(database), KEYS, MeshName("test"), tmp_path / "other.jsonl")


async def test_each_replica_has_the_anchors_of_all(
    rows: AuditStore, anchoring: Anchoring, anchor_file: Path, other: Anchoring, tmp_path: Path
) -> None:
    await other.write()
    await fill(rows, act(1))
    await anchoring.write()
    await fill(rows, act(2))
    await other.write()
    await anchoring.write()
    assert in_file(anchor_file) == in_file(tmp_path / "other.jsonl")
    assert [anchor.sequence for anchor in in_file(anchor_file)] == [1, 2]


async def test_a_line_truncated_by_a_crash_stays_on_its_own_line(
    rows: AuditStore, anchoring: Anchoring, anchor_file: Path, verification: Verification
) -> None:
    put(anchor_file, b'{"mesh": "te')
    await fill(rows, act(1))
    await anchoring.write()
    anchors, unreadable = audit_anchors.read_lines(lines_of(anchor_file))
    assert ([anchor.sequence for anchor in anchors], unreadable) == ([1], [1])
    report = await verification.report(None)
    assert [(state.chain, state.first_bad) for state in report.chains] == [("anchors", 1), (CHAIN, None)]


async def test_an_unwritable_file_is_caught_up_later(rows: AuditStore, tmp_path: Path) -> None:
    file = tmp_path / "later" / "anchors.jsonl"
    anchoring = Anchoring(rows, KEYS, MeshName("test"), file)
    await fill(rows, act(1))
    await anchoring.write()
    file.parent.mkdir()
    await fill(rows, act(2))
    await anchoring.write()
    assert [anchor.sequence for anchor in in_file(file)] == [1, 2]


# --- what anchors reveal ---------------------------------------------------------------------------------------------


async def test_the_file_exposes_a_tail_deleted_with_its_head_and_anchors(
    rows: AuditStore, anchoring: Anchoring, verification: Verification, postgres_url: str
) -> None:
    await fill(rows, *(act(number) for number in range(10)))
    await anchoring.write()
    async with superuser(postgres_url) as db:
        await db.execute("DELETE FROM audit_log WHERE sequence > 6; DELETE FROM audit_anchors")
        await db.execute("UPDATE audit_heads SET sequence = 6, hash = (SELECT hash FROM audit_log WHERE sequence = 6)")
    state = await state_of(verification)
    assert (state.first_bad, state.why.startswith("rows 7 to 10 are missing: the anchor of 20")) == (7, True)


async def test_a_deleted_chain_is_noticed(rows: AuditStore, anchoring: Anchoring, verification: Verification, postgres_url: str) -> None:
    await fill(rows, act(1))
    await anchoring.write()
    async with superuser(postgres_url) as db:
        await db.execute("DELETE FROM audit_log; DELETE FROM audit_heads; DELETE FROM audit_anchors")
    (state,) = (await verification.report(None)).chains
    assert (state.chain, state.first_bad) == (CHAIN, 1)


async def test_a_rewritten_chain_is_exposed(rows: AuditStore, anchoring: Anchoring, verification: Verification, postgres_url: str) -> None:
    await fill(rows, act(1), act(2))
    await anchoring.write()
    async with superuser(postgres_url) as db:
        await db.execute("DELETE FROM audit_log; DELETE FROM audit_details; DELETE FROM audit_heads")
    await fill(rows, act(1), act(3))
    state = await state_of(verification)
    assert (state.first_bad, "disagrees" in state.why) == (2, True)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        pytest.param("DELETE FROM audit_heads", (4, "head is gone"), id="no head"),
        pytest.param("UPDATE audit_heads SET sequence = 2", (2, "rewritten"), id="a head that points back"),
        pytest.param(
            "UPDATE audit_heads SET sequence = 2, hash = (SELECT hash FROM audit_log WHERE sequence = 2)",
            (3, "behind"),
            id="rows behind it",
        ),
        pytest.param("UPDATE audit_heads SET sequence = 5", (4, "missing"), id="a head that points ahead"),
    ],
)
async def test_a_wrong_head_is_found(
    rows: AuditStore, verification: Verification, postgres_url: str, statement: str, expected: tuple[int, str]
) -> None:
    await fill(rows, act(1), act(2), act(3))
    async with superuser(postgres_url) as db:
        await db.execute(statement)
    state = await state_of(verification)
    first_bad, why = expected
    assert state.first_bad == first_bad
    assert why in state.why


async def test_a_forged_anchor_is_found_in_the_table_and_in_the_file(
    rows: AuditStore, anchoring: Anchoring, verification: Verification, anchor_file: Path
) -> None:
    await fill(rows, act(1), act(2))
    (stranger,) = AnchorKeys.of(bytes(32)).ids
    head = ChainHead(2, bytes.fromhex((await all_rows(rows))[1].hash))
    forged = audit_anchors.sign(AnchorKeys.of(bytes(32)).current, MeshName("test"), CHAIN, head, BEGIN)
    assert forged.key == stranger
    put(anchor_file, audit_anchors.line(forged))
    assert ((await state_of(verification)).first_bad, "forged" in (await state_of(verification)).why) == (2, True)
    put(anchor_file, b"")
    assert (await state_of(verification)).first_bad is None
    await rows.add_anchors([msgspec.structs.replace(forged, key=KEYS.current.id)])
    assert (await state_of(verification)).first_bad == 2


async def test_anchors_of_a_former_key_stay_valid(rows: AuditStore, anchoring: Anchoring, anchor_file: Path) -> None:
    await fill(rows, act(1))
    await anchoring.write()
    later = Anchoring(rows, AnchorKeys.of(bytes(32), bytes(range(32))), MeshName("test"), anchor_file)
    await fill(rows, act(2))
    await later.write()
    state = await state_of(Verification(rows, later, Metrics("auth")))
    assert (state.first_bad, state.anchors) == (None, 2)


# --- in the background -----------------------------------------------------------------------------------------------


async def test_shutdown_writes_pending_entries_and_anchors_them(
    rows: AuditStore, anchoring: Anchoring, verification: Verification, anchor_file: Path
) -> None:
    log = AuditLog(rows)
    upkeep = AuditUpkeep(log, rows, anchoring, verification, days=1, now=lambda: BEGIN + timedelta(days=1, seconds=1))
    log.note(refusal(0))
    log.note(refusal(1))
    await upkeep.finish()
    assert [anchor.sequence for anchor in in_file(anchor_file)] == [2]
    await upkeep.shred()
    assert [row.erased for row in await all_rows(rows)] == [True, False]


async def test_a_tampered_row_is_reported_without_being_asked(
    rows: AuditStore, anchoring: Anchoring, verification: Verification, metrics: Metrics, postgres_url: str
) -> None:
    upkeep = AuditUpkeep(AuditLog(rows), rows, anchoring, verification, days=1)
    await fill(rows, act(1), act(2))
    assert "ai_platform_audit_chain_valid" not in metrics.render(), "or the alert would fire at every start"
    await verification.report(CHAIN)
    assert "ai_platform_audit_chain_valid" not in metrics.render(), "other chains may be broken"
    await upkeep.verify()
    assert "ai_platform_audit_chain_valid 1.0" in metrics.render()
    async with superuser(postgres_url) as db:
        await db.execute("UPDATE audit_log SET action = 'nothing.happened' WHERE sequence = 1")
    await upkeep.verify()
    assert "ai_platform_audit_chain_valid 0.0" in metrics.render()
