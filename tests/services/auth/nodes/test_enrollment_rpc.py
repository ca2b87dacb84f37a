"""Enrollment and renewal as nodes see them: on real PostgreSQL, with real tickets, signatures and certificates."""

import asyncio
import json
import time
from pathlib import Path

import pytest

from services.auth.nodes import enrollment_rules
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import membership
from shared.api.membership import Labels, Membership
from shared.identity import certificates, node_keys, tickets
from shared.telemetry import logs
from shared.types import NodeId, Peer, Role
from tests.services.auth import by_hand
from tests.services.auth.surroundings import Newcomer, Surroundings


def read(reply: Membership) -> certificates.Certificate:
    """Check the certificate as the node and its peers do, and return it."""
    return certificates.check(reply.certificate, reply.authorities, time.time())


async def test_a_machine_joins_with_a_ticket(running_service: Surroundings) -> None:
    made = await running_service.ticket(Role.WORKER, labels={"zone": "eu"})
    newcomer, before = Newcomer(), running_service.trust.list_body
    reply = await newcomer.enroll(running_service, made.ticket, labels={"gpu": "4090"})
    found = read(reply)
    admin = await running_service.parts.identities.of(running_service._admin)
    assert (found.node, found.role, found.owner) == (newcomer.key.id, Role.WORKER, str(admin.user_id))
    assert dict(found.labels) == {"zone": "eu", "gpu": "4090"}
    assert (reply.mesh, reply.role, reply.revocations) == (running_service.mesh, Role.WORKER, before)
    assert reply.authorities == (tickets.parse(made.ticket).authority_id,)
    assert [secret.epoch for secret in reply.topics] == [1]
    assert (reply.bootstrap, reply.relays) == (("192.0.2.1:49737",), (b"\xab" * 32,)), "as machines elsewhere reach them"
    (listed,) = [
        row for row in (await running_service.administer(membership.list_members, membership.ListMembers())).members if row.role == "worker"
    ]
    assert (listed.id, listed.name, listed.owner, listed.certified_until is not None) == (newcomer.key.id, "box", "admin", True)


async def test_a_machine_that_joined_over_nats_is_told_the_dht_as_machines_elsewhere_reach_it(running_service: Surroundings) -> None:
    made, newcomer = await running_service.ticket(Role.WORKER), Newcomer()
    newcomer.peer = Peer(Role.NEWCOMER, newcomer.key.id)
    assert (await newcomer.enroll(running_service, made.ticket)).bootstrap == ("192.0.2.1:49737",)
    assert (await newcomer.renew(running_service)).bootstrap == ("192.0.2.1:49737",)


async def test_web_asks_whether_a_ticket_is_usable_without_using_it(running_service: Surroundings) -> None:
    made = await running_service.ticket()
    asked = membership.CheckTicket(tickets.parse(made.ticket).id)
    for _ in range(2):
        await running_service.ask(membership.check_ticket, asked)
    with pytest.raises(errors.BadTicket, match="does not know"):
        await running_service.ask(membership.check_ticket, membership.CheckTicket("0" * 16))
    await Newcomer().enroll(running_service, made.ticket)
    with pytest.raises(errors.BadTicket, match="used up"):
        await running_service.ask(membership.check_ticket, asked)


async def test_a_lost_reply_is_requested_again_on_a_new_connection(running_service: Surroundings) -> None:
    made, newcomer = await running_service.ticket(), Newcomer()
    await newcomer.enroll(running_service, made.ticket)
    newcomer.reconnect()
    assert read(await newcomer.enroll(running_service, made.ticket)).node == newcomer.key.id
    (row,) = (await running_service.administer(membership.list_tickets, membership.ListTickets())).tickets
    assert (row.state, row.used) == ("used_up", 1)
    with pytest.raises(errors.BadTicket, match="used up"):
        await Newcomer().enroll(running_service, made.ticket)


