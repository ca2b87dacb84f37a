"""Links over Hyperswarm, with connections in memory: revocation, renewal, announcements, flow control, and the swarm."""

import asyncio

import pytest
from pyhyperswarm import NodeMissing, Path, PathChanged, PeerFailed, SidecarDied, SidecarLost, SidecarRestarted

from shared import errors
from shared.identity import certificates
from shared.identity.certificates import Subject
from shared.identity.trust import Trust
from shared.protocol import wire
from shared.protocol.wire import Announce, Error, Item, Ping, Pong
from shared.timing.backoff import Backoff
from shared.transports import swarm_transport
from shared.transports.handshake import link_id
from shared.transports.link import TICK_SECONDS
from shared.transports.swarm_link import STUCK_SECONDS, SwarmLink
from shared.transports.swarm_transport import MeetingTopics
from shared.types import Role
from tests.shared.transports.swarm_fakes import FakeSwarm, connect, pair
from tests.shared.transports.swarm_people import NOW, Clock, certified, frames_of, member, new_authority, new_key, settle, stranger_at
from tests.stopwatch import HANG_SECONDS
from tests.testnet import until

TOPIC = bytes(32)


# --- expired certificates and revoked nodes -----------------------------------------------------------------------------


async def test_a_revoked_node_is_disconnected_with_the_reason_and_blocked() -> None:
    mesh, clock = new_authority(), Clock()
    profile = new_key()
    client_trust = certified(Role.CLIENT, mesh, profile)
    process = Trust(new_key(), Role.CLIENT, (mesh.id,))
    process.certificate = client_trust.certificate
    process.delegation = certificates.delegate(profile, process.me.id, NOW)
    async with (
        member(certified(Role.GATEWAY, mesh), clock) as gateway,
        member(certified(Role.WORKER, mesh), clock) as worker,
        member(certified(Role.WORKER, mesh), clock) as honest,
        member(process, clock) as client,
    ):
        for each in (worker, honest, client):
            connect(each.swarm, gateway.swarm)
        await settle()
        assert gateway.link_to(client).peer.certified == profile.id
        gateway.trust.take_list(certificates.issue_list(mesh, 7, 1, (worker.id, profile.id), NOW))
        await settle()
        assert {link.peer.node for link in gateway.transport.links()} == {honest.id}
        assert all(isinstance(why, errors.NodeRevoked) for why in gateway.lost)
        [why] = worker.lost
        assert isinstance(why, errors.LinkLost)
        assert "closed the link: this node was revoked" in why.message
        assert "new ticket" in why.hint
        assert (worker.trust.is_revoked, honest.trust.is_revoked) == (True, False)
        await until(lambda: gateway.swarm.denied == {worker.trust.me.raw, profile.raw})
        connect(client.swarm, gateway.swarm)  # the profile is revoked, but not this process's key
        await settle()
        assert gateway.transport.find(client.id) is None
        assert isinstance(gateway.refusals[-1].why, errors.NodeRevoked)
        assert gateway.refusals[-1].role is Role.CLIENT


async def test_a_node_removed_from_the_revocation_list_is_admitted_again() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway:
        gateway.trust.take_list(certificates.issue_list(mesh, 1, 1, (new_key().id,), NOW))
        await settle()
        assert len(gateway.swarm.denied) == 1
        gateway.trust.take_list(certificates.issue_list(mesh, 2, 1, (), NOW))
        await until(lambda: not gateway.swarm.denied, seconds=2)


async def test_a_new_certificate_extends_an_open_link() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        connect(worker.swarm, gateway.swarm)
        await settle()
        link = gateway.link_to(worker)
        assert isinstance(link, SwarmLink)
        assert link.until == NOW + 24 * 3600
        clock.now += 16 * 3600
        worker.trust.certificate = certificates.issue(mesh, Subject(worker.id, Role.WORKER, "ada", (("gpu", "h100"),)), clock.now)
        worker.transport.rehello()
        await settle()
        assert link.closed is None
        assert link.until == NOW + 40 * 3600
        assert link.peer.labels == (("gpu", "h100"),)
        link.check_certificate(NOW + 40 * 3600 + certificates.LEEWAY_SECONDS)
        assert link.closed is None
        link.check_certificate(NOW + 40 * 3600 + certificates.LEEWAY_SECONDS + 1)
        assert isinstance(link.closed, errors.CertificateExpired)


async def test_a_weaker_hello_on_an_open_link_violates_the_protocol() -> None:
    mesh, clock = new_authority(), Clock()
    for subject, at, says in [
        (Subject, NOW - 3600, "older certificate"),
        (lambda node, role: Subject(node, Role.CLIENT), NOW + 1, "changed its identity"),
        (lambda node, role: Subject(node, role, "eve"), NOW + 1, "changed its identity"),
    ]:
        async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
            connect(worker.swarm, gateway.swarm)
            await settle()
            found = subject(worker.id, Role.WORKER)
            owner = found.owner or "ada"
            worker.trust.role = found.role
            worker.trust.certificate = certificates.issue(mesh, Subject(found.node, found.role, owner), at)
            worker.transport.rehello()
            await settle()
            [why] = gateway.lost
            assert isinstance(why, errors.ProtocolViolation)
            assert says in why.message


