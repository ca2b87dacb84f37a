"""Two processes with one key are detected by how often their link is opened again."""

import pytest

from shared.protocol import duplicate_keys
from shared.protocol.duplicate_keys import MAX_LINKS, QUIET_SECONDS, WINDOW_SECONDS, DuplicateLinks
from shared.types import NodeId

NODE, OTHER = NodeId("UONE"), NodeId("UTWO")


def test_a_restart_and_an_outage_are_not_duplicates() -> None:
    seen = DuplicateLinks()
    assert not any(seen.opened(NODE, at) for at in (0.0, 1.0, 30.0, 31.0, 55.0))
    assert not any(seen.opened(NODE, 100 + 20.0 * turn) for turn in range(50))


def test_two_nodes_that_replace_each_other_are_reported_once_in_a_while() -> None:
    seen = DuplicateLinks()
    told = [turn for turn in range(int(QUIET_SECONDS) + 20) if seen.opened(NODE, float(turn))]
    assert told == [MAX_LINKS - 1, MAX_LINKS - 1 + int(QUIET_SECONDS)]


def test_nodes_are_counted_separately_and_only_within_the_window() -> None:
    seen = DuplicateLinks()
    for turn in range(MAX_LINKS - 1):
        assert not seen.opened(NODE, float(turn))
        assert not seen.opened(OTHER, float(turn))
    assert not seen.opened(NODE, WINDOW_SECONDS + 1)
    assert seen.opened(OTHER, WINDOW_SECONDS)


def test_endless_keys_fill_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_keys, "MAX_NODES", 10)
    seen = DuplicateLinks()
    for number in range(100):
        for turn in range(MAX_LINKS):
            seen.opened(NodeId(f"U{number}"), float(turn))
    assert len(seen._opened) <= 10
    assert len(seen._reported_at) <= 10
