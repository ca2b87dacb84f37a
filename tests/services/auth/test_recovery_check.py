"""auth's check of a restored database, as the program that `aicli stack verify` starts."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from services.auth import recovery_check, store
from services.auth.audit.anchoring import Anchoring, AnchorKeys
from services.auth.audit.audit_store import AuditStore
from services.auth.recovery_check import AnchorFile
from shared import audit_anchors
from shared.audit_anchors import Anchor
from shared.audit_chain import ChainHead
from shared.stores.recovery_check import RecoveryCheck
from shared.types import MeshName, NodeId
from tests.services.auth.audit.deeds import TENANT, act, fill, superuser

KEYS = AnchorKeys.of(bytes(range(32)))
MESH = MeshName("test")
CHAIN = str(TENANT)
ROWS = 5


@pytest.fixture
async def anchors(plain_url: str, tmp_path: Path) -> Path:
    """Some rows, with an anchor of the newest one in the table and in the file."""
    file = tmp_path / "anchors.jsonl"
    async with store.opened(plain_url) as database:
        rows = AuditStore(database)
        anchoring = Anchoring(rows, KEYS, MESH, file)
        await anchoring.write()
        await fill(rows, *(act(number) for number in range(ROWS)))
        await anchoring.write()
    return file


async def check(url: str, file: Path | None = None, keys: frozenset[NodeId] = KEYS.ids, strict: datetime | None = None) -> RecoveryCheck:
    return await recovery_check.check(url, anchor_file=file, keys=keys, strict_before=strict)


async def test_it_needs_an_address_and_nothing_else(plain_url: str, anchors: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.auth.recovery_check", f"--anchors={anchors}", f"--anchor-key={KEYS.current.id}",
        env={"DATABASE_URL": plain_url}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    found = msgspec.json.decode(output, type=RecoveryCheck)
    assert (process.returncode, found.failures, found.audit_heads, found.lost_rows) == (0, (), {CHAIN: ROWS}, 0)
    assert found.facts.rows["auth.audit_log"] == ROWS


async def test_rows_that_only_anchors_know_are_lost_and_no_failure(plain_url: str, anchors: Path) -> None:
    ahead = audit_anchors.sign(KEYS.current, MESH, CHAIN, ChainHead(ROWS + 3, b"\1" * 32), datetime.now(UTC))
    other = audit_anchors.sign(KEYS.current, MESH, "another", ChainHead(2, b"\2" * 32), datetime.now(UTC))
    with anchors.open("ab") as file:
        file.write(audit_anchors.line(ahead) + audit_anchors.line(other) + b'{"cut off')
    found = await check(plain_url, anchors)
    assert (found.failures, found.lost_rows) == ((), 3 + 2)


async def test_a_changed_row_is_found_by_its_chain_and_a_rewritten_one_by_its_anchor(
    plain_url: str, postgres_url: str, anchors: Path
) -> None:
    async with superuser(postgres_url) as db:
        await db.execute("UPDATE audit_log SET target = 'x' WHERE sequence = 2")
    found = await check(plain_url, anchors)
    assert found.failures == (f"audit log: row 2 of the chain {CHAIN}: the row was changed",)


async def test_an_anchor_that_differs_or_that_another_key_signed_is_a_failure(plain_url: str, anchors: Path) -> None:
    """The chain is consistent, as after a complete rewrite."""
    later = datetime.now(UTC) + timedelta(minutes=1)
    write(anchors, audit_anchors.sign(KEYS.current, MESH, CHAIN, ChainHead(ROWS, b"\1" * 32), later))
    (failure,) = (await check(plain_url, anchors)).failures
    assert f"row {ROWS} of the chain {CHAIN}" in failure
    stranger = audit_anchors.signing_key(bytes(32))
    write(anchors, audit_anchors.sign(stranger, MESH, CHAIN, ChainHead(ROWS + 1, b"\1" * 32), later))
    found = await check(plain_url, anchors)
    assert "forged" in found.failures[0]
    assert found.lost_rows == 0
    assert (await check(plain_url, anchors, frozenset())).failures == (), "without keys, nothing is known about anchors"


def write(file: Path, *anchors: Anchor, end: bytes = b"") -> None:
    file.write_bytes(b"".join(map(audit_anchors.line, anchors)) + end)


def signed(sequence: int, minute: int) -> Anchor:
    return audit_anchors.sign(KEYS.current, MESH, CHAIN, ChainHead(sequence, bytes(32)), datetime(2026, 1, 1, 0, minute, tzinfo=UTC))


def test_anchors_of_rows_that_an_earlier_restore_lost_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "a", signed(3, 1), signed(20, 2), signed(7, 3), end=b"nonsense\n")
    found = recovery_check.read_anchors(tmp_path / "a", {CHAIN: 10})
    assert found == AnchorFile({CHAIN: signed(7, 3)}, {}, [4])
    found = recovery_check.read_anchors(tmp_path / "a", {CHAIN: 5})
    assert (found.known, found.lost) == ({CHAIN: signed(3, 1)}, {CHAIN: signed(7, 3)})


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("UPDATE recovery_log SET subject = 'x' WHERE number = 2", "line 2 of the recovery log of auth: it was changed"),
        ("DELETE FROM recovery_log WHERE number = 2", "line 3 of the recovery log of auth: lines before it are missing"),
        ("UPDATE recovery_log SET previous_hash = '\\x00' WHERE number = 3", "line 3 of the recovery log of auth: it does not follow"),
    ],
)
async def test_a_broken_recovery_log_is_found(plain_url: str, postgres_url: str, statement: str, why: str) -> None:
    owner = await asyncpg.connect(plain_url, server_settings={"search_path": "auth"})
    for number in range(3):
        await owner.execute("SELECT add_recovery_line('node.revoked', $1)", str(number))
    await owner.close()
    found = await check(plain_url)
    assert (found.failures, found.facts.log_head) == ((), 3)
    async with superuser(postgres_url) as db:
        await db.execute(statement)
    (failure,) = (await check(plain_url)).failures
    assert failure.startswith(why)


async def test_strict_ends_only_what_changed_in_the_ten_minutes_before(plain_url: str, postgres_url: str) -> None:
    """A new account and its key, an old key that was just renamed, and an old account whose factor was just changed."""
    target = datetime.now(UTC)
    old, new = target - timedelta(days=9), target - timedelta(minutes=9)
    users = {name: uuid4() for name in ("old", "new", "mfa")}
    keys = {name: uuid4() for name in ("old", "new", "renamed")}
    async with superuser(postgres_url) as db:
        for name, id_ in users.items():
            await db.execute(
                "INSERT INTO users (id, username, email, password_hash, created_at) VALUES ($1, $2, $2, 'x', $3)",
                id_, name, new if name == "new" else old,
            )  # fmt: skip
        for name, id_ in keys.items():
            await db.execute(
                "INSERT INTO api_keys (id, user_id, key_hash, name, preview, created_at) VALUES ($1, $2, $3, $3, '', $4)",
                id_, users["old"], name, new if name == "new" else old,
            )  # fmt: skip
    async with store.opened(plain_url) as database:
        rows = AuditStore(database)
        await fill(
            rows,
            act(at=old, action="key.rename", target=str(keys["old"])),
            act(at=new, action="key.rename", target=str(keys["renamed"]), actor=UUID(int=9)),
            act(at=new, action="mfa.enable", actor=users["mfa"], target=""),
            act(at=new, action="password.ask_reset", actor=None, target=str(users["old"])),
        )
    found = await check(plain_url, strict=target)
    assert (found.failures, found.revoked_keys, found.disabled_users) == ((), 2, 2)
    async with superuser(postgres_url) as db:
        active = {row["name"] for row in await db.fetch("SELECT username AS name FROM users WHERE is_active AND id <> $1", UUID(int=1))}
        assert active == {"old"}
        assert [row["name"] for row in await db.fetch("SELECT name FROM api_keys WHERE is_active")] == ["old"]
        assert await db.fetchval("SELECT count(*) FROM recovery_log") == 0, "auth could not replay its files behind such lines"