async def test_a_hello_of_another_link_ends_an_open_one() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        ours, _ = connect(worker.swarm, gateway.swarm)
        await settle()
        ours.send(wire.encode([worker.trust.hello(gateway.id, 5, "x", NOW)]))
        await settle()
        assert isinstance(gateway.lost[0], errors.NotCertified)


@pytest.mark.parametrize("offset", [-600, 600])
async def test_clock_skew_is_remembered_while_the_certificate_is_still_valid(offset: float) -> None:
    mesh, clock, other = new_authority(), Clock(), Clock()
    other.now += offset
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), other) as worker:
        connect(worker.swarm, gateway.swarm)
        await settle()
        link, back = gateway.link_to(worker), worker.link_to(gateway)
        assert isinstance(link, SwarmLink)
        assert isinstance(back, SwarmLink)
        assert (link.clock_offset_seconds, back.clock_offset_seconds) == (offset, -offset)


async def test_too_much_clock_skew_is_named_in_the_refusal() -> None:
    mesh, clock, other = new_authority(), Clock(), Clock()
    other.now -= 12 * 60
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), other) as worker:
        connect(worker.swarm, gateway.swarm)
        await settle()
        [refusal] = worker.refusals
        assert isinstance(refusal.why, errors.ClockSkew)
        assert (refusal.why.message, refusal.role) == ("its clock is 12 min ahead of ours", Role.GATEWAY)


async def test_a_higher_revocation_list_number_is_reported() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        gateway.trust.take_list(certificates.issue_list(mesh, 3, 1, (), NOW))
        ours, _ = connect(worker.swarm, gateway.swarm)
        await settle()
        assert worker.numbers == [(gateway.id, 3)]
        assert gateway.numbers == []
        ours.peer.send(wire.encode([Pong(99, 2), Pong(99, 4)]))
        await settle()
        assert worker.numbers == [(gateway.id, 3), (gateway.id, 2), (gateway.id, 4)]
        worker.trust.take_list(gateway.trust.list_body)
        ours.peer.send(wire.encode([Pong(99, 3)]))
        ours.send(wire.encode([Ping(5)]))
        await settle()
        assert len(worker.numbers) == 3
        assert frames_of(ours.peer)[-1] == Pong(5, 3)


# --- announcements ------------------------------------------------------------------------------------------------------


async def test_announcements_go_to_nodes_that_may_see_them_and_to_no_call() -> None:
    mesh, clock = new_authority(), Clock()
    async with (
        member(certified(Role.GATEWAY, mesh), clock) as gateway,
        member(certified(Role.WORKER, mesh), clock) as worker,
        member(certified(Role.CLIENT, mesh), clock) as client,
    ):
        connect(worker.swarm, gateway.swarm)
        connect(client.swarm, gateway.swarm)
        await settle()
        received: list[wire.Frame] = []
        gateway.link_to(worker).on_frames = received.extend
        worker.transport.announce(b"I serve")
        client.transport.announce(b"nobody listens")
        gateway.transport.announce(b"I route")
        await settle()
        assert gateway.announcements == [(worker.id, b"I serve")]
        assert (worker.announcements, client.announcements) == ([(gateway.id, b"I route")], [(gateway.id, b"I route")])
        assert received == []


@pytest.mark.parametrize(
    ("role", "body"),
    [
        pytest.param(Role.CLIENT, b"I am here", id="a client's"),
        pytest.param(Role.WORKER, bytes(17_000), id="one that is too long"),
    ],
)
async def test_a_forbidden_announcement_violates_the_protocol(role: Role, body: bytes) -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(role, mesh), clock) as other:
        connect(other.swarm, gateway.swarm)
        await settle()
        other.link_to(gateway).send(Announce(body))
        await settle()
        assert isinstance(gateway.lost[0], errors.ProtocolViolation)
        assert gateway.announcements == []


async def test_an_unreadable_announcement_ends_its_link() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:

        def read(link: object, body: bytes) -> None:
            raise errors.ProtocolViolation("not an announcement")

        gateway.transport.on_announcement = read
        connect(worker.swarm, gateway.swarm)
        await settle()
        worker.transport.announce(b"\xc1")
        await settle()
        assert isinstance(gateway.lost[0], errors.ProtocolViolation)


# --- flow control -------------------------------------------------------------------------------------------------------