async def test_one_of_fifty_machines_with_one_ticket_joins(running_service: Surroundings) -> None:
    made = await running_service.ticket()
    outcomes = await asyncio.gather(*(Newcomer().enroll(running_service, made.ticket) for _ in range(50)), return_exceptions=True)
    assert sum(isinstance(outcome, Membership) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, errors.BadTicket) for outcome in outcomes) == 49
    assert running_service.refusals("bad_ticket") == 49


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param("UPDATE auth.tickets SET expires_at = now() - interval '3 hours 1 minute'", "expired 3 h ago", id="expired"),
        pytest.param("UPDATE auth.tickets SET used = uses", "used up", id="used up"),
        pytest.param("UPDATE auth.tickets SET revoked_at = now()", "was revoked", id="revoked"),
        pytest.param("DELETE FROM auth.tickets", "does not know the ticket", id="unknown"),
    ],
)
async def test_a_refusal_gives_its_reason(running_service: Surroundings, postgres_url: str, change: str, message: str) -> None:
    made = await running_service.ticket()
    await by_hand.run(postgres_url, change)
    with pytest.raises(errors.BadTicket, match=message) as refused:
        await Newcomer().enroll(running_service, made.ticket)
    assert "administrator" in refused.value.hint


async def test_a_ticket_for_another_role_is_refused_and_stays_unused(running_service: Surroundings) -> None:
    made = await running_service.ticket(role=Role.CLIENT)
    with pytest.raises(errors.BadTicket, match="this ticket is for a client, not a worker") as refused:
        await Newcomer().enroll(running_service, made.ticket, role=Role.WORKER)
    assert "aicli admin tickets create --role worker; this one is still unused" in refused.value.hint
    [row] = (await running_service.administer(membership.list_tickets, membership.ListTickets())).tickets
    assert row.used == 0
    assert read(await Newcomer().enroll(running_service, made.ticket, role=Role.CLIENT)).role is Role.CLIENT


