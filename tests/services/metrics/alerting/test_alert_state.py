"""The life of an alert, and which notifications are sent."""

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
    """``MetricReadings`` with the values of a test."""

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


def test_alert_fires_after_its_hold_time_and_notifies_once_on_start_and_end(at: AlertStates) -> None:
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


def test_pending_alert_that_ends_sends_no_notification(at: AlertStates) -> None:
    at.look(Now({"llama3": 150}), 1000)
    assert not at.look(Now(), 1015)
    assert at.ended() == []


def test_alerts_are_sorted_by_severity_then_age(at: AlertStates) -> None:
    at.look(Now({"b": 150}), 1000)
    at.look(Now({"a": 150, "b": 150}), 1030)
    at.look(Now({"a": 150, "b": 150}, {"box": 0.9}), 1100)
    assert [(one.rule.name, dict(one.labels)) for one in at.firing()] == [
        ("cpu_high", {"node": "box"}),
        ("queue_depth_high", {"model": "b"}),
        ("queue_depth_high", {"model": "a"}),
    ]


def test_silenced_alert_is_sent_when_the_silence_ends(at: AlertStates) -> None:
    made = silence("cpu_high", until=2000, node="box")
    assert at.silence(made)
    notice = at.look(Now(machines={"box": 0.9, "other": 0.9}), 1000)
    assert [dict(one.labels) for one in notice.began] == [{"node": "other"}]
    assert at.silence_of(next(one for one in at.firing() if dict(one.labels) == {"node": "box"})) == made
    assert not at.look(Now(machines={"box": 0.9, "other": 0.9}), 1999)
    assert [dict(one.labels) for one in at.look(Now(machines={"box": 0.9, "other": 0.9}), 2000).began] == [{"node": "box"}]
    assert at.silences() == []


def test_alert_that_starts_and_ends_while_silenced_is_never_sent(at: AlertStates) -> None:
    at.silence(silence("", until=2000))
    assert not at.look(Now(machines={"box": 0.9}), 1000)
    assert not at.look(Now(), 1015)


def test_silence_can_be_ended_early(at: AlertStates) -> None:
    made = silence("cpu_high", until=2000)
    at.silence(made)
    at.look(Now(machines={"box": 0.9}), 1000)
    assert at.end_silence(made.id)
    assert not at.end_silence(made.id)
    assert at.look(Now(machines={"box": 0.9}), 1015).began


def test_acknowledgement_lasts_until_the_alert_resolves(at: AlertStates) -> None:
    at.look(Now(machines={"box": 0.9}), 1000)
    [alert] = at.firing()
    assert at.acknowledge(alert.id, "ann", 1000) is not None
    assert at.acknowledge("nothing", "ann", 1000) is None
    at.look(Now(machines={"box": 0.95}), 1015)
    assert [(one.id, one.seen_by) for one in at.firing()] == [(alert.id, "ann")]
    at.look(Now(), 1030)
    at.look(Now(machines={"box": 0.9}), 1045)
    assert [one.seen_by for one in at.firing()] == [""]


def test_one_rule_with_too_many_alerts_does_not_hide_others(at: AlertStates) -> None:
    at.look(Now({"llama3": 150}, {f"box{number}": 0.9 for number in range(1000)}), 1000)
    at.look(Now({"llama3": 150}, {f"box{number}": 0.9 for number in range(1000)}), 1100)
    assert len(at.firing()) == alert_state.MAX_OF_ONE_RULE + 1
    assert at.omitted == {"cpu_high": 1000 - alert_state.MAX_OF_ONE_RULE}
    at.look(Now({"llama3": 150}, {"box": 0.9}), 1200)
    assert at.omitted == {}


def test_silences_and_resolved_alerts_are_bounded(at: AlertStates) -> None:
    for number in range(alert_state.MAX_SILENCES):
        assert at.silence(silence(str(number), until=1e12))
    assert not at.silence(silence("one more", until=1e12))
    for number in range(alert_state.MAX_ENDED + 50):
        at.look(Now(machines={"box": 0.9}), 1000 + number * 2)
        at.look(Now(), 1001 + number * 2)
    assert len(at.ended()) == alert_state.MAX_ENDED
    at.look(Now(), 1000 + alert_state.ENDED_SECONDS * 2)
    assert at.ended() == []


