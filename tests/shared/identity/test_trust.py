"""Which peers a node trusts: every reason to refuse a HELLO, and lists and CA keys that only move forward."""

from dataclasses import replace

import msgspec
import pytest

from shared import errors
from shared.identity import certificates, node_keys
from shared.identity.certificates import OF_ANOTHER_MESH, Subject
from shared.identity.trust import NEWCOMER_SECONDS, Trust
from shared.protocol import wire
from shared.protocol.topics import may_call, may_link
from shared.protocol.wire import Hello
from shared.types import NodeId, Peer, Role

NOW = 1_767_225_600.0
LINK = 0x0123456789ABCDEF
DAY = 86_400


def new_key() -> node_keys.NodeKey:
    return node_keys.NodeKey(node_keys.new_seed())


CA, OTHER_CA = (node_keys.Authority(node_keys.new_authority_seed()) for _ in range(2))


def certified(role: Role, authority: node_keys.Authority = CA, *, key: node_keys.NodeKey | None = None, at: float = NOW) -> Trust:
    trust = Trust(key or new_key(), role, (authority.id,))
    trust.certificate = certificates.issue(authority, Subject(trust.me.id, role, "ada", (("gpu", "a100"),)), at)
    return trust


def delegate_of(profile: node_keys.NodeKey, *, at: float = NOW, role: Role = Role.CLIENT) -> Trust:
    trust = Trust(new_key(), role, (CA.id,))
    trust.certificate = certificates.issue(CA, Subject(profile.id, role), at)
    trust.delegation = certificates.delegate(profile, trust.me.id, at)
    return trust


def hello(sender: Trust, receiver: Trust, *, link: int = LINK, now: float = NOW) -> Hello:
    return sender.hello(receiver.me.id, link, "aimesh/test", now)


def resigned(sender: Trust, receiver: Trust, **change: object) -> Hello:
    """Return a HELLO with the sender's changes, properly signed by the sender."""
    unsigned = msgspec.structs.replace(hello(sender, receiver), signature=b"", **change)
    return msgspec.structs.replace(unsigned, signature=sender.me.sign("hello", wire.hello_text(unsigned, receiver.me.id, LINK)))


# --- admitted peers -----------------------------------------------------------------------------------------------------


def test_a_certified_node_has_the_identity_of_its_certificate() -> None:
    gateway, worker = certified(Role.GATEWAY), certified(Role.WORKER)
    found = gateway.admit(hello(worker, gateway, now=NOW - 3), worker.me.id, LINK, NOW)
    assert found.peer == Peer(Role.WORKER, worker.me.id, worker.me.id, "ada", (("gpu", "a100"),))
    assert (found.until, found.clock_offset_seconds) == (NOW + DAY, -3)


@pytest.mark.parametrize("one", [role for role in Role if role not in (Role.OPERATOR, Role.NEWCOMER)])
@pytest.mark.parametrize("other", [role for role in Role if role not in (Role.OPERATOR, Role.NEWCOMER)])
def test_two_roles_link_only_if_they_may_call_each_other_or_are_workers(one: Role, other: Role) -> None:
    receiver, sender = certified(one), certified(other)
    assert may_link(one, other) is (may_call(one, other) or {one, other} == {Role.WORKER})
    if may_link(one, other):
        assert receiver.admit(hello(sender, receiver), sender.me.id, LINK, NOW).peer.role is other
    else:
        with pytest.raises(errors.WrongRole, match="may not connect"):
            receiver.admit(hello(sender, receiver), sender.me.id, LINK, NOW)


def test_workers_link_to_copy_models_and_never_call_each_other() -> None:
    assert may_link(Role.WORKER, Role.WORKER)
    assert not may_call(Role.WORKER, Role.WORKER)


def test_a_process_of_a_client_profile_is_admitted_by_delegation_as_long_as_the_profile() -> None:
    gateway, profile = certified(Role.GATEWAY), new_key()
    process = delegate_of(profile)
    found = gateway.admit(hello(process, gateway), process.me.id, LINK, NOW)
    assert (found.peer.node, found.peer.certified, found.peer.role) == (process.me.id, profile.id, Role.CLIENT)
    assert found.until == NOW + DAY


# --- refused peers ------------------------------------------------------------------------------------------------------


