"""Anchors: signed for one mesh, chain and row, and valid for nothing else."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from shared import audit_anchors
from shared.audit_anchors import Anchor
from shared.audit_chain import ChainHead
from shared.identity import node_keys
from shared.types import MeshName, NodeId

KEY = audit_anchors.signing_key(bytes(range(32)))
OTHER = audit_anchors.signing_key(bytes(32))
AT = datetime(2026, 2, 1, 10, tzinfo=UTC)
ANCHOR = audit_anchors.sign(KEY, MeshName("home"), "house", ChainHead(12, bytes(range(32))), AT)


def test_an_anchor_matches_only_the_row_that_it_names() -> None:
    checked = audit_anchors.check([ANCHOR, ANCHOR], {KEY.id})
    assert (checked.good, checked.findings) == ((ANCHOR,), ()), "the table and the file have the same one"
    (found,) = checked.checkpoints("house")
    assert (found.sequence, found.hash, found.source) == (12, bytes(range(32)), "the anchor of 2026-02-01 10:00:00")
    assert checked.checkpoints("another") == ()


def test_one_key_may_succeed_another() -> None:
    later = audit_anchors.sign(OTHER, MeshName("home"), "house", ChainHead(13, bytes(32)), AT)
    assert audit_anchors.check([ANCHOR, later], {KEY.id, OTHER.id}).findings == ()
    assert audit_anchors.keys_of([ANCHOR, later, ANCHOR]) == (KEY.id, OTHER.id)


FORGERIES: dict[str, Callable[[Anchor], Anchor]] = {
    "another mesh": lambda anchor: replace(anchor, mesh=MeshName("other")),
    "another chain": lambda anchor: replace(anchor, chain="house2"),
    "another row": lambda anchor: replace(anchor, sequence=11),
    "another hash": lambda anchor: replace(anchor, hash="00" * 32),
    "another count": lambda anchor: replace(anchor, count=11),
    "another time": lambda anchor: replace(anchor, at=AT + timedelta(microseconds=1)),
    "another key": lambda anchor: replace(anchor, key=OTHER.id),
    "no key": lambda anchor: replace(anchor, key=NodeId("nonsense")),
    "a signature of nothing": lambda anchor: replace(anchor, signature="00" * 64),
    "no signature": lambda anchor: replace(anchor, signature="nonsense"),
    "a number that is too large": lambda anchor: replace(anchor, sequence=2**70),
    "one of another's": lambda anchor: audit_anchors.sign(OTHER, anchor.mesh, anchor.chain, ChainHead(12, bytes(32)), AT),
}


@pytest.mark.parametrize("name", sorted(FORGERIES))
def test_a_forged_anchor_is_found(name: str) -> None:
    forged = FORGERIES[name](ANCHOR)
    checked = audit_anchors.check([ANCHOR, forged], {KEY.id})
    assert checked.good == (ANCHOR,)
    finding = checked.finding(forged.chain)
    assert finding is not None
    assert (finding.sequence, "forged" in finding.why) == (forged.sequence, True)


def test_a_signature_for_another_purpose_is_not_an_anchor() -> None:
    text = b"whatever"
    assert not node_keys.verify(KEY.id, "audit-anchor", text, KEY.sign("ticket", text))
    assert node_keys.verify(KEY.id, "ticket", text, KEY.sign("ticket", text))


def test_lines_are_read_back_as_written() -> None:
    other = audit_anchors.sign(OTHER, MeshName("home"), "house", ChainHead(13, bytes(32)), AT)
    lines = [audit_anchors.line(ANCHOR), b"\n", b'{"mesh": "ho\n', b"\xff\xfe\n", b"{}\n", audit_anchors.line(other)]
    assert audit_anchors.read_lines(lines) == ([ANCHOR, other], [3, 4, 5])
