"""The membership that a node saves, including former addresses of the DHT nodes."""

from pathlib import Path

import msgspec
import pytest

from shared.api.membership import Membership
from shared.node import membership_file
from shared.node.membership_file import MAX_BOOTSTRAP, MembershipFile
from shared.types import AuthorityId, MeshName, Role

MESH = MeshName("home")


def make_reply(*bootstrap: str) -> Membership:
    return Membership(MESH, Role.WORKER, b"certified", b"", (AuthorityId("A"),), b"", (), bootstrap, (), 0)


def make_file(*bootstrap: str, older: tuple[str, ...] = ()) -> MembershipFile:
    return MembershipFile(MESH, Role.WORKER, bootstrap=bootstrap, older_bootstrap=older)


@pytest.mark.parametrize(
    ("before", "now", "older"),
    [
        pytest.param(None, ("a:1",), (), id="the first"),
        pytest.param(make_file("a:1"), ("a:1",), (), id="the same"),
        pytest.param(make_file("a:1", "a:2"), ("b:1",), ("a:1", "a:2"), id="others"),
        pytest.param(make_file("b:1", older=("a:1",)), ("c:1",), ("b:1", "a:1"), id="others again, newest first"),
        pytest.param(make_file("b:1", older=("a:1",)), ("a:1",), ("b:1",), id="back"),
        pytest.param(make_file("a:1"), (), ("a:1",), id="the public DHT now"),
        pytest.param(make_file(older=("a:1",)), ("b:1",), ("a:1",), id="the public DHT before"),
    ],
)
def test_previous_dht_nodes_are_kept_newest_first(before: MembershipFile | None, now: tuple[str, ...], older: tuple[str, ...]) -> None:
    found = membership_file.of(make_reply(*now), before)
    assert (found.bootstrap, found.older_bootstrap) == (now, older)


def test_a_mesh_that_moves_daily_does_not_fill_the_file() -> None:
    found = make_file("house-0:1")
    for day in range(1, 40):
        found = membership_file.of(make_reply(f"house-{day}:1"), found)
    assert found.older_bootstrap == tuple(f"house-{day}:1" for day in range(38, 38 - MAX_BOOTSTRAP + 1, -1))


def test_a_long_list_leaves_no_place_for_previous_nodes() -> None:
    found = membership_file.of(make_reply(*(f"b:{port}" for port in range(1, 21))), make_file("a:1"))
    assert (len(found.bootstrap), found.older_bootstrap) == (20, ())


def test_a_file_of_an_older_version_has_no_previous_nodes(tmp_path: Path) -> None:
    path = tmp_path / "node.mesh"
    membership_file.save(path, make_file("a:1", older=("b:1",)))
    assert membership_file.load(path) == make_file("a:1", older=("b:1",))
    facts = msgspec.json.decode(path.read_bytes())
    del facts["olderBootstrap"]
    path.write_bytes(msgspec.json.encode(facts))
    assert membership_file.load(path) == make_file("a:1")
