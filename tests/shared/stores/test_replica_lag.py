"""When a replica may answer: a table of positions and times."""

import pytest

from shared.stores.replica_lag import MAX_SAMPLES, ReplicaLag, ReplicaState, ServerPosition

SYSTEM = 7


def standby(position: int, system: int = SYSTEM) -> ServerPosition:
    return ServerPosition(is_standby=True, system=system, position=position)


def primary(position: int, system: int = SYSTEM) -> ServerPosition:
    return ServerPosition(is_standby=False, system=system, position=position)


def lag_after(seconds: int, per_second: int = 100) -> ReplicaLag:
    """Return the lag after the primary has written this much each second, up to ``seconds``."""
    lag = ReplicaLag(10)
    for at in range(seconds + 1):
        lag.note_primary(primary(per_second * at), at)
    return lag


@pytest.mark.parametrize(
    ("found", "now", "state", "seconds"),
    [
        pytest.param(standby(6000), 60, ReplicaState.USED, 0, id="has all"),
        pytest.param(standby(9000), 60, ReplicaState.USED, 0, id="has what was written since"),
        pytest.param(standby(5000), 60, ReplicaState.USED, 9, id="is behind by what is allowed"),
        pytest.param(standby(4999), 60, ReplicaState.BEHIND, 10, id="is behind by more"),
        pytest.param(standby(3000), 60, ReplicaState.BEHIND, 29, id="is far behind"),
        pytest.param(standby(6000), 70, ReplicaState.USED, 10, id="the primary was heard just now"),
        pytest.param(standby(6000), 71, ReplicaState.UNKNOWN, 0, id="the primary is away"),
        pytest.param(primary(6000), 60, ReplicaState.PROMOTED, 0, id="was promoted"),
        pytest.param(standby(6000, system=8), 60, ReplicaState.FOREIGN, 0, id="copies another database"),
    ],
)
def test_who_answers(found: ServerPosition, now: float, state: ReplicaState, seconds: float) -> None:
    lag = lag_after(60)
    assert lag.judge(found, now) is state
    assert lag.seconds(now) == seconds


def test_a_primary_that_writes_nothing_does_not_make_the_replica_late() -> None:
    lag = lag_after(60, per_second=0)
    assert lag.judge(standby(0), 60) is ReplicaState.USED
    assert lag.seconds(60) == 0


def test_the_lag_grows_while_the_replica_is_away() -> None:
    lag = lag_after(60)
    lag.judge(standby(6000), 60)
    assert lag.seconds(75) == 15


def test_positions_of_a_primary_that_lost_its_end_are_forgotten() -> None:
    lag = lag_after(60)
    lag.note_primary(primary(5500), 61)
    assert lag.judge(standby(5500), 61) is ReplicaState.USED
    assert lag.judge(standby(5400), 61) is ReplicaState.UNKNOWN


def test_a_replica_is_late_only_after_more_than_the_allowed_time() -> None:
    """At the first look, a healthy replica may lack what the primary has written in the last millisecond."""
    lag = ReplicaLag(10)
    lag.note_primary(primary(100), 0)
    assert [lag.judge(standby(99), now) for now in (0, 10)] == [ReplicaState.UNKNOWN] * 2
    assert lag.judge(standby(100), 10) is ReplicaState.USED
    lag.note_primary(primary(100), 10.5)
    assert lag.judge(standby(99), 10.5) is ReplicaState.BEHIND


def test_nothing_is_known_at_the_start_and_old_positions_are_forgotten() -> None:
    assert ReplicaLag(10).judge(standby(0), 0) is ReplicaState.UNKNOWN
    assert len(lag_after(2 * MAX_SAMPLES)._samples) == MAX_SAMPLES