def test_an_altered_replayed_or_borrowed_hello_is_refused() -> None:
    gateway, other_gateway, worker, thief = certified(Role.GATEWAY), certified(Role.GATEWAY), certified(Role.WORKER), certified(Role.WORKER)
    good = hello(worker, gateway)
    gateway.admit(good, worker.me.id, LINK, NOW)
    cases = [
        (good, thief.me.id, LINK, "a different key"),
        (good, worker.me.id, LINK + 1, "not signed for this connection"),
        (hello(worker, other_gateway), worker.me.id, LINK, "not signed for this connection"),
        (msgspec.structs.replace(good, node=thief.me.id), thief.me.id, LINK, "not signed"),
        (msgspec.structs.replace(good, role=Role.GATEWAY), worker.me.id, LINK, "not signed"),
        (msgspec.structs.replace(good, sent_at_ms=good.sent_at_ms + 1), worker.me.id, LINK, "not signed"),
        (msgspec.structs.replace(good, signature=b""), worker.me.id, LINK, "not signed"),
        (resigned(thief, gateway, certificate=worker.certificate), thief.me.id, LINK, "not a delegation"),
        (resigned(worker, gateway, role=Role.METRICS), worker.me.id, LINK, "a worker's certificate, shown by a metrics"),
        (resigned(worker, gateway, certificate=b""), worker.me.id, LINK, "no certificate"),
        (resigned(worker, gateway, certificate=b"nonsense"), worker.me.id, LINK, "not a certificate"),
    ]
    for found, proved, link, words in cases:
        with pytest.raises(errors.NotCertified, match=words):
            gateway.admit(found, proved, link, NOW)


def test_a_hello_signed_through_a_nats_server_is_refused() -> None:
    """The NATS server chooses the nonce: it may be the text of a HELLO, even with our prefix of another purpose before it."""
    gateway, worker = certified(Role.GATEWAY), certified(Role.WORKER)
    unsigned = msgspec.structs.replace(hello(worker, gateway), signature=b"")
    text = wire.hello_text(unsigned, gateway.me.id, LINK)
    for signature in (worker.me.sign_bare(text), worker.me.sign("certificate", text), worker.me.sign("delegation", text)):
        with pytest.raises(errors.NotCertified, match="not signed"):
            gateway.admit(msgspec.structs.replace(unsigned, signature=signature), worker.me.id, LINK, NOW)


def test_a_foreign_mesh_is_refused_both_ways() -> None:
    gateway, stranger = certified(Role.GATEWAY), certified(Role.WORKER, OTHER_CA)
    for receiver, sender in ((gateway, stranger), (stranger, gateway)):
        with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
            receiver.admit(hello(sender, receiver), sender.me.id, LINK, NOW)
        assert receiver.role_of(hello(sender, receiver), sender.me.id) is None


def test_another_protocol_version_says_which_side_to_update() -> None:
    gateway, worker = certified(Role.GATEWAY), certified(Role.WORKER)
    newer = resigned(worker, gateway, version=2)
    with pytest.raises(errors.ProtocolViolation, match=r"version 2, we speak 1: update the older one"):
        gateway.admit(newer, worker.me.id, LINK, NOW)
    assert gateway.role_of(newer, worker.me.id) is Role.WORKER, "people are told whom it concerns"


def test_an_expired_certificate_is_named_with_its_owner() -> None:
    gateway, worker = certified(Role.GATEWAY), certified(Role.WORKER, at=NOW - DAY - 2 * 3600)
    shown = hello(worker, gateway)
    assert shown.role is Role.NEWCOMER
    with pytest.raises(errors.CertificateExpired, match="2 h ago"):
        gateway.admit(shown, worker.me.id, LINK, NOW)
    assert gateway.role_of(shown, worker.me.id) is Role.WORKER
    assert gateway.role_of(shown, new_key().id) is None, "not if somebody else shows it"


