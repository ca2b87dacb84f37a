"""Admission over Hyperswarm, with connections in memory: valid and invalid HELLOs, newcomers, strangers."""

import contextlib
import time

import pytest

from shared import errors
from shared.identity import certificates
from shared.identity.certificates import Subject
from shared.identity.trust import Trust
from shared.protocol import wire
from shared.protocol.wire import Call, Goaway, Hello, Item, Ping
from shared.transports import handshake, swarm_transport
from shared.transports.handshake import MAX_KNOWN, MAX_PARKED, MAX_PENDING, MAX_REFUSED, REFUSED_SECONDS, HandshakeAttempt, HandshakeLimits
from shared.transports.link import HELLO_SECONDS
from shared.transports.swarm_link import NEWCOMER_BYTES, SwarmLink
from shared.types import Role
from tests.shared.transports.swarm_fakes import connect
from tests.shared.transports.swarm_people import (
    NOW,
    Clock,
    certified,
    frames_of,
    hello_for,
    member,
    new_authority,
    new_key,
    settle,
    stranger_at,
)
from tests.testnet import until

# --- opening ------------------------------------------------------------------------------------------------------------


async def test_two_certified_nodes_link_after_showing_their_certificates() -> None:
    mesh, clock = new_authority(), Clock()
    worker_key = new_key()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.WORKER, mesh, worker_key), clock) as worker:
        ours, theirs = connect(worker.swarm, gateway.swarm)
        await settle()
        up, down = worker.link_to(gateway), gateway.link_to(worker)
        assert (up.dialled, down.dialled) == (True, False)
        assert down.peer.role is Role.WORKER
        assert (down.peer.certified, down.peer.owner, down.peer.labels) == (worker_key.id, "ada", (("gpu", "a100"),))
        assert up.peer.channel == down.peer.channel == ours.channel == theirs.channel
        assert (up.transport, up.path) == ("swarm", "direct")
        assert ours.window_is_open
        assert theirs.window_is_open
        received: list[wire.Frame] = []
        down.on_frames = received.extend
        up.send(Goaway("a"))
        up.send(Item(1, b"x" * 60_000))
        await settle()
        assert received == [Goaway("a"), Item(1, b"x" * 60_000)]
        assert len(ours.sent) == 2, "the HELLO, and one write for the frames of one turn"


async def test_each_side_numbers_its_own_calls() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway, member(certified(Role.AUTH, mesh), clock) as auth:
        connect(gateway.swarm, auth.swarm)
        await settle()
        assert gateway.link_to(auth).dialled is not auth.link_to(gateway).dialled


async def test_a_connection_without_a_hello_is_dropped_in_time() -> None:
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway:
        theirs = stranger_at(gateway)
        started = time.monotonic()
        await until(lambda: theirs.closed is not None, seconds=HELLO_SECONDS + 1)
        assert time.monotonic() - started >= HELLO_SECONDS - 0.1
        assert gateway.transport.strangers_refused == 1
        # A network failure may look the same, so the peer may come back at once.
        again = stranger_at(gateway)
        await settle()
        assert again.closed is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xc1", id="not msgpack"),
        pytest.param(wire.encode([]), id="no frames"),
        pytest.param(wire.encode([Ping(1)]), id="another frame"),
        pytest.param(bytes(wire.MAX_BYTES_BEFORE_HELLO + 1), id="more than 4 KiB"),
        pytest.param(wire.encode([Call(1, "auth.loginUser", 1000, b"")]), id="a call"),
    ],
)
async def test_an_invalid_hello_ends_the_connection(body: bytes) -> None:
    async with member(certified(Role.GATEWAY, new_authority()), Clock()) as gateway:
        theirs = stranger_at(gateway)
        theirs.send(body)
        await settle()
        assert theirs.closed is not None
        assert not gateway.links
        [refusal] = gateway.refusals
        assert isinstance(refusal.why, errors.ProtocolViolation)
        assert refusal.role is None


async def test_more_than_4_kib_with_a_valid_hello_are_not_read() -> None:
    mesh = new_authority()
    trust = certified(Role.WORKER, mesh)
    async with member(certified(Role.GATEWAY, mesh), Clock()) as gateway:
        theirs = stranger_at(gateway, key=trust.me)
        theirs.send(wire.encode([hello_for(trust, theirs), Goaway("x" * wire.MAX_BYTES_BEFORE_HELLO)]))
        await settle()
        assert not gateway.links
        [refusal] = gateway.refusals
        assert "over the limit of 4096" in refusal.why.message


