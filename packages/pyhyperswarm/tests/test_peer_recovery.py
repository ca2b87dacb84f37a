"""When lost peers are dialed and topics looked up: with a fake clock and no network."""

import pytest
from pyhyperswarm.peer_recovery import Dial, Lookup, Recovery

TOPIC, OTHER = b"t" * 32, b"o" * 32
PEER = b"p" * 32


def connected(now: float = 0.0) -> Recovery:
    recovery = Recovery()
    recovery.joined(TOPIC, now)
    recovery.opened(PEER, (TOPIC,))
    return recovery


def run(recovery: Recovery, start: float, end: float, step: float = 0.25) -> list[tuple[float, Dial | Lookup]]:
    """Return the time and kind of each action between two moments."""
    done = []
    for tick in range(int((end - start) / step)):
        now = start + tick * step
        done += [(now, each) for each in recovery.due(now)]
    return done


def dials(recovery: Recovery, start: float, end: float) -> list[float]:
    return [now for now, step in run(recovery, start, end) if isinstance(step, Dial)]


def lookups(recovery: Recovery, start: float, end: float) -> list[float]:
    return [now for now, step in run(recovery, start, end) if isinstance(step, Lookup)]


def test_a_lost_peer_is_dialed_immediately_and_then_every_three_seconds() -> None:
    recovery = connected()
    recovery.closed(PEER, 100.0, wanted=True)
    assert dials(recovery, 100.0, 112.0) == [100.25, 100.75, 101.75, 103.75, 106.75, 109.75]


def test_a_peer_lost_for_minutes_is_dialed_less_often() -> None:
    recovery = connected()
    recovery.closed(PEER, 0.0, wanted=True)
    assert 55 > len(dials(recovery, 0.0, 120.0)) > 35
    assert 4 <= len(dials(recovery, 300.0, 350.0)) <= 6
    assert 4 <= len(dials(recovery, 3600.0, 3900.0)) <= 6


def test_a_peer_lost_for_a_day_is_forgotten() -> None:
    recovery = connected()
    recovery.closed(PEER, 0.0, wanted=True)
    assert recovery.lost == 1
    recovery.due(24 * 3600.0)
    assert recovery.lost == 0


@pytest.mark.parametrize(
    ("topics", "wanted"),
    [
        pytest.param((TOPIC,), False, id="we ended it"),
        pytest.param((), True, id="a client that announces nothing"),
        pytest.param((OTHER,), True, id="of a topic that we have left"),
    ],
)
def test_a_peer_that_cannot_or_must_not_be_dialed_is_forgotten(topics: tuple[bytes, ...], wanted: bool) -> None:
    recovery = Recovery()
    recovery.joined(TOPIC, 0.0)
    recovery.opened(PEER, topics)
    recovery.closed(PEER, 1.0, wanted=wanted)
    assert dials(recovery, 1.0, 60.0) == []


def test_a_reconnected_peer_is_not_dialed() -> None:
    recovery = connected()
    recovery.closed(PEER, 0.0, wanted=True)
    recovery.opened(PEER, ())
    assert dials(recovery, 0.0, 60.0) == []
    assert recovery.lost == 0


def test_an_isolated_node_searches_often_and_a_connected_one_rarely() -> None:
    recovery = Recovery()
    recovery.joined(TOPIC, 0.0)
    alone = lookups(recovery, 0.0, 60.0)
    assert alone[:4] == [1.0, 3.0, 7.0, 15.0]
    assert len(alone) <= 9
    recovery.opened(PEER, (TOPIC,))
    assert len(lookups(recovery, 60.0, 660.0)) <= 6


def test_a_node_isolated_for_hours_searches_less_often() -> None:
    recovery = Recovery()
    recovery.joined(TOPIC, 0.0)
    run(recovery, 0.0, 7200.0, step=1.0)
    assert 18 <= len(lookups(recovery, 7200.0, 7800.0)) <= 21


def test_without_a_network_nobody_is_dialed_and_everyone_when_it_returns() -> None:
    recovery = connected()
    recovery.closed(PEER, 0.0, wanted=True)
    assert not recovery.probed(False)
    assert run(recovery, 0.0, 70.0) == []
    assert recovery.probed(True)
    recovery.retry_all(70.0)
    assert recovery.due(70.0) == [Dial(PEER, TOPIC), Lookup(TOPIC)]


def test_the_network_is_only_checked_while_a_peer_is_missing() -> None:
    recovery = connected()
    assert not recovery.has_missing_peers
    recovery.closed(PEER, 0.0, wanted=True)
    assert recovery.has_missing_peers
    recovery.opened(PEER, (TOPIC,))
    assert not recovery.has_missing_peers
    recovery.probed(False)
    assert recovery.has_missing_peers


def test_many_losses_are_redialed_a_few_at_a_time() -> None:
    recovery = Recovery()
    recovery.joined(TOPIC, 1000.0)
    for number in range(500):
        recovery.opened(number.to_bytes(32, "big"), (TOPIC,))
    for number in range(500):
        recovery.closed(number.to_bytes(32, "big"), 0.0, wanted=True)
    assert recovery.lost == 256
    assert len(recovery.due(0.5)) <= 8


def test_a_peer_that_never_answers_does_not_block_dialing_others() -> None:
    recovery = Recovery()
    recovery.joined(TOPIC, 1000.0)
    keys = [number.to_bytes(32, "big") for number in range(100)]
    for key in keys:
        recovery.opened(key, (TOPIC,))
        recovery.closed(key, 0.0, wanted=True)
    dialled = {step.key for _, step in run(recovery, 0.0, 20.0) if isinstance(step, Dial)}
    assert dialled == set(keys)


def test_leaving_a_topic_forgets_its_lost_peers() -> None:
    recovery = connected()
    recovery.closed(PEER, 0.0, wanted=True)
    recovery.left(TOPIC)
    assert run(recovery, 0.0, 60.0) == []