def test_a_delegation_is_valid_only_for_clients_and_its_own_profile() -> None:
    gateway = certified(Role.GATEWAY)
    worker = delegate_of(new_key(), role=Role.WORKER)
    with pytest.raises(errors.NotCertified, match="only clients"):
        gateway.admit(hello(worker, gateway), worker.me.id, LINK, NOW)
    process, stranger = delegate_of(new_key()), delegate_of(new_key())
    process.delegation = stranger.delegation
    with pytest.raises(errors.NotCertified, match="another"):
        gateway.admit(hello(process, gateway), process.me.id, LINK, NOW)
    assert gateway.role_of(hello(process, gateway), process.me.id) is None
    late = delegate_of(new_key(), at=NOW - 661)
    with pytest.raises(errors.CertificateExpired, match="delegation ended"):
        gateway.admit(hello(late, gateway), late.me.id, LINK, NOW)
    assert gateway.role_of(hello(late, gateway), late.me.id) is Role.CLIENT


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        pytest.param(-12 * 60, "its clock is 12 min behind ours", id="behind"),
        pytest.param(12 * 60, "its clock is 12 min ahead of ours", id="ahead"),
        pytest.param(-3600, "its clock is 60 min behind ours", id="an hour behind"),
        pytest.param(2 * DAY, "its clock is 2880 min ahead of ours", id="so far ahead that it takes its certificate for ended"),
    ],
)
def test_a_wrong_clock_is_named_as_the_reason(offset: float, words: str) -> None:
    """A process makes its delegation by its own clock; the reader judges a certificate by the reader's clock."""
    gateway, process = certified(Role.GATEWAY), delegate_of(new_key(), at=NOW)
    key = new_key()
    process.delegation, process.certificate = b"", certificates.issue(CA, Subject(key.id, Role.CLIENT), NOW)
    process.delegation = certificates.delegate(key, process.me.id, NOW + offset)
    with pytest.raises(errors.ClockSkew, match=words):
        gateway.admit(hello(process, gateway, now=NOW + offset), process.me.id, LINK, NOW)


@pytest.mark.parametrize("ours", [-12 * 60, -2 * DAY])
def test_a_certificate_from_the_future_means_that_our_clock_is_wrong(ours: float) -> None:
    gateway, worker = certified(Role.GATEWAY), certified(Role.WORKER)
    with pytest.raises(errors.ClockSkew, match=f"its clock is {-ours / 60:.0f} min ahead of ours"):
        gateway.admit(hello(worker, gateway), worker.me.id, LINK, NOW + ours)


@pytest.mark.parametrize("offset", [-600, -61, -60, 0, 60, 61, 600])
def test_a_valid_certificate_is_accepted_despite_clock_skew(offset: float) -> None:
    gateway, worker = certified(Role.GATEWAY), certified(Role.WORKER)
    found = gateway.admit(hello(worker, gateway, now=NOW + offset), worker.me.id, LINK, NOW)
    assert found.clock_offset_seconds == offset


# --- newcomers ----------------------------------------------------------------------------------------------------------


def test_a_newcomer_is_admitted_only_by_auth_and_briefly() -> None:
    newcomer = Trust(new_key(), Role.NEWCOMER, (CA.id,))
    auth = certified(Role.AUTH)
    found = auth.admit(hello(newcomer, auth), newcomer.me.id, LINK, NOW)
    assert (found.peer.role, found.peer.node, found.until) == (Role.NEWCOMER, newcomer.me.id, NOW + NEWCOMER_SECONDS)
    assert newcomer.admit(hello(auth, newcomer), auth.me.id, LINK, NOW).peer.role is Role.AUTH
    for role in (Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT):
        node = certified(role)
        with pytest.raises(errors.NotCertified, match="no certificate"):
            node.admit(hello(newcomer, node), newcomer.me.id, LINK, NOW)
        with pytest.raises(errors.WrongRole, match="a newcomer may not connect to a"):
            newcomer.admit(hello(node, newcomer), node.me.id, LINK, NOW)


def test_a_newcomer_cannot_claim_a_role_or_be_a_revoked_node() -> None:
    auth, stranger = certified(Role.AUTH), Trust(new_key(), Role.GATEWAY, (CA.id,))
    assert auth.admit(resigned(stranger, auth, role=Role.GATEWAY), stranger.me.id, LINK, NOW).peer.role is Role.NEWCOMER
    worker = certified(Role.WORKER)
    shown = resigned(worker, auth, role=Role.NEWCOMER)
    assert auth.admit(shown, worker.me.id, LINK, NOW).peer.role is Role.NEWCOMER, "who renews may hide behind less, never more"
    auth.take_list(certificates.issue_list(CA, 1, 1, (worker.me.id,), NOW))
    for found in (shown, hello(worker, auth)):
        with pytest.raises(errors.NodeRevoked, match="this node was revoked"):
            auth.admit(found, worker.me.id, LINK, NOW)


def test_a_node_without_a_valid_certificate_is_refused_with_the_reason() -> None:
    worker = certified(Role.WORKER)
    assert worker.has_certificate(NOW)
    assert not worker.has_certificate(NOW + 2 * DAY)
    assert hello(worker, worker, now=NOW + 2 * DAY).role is Role.NEWCOMER
    standing = worker.standing()
    assert standing is not None
    assert standing.role is Role.WORKER
    assert Trust(new_key(), Role.WORKER, (CA.id,)).standing() is None


# --- revocation ---------------------------------------------------------------------------------------------------------