async def test_a_flipped_bit_is_refused(running_service: Surroundings) -> None:
    made, newcomer = await running_service.ticket(uses=10_000), Newcomer()
    request = newcomer.request(running_service, tickets.parse(made.ticket))
    good = [request.ticket_id.encode(), request.ticket_signature, request.node_signature, newcomer.peer.channel]
    bits = [(part, bit) for part, body in enumerate(good) for bit in range(len(body) * 8)]
    for part, bit in bits[::11]:
        flipped = [bytearray(body) for body in good]
        flipped[part][bit // 8] ^= 1 << bit % 8
        changed = membership.EnrollNode(flipped[0].decode("latin-1"), bytes(flipped[1]), bytes(flipped[2]))
        peer = Peer(Role.NEWCOMER, newcomer.key.id, newcomer.key.id, channel=bytes(flipped[3]))
        with pytest.raises(
            errors.BadTicket, match=r"the node's own signature is wrong|the ticket's signature is wrong|this mesh does not know the ticket"
        ):
            await running_service.ask(membership.enroll_node, changed, peer=peer)
    assert [row.role for row in (await running_service.administer(membership.list_members, membership.ListMembers())).members] == ["auth"]


async def test_a_proof_for_one_connection_or_auth_is_invalid_on_another(running_service: Surroundings) -> None:
    made, newcomer, thief = await running_service.ticket(), Newcomer(), Newcomer()
    request = newcomer.request(running_service, tickets.parse(made.ticket))
    newcomer.reconnect()
    for peer in (newcomer.peer, thief.peer):
        with pytest.raises(errors.BadTicket, match="signature"):
            await running_service.ask(membership.enroll_node, request, peer=peer)
    elsewhere = Surroundings()
    with pytest.raises(errors.BadTicket, match="signature"):
        await running_service.ask(membership.enroll_node, newcomer.request(elsewhere, tickets.parse(made.ticket)), peer=newcomer.peer)


async def test_a_ticket_is_only_used_by_newcomers(running_service: Surroundings) -> None:
    made, newcomer = await running_service.ticket(), Newcomer()
    request = newcomer.request(running_service, tickets.parse(made.ticket))
    # Signed for a Hyperswarm connection, but sent over NATS.
    with pytest.raises(errors.BadTicket, match="signature is wrong"):
        await running_service.ask(membership.enroll_node, request, peer=Peer(Role.NEWCOMER, newcomer.key.id))
    for role in (Role.WORKER, Role.CLIENT, Role.OPERATOR):
        with pytest.raises(errors.WrongRole, match=r"may not call auth\.enrollNode"):
            await running_service.ask(membership.enroll_node, request, peer=Peer(role, newcomer.key.id, newcomer.key.id, channel=b"c" * 64))


async def test_a_node_cannot_label_itself_trusted(running_service: Surroundings) -> None:
    made = await running_service.ticket()
    labels: Labels = {"trusted": "yes"}
    with pytest.raises(errors.BadRequest, match="trusted"):
        await Newcomer().enroll(running_service, made.ticket, labels=labels)
    assert dict(read(await Newcomer().enroll(running_service, (await running_service.ticket(labels=labels)).ticket)).labels) == labels


# --- approval ----------------------------------------------------------------------------------------------------------


async def test_a_node_waits_for_approval_and_is_then_certified(running_service: Surroundings) -> None:
    made, newcomer = await running_service.ticket(needs_approval=True), Newcomer()
    for ask in (
        newcomer.enroll(running_service, made.ticket),
        newcomer.enroll(running_service, made.ticket),
        newcomer.renew(running_service),
    ):
        with pytest.raises(errors.ApprovalPending) as pending:
            await ask
        assert pending.value.retryable
        assert newcomer.key.id[:9] in pending.value.hint
    approved = await running_service.administer(membership.approve_member, membership.ApproveMember(newcomer.key.id[:9]))
    assert (approved.state, approved.certified_until) == ("active", None)
    assert read(await newcomer.renew(running_service)).node == newcomer.key.id


async def test_an_unwanted_node_is_revoked_instead_of_approved(running_service: Surroundings) -> None:
    made, newcomer = await running_service.ticket(needs_approval=True), Newcomer()
    with pytest.raises(errors.ApprovalPending, match="an administrator has to approve this machine first"):
        await newcomer.enroll(running_service, made.ticket)
    await running_service.administer(membership.revoke_member, membership.RevokeMember(newcomer.key.id))
    with pytest.raises(errors.NodeRevoked, match="this node was revoked on"):
        await running_service.administer(membership.approve_member, membership.ApproveMember(newcomer.key.id))
    with pytest.raises(errors.NodeRevoked, match="this node was revoked on"):
        await newcomer.renew(running_service)


@pytest.mark.parametrize("role", [Role.NEWCOMER, Role.WORKER])
async def test_a_node_that_leaves_for_good_is_revoked(running_service: Surroundings, role: Role) -> None:
    """An uninstalled machine was a member until an administrator noticed. It asks as a newcomer, since its own process has ended."""
    made = await running_service.ticket(uses=2)
    leaving, other = Newcomer(), Newcomer()
    for each in (leaving, other):
        await each.enroll(running_service, made.ticket)
    peer = Peer(role, leaving.key.id, leaving.key.id, channel=b"c" * 64)
    await running_service.ask(membership.leave_node, membership.LeaveNode(), peer=peer)
    read(await leaving.renew(running_service))
    before = running_service.trust.list_body
    for _ in range(2):
        await running_service.ask(membership.leave_node, membership.LeaveNode(for_good=True), peer=peer)
    rows = (await running_service.administer(membership.list_members, membership.ListMembers())).members
    found = {row.id: (row.state, row.reason) for row in rows if row.role == "worker"}
    assert found == {leaving.key.id: ("revoked", "it was uninstalled"), other.key.id: ("active", "")}
    assert running_service.trust.list_body != before, "every node hears of it at once"
    with pytest.raises(errors.NodeRevoked, match="this node was revoked on"):
        await leaving.renew(running_service)


async def test_a_stranger_that_leaves_changes_nothing(running_service: Surroundings) -> None:
    peer = Newcomer().peer
    await running_service.ask(membership.leave_node, membership.LeaveNode(for_good=True), peer=peer)
    rows = (await running_service.administer(membership.list_members, membership.ListMembers())).members
    assert [row.role for row in rows] == ["auth"]


# --- renewal -----------------------------------------------------------------------------------------------------------


async def test_a_node_with_an_expired_certificate_renews_it_and_a_revoked_one_does_not(
    running_service: Surroundings, postgres_url: str
) -> None:
    newcomer, other = Newcomer(), Newcomer()
    made = await running_service.ticket(uses=2)
    await newcomer.enroll(running_service, made.ticket)
    await other.enroll(running_service, made.ticket)
    # A week later no node would accept its certificate, so it connects as a newcomer.
    await by_hand.run(
        postgres_url, "UPDATE auth.nodes SET idle_since = now() - interval '7 days', certified_until = now() - interval '6 days'"
    )
    await running_service.administer(membership.revoke_member, membership.RevokeMember(other.key.id, reason="sold"))
    assert read(await newcomer.renew(running_service)).node == newcomer.key.id
    for again in (other.renew(running_service), other.enroll(running_service, made.ticket)):
        with pytest.raises(errors.NodeRevoked, match="this node was revoked on"):
            await again
    with pytest.raises(errors.NodeRevoked, match="this node was revoked on"):
        await other.enroll(running_service, (await running_service.ticket()).ticket)


async def test_a_node_that_was_offline_too_long_joins_again_with_its_old_key(running_service: Surroundings, postgres_url: str) -> None:
    newcomer = Newcomer()
    await newcomer.enroll(running_service, (await running_service.ticket()).ticket)
    await by_hand.run(postgres_url, "UPDATE auth.nodes SET idle_since = now() - interval '31 days'")
    with pytest.raises(errors.NotCertified, match="31 d"):
        await newcomer.renew(running_service)
    read(await newcomer.enroll(running_service, (await running_service.ticket()).ticket))
    read(await newcomer.renew(running_service))


async def test_an_unknown_node_has_nothing_to_renew(running_service: Surroundings) -> None:
    with pytest.raises(errors.NotCertified, match="does not know"):
        await Newcomer().renew(running_service)


async def test_a_process_of_a_profile_renews_for_the_profile(running_service: Surroundings) -> None:
    profile, process = Newcomer(), Newcomer()
    await profile.enroll(running_service, (await running_service.ticket(Role.CLIENT)).ticket)
    peer = Peer(Role.CLIENT, process.key.id, profile.key.id, channel=b"c" * 64)
    found = read(await running_service.ask(membership.renew_certificate, membership.RenewCertificate(), peer=peer))
    assert (found.node, found.role) == (profile.key.id, Role.CLIENT)


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.WORKER, Role.METRICS, Role.WEB, Role.CLIENT])
async def test_service_nodes_are_vouched_for_by_nats(running_service: Surroundings, role: Role) -> None:
    peer = Peer(role, Newcomer().key.id)
    reply = await running_service.ask(membership.renew_certificate, membership.RenewCertificate(), peer=peer)
    found = read(reply)
    assert (found.node, found.role, found.owner, found.labels) == (peer.node, role, "", ())
    assert reply.bootstrap == ("127.0.0.1:49737",)
    await running_service.administer(membership.revoke_member, membership.RevokeMember(peer.node))
    with pytest.raises(errors.NodeRevoked, match="this node was revoked on"):
        await running_service.ask(membership.renew_certificate, membership.RenewCertificate(), peer=peer)