async def test_data_after_the_hello_is_read_in_order() -> None:
    mesh, clock = new_authority(), Clock()
    trust = certified(Role.WORKER, mesh)
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway:
        received: list[wire.Frame] = []

        def take(link: SwarmLink) -> None:
            link.on_frames = received.extend

        gateway.transport.on_link = take  # type: ignore[assignment]  # each link of it is one
        theirs = stranger_at(gateway, key=trust.me)
        theirs.send(wire.encode([hello_for(trust, theirs), Goaway("1")]))
        theirs.send(wire.encode([Goaway("2")]))
        theirs.send(wire.encode([Goaway("3")]))
        await settle()
        assert received == [Goaway("1"), Goaway("2"), Goaway("3")]


async def test_a_hello_of_another_connection_is_refused() -> None:
    """A recorded HELLO cannot be used again, not even with the same node."""
    mesh, clock = new_authority(), Clock()
    trust = certified(Role.WORKER, mesh)
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway:
        first, second = stranger_at(gateway, key=trust.me), stranger_at(gateway, key=trust.me)
        second.send(wire.encode([hello_for(trust, first)]))
        await settle()
        [refusal] = gateway.refusals
        assert "not signed for this connection" in refusal.why.message
        assert not gateway.links


async def test_a_certificate_under_another_key_is_refused() -> None:
    mesh, clock = new_authority(), Clock()
    worker, thief = certified(Role.WORKER, mesh), Trust(new_key(), Role.WORKER, (mesh.id,))
    thief.certificate = worker.certificate
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway:
        theirs = stranger_at(gateway, key=thief.me)
        theirs.send(wire.encode([hello_for(thief, theirs)]))
        await settle()
        [refusal] = gateway.refusals
        assert isinstance(refusal.why, errors.NotCertified)
        assert refusal.role is None, "the worker must not be shown as refused for what a thief did"
        assert theirs.peer.aborted, "nothing is said to him"


async def test_a_node_of_another_mesh_gets_no_reply() -> None:
    clock = Clock()
    async with (
        member(certified(Role.GATEWAY, new_authority()), clock) as gateway,
        member(certified(Role.WORKER, new_authority()), clock) as other,
    ):
        ours, _ = connect(gateway.swarm, other.swarm)
        await settle()
        assert not gateway.links + other.links
        assert [type(frame) for frame in frames_of(ours)] == [Hello]


# --- newcomers ----------------------------------------------------------------------------------------------------------


async def test_a_newcomer_may_only_call_auth() -> None:
    mesh, clock = new_authority(), Clock()
    for role in (Role.GATEWAY, Role.WORKER, Role.METRICS, Role.CLIENT):
        async with (
            member(Trust(new_key(), Role.NEWCOMER, (mesh.id,)), clock) as newcomer,
            member(certified(role, mesh), clock) as other,
        ):
            ours, _ = connect(newcomer.swarm, other.swarm)
            await settle()
            assert ours.sent == [], role
            assert ours.closed is not None
            assert not newcomer.links + other.links
    async with member(Trust(new_key(), Role.NEWCOMER, (mesh.id,)), clock) as newcomer, member(certified(Role.AUTH, mesh), clock) as auth:
        connect(newcomer.swarm, auth.swarm)
        await settle()
        assert newcomer.link_to(auth).peer.role is Role.AUTH
        assert auth.link_to(newcomer).peer.role is Role.NEWCOMER


async def test_a_newcomer_sends_nothing_to_an_auth_of_another_ca() -> None:
    clock = Clock()
    async with (
        member(Trust(new_key(), Role.NEWCOMER, (new_authority().id,)), clock) as newcomer,
        member(certified(Role.AUTH, new_authority()), clock) as rogue,
    ):
        ours, _ = connect(newcomer.swarm, rogue.swarm)
        await settle()
        assert ours.sent == []
        assert ours.closed is not None
        assert not newcomer.links


