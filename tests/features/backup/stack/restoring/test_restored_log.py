"""The logs in the store, without a database."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from features.backup.stack import layout, sealing
from features.backup.stack.agent import recovery_log_copy
from features.backup.stack.backup_place import BackupPlace
from features.backup.stack.layout import LogPart, RestoreRefused
from features.backup.stack.restoring import restored_log
from features.backup.stack.restoring.recovered_database import RestoreSource
from features.backup.stack.restoring.restored_log import LogFacts
from tests.features.backup.stack import catalogs
from tests.features.backup.stack.places import brittle, make_place


@pytest.fixture
def place(tmp_path: Path) -> BackupPlace:
    return make_place(tmp_path)


def source_of(place: BackupPlace) -> RestoreSource:
    return RestoreSource(place.store, place.mesh, (place.own_identity,))


async def fetch(place: BackupPlace, *, accepts_gap: bool = False, known: Mapping[str, int] | None = None) -> LogFacts:
    return await restored_log.fetch(source_of(place), place.home, place.home, known=known or {}, accepts_gap=accepts_gap)


async def write(place: BackupPlace, *parts: LogPart) -> None:
    for part in parts:
        lines = (b'{"number": %d, "at": "2026-01-01T00:00:00Z"}\n' % number for number in range(part.first, part.last + 1))
        await recovery_log_copy.write(place, part, b"".join(lines))


async def back_up(place: BackupPlace, start: int, term: int = 1, **log_heads: int) -> None:
    manifest = msgspec.structs.replace(catalogs.backup(start, term=term), log_heads=log_heads)
    name = layout.manifest_object(manifest.name)
    await place.store.put(name, layout.sign(name, manifest, place.key))


def damage(place: BackupPlace, part: LogPart) -> None:
    file = Path(place.settings.backup_to or "") / part.object
    body = bytearray(file.read_bytes())
    body[len(body) // 2] ^= 1
    file.write_bytes(body)


async def test_the_old_home_keeps_what_receivers_of_usage_have(place: BackupPlace) -> None:
    place.home.recovery_log.mkdir(parents=True, exist_ok=True)
    (place.home.recovery_log / "usage_export-one-2026-01-02.jsonl").write_text("[]")
    await fetch(place)
    assert (place.home.gathered_log / "usage_export-one-2026-01-02.jsonl").read_text() == "[]"


async def test_each_accepted_gap_is_cut_once_and_the_next_one_in_its_own_term(place: BackupPlace) -> None:
    for part in (LogPart("auth", 1, 2), LogPart("auth", 4, 5), LogPart("gateway", 2, 2), LogPart("anchors", 1, 1)):
        await recovery_log_copy.write(place, part, b"old\n" * (part.last + 1 - part.first))
    with pytest.raises(RestoreRefused, match="lines 3 to 3 of the recovery log of auth are missing"):
        await fetch(place)
    facts = await fetch(place, accepts_gap=True)
    assert (facts.missing, facts.unusable) == ((LogPart("auth", 3, 3), LogPart("gateway", 1, 1)), 3)
    for _ in range(2):  # a restore that was killed runs this again
        await restored_log.cut(source_of(place), place.key, 2, facts)
    assert len(set(brittle(place).written[4:])) == 2
    assert await fetch(place) == LogFacts()
    for part in (LogPart("auth", 3, 3, 2), LogPart("auth", 5, 6, 2)):
        await recovery_log_copy.write(place, part, b"new\n" * (part.last + 1 - part.first))
    facts = await fetch(place, accepts_gap=True)
    assert (facts.missing, facts.unusable) == ((LogPart("auth", 4, 4),), 2)
    await restored_log.cut(source_of(place), place.key, 3, facts)
    await recovery_log_copy.write(place, LogPart("auth", 4, 4, 3), b"newest\n")
    assert await fetch(place) == LogFacts()
    assert (place.home.gathered_log / "auth-restored.jsonl").read_bytes() == b"old\nold\nnew\nnewest\n"


async def test_only_the_mesh_may_give_up_lines(place: BackupPlace) -> None:
    await recovery_log_copy.write(place, LogPart("auth", 1, 2), b"1\n2\n")
    await place.store.put(LogPart("auth", 2, 1, 9).object, b"")
    with pytest.raises(sealing.DamagedObject, match="000000000002-000000000001-9"):
        await fetch(place, accepts_gap=True)


async def test_lines_that_a_later_backup_knows_are_missed_at_the_end_of_the_log(place: BackupPlace) -> None:
    await write(place, part := LogPart("auth", 1, 3), LogPart("gateway", 1, 1))
    await back_up(place, 1, auth=1, gateway=1)
    await back_up(place, 2, auth=3, gateway=1)
    assert await fetch(place, known={"auth": 1, "gateway": 1}) == LogFacts()
    await place.store.delete([part.object])
    with pytest.raises(RestoreRefused, match="lines 2 to 3 of the recovery log of auth are missing in the store"):
        await fetch(place, known={"auth": 1, "gateway": 1})
    assert await fetch(place, known={"auth": 3, "gateway": 1}) == LogFacts(), "the restored database has them"
    facts = await fetch(place, known={"auth": 1, "gateway": 1}, accepts_gap=True)
    assert facts.missing == (LogPart("auth", 2, 3),)
    await restored_log.cut(source_of(place), place.key, 2, facts)
    await write(place, LogPart("auth", 1, 2, 2))
    assert await fetch(place) == LogFacts(), "the gap was accepted"
    await back_up(place, 3, term=2, auth=4)
    with pytest.raises(RestoreRefused, match="lines 3 to 4 of the recovery log of auth are missing"):
        await fetch(place)


async def test_lines_that_only_the_old_home_has_are_not_missing(place: BackupPlace) -> None:
    await back_up(place, 1, auth=3)
    place.home.recovery_log.mkdir(parents=True, exist_ok=True)
    own = place.home.recovery_log / "auth-UNODE.jsonl"
    own.write_bytes(b"".join(b'{"number": %d, "at": "2026-01-01T00:00:00Z"}\n' % number for number in (1, 2)))
    with pytest.raises(RestoreRefused, match="lines 3 to 3 of the recovery log of auth are missing"):
        await fetch(place)
    with own.open("ab") as file:
        file.write(b'{"number": 3, "at": "2026-01-01T00:00:00Z"}\n')
    assert await fetch(place) == LogFacts()


async def test_a_damaged_object_refuses_with_a_way_on_and_counts_as_missing_if_that_is_accepted(place: BackupPlace) -> None:
    parts = [LogPart("auth", 1, 2), LogPart("auth", 3, 4), LogPart("auth", 5, 5)]
    await write(place, *parts)
    damage(place, parts[1])
    with pytest.raises(RestoreRefused, match=r"log/auth/000000000003-000000000004\.zst\.age is truncated or was changed") as refused:
        await fetch(place)
    assert "docs/howto/recovery.md" in refused.value.hint
    facts = await fetch(place, accepts_gap=True)
    assert (facts.missing, facts.unusable) == ((LogPart("auth", 3, 4),), 1)
    await place.store.delete([parts[2].object])
    facts = await fetch(place, accepts_gap=True)
    assert (facts.missing, facts.unusable) == ((LogPart("auth", 3, 4),), 0)
    await restored_log.cut(source_of(place), place.key, 2, facts)
    assert await fetch(place) == LogFacts(), "the damaged object is never read again"
    await write(place, LogPart("auth", 3, 3, 2))
    assert await fetch(place) == LogFacts()
    assert len((place.home.gathered_log / "auth-restored.jsonl").read_bytes().splitlines()) == 3


async def test_objects_that_are_joined_during_a_test_are_read_from_the_joined_one(place: BackupPlace) -> None:
    await write(place, *(LogPart("auth", number, number) for number in (1, 2, 3)))

    class Joining:
        """Joins the objects after the first one was read."""

        def __getattr__(self, name: str) -> object:
            return getattr(place.store, name)

        async def get(self, name: str, start: int = 0, end: int | None = None) -> bytes:
            body = await place.store.get(name, start, end)
            await recovery_log_copy.join(place, "auth")
            return body

    source = replace(source_of(place), store=Joining())  # type: ignore[arg-type]
    assert await restored_log.fetch(source, place.home, place.home, known={}, accepts_gap=False) == LogFacts()
    lines = (place.home.gathered_log / "auth-restored.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line)["number"] for line in lines] == [1, 2, 3]