async def test_a_peer_that_stops_reading_pauses_the_sender_and_then_gets_everything() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        ours, theirs = connect(worker.swarm, gateway.swarm)
        await settle()
        theirs.reads = False
        link = worker.link_to(gateway)
        count = 0
        while not link.is_full:
            link.send(Item(1, b"%8d" % count + bytes(30_000)))
            count += 1
            await asyncio.sleep(0)
        handed_over = sum(map(len, ours.sent))
        assert handed_over < 1024 * 1024 + wire.MAX_WRITE_BYTES + 4096, "what waits stays in the link, which says when it is full"
        waiting = asyncio.create_task(link.drained())
        await settle()
        assert not waiting.done()
        received: list[wire.Frame] = []
        gateway.link_to(worker).on_frames = received.extend
        theirs.read_again()
        async with asyncio.timeout(HANG_SECONDS):
            await waiting
        await settle()
        assert [int(frame.body[:8]) for frame in received if isinstance(frame, Item)] == list(range(count))


async def test_a_peer_that_sends_but_never_reads_is_disconnected() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        _, theirs = connect(worker.swarm, gateway.swarm)
        await settle()
        theirs.reads = False
        link = worker.link_to(gateway)
        while not link.is_full:
            link.send(Item(1, bytes(60_000)))
            await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        for second in range(int(STUCK_SECONDS) + 2):
            link.receive([Ping(second)], now + second)
            link.tick(now + second)
        assert isinstance(link.closed, errors.LinkLost)
        assert "read nothing" in link.closed.message
        assert link.unsent_bytes < 2 * 1024 * 1024


async def test_frames_longer_than_estimated_are_sent_as_several_writes() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        ours, _ = connect(worker.swarm, gateway.swarm)
        await settle()
        received: list[wire.Frame] = []
        gateway.link_to(worker).on_frames = received.extend
        problem = errors.Problem("internal", "m" * 30_000)
        sent = [Error(number, problem) for number in range(1, 16)]
        for frame in sent:
            worker.link_to(gateway).send(frame)
        await settle()
        assert received == sent
        assert all(len(message) <= wire.MAX_WRITE_BYTES for message in ours.sent)


async def test_invalid_frames_end_the_link_with_a_reason() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        ours, _ = connect(worker.swarm, gateway.swarm)
        await settle()
        ours.send(b"\xc1")
        await settle()
        assert isinstance(gateway.lost[0], errors.ProtocolViolation)
        assert "closed the link: not frames" in worker.lost[0].message


# --- lifetime -----------------------------------------------------------------------------------------------------------


async def test_a_newer_connection_of_a_node_replaces_the_old_one() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        connect(worker.swarm, gateway.swarm)
        await settle()
        old = gateway.link_to(worker)
        connect(worker.swarm, gateway.swarm)
        await settle()
        assert old.closed is not None
        assert gateway.link_to(worker) is not old
        assert gateway.link_to(worker).closed is None


async def test_a_lost_connection_ends_its_link_and_is_told_from_silence() -> None:
    mesh, clock = new_authority(), Clock()
    for reason, is_silence in [
        ("", False),
        ("ECONNRESET", False),
        ("sidecar lost", False),
        ("Stream timed out", True),
        ("ETIMEDOUT", True),
    ]:
        async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
            ours, _ = connect(worker.swarm, gateway.swarm, (TOPIC,))
            await settle()
            link = worker.link_to(gateway)
            ours.end(reason)
            assert isinstance(link.closed, errors.LinkLost)
            assert link.fell_silent is is_silence
            assert worker.transport.find(gateway.id) is None


async def test_a_link_detects_silence_itself() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        connect(worker.swarm, gateway.swarm)
        await settle()
        link, now = gateway.link_to(worker), asyncio.get_running_loop().time()
        link.tick(now + 2.9)
        assert link.closed is None
        link.tick(now + 3.1)
        assert link.fell_silent


async def test_a_link_pings_once_a_second_however_often_it_is_checked() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        connect(worker.swarm, gateway.swarm)
        await settle()
        link, now = gateway.link_to(worker), asyncio.get_running_loop().time()
        assert isinstance(link, SwarmLink)
        for tick in range(1, 12):
            link.tick(now + tick * TICK_SECONDS)
        await settle()
        assert sum(isinstance(frame, Ping) for frame in frames_of(link.connection)) == 3  # type: ignore[arg-type]  # a fake


async def test_closing_notifies_the_peers_and_accepts_no_more() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        connect(worker.swarm, gateway.swarm)
        await settle()
        await gateway.transport.close(errors.LinkLost("this node is stopping"))
        await settle()
        assert "closed the link: this node is stopping" in worker.lost[0].message
        late = stranger_at(gateway)
        await settle()
        assert late.closed is not None
        await gateway.transport.close()
        assert gateway.trust.on_revoked == []


