"""Links over real swarms on a private DHT: they open, carry frames, break and recover."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from pyhyperswarm import Banned, Event, PeerAddress, Swarm
from pyhyperswarm.dht import dht

from shared.identity import certificates
from shared.identity.trust import Trust
from shared.protocol import topics, wire
from shared.protocol.wire import Item
from shared.transports.swarm_transport import MeetingTopics
from shared.types import Role
from tests.shared.transports.swarm_people import Clock, Member, certified, member, new_authority, new_key
from tests.testnet import until

SECRET = b"secret of an epoch" * 2


def real_swarm(trust: Trust, bootstrap: Sequence[PeerAddress]) -> Swarm:
    return Swarm(seed=trust.me.raw_seed, bootstrap=bootstrap, host="127.0.0.1")


def meetings(role: Role) -> list[MeetingTopics]:
    return [
        MeetingTopics(topics.meeting_topic(SECRET, place), role in place.announced_by, role in place.looked_up_by)
        for place in topics.MEETING_PLACES
    ]


@asynccontextmanager
async def running(trust: Trust, bootstrap: Sequence[PeerAddress]) -> AsyncIterator[Member]:
    swarm = real_swarm(trust, bootstrap)
    async with member(trust, Clock(), swarm) as found:  # type: ignore[arg-type]  # a real one
        found.transport.meet(meetings(trust.role))
        yield found


async def linked(one: Member, other: Member) -> None:
    def both() -> bool:
        """Return whether both have the same link: after a crash, the survivor keeps the lost one for a while."""
        link, back = one.transport.find(other.id), other.transport.find(one.id)
        return link is not None and back is not None and link.peer.channel == back.peer.channel

    with contextlib.suppress(AssertionError):
        await until(both, seconds=15)
    assert both(), (one.refusals, other.refusals, one.unreachable, other.unreachable, one.transport.trouble, other.transport.trouble)


async def test_a_worker_finds_its_gateway_streams_and_returns_after_its_sidecar_died() -> None:
    mesh = new_authority()
    async with dht() as bootstrap, running(certified(Role.GATEWAY, mesh), bootstrap) as gateway:
        async with running(certified(Role.WORKER, mesh), bootstrap) as worker:
            await linked(worker, gateway)
            link, back = worker.link_to(gateway), gateway.link_to(worker)
            assert link.dialled is not back.dialled
            assert link.peer.channel == back.peer.channel
            assert link.path == "direct"
            received = 0

            def count(frames: list[wire.Frame]) -> None:
                nonlocal received
                received += sum(len(frame.body) for frame in frames if isinstance(frame, Item))

            back.on_frames = count
            for _ in range(200):
                link.send(Item(1, bytes(60_000)))
                if link.is_full:
                    await link.drained()
            await until(lambda: received == 200 * 60_000)
            worker.transport.announce(b"I serve")
            await until(lambda: gateway.announcements == [(worker.id, b"I serve")])

            swarm = worker.swarm
            assert isinstance(swarm, Swarm)
            os.kill((await swarm.stats()).pid, signal.SIGKILL)
            await until(lambda: worker.attached == [True, False])
            assert worker.lost
            await linked(worker, gateway)
            assert worker.transport.connected
        await until(lambda: gateway.transport.find(worker.id) is None)
        assert [lost for lost in gateway.lost if "this node is stopping" in lost.message], gateway.lost


async def test_a_newcomer_meets_auth_at_the_enrollment_topic_and_a_revoked_node_is_gone_immediately() -> None:
    mesh = new_authority()
    enrolment = topics.enrollment_topic(mesh.id.encode())
    async with (
        dht() as bootstrap,
        running(certified(Role.AUTH, mesh), bootstrap) as auth,
        running(certified(Role.WORKER, mesh), bootstrap) as worker,
    ):
        auth.transport.meet([*meetings(Role.AUTH), MeetingTopics(enrolment, announce=True, look=False)])
        await linked(auth, worker)
        newcomer = Trust(new_key(), Role.NEWCOMER, (mesh.id,))
        async with member(newcomer, Clock(), real_swarm(newcomer, bootstrap)) as found:  # type: ignore[arg-type]  # a real one
            found.transport.meet([MeetingTopics(enrolment, announce=False, look=True)])
            await linked(found, auth)
            assert auth.link_to(found).peer.role is Role.NEWCOMER
        shut_out = listen(auth)
        auth.trust.take_list(certificates.issue_list(mesh, 1, 1, (worker.id,), Clock().now))
        await until(lambda: worker.transport.find(auth.id) is None)
        await until(lambda: Banned(worker.trust.me.raw) in shut_out)
        # The worker may have reconnected before the firewall was updated, and was refused again.
        assert ["revoked" in lost.message for lost in worker.lost] == [True] * len(worker.links)


def listen(to: Member) -> list[Event]:
    """Record the events of the member's swarm from now on."""
    heard: list[Event] = []
    transport_hears = to.swarm.on_event

    def hear(event: Event) -> None:
        heard.append(event)
        transport_hears(event)

    to.swarm.on_event = hear
    return heard


async def test_gateways_that_meet_do_not_link_or_redial_each_other_forever() -> None:
    mesh = new_authority()
    async with (
        dht() as bootstrap,
        running(certified(Role.GATEWAY, mesh), bootstrap) as one,
        running(certified(Role.GATEWAY, mesh), bootstrap) as other,
    ):
        await until(lambda: one.transport._handshake._parked and other.transport._handshake._parked, seconds=15)
        [parked] = one.transport._handshake._parked
        assert parked.closed is None
        assert not one.links + other.links
        assert not one.refusals + other.refusals
