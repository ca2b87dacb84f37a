"""Lines of the recovery log: PostgreSQL and Python hash the same bytes, and a changed file is reported with its line."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec
import pytest

from shared.audit_anchors import AnchorKeys
from shared.recovery import recovery_lines
from shared.recovery.recovery_lines import CheckedLog, DamagedLine, LogEnd, RecoveryLine
from shared.types import MeshName

KEYS = AnchorKeys.of(bytes(range(32)))
FOREIGN = AnchorKeys.of(bytes(range(1, 33)))
MESH = MeshName("test")


def chain(count: int, keys: AnchorKeys = KEYS, subject: str = "u") -> list[RecoveryLine]:
    return chain_of([("user.disabled", f"{subject}{number}") for number in range(1, count + 1)], keys)


def chain_of(subjects: Sequence[tuple[str, str]], keys: AnchorKeys = KEYS) -> list[RecoveryLine]:
    """Return signed lines of these kinds about these subjects."""
    lines: list[RecoveryLine] = []
    for number, (kind, subject) in enumerate(subjects, 1):
        before = lines[-1].hash if lines else recovery_lines.START.hash
        line = RecoveryLine(
            number=number, at=datetime(2026, 2, 1, tzinfo=UTC) + timedelta(microseconds=number), kind=kind, subject=subject,
            details="{}", previous_hash=before, hash="",
        )  # fmt: skip
        line = msgspec.structs.replace(line, hash=recovery_lines.hash_of(line))
        lines.append(recovery_lines.sign(line, keys.current, MESH))
    return lines


def texts(lines: Sequence[RecoveryLine]) -> list[bytes]:
    return [recovery_lines.encode(line) for line in lines]


def check(written: Sequence[bytes], after: int = 0) -> CheckedLog:
    return recovery_lines.check(written, after=after, keys=KEYS.ids, mesh=MESH)


@pytest.mark.parametrize(
    ("subject", "details"),
    [
        ("5f0c", {}),
        ("", {"role": "user"}),
        ("U😀Ж\t", {"scopes": ["é", "\u2028", "\\", '"', "a\nb"], "n": 9007199254740993, "x": 0.1}),
        ("x" * 5000, {"": None}),
    ],
)
async def test_postgresql_and_python_hash_the_same_bytes(
    postgres_url: str, tables_of: str, subject: str, details: dict[str, object]
) -> None:
    connection = await asyncpg.connect(postgres_url, server_settings={"search_path": tables_of})
    try:
        for _ in range(2):
            await connection.execute("SELECT add_recovery_line('user.disabled', $1, $2)", subject, json.dumps(details))
        rows = await connection.fetch("SELECT * FROM recovery_log ORDER BY number")
    finally:
        await connection.close()
    lines = [RecoveryLine(**{**dict(row), "previous_hash": row["previous_hash"].hex(), "hash": row["hash"].hex()}) for row in rows]
    assert [recovery_lines.hash_of(line) for line in lines] == [line.hash for line in lines]
    assert (lines[0].previous_hash, lines[1].previous_hash) == (recovery_lines.START.hash, lines[0].hash)
    signed = [recovery_lines.sign(line, KEYS.current, MESH) for line in lines]
    assert check(texts(signed)).newer == tuple(signed)


async def test_the_table_is_append_only(postgres_url: str, tables_of: str) -> None:
    connection = await asyncpg.connect(postgres_url, server_settings={"search_path": tables_of})
    try:
        await connection.execute("SELECT add_recovery_line('user.disabled', 'x', '{}')")
        for statement in ("UPDATE recovery_log SET subject = 'y'", "DELETE FROM recovery_log", "TRUNCATE recovery_log"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await connection.execute(statement)
    finally:
        await connection.close()


def test_a_file_is_read_to_its_end() -> None:
    lines = chain(3)
    found = check(texts(lines), after=1)
    assert (found.end, found.newer, found.hash_at) == (LogEnd(3, lines[2].hash), tuple(lines[1:]), lines[0].hash)
    assert check([]) == CheckedLog(recovery_lines.START, (), recovery_lines.START.hash, ())
    assert check(texts(lines), after=7).hash_at is None


def test_a_last_line_without_its_end_is_dropped() -> None:
    lines = chain(3)
    whole = texts(lines)
    for size in range(1, len(whole[2]) - 1):
        found = check([*whole[:2], whole[2][:size]])
        assert (found.end.number, found.cut_off) == (2, (3,)), size
    # Only its newline is missing.
    assert check([*whole[:2], whole[2][:-1]]).end.number == 3


def test_a_line_that_was_cut_off_and_written_again_is_no_damage() -> None:
    whole = texts(chain(4))
    found = check([whole[0], whole[1], whole[2][:20] + b"\n", whole[1], whole[2], whole[3]])
    assert (found.end.number, found.cut_off) == (4, (3,))


def _flipped(text: bytes, part: bytes) -> bytes:
    place = text.index(part) + len(part) - 1
    return text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]


@pytest.mark.parametrize(
    ("changed", "line", "why"),
    [
        (lambda whole: [whole[0], whole[2]], 2, "number 2 is missing"),
        (lambda whole: whole[1:], 1, "number 1 is missing"),
        (lambda whole: [whole[0], _flipped(whole[1], b'"subject":"u2'), whole[2]], 2, "its hash does not match"),
        (lambda whole: [whole[0], whole[1], _flipped(whole[2], b'"kind":"user.d')], 3, "its hash does not match"),
        (lambda whole: [whole[0], texts(chain(2, subject="other"))[1], whole[2]], 2, "does not follow"),
        (lambda whole: [whole[0], whole[1], whole[2].replace(b'"signature":"', b'"signature":"ff')], 3, "its signature is wrong"),
        (lambda whole: [whole[0], _flipped(whole[1], b"{"), whole[2]], 2, "cannot be read"),
        (lambda whole: [whole[0], whole[1], _flipped(whole[2], b"{")], 3, "cannot be read"),
        (lambda whole: texts(chain(3, FOREIGN)), 1, "none of this mesh's keys"),
        (lambda whole: [whole[0], whole[1], whole[2], texts(chain(2, subject="other"))[1]], 4, "number 4 is missing"),
    ],
)
def test_damage_is_named(changed: Callable[[list[bytes]], list[bytes]], line: int, why: str) -> None:
    with pytest.raises(DamagedLine, match=why) as found:
        check(changed(texts(chain(3))))
    assert found.value.line == line


def test_old_lines_need_no_known_key_because_the_chain_covers_them() -> None:
    lines = chain(2, FOREIGN)
    third = msgspec.structs.replace(chain(3)[2], previous_hash=lines[1].hash)
    third = recovery_lines.sign(msgspec.structs.replace(third, hash=recovery_lines.hash_of(third)), KEYS.current, MESH)
    found = check(texts([*lines, third]), after=2)
    assert (found.newer, found.hash_at) == ((third,), lines[1].hash)


def test_a_line_of_another_mesh_is_refused() -> None:
    with pytest.raises(DamagedLine, match="its signature is wrong"):
        recovery_lines.check(texts(chain(1)), after=0, keys=KEYS.ids, mesh=MeshName("other"))