async def test_nats_does_not_vouch_for_nodes_from_hyperswarm(running_service: Surroundings) -> None:
    peer = Peer(Role.WORKER, Newcomer().key.id, channel=b"c" * 64)
    with pytest.raises(errors.NotCertified, match="this mesh does not know this node"):
        await running_service.ask(membership.renew_certificate, membership.RenewCertificate(), peer=peer)
    with pytest.raises(errors.NotCertified, match="this mesh does not know this node"):
        await running_service.ask(membership.renew_certificate, membership.RenewCertificate(), peer=Peer(Role.NEWCOMER, NodeId("U" * 56)))


# --- other workers of a machine ---------------------------------------------------------------------------------------


async def test_a_worker_vouches_for_another_of_its_machine_without_using_the_ticket_again(running_service: Surroundings) -> None:
    made, machine, sibling = await running_service.ticket(labels={"region": "eu"}), Newcomer(), Newcomer()
    await machine.enroll(running_service, made.ticket)
    found = read(await machine.vouch_for(running_service, sibling))
    labels = {"region": "eu", certificates.MACHINE_LABEL: machine.key.id}
    assert (found.node, found.role, dict(found.labels)) == (sibling.key.id, Role.WORKER, labels)
    # Its answer was lost.
    assert read(await machine.vouch_for(running_service, sibling)).node == sibling.key.id
    # It renews by itself then.
    assert read(await sibling.renew(running_service)).node == sibling.key.id
    (row,) = (await running_service.administer(membership.list_tickets, membership.ListTickets())).tickets
    assert row.used == 1


async def test_the_workers_of_a_machine_are_revoked_with_it(running_service: Surroundings) -> None:
    machine, sibling = Newcomer(), Newcomer()
    await machine.enroll(running_service, (await running_service.ticket()).ticket)
    await machine.vouch_for(running_service, sibling)
    await running_service.administer(membership.revoke_member, membership.RevokeMember(machine.key.id))
    with pytest.raises(errors.NodeRevoked, match="revoked"):
        await sibling.renew(running_service)
    with pytest.raises(errors.NodeRevoked, match="revoked"):
        await machine.vouch_for(running_service, Newcomer())