def test_all_of_our_rules_can_be_evaluated() -> None:
    class Nothing:
        def latest(self, _selector: Selector) -> Vector:
            return {}

        def increase(self, _selector: Selector, _window: TimeWindow) -> Vector:
            return {}

    whole = AlertStates(all_rules.ALL)
    whole.look(Nothing(), 1000)
    names = {alert.rule.name for alert in [*whole.firing(), *whole.pending()]}
    assert names == {"metrics_down"}, "of nothing it is true that there is nothing"


# --- after a restart, and on another replica ----------------------------------------------------------------------------


def restarted(before: AlertStates, now: float) -> AlertStates:
    made = AlertStates([LONG_QUEUE, HOT])
    made.merge_silences(before.silences(), frozenset(), now)
    made.show(before.remembered(), now)
    return made


def test_after_a_restart_only_the_resolution_is_sent(at: AlertStates) -> None:
    at.look(Now(machines={"box": 0.9, "other": 0.9}), 1000)
    at.acknowledge(at.firing()[0].id, "ann", 1001)
    again = restarted(at, 1100)
    notice = again.look(Now(machines={"box": 0.9}), 1115)
    assert (notice.began, [one.ended for one in notice.ended]) == ((), [1115])
    [alert] = again.firing()
    assert (alert.since, alert.seen_by) == (1000, "ann")
    assert [one.ended for one in again.ended()] == [1115]


def test_hold_time_continues_across_a_restart(at: AlertStates) -> None:
    at.look(Now({"llama3": 150}), 1000)
    again = restarted(at, 1030)
    assert [one.since for one in again.pending()] == [1000]
    assert again.look(Now({"llama3": 150}), 1060).began


def test_state_expires_after_a_long_outage(at: AlertStates) -> None:
    at.look(Now({"llama3": 150}, {"box": 0.9}), 1000)
    now = 1000 + alert_state.OUTAGE_SECONDS
    again = restarted(at, now)
    notice = again.look(Now({"llama3": 150}), now + 15)
    assert [(one.rule.name, one.ended) for one in notice.ended] == [("cpu_high", 1000)], "somebody was told that it began"
    assert [one.since for one in again.pending()] == [now + 15]


def test_state_seen_without_postgresql_overrides_the_last_leaders(at: AlertStates) -> None:
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


def test_nothing_is_stored_before_the_first_evaluation(at: AlertStates) -> None:
    at.look(Now(machines={"box": 0.9}), 1000)
    assert restarted(at, 1010).remembered() == []


def test_follower_shows_exactly_the_leaders_state(at: AlertStates) -> None:
    follower = AlertStates([LONG_QUEUE, HOT])
    at.look(Now({"llama3": 150}, {"box": 0.9}), 1000)
    follower.show(at.remembered(), 1001)
    assert (follower.firing(), follower.pending()) == (at.firing(), at.pending())
    at.look(Now(), 1015)
    follower.show(at.remembered(), 1016)
    assert (follower.firing(), follower.pending(), follower.ended()) == ([], [], at.ended())


def test_acknowledgements_from_other_replicas_are_merged(at: AlertStates) -> None:
    at.look(Now(machines={"box": 0.9}), 1000)
    [box] = at.firing()
    [stored] = at.remembered()
    at.merge_acknowledgements([replace(stored, alert=replace(box, seen_by="ann", seen_at=1005.0))])
    at.acknowledge(box.id, "bob", 1003)
    [mine] = at.acknowledged()
    at.merge_acknowledgements([replace(stored, alert=replace(box, seen_by="ann", seen_at=1005.0))])
    assert [one.seen_by for one in at.firing()] == ["ann"], "who said so last"
    at.acknowledge(box.id, "bob", 1010)
    at.forget_written(frozenset(), [mine])
    assert [one.seen_at for one in at.acknowledged()] == [1010], "said while the other was written"


def test_silences_from_all_replicas_are_merged_and_none_is_dropped(at: AlertStates) -> None:
    mine, theirs = silence("cpu_high", until=2000), silence("queue_depth_high", until=2000)
    at.silence(mine)
    at.merge_silences([theirs], frozenset(), 1000)
    assert at.silences() == [mine, theirs]
    at.merge_silences([], frozenset({theirs.id}), 1000)
    assert at.silences() == [mine]
    at.end_silence(mine.id)
    at.merge_silences([mine], frozenset(), 1000)
    assert at.silences() == [], "the others do not know yet that it was ended"
    assert at.ended_silences() == {mine.id}
    at.forget_written(frozenset({mine.id}), [])
    at.merge_silences([silence("old", until=999)], frozenset(), 1000)
    assert (at.silences(), at.ended_silences()) == ([], frozenset())