async def test_the_end_of_run_sends_a_goodbye() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.WORKER, mesh), clock) as worker:
        async with member(certified(Role.GATEWAY, mesh), clock) as gateway:
            connect(worker.swarm, gateway.swarm)
            await settle()
        await settle()
        assert "closed the link: this node is stopping" in worker.lost[0].message
        assert gateway.attached == [True, False]


# --- the swarm ----------------------------------------------------------------------------------------------------------


async def test_topics_are_joined_as_requested() -> None:
    a, b = b"a" * 32, b"b" * 32
    swarm = FakeSwarm(new_key())
    async with member(certified(Role.GATEWAY, new_authority()), Clock(), swarm) as gateway:
        gateway.transport.meet([MeetingTopics(a, True, True), MeetingTopics(b, False, True), MeetingTopics(TOPIC, False, False)])
        await settle()
        assert swarm.joined == {a: (True, True), b: (False, True)}
        gateway.transport.meet([MeetingTopics(b, True, True)])
        await settle()
        assert swarm.joined == {b: (True, True)}


async def test_a_command_that_the_sidecar_rejected_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_transport, "AGAIN_SECONDS", 0.01)
    swarm = FakeSwarm(new_key())
    async with member(certified(Role.GATEWAY, new_authority()), Clock(), swarm) as gateway:
        await settle()
        swarm.trouble = SidecarLost("died")
        gateway.transport.meet([MeetingTopics(TOPIC, True, True)])
        await until(lambda: TOPIC in swarm.joined)


async def test_a_swarm_that_fails_to_start_is_retried_with_the_error_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_transport, "RESTART_BACKOFF", Backoff(0.01, 30))
    swarm = FakeSwarm(new_key(), broken=NodeMissing("Node.js is not there", hint="run `make setup`"))
    async with member(certified(Role.GATEWAY, new_authority()), Clock(), swarm) as gateway:
        await settle()
        assert not gateway.transport.connected
        assert gateway.transport.trouble == "Hyperswarm is not running: Node.js is not there; run `make setup`"
        swarm.broken = None
        await until(lambda: gateway.transport.connected)
        assert gateway.transport.trouble == ""
        swarm.on_event(SidecarDied("killed"))
        assert not gateway.transport.connected
        swarm.on_event(SidecarRestarted(1))
        swarm.bring(None)  # the swarm ends without a call to close it
        await settle()
        await until(lambda: gateway.transport.connected)
        assert gateway.attached == [True, False, True, False, True]


async def test_a_node_that_did_not_answer_is_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm_transport, "TICK_SECONDS", 0.01)
    swarm = FakeSwarm(new_key())
    async with member(certified(Role.WORKER, new_authority()), Clock(), swarm) as worker:
        worker.transport.meet([MeetingTopics(TOPIC, False, True)])
        await settle()
        ours, _ = pair(swarm.key.raw, new_key().raw, (TOPIC, b"x" * 32))
        swarm.bring(ours)
        await settle()
        ours.end("Stream timed out")
        await until(lambda: swarm.refreshed == [TOPIC])


async def test_paths_and_failed_dials_are_described_plainly() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh), clock) as worker:
        ours, _ = connect(worker.swarm, gateway.swarm)
        await settle()
        ours.path = Path.RELAYED
        worker.swarm.on_event(PathChanged(ours))  # type: ignore[arg-type]  # a fake
        assert worker.link_to(gateway).path == "relayed"
        stranger = new_key()
        code = "HOLEPUNCH_DOUBLE_RANDOMIZED_NATS"
        worker.swarm.on_event(PeerFailed(stranger.raw, (), code, "Both remote and local NATs are randomized"))
        worker.swarm.relays = (bytes(32),)
        worker.swarm.on_event(PeerFailed(stranger.raw, (), code, ""))
        worker.swarm.on_event(PeerFailed(stranger.raw, (), "BRAND_NEW", "something new"))
        worker.swarm.on_event(PeerFailed(gateway.trust.me.raw, (), code, ""))  # ignored: there is a link
        assert worker.unreachable == [
            (stranger.id, "no path: symmetric NAT on both sides and no relay configured"),
            (stranger.id, "no path: symmetric NAT on both sides and the relay did not help"),
            (stranger.id, "no path: something new"),
        ]


async def test_a_refusal_contains_no_terminal_control_characters() -> None:
    mesh, clock = new_authority(), Clock()
    late = certified(Role.WORKER, mesh, now=NOW - 2 * 86_400)
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway:
        theirs = stranger_at(gateway, key=late.me)
        hello = late.hello(gateway.id, link_id(theirs), "\x1b[2J\nevil" * 50, NOW)  # type: ignore[arg-type]  # a fake
        theirs.send(wire.encode([hello]))
        await settle()
        [refusal] = gateway.refusals
        assert refusal.software.startswith("[2Jevil[2Jevil")
        assert len(refusal.software) <= 100
