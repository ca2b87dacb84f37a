"""Names in the store, and signed objects."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.backup.stack import layout
from features.backup.stack.layout import LogPart, Segment, StoreMesh, StoreState
from features.backup.stack.sealing import DamagedObject
from shared import errors
from shared.identity.node_keys import NodeKey, new_seed
from shared.types import MeshName
from tests.cases import case

KEY, OTHER = NodeKey(new_seed()), NodeKey(new_seed())
STATE = StoreState(term=3, timeline=2, until=datetime(2026, 11, 25, tzinfo=UTC), lsn=77)


@given(st.integers(1, 2**32 - 1), st.integers(0, 2**40), st.sampled_from([1 << 20, 16 << 20, 1 << 30]), st.booleans())
def test_a_segment_is_read_from_its_name(timeline: int, number: int, size: int, is_partial: bool) -> None:
    number %= 2**64 // size
    segment = Segment(timeline, number, is_partial)
    assert layout.parse_segment(segment.object(size), size) == segment
    assert len(segment.file(size)) == 24


def test_segments_have_the_names_that_postgresql_gives_them() -> None:
    assert Segment(1, 0).file(16 << 20) == "000000010000000000000000"
    assert Segment(1, 255).file(16 << 20) == "0000000100000000000000FF"
    assert Segment(0x1F, 256).file(16 << 20) == "0000001F0000000100000000"
    assert Segment(2, 4).file(1 << 30) == "000000020000000100000000"
    assert Segment(2, 4, is_partial=True).object(1 << 30) == "wal/00000002/000000020000000100000000.partial.zst.age"
    assert layout.parse_lsn("1/16B3748") == (1 << 32) + 0x16B3748


def test_other_names_are_nothing() -> None:
    for name in (
        "wal/00000001/000000010000000000000000", "wal/00000001/../000000010000000000000000.zst.age", "wal/x.zst.age",
        "wal/00000001.history",
        "base/20261125T000000Z-1/../manifest.json", "base/now-1/manifest.json", "log/auth/1-2.zst.age",
        "log/../000000000001-000000000002.zst.age", "log/auth/000000000001-000000000002-0.zst.age",
    ):  # fmt: skip
        with case(name):
            assert layout.parse_segment(name, 16 << 20) is None
            assert layout.parse_backup(name) is None
            assert layout.parse_history(name) is None
            assert layout.parse_log(name) is None


def test_backups_logs_and_histories_are_read_from_their_names() -> None:
    at = datetime(2026, 11, 25, 2, 30, tzinfo=timezone(timedelta(hours=2)))
    name = layout.name_backup(at, 12)
    assert name == "20261125T003000Z-12"
    parsed = layout.parse_backup(layout.part_object(name, layout.DATA))
    assert parsed is not None
    assert (parsed[0].name, parsed[0].term, parsed[1]) == (name, 12, "data.tar.zst.age")
    assert layout.parse_backup(layout.manifest_object(name)) == (parsed[0], "manifest.json")
    for part in (LogPart("gateway", 7, 123_456), LogPart("gateway", 7, 6, 12)):
        assert layout.parse_log(part.object) == part
    assert layout.parse_history(layout.history_object(10)) == 10


def part(first: int, last: int, term: int = 0) -> LogPart:
    return LogPart("auth", first, last, term)


def test_lines_that_are_in_two_objects_are_taken_once() -> None:
    parts = [part(4, 9), part(1, 3), part(3, 3), part(1, 2), part(8, 12)]
    assert layout.choose_log(parts) == ([(part(1, 3), 0), (part(4, 9), 0), (part(8, 12), 2)], [])


def test_nothing_behind_a_gap_is_taken() -> None:
    assert layout.choose_log([part(1, 3), part(5, 6), part(7, 8)]) == ([(part(1, 3), 0)], [part(5, 6), part(7, 8)])
    assert layout.choose_log([part(2, 3)]) == ([], [part(2, 3)])


def test_from_a_cut_on_nothing_of_earlier_terms_is_taken() -> None:
    old = [part(1, 3), part(5, 6), part(4, 3, 2)]
    assert layout.choose_log(old) == ([(part(1, 3), 0)], [])
    assert layout.choose_log([*old, part(4, 5, 2), part(6, 6, 3)]) == ([(part(1, 3), 0), (part(4, 5, 2), 0), (part(6, 6, 3), 0)], [])
    assert layout.choose_log([*old, part(5, 5, 2)]) == ([(part(1, 3), 0)], [part(5, 5, 2)])


def test_a_signed_object_is_believed_under_its_name_only() -> None:
    body = layout.sign(layout.STATE, STATE, KEY)
    assert layout.read_signed(layout.STATE, body, StoreState, {KEY.id}) == STATE
    assert layout.read_signed(layout.STATE, body, StoreState, None) == STATE
    forged = layout.sign(layout.STATE, STATE, OTHER)
    cases = {
        "another name": ("site/3.json", body, "not signed by this mesh"),
        "another key": (layout.STATE, forged, "not signed by this mesh"),
        "another text": (layout.STATE, body.replace(rb"\"lsn\":77", rb"\"lsn\":78"), "not signed by this mesh"),
        "another key's name": (layout.STATE, forged.replace(OTHER.id.encode(), KEY.id.encode()), "not signed by this mesh"),
        "cut off": (layout.STATE, body[:-9], "truncated or was changed"),
        "empty": (layout.STATE, b"", "truncated or was changed"),
        "no JSON": (layout.STATE, b"\xff\x00", "truncated or was changed"),
    }
    for name, (place, changed, why) in cases.items():
        with case(name), pytest.raises(DamagedObject, match=why) as refused:
            assert changed != body or place != layout.STATE
            layout.read_signed(place, changed, StoreState, {KEY.id})
        assert place in refused.value.message


def test_what_a_newer_version_wrote_is_refused_with_what_to_do() -> None:
    mesh = StoreMesh(format=layout.FORMAT + 1, mesh=MeshName("home"), system="7", keys=(KEY.id,), recipients=(), own_recipient="age1")
    with pytest.raises(errors.BadSettings, match="written by a newer version"):
        layout.read_signed(layout.MESH, layout.sign(layout.MESH, mesh, KEY), StoreMesh, {KEY.id})
    with pytest.raises(errors.BadSettings, match=r"mesh\.json cannot be understood"):
        layout.read_signed(layout.MESH, layout.sign(layout.MESH, STATE, KEY), StoreMesh, {KEY.id})
