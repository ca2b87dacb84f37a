"""An alert from its first sign to its end: who is told, once, and who is not."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from services.metrics.alerting import alert_state
from services.metrics.alerting.alert_state import AlertSilence, AlertStates
from services.metrics.alerting.rules import all_rules
from services.metrics.alerting.rules.alert_rule import AlertRule, DashboardName, Severity
from services.metrics.alerting.rules.evaluation import Vector, labels
from services.metrics.alerting.rules.expressions import Selector, TimeWindow, above, highest, series
from shared.telemetry import host_instruments, instruments

QUEUE = series(instruments.QUEUE_DEPTH)
CPU = series(host_instruments.HOST_CPU)
LONG_QUEUE = AlertRule(
    name="queue_depth_high",
    severity=Severity.WARNING,
    when=above(highest(QUEUE, "model"), 100),
    hold_seconds=60,
    summary="{model} has a long queue",
    description="Users of {model} wait.",
    board=DashboardName.GATEWAY,
)
HOT = AlertRule(
    name="cpu_high",
    severity=Severity.PAGE,
    when=above(highest(CPU, "node"), 0.8),
    summary="{node}",
    description="d",
    board=DashboardName.WORKERS,
)


class Now:
    """``MetricReadings`` that are what the test says."""

    def __init__(self, queues: Mapping[str, float] | None = None, machines: Mapping[str, float] | None = None) -> None:
        self._vectors: dict[str, Vector] = {
            QUEUE.name: {labels(model=model): value for model, value in (queues or {}).items()},
            CPU.name: {labels(node=node): value for node, value in (machines or {}).items()},
        }

    def latest(self, selector: Selector) -> Vector:
        return self._vectors[selector.name]

    def increase(self, selector: Selector, window: TimeWindow) -> Vector:
        raise NotImplementedError


@pytest.fixture
def at() -> AlertStates:
    return AlertStates([LONG_QUEUE, HOT])


def silence(name: str, *, until: float, **about: str) -> AlertSilence:
    return AlertSilence(f"id of {name}", name, labels(**about), until, "ann", "it compiles")


def test_an_alert_fires_when_it_has_lasted_and_is_told_once_and_once_when_it_is_over(at: AlertStates) -> None:
    assert not at.look(Now({"llama3": 150}), 1000)
    assert ([one.firing for one in at.pending()], at.firing()) == ([False], [])
    notice = at.look(Now({"llama3": 150}), 1060)
    assert [(one.summary, one.since, one.value) for one in notice.began] == [("llama3 has a long queue", 1000, 150)]
    assert not at.look(Now({"llama3": 170}), 1075)
    assert at.firing()[0].value == 170
    notice = at.look(Now({"llama3": 5}), 1090)
    assert [(one.summary, one.ended) for one in notice.ended] == [("llama3 has a long queue", 1090)]
    assert not at.look(Now({"llama3": 5}), 1105)
    assert [one.ended for one in at.ended()] == [1090]


def test_what_never_fired_is_no_news_when_it_is_over(at: AlertStates) -> None:
    at.look(Now({"llama3": 150}), 1000)
    assert not at.look(Now(), 1015)
    assert at.ended() == []


def test_the_gravest_come_first_then_the_oldest(at: AlertStates) -> None:
    at.look(Now({"b": 150}), 1000)
    at.look(Now({"a": 150, "b": 150}), 1030)
    at.look(Now({"a": 150, "b": 150}, {"box": 0.9}), 1100)
    assert [(one.rule.name, dict(one.labels)) for one in at.firing()] == [
        ("cpu_high", {"node": "box"}),
        ("queue_depth_high", {"model": "b"}),
        ("queue_depth_high", {"model": "a"}),
    ]


def test_a_silence_keeps_an_alert_quiet_and_its_end_does_not_lose_it(at: AlertStates) -> None:
    made = silence("cpu_high", until=2000, node="box")
    assert at.silence(made)
    notice = at.look(Now(machines={"box": 0.9, "other": 0.9}), 1000)
    assert [dict(one.labels) for one in notice.began] == [{"node": "other"}]
    assert at.silence_of(next(one for one in at.firing() if dict(one.labels) == {"node": "box"})) == made
    assert not at.look(Now(machines={"box": 0.9, "other": 0.9}), 1999)
    assert [dict(one.labels) for one in at.look(Now(machines={"box": 0.9, "other": 0.9}), 2000).began] == [{"node": "box"}]
    assert at.silences() == []


def test_an_alert_that_began_and_ended_in_silence_is_no_news(at: AlertStates) -> None:
    at.silence(silence("", until=2000))
    assert not at.look(Now(machines={"box": 0.9}), 1000)
    assert not at.look(Now(), 1015)


def test_a_silence_can_be_ended_early(at: AlertStates) -> None:
    made = silence("cpu_high", until=2000)
    at.silence(made)
    at.look(Now(machines={"box": 0.9}), 1000)
    assert at.end_silence(made.id)
    assert not at.end_silence(made.id)
    assert at.look(Now(machines={"box": 0.9}), 1015).began


def test_who_looks_after_it_is_remembered_until_it_is_over(at: AlertStates) -> None:
    at.look(Now(machines={"box": 0.9}), 1000)
    [alert] = at.firing()
    assert at.acknowledge(alert.id, "ann", 1000) is not None
    assert at.acknowledge("nothing", "ann", 1000) is None
    at.look(Now(machines={"box": 0.95}), 1015)
    assert [(one.id, one.seen_by) for one in at.firing()] == [(alert.id, "ann")]
    at.look(Now(), 1030)
    at.look(Now(machines={"box": 0.9}), 1045)
    assert [one.seen_by for one in at.firing()] == [""]


def test_one_rule_that_holds_for_everything_buries_nothing(at: AlertStates) -> None:
    at.look(Now({"llama3": 150}, {f"box{number}": 0.9 for number in range(1000)}), 1000)
    at.look(Now({"llama3": 150}, {f"box{number}": 0.9 for number in range(1000)}), 1100)
    assert len(at.firing()) == alert_state.MAX_OF_ONE_RULE + 1
    assert at.crowded == {"cpu_high": 1000 - alert_state.MAX_OF_ONE_RULE}
    at.look(Now({"llama3": 150}, {"box": 0.9}), 1200)
    assert at.crowded == {}


def test_silences_and_what_is_over_are_bounded(at: AlertStates) -> None:
    for number in range(alert_state.MAX_SILENCES):
        assert at.silence(silence(str(number), until=1e12))
    assert not at.silence(silence("one more", until=1e12))
    for number in range(alert_state.MAX_ENDED + 50):
        at.look(Now(machines={"box": 0.9}), 1000 + number * 2)
        at.look(Now(), 1001 + number * 2)
    assert len(at.ended()) == alert_state.MAX_ENDED
    at.look(Now(), 1000 + alert_state.ENDED_SECONDS * 2)
    assert at.ended() == []


def test_every_rule_of_ours_can_be_looked_at() -> None:
    class Nothing:
        def latest(self, _selector: Selector) -> Vector:
            return {}

        def increase(self, _selector: Selector, _window: TimeWindow) -> Vector:
            return {}

    whole = AlertStates(all_rules.ALL)
    whole.look(Nothing(), 1000)
    names = {alert.rule.name for alert in [*whole.firing(), *whole.pending()]}
    assert names == {"metrics_down"}, "of nothing it is true that there is nothing"


# --- after a restart, and at another replica ----------------------------------------------------------------------------


def restarted(before: AlertStates, now: float) -> AlertStates:
    made = AlertStates([LONG_QUEUE, HOT])
    made.hear_silences(before.silences(), frozenset(), now)
    made.show(before.remembered(), now)
    return made


def test_after_a_restart_what_was_told_is_not_told_again_and_its_end_is(at: AlertStates) -> None:
    at.look(Now(machines={"box": 0.9, "other": 0.9}), 1000)
    at.acknowledge(at.firing()[0].id, "ann", 1001)
    again = restarted(at, 1100)
    notice = again.look(Now(machines={"box": 0.9}), 1115)
    assert (notice.began, [one.ended for one in notice.ended]) == ((), [1115])
    [alert] = again.firing()
    assert (alert.since, alert.seen_by) == (1000, "ann")
    assert [one.ended for one in again.ended()] == [1115]


def test_how_long_it_has_held_goes_on_over_a_restart(at: AlertStates) -> None:
    at.look(Now({"llama3": 150}), 1000)
    again = restarted(at, 1030)
    assert [one.since for one in again.pending()] == [1000]
    assert again.look(Now({"llama3": 150}), 1060).began


def test_what_nobody_looked_at_for_long_begins_anew(at: AlertStates) -> None:
    at.look(Now({"llama3": 150}, {"box": 0.9}), 1000)
    now = 1000 + alert_state.OUTAGE_SECONDS
    again = restarted(at, now)
    notice = again.look(Now({"llama3": 150}), now + 15)
    assert [(one.rule.name, one.ended) for one in notice.ended] == [("cpu_high", 1000)], "somebody was told that it began"
    assert [one.since for one in again.pending()] == [now + 15]


def test_what_was_seen_without_postgresql_wins_over_what_the_last_leader_knew(at: AlertStates) -> None:
    at.look(Now(machines={"box": 0.9, "other": 0.9}), 1000)
    box, other = at.firing()
    at.acknowledge(box.id, "ann", 1001)
    again = AlertStates([LONG_QUEUE, HOT])
    again.look(Now(machines={"box": 0.95}), 1100)
    again.acknowledge(box.id, "bob", 1101)
    again.resume(at.remembered(), 1110)
    notice = again.look(Now(machines={"box": 0.95}), 1115)
    assert [one.id for one in notice.ended] == [other.id], "the one before had told it, and it is over"
    assert [(one.since, one.seen_by) for one in again.firing()] == [(1000, "bob")]


def test_before_the_first_look_nothing_is_remembered(at: AlertStates) -> None:
    at.look(Now(machines={"box": 0.9}), 1000)
    assert restarted(at, 1010).remembered() == []


def test_who_follows_shows_what_the_leader_knows_and_nothing_else(at: AlertStates) -> None:
    follower = AlertStates([LONG_QUEUE, HOT])
    at.look(Now({"llama3": 150}, {"box": 0.9}), 1000)
    follower.show(at.remembered(), 1001)
    assert (follower.firing(), follower.pending()) == (at.firing(), at.pending())
    at.look(Now(), 1015)
    follower.show(at.remembered(), 1016)
    assert (follower.firing(), follower.pending(), follower.ended()) == ([], [], at.ended())


def test_who_looks_after_it_may_be_said_at_another_replica(at: AlertStates) -> None:
    at.look(Now(machines={"box": 0.9}), 1000)
    [box] = at.firing()
    [stored] = at.remembered()
    at.hear([replace(stored, alert=replace(box, seen_by="ann", seen_at=1005.0))])
    at.acknowledge(box.id, "bob", 1003)
    [mine] = at.acknowledged()
    at.hear([replace(stored, alert=replace(box, seen_by="ann", seen_at=1005.0))])
    assert [one.seen_by for one in at.firing()] == ["ann"], "who said so last"
    at.acknowledge(box.id, "bob", 1010)
    at.forget_written(frozenset(), [mine])
    assert [one.seen_at for one in at.acknowledged()] == [1010], "said while the other was written"


def test_silences_of_all_replicas_are_one_list_and_absence_ends_none(at: AlertStates) -> None:
    mine, theirs = silence("cpu_high", until=2000), silence("queue_depth_high", until=2000)
    at.silence(mine)
    at.hear_silences([theirs], frozenset(), 1000)
    assert at.silences() == [mine, theirs]
    at.hear_silences([], frozenset({theirs.id}), 1000)
    assert at.silences() == [mine]
    at.end_silence(mine.id)
    at.hear_silences([mine], frozenset(), 1000)
    assert at.silences() == [], "the others do not know yet that it was ended"
    assert at.ended_silences() == {mine.id}
    at.forget_written(frozenset({mine.id}), [])
    at.hear_silences([silence("old", until=999)], frozenset(), 1000)
    assert (at.silences(), at.ended_silences()) == ([], frozenset())