async def test_only_the_first_worker_of_a_machine_vouches_and_only_for_new_keys_with_their_signature(running_service: Surroundings) -> None:
    machine, sibling, stranger, client = (Newcomer() for _ in range(4))
    for newcomer, role in ((machine, Role.WORKER), (stranger, Role.WORKER), (client, Role.CLIENT)):
        await newcomer.enroll(running_service, (await running_service.ticket(role)).ticket)
    await machine.vouch_for(running_service, sibling)
    with pytest.raises(errors.BadRequest, match="signature"):
        await machine.vouch_for(running_service, Newcomer(), signer=machine)
    for by, of in ((sibling, Newcomer()), (client, Newcomer()), (machine, stranger), (stranger, sibling), (machine, machine)):
        with pytest.raises(errors.NotAllowed, match="can't have another worker"):
            await by.vouch_for(running_service, of)
    with pytest.raises(errors.NotCertified, match="does not know"):
        await Newcomer().vouch_for(running_service, Newcomer())


async def test_a_machine_has_a_bounded_number_of_workers(running_service: Surroundings) -> None:
    machine = Newcomer()
    await machine.enroll(running_service, (await running_service.ticket()).ticket)
    for _ in range(enrollment_rules.MAX_SIBLINGS):
        await machine.vouch_for(running_service, Newcomer())
    with pytest.raises(errors.NotAllowed, match="up to 16 others"):
        await machine.vouch_for(running_service, Newcomer())


# --- without a CA, and without secrets -----------------------------------------------------------------------------------


async def test_without_a_ca_every_call_says_what_is_missing(world: Surroundings) -> None:
    asked = [
        world.ticket(),
        world.administer(membership.list_tickets, membership.ListTickets()),
        world.administer(membership.list_members, membership.ListMembers()),
        world.ask(membership.renew_certificate, membership.RenewCertificate(), peer=Peer(Role.GATEWAY, NodeId("U" * 56))),
        world.ask(membership.enroll_node, membership.EnrollNode("t", b"", b""), Newcomer().peer),
    ]
    for ask in asked:
        with pytest.raises(errors.Unavailable, match="no CA") as refused:
            await ask
        assert "MESH_CA_KEY_FILE" in refused.value.hint


async def test_logs_tables_and_the_state_file_contain_no_secret(
    running_service: Surroundings, ca_settings: AuthSettings, postgres_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure("auth", "debug")
    try:
        made, newcomer = await running_service.ticket(uses=2), Newcomer()
        await newcomer.enroll(running_service, made.ticket)
        await Newcomer().enroll(running_service, made.ticket)
        with pytest.raises(errors.BadTicket, match="the ticket is used up: it was valid for 2 nodes"):
            await Newcomer().enroll(running_service, made.ticket)
        await running_service.administer(membership.revoke_member, membership.RevokeMember(newcomer.key.id))
    finally:
        logs.silence()
    printed = capsys.readouterr().out
    refused = [json.loads(line) for line in printed.splitlines() if "ticket refused" in line]
    assert [(line["ticket_id"], "used up" in line["why"]) for line in refused] == [(tickets.parse(made.ticket).id, True)]
    dump = await by_hand.value(
        postgres_url, "SELECT concat((SELECT json_agg(t) FROM auth.tickets t), (SELECT json_agg(n) FROM auth.nodes n))"
    )
    assert ca_settings.mesh_ca_key_file is not None
    authority = node_keys.load_authority(ca_settings.mesh_ca_key_file)
    ticket = tickets.parse(made.ticket)
    for secret in (ticket.seed, authority.raw_seed, *(secret for _, secret in running_service.trust.topics)):
        for form in (secret.hex(), repr(secret)[2:-1], node_keys.seed_of(secret).decode(), made.ticket[len(tickets.PREFIX) + 8 :]):
            assert form not in printed
            assert form not in dump
    kept = (tmp_path / "auth.mesh").read_bytes()
    assert ca_settings.mesh_ca_key_file.read_bytes().strip() not in kept
    assert (tmp_path / "auth.mesh").stat().st_mode & 0o077 == 0
