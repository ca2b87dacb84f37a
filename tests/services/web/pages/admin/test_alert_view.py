import dataclasses
import json
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from services.web.pages.admin import alert_view
from shared.api.alerts import Alert, Alerts, Silence

NOW = datetime(2026, 11, 20, 14, 5, tzinfo=UTC)


def alert(state: str = "firing", severity: str = "page", *, silenced: bool = False, **labels: str) -> Alert:
    ended = NOW - timedelta(minutes=5) if state == "over" else None
    return Alert(
        "a/1", "no_worker", severity, labels, state, NOW - timedelta(minutes=12, seconds=59), ended, 0.97345, "No worker is up",
        "Nobody gets an answer.", "docs/runbooks/no_worker.md", silenced, "97.3 %",
    )  # fmt: skip


def silence(name: str = "no_worker", hours: int = 1, by: str = "ada", why: str = "", **labels: str) -> Silence:
    return Silence("0001", name, labels, NOW + timedelta(hours=hours), by, why)


def of(*found: Alert, silences: tuple[Silence, ...] = ()) -> alert_view.AlertsView:
    return alert_view.describe(Alerts(found, silences), NOW)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "less than a minute"), (59.9, "less than a minute"), (60, "1 min"), (3_599, "59 min"), (3_600, "1 h"), (86_399, "23 h"),
     (86_400, "1 day"), (200_000, "2 days"), (-5, "less than a minute")],
)  # fmt: skip
def test_duration_uses_the_largest_unit(seconds: float, words: str) -> None:
    assert alert_view.lasting(seconds) == words


@pytest.mark.parametrize(
    ("found", "word", "tone", "sentence"),
    [
        pytest.param((), "No alerts", "good", "", id="calm"),
        pytest.param((alert("over"),), "No alerts", "good", "", id="what is over is not wrong"),
        pytest.param((alert("pending"),), "No alerts", "good", "1 pending", id="not yet"),
        pytest.param((alert(),), "1 alert", "bad", "1 not silenced", id="an open alert"),
        pytest.param((alert(), alert("pending")), "1 alert", "bad", "1 not silenced", id="pending ones do not count"),
        pytest.param((alert(), alert(silenced=True)), "2 alerts", "bad", "1 not silenced", id="one of two is open"),
        pytest.param((alert(severity="ticket"),), "1 alert", "warn", "1 not silenced", id="it can wait"),
        pytest.param((alert(severity="critical"),), "1 alert", "bad", "1 not silenced", id="critical"),
        pytest.param((alert(silenced=True), alert(silenced=True)), "2 alerts", "warn", "All silenced", id="all in hand"),
    ],
)
def test_overall_status(found: tuple[Alert, ...], word: str, tone: str, sentence: str) -> None:
    lines = of(*found)
    assert (lines.word, lines.tone) == (word, tone)
    assert lines.sentence.startswith(sentence)
    assert bool(lines.sentence) == bool(sentence)


def test_old_data_is_marked() -> None:
    lines = alert_view.describe(Alerts((), (), NOW - timedelta(minutes=3)), NOW)
    assert (lines.tone, lines.calm, lines.sentence) == ("warn", False, "As of 3 min ago: the metrics service cannot read PostgreSQL.")


def test_alertmanagers_alerts_are_not_those_of_the_metrics_service() -> None:
    lines = alert_view.describe(Alerts((), (), from_alertmanager=True), NOW)
    assert (lines.word, lines.calm, lines.calm_there) == ("No alerts", False, True)
    assert not alert_view.describe(Alerts((alert(),), (), from_alertmanager=True), NOW).calm_there


def test_unknown_is_not_shown_as_ok() -> None:
    lines = alert_view.describe(None, NOW)
    assert (lines.word, lines.away, lines.calm) == ("Unknown", True, False)
    assert (of().away, of().calm, of(alert()).calm, of(alert("pending")).calm) == (False, True, False, False)


def test_alert_has_all_its_details() -> None:
    (line,) = of(alert(node="n1", gpu="0")).now
    assert (line.severity, line.tone, line.lasted, line.since) == ("page", "bad", "12 min", "20 Nov 2026, 13:52 UTC")
    assert (line.labels, line.value) == ("gpu=0, node=n1", "97.3 %")
    assert (line.runbook, line.runbook_page, line.runbook_path) == ("no_worker", "/admin/runbooks/no_worker", "")
    assert (line.only_this, line.all_of_name) == ("This alert: gpu=0, node=n1", "All no_worker alerts")
    assert line.silence_path == "/admin/alerts/a%2F1/silence"
    (bare,) = of(alert(severity="unheard-of")).now
    assert (bare.labels, bare.only_this, bare.tone) == ("–", "This alert", "off")


def test_firing_pending_and_resolved_alerts_are_separate() -> None:
    lines = of(alert("pending"), alert("over"), alert(), alert("unheard-of"))
    assert (len(lines.now), len(lines.pending), len(lines.over)) == (1, 2, 1)


def test_silenced_alert_shows_the_end_of_its_longest_silence() -> None:
    silences = (silence(why="known"), silence("", 3, "bob", node="n1"), silence("other", 9), silence(hours=8, node="n2"))
    (line,) = of(alert(silenced=True, node="n1"), silences=silences).now
    assert (line.is_silenced, line.silenced_until, line.silenced_by) == (True, "20 Nov 2026, 17:05 UTC", "bob")
    (unknown,) = of(alert(silenced=True)).now
    assert (unknown.is_silenced, unknown.silenced_until) == (True, "–")
    assert not of(alert()).now[0].is_silenced


def test_resolved_alert_shows_when_and_how_long() -> None:
    lines = of(alert("over"), msgspec.structs.replace(alert("over"), ended=NOW))
    assert [(line.ended, line.lasted) for line in lines.over] == [("20 Nov 2026, 14:00 UTC", "7 min"), ("20 Nov 2026, 14:05 UTC", "12 min")]
    # The alert fired twice, so it has two rows.
    assert len({line.id for line in lines.over}) == 2


def test_silence_shows_what_it_covers() -> None:
    (every, some) = of(silences=(silence(""), silence(node="n1", why="repair"))).silences
    assert (every["alert"], every["labels"], every["reason"], every["end_path"]) == (
        "All alerts",
        "All",
        "–",
        "/admin/alerts/silences/0001/end",
    )
    assert (some["alert"], some["labels"], some["reason"], some["until"]) == ("no_worker", "node=n1", "repair", "20 Nov 2026, 15:05 UTC")


def test_too_many_alerts_are_cut_off_and_counted() -> None:
    lines = of(*[alert()] * 130, *[alert("over")] * 101, *[alert("pending")] * 102, silences=(silence(),) * 100)
    assert (len(lines.now), len(lines.pending), len(lines.over), len(lines.silences)) == (100, 100, 100, 100)
    assert (lines.word, lines.more) == ("130 alerts", "30 alerts, 2 pending, 1 over")
    assert of(alert()).more == ""


def test_event_has_every_field_and_can_be_encoded() -> None:
    lines = of(alert(), alert("over"), silences=(silence(),))
    values = dataclasses.asdict(lines)
    assert set(values) == {each.name for each in dataclasses.fields(lines)}
    assert json.loads(msgspec.json.encode(values))["now"][0]["id"] == "a/1"
