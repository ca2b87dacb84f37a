from datetime import UTC, datetime, timedelta

from services.metrics.collection.rejected_records import REMEMBERED, RejectedRecords

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_rejected_records_are_logged_once_and_reported_for_a_while() -> None:
    refusals = RejectedRecords()
    assert refusals.note("U1", 3, "value: NaN", NOW)
    assert not refusals.note("U1", 2, "value: negative", NOW + REMEMBERED)
    assert refusals.complaints(NOW + REMEMBERED) == {"U1": "5 recorded samples were rejected, the last one because: value: negative"}
    after = NOW + 2 * REMEMBERED + timedelta(seconds=1)
    assert refusals.complaints(after) == {}
    assert refusals.note("U1", 1, "x", after)
    assert refusals.complaints(after)["U1"].startswith("1 recorded sample was rejected")


def test_quoted_text_and_remembered_nodes_are_bounded() -> None:
    refusals = RejectedRecords()
    for number in range(1500):
        refusals.note(f"U{number}", 1, "x" * 10_000, NOW)
    complaints = refusals.complaints(NOW)
    assert len(complaints) == 1000
    assert "U1499" in complaints
    assert "U0" not in complaints
    assert len(complaints["U1499"]) < 300