async def test_a_newcomer_is_disconnected_when_it_exceeds_its_time_or_size() -> None:
    mesh, clock = new_authority(), Clock()
    async with (
        member(certified(Role.AUTH, mesh), clock) as auth,
        member(Trust(new_key(), Role.NEWCOMER, (mesh.id,)), clock) as quiet,
        member(Trust(new_key(), Role.NEWCOMER, (mesh.id,)), clock) as loud,
    ):
        connect(quiet.swarm, auth.swarm)
        connect(loud.swarm, auth.swarm)
        await settle()
        for _ in range(NEWCOMER_BYTES // 50_000 + 1):
            loud.link_to(auth).send(Item(1, bytes(50_000)))
            await settle()
        assert auth.transport.find(loud.id) is None
        link = auth.link_to(quiet)
        assert isinstance(link, SwarmLink)
        link.check_certificate(NOW + 29)
        assert link.closed is None
        link.check_certificate(NOW + 31)
        assert isinstance(link.closed, errors.CertificateExpired)


async def test_the_number_of_newcomers_is_limited() -> None:
    mesh, clock = new_authority(), Clock()
    async with contextlib.AsyncExitStack() as stack:
        auth = await stack.enter_async_context(member(certified(Role.AUTH, mesh), clock))
        for _ in range(swarm_transport.MAX_NEWCOMERS + 5):
            newcomer = Trust(new_key(), Role.NEWCOMER, (mesh.id,))
            theirs = stranger_at(auth, key=newcomer.me)
            theirs.send(wire.encode([hello_for(newcomer, theirs)]))
            await settle()
        assert len(auth.transport.links()) == swarm_transport.MAX_NEWCOMERS
        worker = await stack.enter_async_context(member(certified(Role.WORKER, mesh), clock))
        connect(worker.swarm, auth.swarm)
        await settle()
        assert auth.link_to(worker), "who is certified is not one of them"


async def test_a_node_with_an_expired_certificate_reaches_auth_as_a_newcomer_and_others_say_why_not() -> None:
    mesh, clock = new_authority(), Clock()
    sleeper = certified(Role.WORKER, mesh, now=NOW - 3 * 86_400)
    async with (
        member(sleeper, clock) as worker,
        member(certified(Role.AUTH, mesh), clock) as auth,
        member(certified(Role.GATEWAY, mesh), clock) as gateway,
    ):
        connect(worker.swarm, auth.swarm)
        connect(worker.swarm, gateway.swarm)
        await settle()
        assert auth.link_to(worker).peer.role is Role.NEWCOMER
        assert worker.transport.find(gateway.id) is None
        [refusal] = gateway.refusals
        assert (refusal.node, refusal.role, refusal.software) == (worker.id, Role.WORKER, "aimesh/test")
        assert refusal.why.message == "the certificate expired 2 d ago"
        # The worker renews its certificate, shows it, and is admitted with its role.
        sleeper.certificate = certificates.issue(mesh, Subject(sleeper.me.id, Role.WORKER), NOW)
        worker.transport.rehello()
        await settle()
        assert worker.transport.find(auth.id) is None
        connect(worker.swarm, auth.swarm)
        await settle()
        assert auth.link_to(worker).peer.role is Role.WORKER


# --- strangers (T13) ----------------------------------------------------------------------------------------------------


async def test_five_hundred_unauthenticated_peers_reach_nothing_and_delay_no_known_node() -> None:
    mesh, clock = new_authority(), Clock()
    async with contextlib.AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(member(certified(Role.GATEWAY, mesh), clock))
        workers = [await stack.enter_async_context(member(certified(Role.WORKER, mesh), clock)) for _ in range(5)]
        for worker in workers:
            connect(worker.swarm, gateway.swarm)
        await settle()
        known = gateway.transport.links()
        assert len(known) == 5
        for link in known:
            link.close(errors.LinkLost("for the test"))
        await settle()
        strangers = [stranger_at(gateway) for _ in range(500)]
        await settle()
        assert sum(1 for each in strangers if each.closed is None) == MAX_PENDING
        links = len(gateway.links)
        for worker in workers:
            connect(worker.swarm, gateway.swarm)
        await settle()
        assert len(gateway.transport.links()) == 5, "they were known before"
        assert len(gateway.links) == links + 5
        fresh = certified(Role.WORKER, mesh)
        theirs = stranger_at(gateway, key=fresh.me)
        await settle()
        assert theirs.closed is not None, "an unknown peer waits its turn"
        for each in strangers:
            if each.closed is None:
                rogue = Trust(new_key(), Role.WORKER, (mesh.id,))
                each.send(wire.encode([hello_for(rogue, each)]))
        await settle()
        assert all(each.closed is not None for each in strangers)
        assert len(gateway.links) == links + 5
        assert gateway.transport.strangers_refused == 501
        theirs = stranger_at(gateway, key=fresh.me)
        theirs.send(wire.encode([hello_for(fresh, theirs)]))
        await settle()
        assert gateway.transport.find(fresh.me.id), "and has its turn when they are gone"


async def test_a_key_that_was_just_refused_is_not_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, clock = new_authority(), Clock()
    rogue = certified(Role.WORKER, new_authority())
    async with member(certified(Role.GATEWAY, mesh), clock) as gateway:
        theirs = stranger_at(gateway, key=rogue.me)
        theirs.send(wire.encode([hello_for(rogue, theirs)]))
        await settle()
        assert len(gateway.refusals) == 1
        looked: list[Hello] = []
        monkeypatch.setattr(gateway.trust, "admit", lambda hello, *rest: looked.append(hello))
        again = stranger_at(gateway, key=rogue.me)
        await settle()
        assert again.closed is not None
        assert frames_of(again.peer) == []
        assert (looked, len(gateway.refusals)) == ([], 1)
        assert gateway.transport.strangers_refused == 2
        assert REFUSED_SECONDS == 5


async def test_nodes_that_may_not_call_each_other_keep_an_unused_connection() -> None:
    """A closed connection would be dialed again and again: two gateways meet wherever gateways announce themselves."""
    mesh, clock = new_authority(), Clock()
    async with member(certified(Role.GATEWAY, mesh), clock) as one, member(certified(Role.GATEWAY, mesh), clock) as other:
        ours, theirs = connect(one.swarm, other.swarm)
        await settle()
        assert not one.links + other.links
        assert not one.refusals + other.refusals
        assert ours.closed is None
        assert not ours.window_is_open
        theirs.send(wire.encode([Call(1, "x.y", 1, b"")]))
        await settle()
        assert ours.closed is None
        assert MAX_PARKED == 64


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def let_in(found: HandshakeLimits, number: int, now: float = 0) -> HandshakeAttempt:
    visit = found.arrive(key(number), now)
    assert visit is not None
    return visit


def test_unauthenticated_peers_are_limited_and_known_ones_are_not_counted() -> None:
    found = HandshakeLimits()
    found.welcome(let_in(found, 0))
    visits = [let_in(found, number) for number in range(1, MAX_PENDING + 1)]
    assert found.arrive(key(1000), 0) is None
    assert not let_in(found, 0).is_unknown
    for end in (found.leave, found.welcome):
        end(visits.pop())
        let_in(found, 1001)
        assert found.arrive(key(1002), 0) is None
    found.refuse(visits.pop(), 0)
    let_in(found, 1003)


def test_an_attempt_that_ends_twice_is_counted_once() -> None:
    found = HandshakeLimits()
    visit = let_in(found, 1)
    found.leave(visit)
    found.leave(visit)
    for number in range(MAX_PENDING):
        let_in(found, 10 + number)
    assert found.arrive(key(99), 0) is None


def test_a_refused_key_must_wait_whoever_it_is() -> None:
    found = HandshakeLimits()
    for number in (1, 2):
        if number == 1:
            found.welcome(let_in(found, number))
        found.refuse(let_in(found, number), 100)
        assert found.arrive(key(number), 100 + REFUSED_SECONDS - 0.1) is None
        assert found.arrive(key(number), 100 + REFUSED_SECONDS) is not None


def test_memory_is_bounded_and_the_oldest_is_dropped() -> None:
    found = HandshakeLimits()
    for number in range(MAX_KNOWN + 1):
        found.welcome(let_in(found, number))
        found.refuse(let_in(found, 10**6 + number), 0)
    assert let_in(found, 0).is_unknown
    assert not let_in(found, 1).is_unknown
    assert found.arrive(key(10**6), 1) is not None
    assert found.arrive(key(10**6 + 1), 1) is None
    assert MAX_REFUSED == handshake.MAX_KNOWN
