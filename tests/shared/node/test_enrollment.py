"""Joining with a ticket over a real Hyperswarm on loopback: who is admitted, what is trusted, and what the user sees."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyhyperswarm
import pytest

from shared import errors
from shared.identity import certificates, node_keys, tickets
from shared.identity.certificates import OF_ANOTHER_MESH
from shared.identity.node_keys import NodeKey
from shared.node import enrollment, membership_file
from shared.node.enrollment import EnrollingNode, EnrollmentOptions, EnrollmentRoute
from shared.node.membership_file import MembershipFile
from shared.transports.swarm_transport import STARTING
from shared.types import MeshName, Role
from tests.front_door import FrontDoor
from tests.swarmnet import SwarmNet, swarmnet

#: Polls every 50 ms, so that joining is fast once the mesh answers.
QUICK = EnrollmentOptions(find_seconds=60, poll_seconds=0.05, approval_seconds=60)


@dataclass
class RunningService:
    net: SwarmNet
    door: FrontDoor
    said: list[str] = field(default_factory=list)
    kept: list[MembershipFile] = field(default_factory=list)

    def ticket(self, role: Role = Role.WORKER, *, needs_approval: bool = False) -> tickets.Ticket:
        return self.door.ticket(role, needs_approval=needs_approval)

    async def enroll(self, ticket: tickets.Ticket, key: NodeKey, means: EnrollmentOptions = QUICK) -> membership_file.Membership:
        newcomer = EnrollingNode(Role.WORKER, "box", {"gpu": "a"}, self.kept.append)
        return await enrollment.enroll(ticket, key, newcomer, self.said.append, means)

    async def refuses(self, ticket: tickets.Ticket, key: NodeKey, words: str) -> errors.AimeshError:
        """Wait longer each time until the error contains ``words``: on a busy machine, Hyperswarm itself starts slowly."""
        for find_seconds in (1.5, 6, 24, 90):
            with pytest.raises(errors.AimeshError) as caught:
                await self.enroll(ticket, key, replace(QUICK, find_seconds=find_seconds))
            if words in caught.value.message:
                break
        assert words in caught.value.message
        return caught.value


@pytest.fixture
async def running_service() -> AsyncIterator[RunningService]:
    async with swarmnet() as net:
        running = await net.start(FrontDoor)
        assert isinstance(running.service, FrontDoor)
        running.service.ca = net.ca
        running.service.bootstrap = tuple(str(address) for address in net.bootstrap)
        yield RunningService(net, running.service)


@pytest.fixture
def key() -> NodeKey:
    return NodeKey(node_keys.new_seed())


async def test_a_ticket_makes_a_member(running_service: RunningService, key: NodeKey) -> None:
    ticket = running_service.ticket()
    found = await running_service.enroll(ticket, key)
    certificate = certificates.read(found.certificate)
    assert (certificate.node, certificate.role, found.role) == (key.id, Role.WORKER, Role.WORKER)
    assert (found.mesh, found.authorities, found.bootstrap) == ("test", (running_service.net.ca.id,), ticket.bootstrap)
    assert running_service.door.members == {key.id: Role.WORKER}
    looking, met, certified = [line for line in running_service.said if line != STARTING]
    assert looking == "looking for the mesh test …"
    assert met.startswith("found auth of mesh test (direct) after ")
    assert certified.startswith("certified as worker until ")
    assert not any(ticket.seed.hex() in line or tickets.render(ticket) in line for line in running_service.said)


async def test_the_same_key_may_reuse_its_ticket_and_another_may_not(running_service: RunningService, key: NodeKey) -> None:
    ticket = running_service.ticket()
    await running_service.enroll(ticket, key)
    await running_service.enroll(ticket, key)
    assert running_service.door.members == {key.id: Role.WORKER}
    with pytest.raises(errors.BadTicket, match="used up"):
        await running_service.enroll(ticket, NodeKey(node_keys.new_seed()))


def test_an_auth_of_version_0_3_has_used_a_ticket_for_another_role() -> None:
    enrollment.check_role(Role.WORKER, Role.WORKER)
    with pytest.raises(errors.BadTicket, match="this ticket is for a client, not a worker, and is now used"):
        enrollment.check_role(Role.CLIENT, Role.WORKER)


async def test_a_node_waits_for_approval_and_no_longer_needs_the_ticket(running_service: RunningService, key: NodeKey) -> None:
    async with asyncio.TaskGroup() as tasks:
        joining = tasks.create_task(running_service.enroll(running_service.ticket(needs_approval=True), key))
        async with asyncio.timeout(60):
            while running_service.door.asked.count("renewCertificate") < 2:  # noqa: ASYNC110 - two rounds of asking
                await asyncio.sleep(0.01)
        (kept,) = running_service.kept
        running_service.door.pending.clear()
    assert certificates.read(joining.result().certificate).node == key.id
    assert any("waiting for an administrator" in line for line in running_service.said)
    # The saved membership is enough to ask without the ticket.
    assert (kept.certificate, kept.authorities) == (b"", (running_service.net.ca.id,))
    renewed = await enrollment.renew_as_newcomer(kept, key, options=QUICK)
    assert certificates.read(renewed.certificate).node == key.id


async def test_waiting_ends_with_the_next_step(running_service: RunningService, key: NodeKey) -> None:
    with pytest.raises(errors.ApprovalPending) as caught:
        await running_service.enroll(running_service.ticket(needs_approval=True), key, replace(QUICK, approval_seconds=0.2))
    assert "run the same command again" in caught.value.hint


async def test_a_node_that_was_offline_too_long_renews_and_a_revoked_one_does_not(running_service: RunningService, key: NodeKey) -> None:
    kept = membership_file.of(await running_service.enroll(running_service.ticket(), key))
    old = certificates.issue(running_service.net.ca, certificates.Subject(key.id, Role.WORKER), 1_000_000)
    kept = MembershipFile(kept.mesh, kept.role, old, kept.revocations, kept.authorities, kept.topics, kept.bootstrap)
    renewed = await enrollment.renew_as_newcomer(kept, key, options=QUICK)
    assert certificates.read(renewed.certificate).not_after > certificates.read(old).not_after
    running_service.door.revoked.add(key.id)
    with pytest.raises(errors.NodeRevoked, match="this node was revoked"):
        await enrollment.renew_as_newcomer(kept, key, options=QUICK)


async def test_a_machine_that_is_uninstalled_leaves_for_good(running_service: RunningService, key: NodeKey) -> None:
    kept = membership_file.of(await running_service.enroll(running_service.ticket(), key))
    await enrollment.leave_for_good(kept, key, running_service.said.append, QUICK)
    assert running_service.door.revoked == {key.id}
    assert running_service.door.asked.count("leaveNode") == 1, "its link is closed before the answer comes"


async def test_a_certificate_for_another_node_is_rejected(running_service: RunningService, key: NodeKey) -> None:
    running_service.door.certify_instead = NodeKey(node_keys.new_seed()).id
    with pytest.raises(errors.NotCertified, match="another node"):
        await running_service.enroll(running_service.ticket(), key)


async def test_a_certificate_by_another_ca_is_rejected(running_service: RunningService, key: NodeKey) -> None:
    ticket = running_service.ticket()
    running_service.door.ca = node_keys.Authority(node_keys.new_authority_seed())
    with pytest.raises(errors.NotCertified, match=OF_ANOTHER_MESH):
        await running_service.enroll(ticket, key)


async def test_a_wrong_clock_is_reported(running_service: RunningService, key: NodeKey) -> None:
    running_service.door.clock_offset_seconds = 120
    await running_service.enroll(running_service.ticket(), key)
    assert "this machine's clock is 2 min behind the mesh's: set it, for example with NTP" in running_service.said


async def test_an_auth_of_another_mesh_learns_nothing_about_the_ticket(running_service: RunningService, key: NodeKey) -> None:
    """The impostor is at the right topic, with a certificate from its own CA."""
    ticket = replace_authority(running_service.ticket(), node_keys.Authority(node_keys.new_authority_seed()))
    impostor = running_service.net.nodes[0].node
    impostor.trust.authorities = (*impostor.trust.authorities, ticket.authority_id)
    impostor.membership_changed()
    refused = await running_service.refuses(ticket, key, "no node that answered is an auth of mesh test")
    assert isinstance(refused, errors.NotReachable)
    assert refused.hint == "ask for a new ticket"
    assert running_service.door.asked == []


def replace_authority(ticket: tickets.Ticket, ca: node_keys.Authority) -> tickets.Ticket:
    return tickets.Ticket(1, ticket.id, ticket.seed, node_keys.raw_of(ca.id), ticket.mesh, ticket.bootstrap)


async def test_an_unreachable_mesh_says_who_was_asked_and_what_to_do(running_service: RunningService, key: NodeKey) -> None:
    ticket = replace_authority(running_service.ticket(), node_keys.Authority(node_keys.new_authority_seed()))
    refused = await running_service.refuses(ticket, key, "no node of mesh test was found within ")
    assert isinstance(refused, errors.NotReachable)
    assert " through 127.0.0.1:" in refused.message
    assert "DHT_HOST" in refused.hint


async def test_why_nats_is_not_reached_is_said_while_hyperswarm_runs(key: NodeKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.test")
    ca = node_keys.Authority(node_keys.new_authority_seed())
    ticket = tickets.new(ca.id, MeshName("home"), bootstrap=("127.0.0.1:9",), nats=("wss://ai.test/mesh?pin=abc",), beside=True)
    said: list[str] = []
    with pytest.raises(errors.Unavailable, match="HTTPS_PROXY is not an address such as http://proxy"):
        await enrollment.enroll(ticket, key, EnrollingNode(Role.WORKER), said.append, replace(QUICK, find_seconds=4))
    assert said[0] == "looking for the mesh home at wss://ai.test:443/mesh …"
    assert any("HTTPS_PROXY is not an address" in line for line in said[1:])


async def test_a_slowly_starting_hyperswarm_is_waited_for(running_service: RunningService, key: NodeKey, tmp_path: Path) -> None:
    slow_node = tmp_path / "node"
    slow_node.write_text(f'#!/bin/sh\nsleep 3\nexec {pyhyperswarm.find_node()} "$@"\n')
    slow_node.chmod(0o755)
    asked = itertools.count()
    # Nine seconds pass between two readings of the clock.
    await running_service.enroll(running_service.ticket(), key, replace(QUICK, node=slow_node, clock=lambda: time.time() + 9 * next(asked)))
    assert STARTING in running_service.said


@pytest.mark.parametrize(
    ("bootstrap", "here", "dht"),
    [
        ((), False, "the public DHT"),
        (("127.0.0.1:1", "localhost:2"), True, "127.0.0.1:1, localhost:2"),
        (("127.0.0.1:1", "5.5.5.1:2"), False, "127.0.0.1:1, 5.5.5.1:2"),
        (("[::1]:1",), True, "[::1]:1"),
    ],
)
def test_whether_a_mesh_is_on_this_machine(bootstrap: tuple[str, ...], here: bool, dht: str) -> None:
    door = EnrollmentRoute(MeshName("m"), (), bootstrap, ())
    assert (door.is_on_this_machine, door.places) == (here, dht)
