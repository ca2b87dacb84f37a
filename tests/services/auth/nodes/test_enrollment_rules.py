"""The rules of tickets and nodes, case by case."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from services.auth.nodes import enrollment_rules
from services.auth.nodes.enrollment_rules import KnownNode, KnownTicket
from shared import errors
from shared.api.membership import CreateTicket, MemberState, TicketState
from shared.identity import node_keys, tickets
from shared.types import MeshName, NodeId, Role, UserId

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
OWNER = UserId(UUID(int=7))
KEY = node_keys.NodeKey(node_keys.new_seed())


def ticket(**changed: Any) -> KnownTicket:
    fields: dict[str, Any] = {
        "id": "0123456789abcdef", "public_key": KEY.id, "role": Role.WORKER, "owner": OWNER, "owner_name": "alice", "labels": {},
        "needs_approval": False, "uses": 1, "used": 0, "created_at": NOW - timedelta(hours=4), "expires_at": NOW + timedelta(hours=1),
        "revoked_at": None,
    }  # fmt: skip
    return KnownTicket(**{**fields, **changed})


def node(**changed: Any) -> KnownNode:
    fields: dict[str, Any] = {
        "id": NodeId("U" * 56), "role": Role.WORKER, "state": MemberState.ACTIVE, "name": "box", "owner": OWNER, "owner_name": "alice",
        "labels": {}, "ticket_id": "t", "joined_at": NOW, "idle_since": NOW, "renewed_at": None, "certified_until": None,
        "revoked_at": None, "reason": "",
    }  # fmt: skip
    return KnownNode(**{**fields, **changed})


@pytest.mark.parametrize(
    ("found", "state", "message"),
    [
        pytest.param(ticket(), TicketState.GOOD, "", id="good"),
        pytest.param(ticket(used=1), TicketState.USED_UP, "used up: it was valid for one node", id="used"),
        pytest.param(ticket(uses=5, used=4), TicketState.GOOD, "", id="one use left"),
        pytest.param(ticket(uses=5, used=5), TicketState.USED_UP, "valid for 5 nodes", id="all used"),
        pytest.param(ticket(expires_at=NOW), TicketState.EXPIRED, "expired 0 s ago", id="ends this second"),
        pytest.param(ticket(expires_at=NOW - timedelta(hours=3, minutes=10)), TicketState.EXPIRED, "expired 3 h ago", id="expired"),
        pytest.param(ticket(revoked_at=NOW), TicketState.REVOKED, "was revoked", id="revoked"),
        pytest.param(ticket(revoked_at=NOW, used=1, expires_at=NOW), TicketState.REVOKED, "was revoked", id="everything at once"),
    ],
)
def test_what_is_wrong_with_a_ticket(found: KnownTicket, state: TicketState, message: str) -> None:
    assert enrollment_rules.state_of(found, NOW) is state
    assert enrollment_rules.ticket_row(found, NOW).state is state
    if not message:
        enrollment_rules.check_usable(found, NOW)
        return
    with pytest.raises(errors.BadTicket, match=message) as refused:
        enrollment_rules.check_usable(found, NOW)
    assert "aicli admin tickets create" in refused.value.hint


@pytest.mark.parametrize(
    ("found", "error"),
    [
        pytest.param(node(), None, id="active"),
        pytest.param(None, errors.NotCertified, id="unknown"),
        pytest.param(node(state=MemberState.PENDING), errors.ApprovalPending, id="waits for approval"),
        pytest.param(node(state=MemberState.REVOKED, revoked_at=NOW), errors.NodeRevoked, id="revoked"),
        pytest.param(node(idle_since=NOW - timedelta(days=30)), None, id="a box asleep for a month"),
        pytest.param(node(idle_since=NOW - timedelta(days=31)), errors.NotCertified, id="asleep for longer"),
        pytest.param(node(role=Role.CLIENT, idle_since=NOW - timedelta(days=90)), None, id="a laptop after three months"),
        pytest.param(node(role=Role.CLIENT, idle_since=NOW - timedelta(days=91)), errors.NotCertified, id="a laptop after more"),
    ],
)
def test_which_nodes_may_stay(found: KnownNode | None, error: type[errors.AimeshError] | None) -> None:
    if error is None:
        assert enrollment_rules.check_may_stay(found, NOW) is found
        return
    with pytest.raises(error) as refused:
        enrollment_rules.check_may_stay(found, NOW)
    assert refused.value.hint
    assert type(refused.value) is error


@pytest.mark.parametrize("role", [Role.AUTH, Role.OPERATOR, Role.NEWCOMER])
def test_no_ticket_creates_an_auth_an_operator_or_a_newcomer(role: Role) -> None:
    with pytest.raises(
        errors.BadRequest,
        match=r"role: a ticket cannot give the role (auth|operator|newcomer)",
    ):
        enrollment_rules.check_role(role)


def test_the_tickets_labels_override_the_nodes_own() -> None:
    found = ticket(labels={"zone": "eu", "trusted": "yes"})
    assert enrollment_rules.join_labels(found, {"zone": "us", "gpu": "4090"}) == {"zone": "eu", "gpu": "4090", "trusted": "yes"}


def test_a_node_cannot_label_itself_trusted() -> None:
    with pytest.raises(errors.BadRequest, match="trusted"):
        enrollment_rules.join_labels(ticket(), {"trusted": "yes"})
    assert enrollment_rules.join_labels(ticket(labels={"trusted": "no"}), {"trusted": "yes"}) == {"trusted": "no"}


def test_a_node_has_no_more_labels_than_fit_a_certificate() -> None:
    with pytest.raises(errors.BadRequest, match="17 labels"):
        enrollment_rules.join_labels(ticket(labels={"a": "b"}), {f"l{n}": "x" for n in range(16)})


@pytest.mark.parametrize(
    ("bootstrap", "nats", "beside", "warned"),
    [
        pytest.param((), (), False, "", id="the public DHT"),
        pytest.param(("127.0.0.1:49737", "localhost:49738"), (), False, "127.0.0.1, localhost", id="loopback alone"),
        pytest.param(("[::1]:49737",), (), False, "::1", id="IPv6 loopback"),
        pytest.param(("dht.example.org@127.0.0.1:49737",), (), False, "127.0.0.1", id="a name with its address"),
        pytest.param(("127.0.0.1:49737", "9.9.9.9:49737"), (), False, "", id="one that can be reached"),
        pytest.param(("127.0.0.1:49737",), ("wss://ai.example.org/mesh",), False, "", id="NATS can be reached"),
        pytest.param((), ("wss://192.168.1.5:3000/mesh",), False, "PUBLIC_NATS_URL", id="NATS in another network"),
        pytest.param((), ("wss://192.168.1.5:3000/mesh",), True, "", id="the public DHT beside it"),
        pytest.param(("192.168.1.5:49737",), ("wss://192.168.1.5:3000/mesh",), True, "DHT_HOST", id="both in another network"),
    ],
)
def test_a_ticket_that_cannot_be_used_carries_a_warning(
    bootstrap: tuple[str, ...], nats: tuple[str, ...], beside: bool, warned: str
) -> None:
    made = tickets.new(
        node_keys.Authority(node_keys.new_authority_seed()).id, MeshName("home"), bootstrap=bootstrap, nats=nats, beside=beside
    )
    found = enrollment_rules.warnings(made, elsewhere=True)
    assert len(found) == bool(warned)
    assert warned in "".join(found)


def test_one_flipped_bit_in_the_signature_or_text_is_refused() -> None:
    newcomer = node_keys.NodeKey(node_keys.new_seed())
    text = tickets.use_text("t", newcomer.id, NodeId("U" * 56), b"c" * 64)
    signatures = KEY.sign("enroll", text), newcomer.sign("enroll", text)

    def check(text: bytes, by_ticket: bytes, by_newcomer: bytes) -> None:
        enrollment_rules.check_signed(ticket(), text, by_ticket=by_ticket, newcomer=newcomer.id, by_newcomer=by_newcomer)

    check(text, *signatures)
    parts = [text, *signatures]
    for number in range(3):
        for bit in range(0, len(parts[number]) * 8, 3):
            flipped = bytearray(parts[number])
            flipped[bit // 8] ^= 1 << bit % 8
            with pytest.raises(errors.BadTicket, match="signature is wrong"):
                check(*(bytes(flipped) if place == number else part for place, part in enumerate(parts)))


def test_signatures_for_another_purpose_are_refused() -> None:
    newcomer = node_keys.NodeKey(node_keys.new_seed())
    text = tickets.use_text("t", newcomer.id, NodeId("U" * 56), b"c")
    with pytest.raises(errors.BadTicket, match="ticket's signature"):
        enrollment_rules.check_signed(
            ticket(), text, by_ticket=KEY.sign("hello", text), newcomer=newcomer.id, by_newcomer=newcomer.sign("enroll", text)
        )
    with pytest.raises(errors.BadTicket, match="own signature"):
        enrollment_rules.check_signed(
            ticket(), text, by_ticket=KEY.sign("enroll", text), newcomer=newcomer.id, by_newcomer=newcomer.sign_bare(text)
        )


def test_auth_cannot_revoke_auth() -> None:
    with pytest.raises(errors.NotAllowed) as refused:
        enrollment_rules.check_revocable(node(role=Role.AUTH))
    assert "node key" in refused.value.hint
    enrollment_rules.check_revocable(node(role=Role.GATEWAY))


def test_a_certificate_names_the_owner_by_id_and_a_list_by_name() -> None:
    found = node(labels={"zone": "eu", "gpu": "a"})
    subject = enrollment_rules.subject_of(found)
    assert (subject.owner, subject.labels) == (str(OWNER), (("gpu", "a"), ("zone", "eu")))
    assert enrollment_rules.member_row(found).owner == "alice"
    assert enrollment_rules.member_row(node(owner_name="")).owner == str(OWNER)
    assert (enrollment_rules.subject_of(node(owner=None)).owner, enrollment_rules.member_row(node(owner=None, owner_name="")).owner) == (
        "",
        "",
    )


def test_control_characters_in_a_name_are_made_printable() -> None:
    assert enrollment_rules.printable(" my\x1b[2Jbox\0\n") == "my[2Jbox"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        pytest.param({"uses": None}, "unlimited uses", id="unlimited without places"),
        pytest.param({"ttl_seconds": 8 * 86_400}, "at most 7 days", id="long without places"),
        pytest.param({"role": Role.GATEWAY, "active_most": 3}, "need networks", id="gateways from everywhere"),
        pytest.param({"networks": ("10.0.0.0/33",)}, "not a network", id="no network"),
        pytest.param({"networks": ("10.0.0.1/8",)}, "not a network", id="host bits"),
        pytest.param({"networks": ("10.0.0.0/8", "0.0.0.0/0")}, "0.0.0.0/0 is wider than /8", id="everywhere"),
        pytest.param({"networks": ("10.0.0.0/7",)}, "10.0.0.0/7 is wider than /8", id="wide"),
        pytest.param({"networks": ("::/0",)}, "::/0 is wider than /16", id="everywhere in IPv6"),
        pytest.param({"networks": ("2000::/15",)}, "2000::/15 is wider than /16", id="wide in IPv6"),
        pytest.param({"networks": ("::ffff:0.0.0.0/96",)}, "0.0.0.0/0 is wider than /8", id="everywhere as mapped IPv6"),
    ],
)
def test_a_ticket_that_may_not_exist(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(errors.BadRequest, match=words):
        enrollment_rules.check_request(CreateTicket(**{"role": Role.WORKER, **changed}))


def test_tickets_of_replicas_may_last_and_have_any_number_of_uses() -> None:
    for role, networks in ((Role.WORKER, ()), (Role.GATEWAY, ("10.0.0.0/8", "fd00::/16")), (Role.WEB, ("::ffff:10.0.0.0/104", "::1"))):
        enrollment_rules.check_request(CreateTicket(role, uses=None, ttl_seconds=90 * 86_400, active_most=20, networks=networks))
    enrollment_rules.check_request(CreateTicket(Role.GATEWAY))


@pytest.mark.parametrize(("address", "works"), [("10.200.0.1", True), ("fd00::5", True), ("11.0.0.1", False), ("::1", False), ("", False)])
def test_a_ticket_works_only_from_its_networks(address: str, *, works: bool) -> None:
    enrollment_rules.check_address(ticket(), address)
    bound = ticket(networks=("10.0.0.0/8", "fd00::/8"))
    if works:
        enrollment_rules.check_address(bound, address)
    else:
        with pytest.raises(errors.BadTicket, match="does not work from"):
            enrollment_rules.check_address(bound, address)


def test_a_ticket_without_a_free_place_says_how_one_gets_free() -> None:
    enrollment_rules.check_usable(ticket(uses=None, used=500, active_most=3, active=2), NOW)
    with pytest.raises(errors.BadTicket, match=r"already has 3 active nodes, its limit; a killed node counts for one more minute"):
        enrollment_rules.check_usable(ticket(uses=None, active_most=3, active=3), NOW)


@pytest.mark.parametrize(
    ("address", "network"),
    [("10.1.2.3", "10.1.2.0/24"), ("2001:db8:1:2::3", "2001:db8:1::/48")],
)
def test_addresses_of_one_place_are_one_network(address: str, network: str) -> None:
    assert enrollment_rules.network_of(address) == network
