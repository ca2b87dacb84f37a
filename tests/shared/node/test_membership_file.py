"""The membership that a node saves, including former addresses of the DHT nodes."""

import time
from pathlib import Path

import msgspec
import pytest

from shared import errors
from shared.api.membership import Membership, TopicSecret
from shared.identity import certificates, node_keys
from shared.identity.certificates import Subject
from shared.node import member, membership_file
from shared.node.membership_file import MAX_BOOTSTRAP, MembershipFile
from shared.node.settings import NodeSettings
from shared.transports.link import LocalNode
from shared.types import AuthorityId, MeshName, Role

MESH = MeshName("home")


def make_reply(*bootstrap: str) -> Membership:
    return Membership(MESH, Role.WORKER, b"certified", b"", (AuthorityId("A"),), b"", (), bootstrap, (), 0)


def make_key() -> node_keys.NodeKey:
    return node_keys.NodeKey(node_keys.new_seed())


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


# --- a lost key -------------------------------------------------------------------------------------------------------


def make_membership(key: node_keys.NodeKey, ca: node_keys.Authority) -> MembershipFile:
    now = time.time()
    return MembershipFile(
        MESH,
        Role.WEB,
        certificates.issue(ca, Subject(key.id, Role.WEB), now),
        certificates.issue_list(ca, 3, 1, (), now),
        (ca.id,),
        (TopicSecret(1, bytes(32)),),
        was_revoked=True,
    )


def plan(folder: Path, key: node_keys.NodeKey, nats_url: str) -> member.TransportPlan:
    settings = NodeSettings(nats_url=nats_url, node_key_file=folder / "web.nk")
    return member.plan_transports(settings, LocalNode(MESH, Role.WEB, key, "test"))


async def test_another_key_does_not_use_the_certificate_of_the_lost_one(tmp_path: Path) -> None:
    ca, lost, new = node_keys.Authority(node_keys.new_authority_seed()), make_key(), make_key()
    membership_file.save(tmp_path / "web.mesh", make_membership(lost, ca))
    assert plan(tmp_path, lost, "nats://127.0.0.1:4222").trust.certificate
    found = plan(tmp_path, new, "nats://127.0.0.1:4222")
    assert (found.trust.certificate, found.membership.certificate, found.trust.was_revoked) == (b"", b"", False)
    # The mesh is the same.
    assert (found.trust.authorities, found.trust.topics) == ((ca.id,), ((1, bytes(32)),))
    assert found.trust.list is not None


async def test_without_nats_another_key_needs_a_ticket(tmp_path: Path) -> None:
    ca, lost = node_keys.Authority(node_keys.new_authority_seed()), make_key()
    membership_file.save(tmp_path / "web.mesh", make_membership(lost, ca))
    with pytest.raises(errors.BadSettings, match=r"web\.mesh belongs to another key") as refused:
        plan(tmp_path, make_key(), "none")
    assert refused.value.hint == "aicli worker --join TICKET"


def test_a_damaged_certificate_is_left_out() -> None:
    key, ca = make_key(), node_keys.Authority(node_keys.new_authority_seed())
    whole = make_membership(key, ca)
    assert membership_file.for_key(whole, key.id) == whole
    damaged = msgspec.structs.replace(whole, certificate=b"damaged")
    assert membership_file.for_key(damaged, key.id) == msgspec.structs.replace(whole, certificate=b"", was_revoked=False)
    assert membership_file.for_key(make_file(), key.id) == make_file()


def test_what_the_ticket_chose_outlives_renewals() -> None:
    before = msgspec.structs.replace(make_file("a:1"), model="hf:org/model", accept_models=False)
    found = membership_file.of(make_reply("a:1"), before)
    assert (found.model, found.accept_models) == ("hf:org/model", False)
