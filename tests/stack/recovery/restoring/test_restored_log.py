"""The logs in the store, without a database."""

from pathlib import Path

import pytest

from stack.recovery import sealing
from stack.recovery.agent import recovery_log_copy
from stack.recovery.backup_place import BackupPlace
from stack.recovery.layout import LogPart, RestoreRefused
from stack.recovery.restoring import restored_log
from stack.recovery.restoring.recovered_database import RestoreSource
from stack.recovery.restoring.restored_log import LogFacts
from tests.stack.recovery.places import brittle, make_place


@pytest.fixture
def place(tmp_path: Path) -> BackupPlace:
    return make_place(tmp_path)


def source_of(place: BackupPlace) -> RestoreSource:
    return RestoreSource(place.store, place.mesh, (place.own_identity,))


async def fetch(place: BackupPlace, *, accepts_gap: bool = False) -> LogFacts:
    return await restored_log.fetch(source_of(place), place.home, place.home, accepts_gap=accepts_gap)


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
