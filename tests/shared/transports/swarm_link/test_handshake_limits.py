"""Who may show a HELLO at all: few strangers, everybody who is known, nobody who was just refused."""

from shared.transports.swarm_link import handshake_limits
from shared.transports.swarm_link.handshake_limits import (
    MAX_KNOWN,
    MAX_PENDING,
    MAX_REFUSED,
    REFUSED_SECONDS,
    HandshakeAttempt,
    HandshakeLimits,
)


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
    assert MAX_REFUSED == handshake_limits.MAX_KNOWN