def test_a_revoked_node_and_processes_of_a_revoked_profile_are_refused() -> None:
    gateway, worker, profile = certified(Role.GATEWAY), certified(Role.WORKER), new_key()
    process = delegate_of(profile)
    told: list[frozenset[NodeId]] = []
    gateway.on_revoked.append(told.append)
    assert gateway.take_list(certificates.issue_list(CA, 1, 1, (worker.me.id, profile.id), NOW))
    assert told == [frozenset({worker.me.id, profile.id})]
    for each in (worker, process):
        with pytest.raises(errors.NodeRevoked, match="this node was revoked"):
            gateway.admit(hello(each, gateway), each.me.id, LINK, NOW)
    with pytest.raises(errors.NodeRevoked, match="this node was revoked"):
        gateway.check_not_revoked(worker.me.id)
    gateway.check_not_revoked(process.me.id)


def test_the_revocation_list_never_goes_back() -> None:
    gateway, worker = certified(Role.GATEWAY), certified(Role.WORKER)
    told: list[frozenset[NodeId]] = []
    gateway.on_revoked.append(told.append)
    old = certificates.issue_list(CA, 1, 1, (), NOW)
    new = certificates.issue_list(CA, 2, 1, (worker.me.id,), NOW + 1)
    assert gateway.number == 0
    assert gateway.take_list(new)
    assert not gateway.take_list(new), "it is known"
    assert not gateway.take_list(old), "which would bring the worker back"
    assert not gateway.take_list(certificates.issue_list(CA, 1, 1, (), NOW + 99)), "nor does an old number, confirmed anew"
    assert (gateway.number, gateway.revoked, gateway.list_body) == (2, {worker.me.id}, new)
    confirmed = certificates.issue_list(CA, 2, 1, (worker.me.id,), NOW + 120)
    assert gateway.take_list(confirmed)
    assert gateway.list is not None
    assert gateway.list.issued_at == NOW + 120
    assert told == [frozenset({worker.me.id})], "a confirmation cuts nobody off again"
    for bad in (certificates.issue_list(OTHER_CA, 9, 1, (), NOW), b"", new[:-1]):
        with pytest.raises(errors.NotCertified, match="revocation list"):
            gateway.take_list(bad)
    assert gateway.number == 2
    assert gateway.take_list(certificates.issue_list(CA, 3, 1, (), NOW + 200))
    assert gateway.revoked == frozenset(), "long ago, and no certificate of it can be good any more"


def test_every_hello_carries_the_list_number() -> None:
    gateway, worker = certified(Role.GATEWAY), certified(Role.WORKER)
    gateway.take_list(certificates.issue_list(CA, 7, 1, (), NOW))
    assert hello(gateway, worker).revocations == 7


# --- CA keys ------------------------------------------------------------------------------------------------------------


def test_the_next_ca_is_named_by_the_current_one_and_at_most_two_are_trusted() -> None:
    third = node_keys.Authority(node_keys.new_authority_seed())
    gateway = certified(Role.GATEWAY)
    with pytest.raises(errors.NotCertified, match="no CA of this mesh has named the successor"):
        gateway.take_successor(certificates.name_successor(OTHER_CA, third.id))
    gateway.take_successor(certificates.name_successor(CA, OTHER_CA.id))
    assert gateway.authorities == (CA.id, OTHER_CA.id)
    for authority in (CA, OTHER_CA):
        worker = certified(Role.WORKER, authority)
        assert gateway.admit(hello(worker, gateway), worker.me.id, LINK, NOW)
    gateway.take_successor(certificates.name_successor(CA, OTHER_CA.id))
    assert gateway.authorities == (CA.id, OTHER_CA.id), "said twice, it changes nothing"
    gateway.take_successor(certificates.name_successor(OTHER_CA, third.id))
    assert gateway.authorities == (OTHER_CA.id, third.id)
    old = certified(Role.WORKER)
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        gateway.admit(hello(old, gateway), old.me.id, LINK, NOW)
    with pytest.raises(errors.NotCertified, match="no CA of this mesh has named the successor"):
        gateway.take_successor(certificates.name_successor(CA, CA.id))


def test_peers_compare_equal_except_for_their_connection() -> None:
    """A second HELLO on a link is compared with the first one like this."""
    gateway, worker = certified(Role.GATEWAY), certified(Role.WORKER)
    one, other = (gateway.admit(hello(worker, gateway, link=link), worker.me.id, link, NOW).peer for link in (1, 2))
    assert one == other
    assert replace(one, channel=b"x") != other
