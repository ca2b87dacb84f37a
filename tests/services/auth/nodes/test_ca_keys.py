"""What the CA key signs, checked as nodes check it."""

from datetime import UTC, datetime, timedelta

import pytest

from services.auth.nodes.ca_keys import CaKeys, MeshState
from shared import errors
from shared.identity import certificates, node_keys
from shared.identity.certificates import OF_ANOTHER_MESH, Subject
from shared.types import NodeId, Role

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SECONDS = NOW.timestamp()
CUT_OFF = node_keys.NodeKey(node_keys.new_seed()).id


def authority() -> node_keys.Authority:
    return node_keys.Authority(node_keys.new_authority_seed())


def state(epoch: int = 1, changed_at: datetime | None = None) -> MeshState:
    return MeshState(7, epoch, changed_at, (CUT_OFF,))


def test_signatures_verify_only_under_the_cas_own_key() -> None:
    keys, foreign = CaKeys(authority()), authority().id
    node = node_keys.NodeKey(node_keys.new_seed()).id
    certificate = keys.certify(Subject(node, Role.WORKER), SECONDS)
    listed = keys.sign_list(state(epoch=3), SECONDS)
    assert certificates.check(certificate, keys.authorities, SECONDS).node == node
    found = certificates.check_list(listed, keys.authorities)
    assert (found.number, found.epoch, found.nodes, found.issued_at) == (7, 3, (CUT_OFF,), int(SECONDS))
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        certificates.check(certificate, (foreign,), SECONDS)
    with pytest.raises(errors.NotCertified, match="the revocation list belongs to another mesh"):
        certificates.check_list(listed, (foreign,))


def test_the_previous_epoch_is_published_for_a_day_and_the_next_one_never() -> None:
    keys = CaKeys(authority())
    assert [secret.epoch for secret in keys.topics(state(), SECONDS)] == [1]
    assert [secret.epoch for secret in keys.topics(state(2, NOW - timedelta(hours=23)), SECONDS)] == [2, 1]
    assert [secret.epoch for secret in keys.topics(state(2, NOW - timedelta(hours=24)), SECONDS)] == [2]


def test_secrets_differ_by_epoch_and_key_and_are_the_same_on_every_replica() -> None:
    one, other = authority(), authority()
    secrets = {epoch: CaKeys(one).topics(state(epoch), SECONDS)[0].secret for epoch in (1, 2)}
    assert len({*secrets.values(), CaKeys(other).topics(state(1), SECONDS)[0].secret}) == 3
    assert CaKeys(node_keys.Authority(one._pair.seed)).topics(state(2), SECONDS)[0].secret == secrets[2]
    assert all(len(secret) == 32 for secret in secrets.values())


def test_a_ca_key_is_replaced_without_any_node_losing_the_mesh() -> None:
    old, new = authority(), authority()
    announced, switched, done = CaKeys(old, new), CaKeys(new, old), CaKeys(new)
    assert certificates.check_succession(announced.succession, (old.id,)).successor == new.id
    assert announced.authorities == (old.id, new.id)
    node = Subject(node_keys.NodeKey(node_keys.new_seed()).id, Role.GATEWAY)
    # A node that knows both keys accepts what either signs, and meets the others before and after the switch.
    for keys in (announced, switched, done):
        certificates.check(keys.certify(node, SECONDS), announced.authorities, SECONDS)
    before, after = (set(keys.topics(state(), SECONDS)) for keys in (announced, switched))
    assert before == after
    assert set(done.topics(state(), SECONDS)) < after
    assert done.succession == b""


def test_the_same_key_in_both_files_is_a_mistake() -> None:
    key = authority()
    with pytest.raises(errors.BadSettings, match="MESH_CA_NEXT_KEY_FILE"):
        CaKeys(key, key)


def test_a_revoked_node_is_listed_with_its_identity() -> None:
    keys = CaKeys(authority())
    assert certificates.check_list(keys.sign_list(MeshState(1, 1, None, ()), SECONDS), keys.authorities).nodes == ()
    assert isinstance(CUT_OFF, str)
    assert NodeId(CUT_OFF) in certificates.check_list(keys.sign_list(state(), SECONDS), keys.authorities).nodes
