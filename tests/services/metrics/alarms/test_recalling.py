"""What the history tells after a start is what would have been seen without it."""

import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from services.metrics import prometheus
from services.metrics.alarms import recalling, samples
from services.metrics.alarms.book import Book, Sample
from services.metrics.alarms.keeping import Keeper
from services.metrics.alarms.recalling import Past
from services.metrics.alarms.store import Store
from services.metrics.alarms.watch import Watch
from services.metrics.alerts import evaluating, machine_rules, objectives, request_rules, rules, trust_rules
from services.metrics.alerts.evaluating import labels
from services.metrics.alerts.expressions import HOUR, Aggregate, Increase, Ratio, Selector, Window, above, grown, series, walk
from services.metrics.alerts.rule import Rule
from services.metrics.history import keeping, rolling
from services.metrics.history import store as history_store
from services.metrics.history.growing import Growth, Stretch
from services.metrics.history.rolling import Piece
from services.metrics.history.room import keeps_of
from services.metrics.prometheus import Source
from services.metrics.settings import MetricsSettings
from shared import errors
from shared.telemetry import Metrics, instruments

SETTINGS = MetricsSettings(node_key_file=Path("/nowhere"), port=0)
KEEPS = keeps_of(SETTINGS)
NOW = datetime(2026, 3, 29, 12, 34, 45, tzinfo=UTC)
WANTED = recalling.find(rules.ALL)


def recalled(rule: Rule) -> set[bool]:
    return {part.of in WANTED.selectors for part in walk(rule.when) if isinstance(part, Increase)}


def named(name: str) -> Rule:
    return next(rule for rule in rules.ALL if rule.name == name)


def test_rules_are_recalled_as_a_whole_or_not_at_all() -> None:
    for rule in rules.ALL:
        assert len(recalled(rule)) <= 1, rule.name


def test_the_long_looks_back_are_recalled() -> None:
    for rule in (*objectives.RULES, named("cost_anomaly"), named("wrong_counts"), named("contested_key"), named("worker_crash_loop")):
        assert recalled(rule) == {True}, rule.name
    long = {
        part.of
        for rule in (*request_rules.RULES, *trust_rules.RULES, *machine_rules.RULES, *objectives.RULES)
        for part in walk(rule.when)
        if isinstance(part, Increase) and part.window.seconds >= HOUR
    }
    assert long <= WANTED.selectors


def test_what_the_history_sums_up_is_not_recalled() -> None:
    assert recalled(named("error_rate_spike")) == {False}, "it does not know the status"
    assert recalled(named("response_slow")) == {False}, "it does not know all buckets"
    assert recalled(named("high_latency")) == {False}, "it does not know calls that run no model"


def test_what_a_rule_compares_with_something_unknown_is_recalled_for_no_rule() -> None:
    asked = Selector(instruments.REQUESTS)
    known = replace(named("cost_anomaly"), when=above(grown(asked, HOUR), 5))
    assert recalling.find([known]).selectors == {asked}
    failed = series(instruments.REQUESTS, status=("internal",))
    comparing = replace(known, when=above(Ratio(grown(failed, HOUR), grown(asked, HOUR)), 0.1))
    assert recalling.find([known, comparing]).selectors == frozenset()


@pytest.mark.parametrize("until", [NOW, NOW.replace(minute=0, second=0), NOW.replace(minute=59)])
@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        MetricsSettings(node_key_file=Path("/nowhere"), port=0, history_raw_hours=1, history_minute_days=1, history_hour_days=1),
        MetricsSettings(node_key_file=Path("/nowhere"), port=0, history_raw_hours=720, history_minute_days=3650),
    ],
)
def test_every_moment_is_asked_for_once_and_only_where_it_is_kept(until: datetime, settings: MetricsSettings) -> None:
    keeps = keeps_of(settings)
    asked = list(recalling.plan(WANTED, until, keeps))
    assert asked[0].piece.before == until
    for later, earlier in pairwise(asked):
        assert earlier.piece.before == later.piece.begin
    assert asked[-1].piece.begin <= until - max(WANTED.horizons.values())
    for one in asked:
        assert one.piece.begin >= until - keeps[one.piece.resolution] or one.piece.resolution == rolling.HOUR
        assert (one.piece.begin.timestamp() % one.step_seconds, one.piece.resolution <= one.step_seconds) == (0, True)


def test_workers_are_asked_for_the_last_hour_alone() -> None:
    for one in recalling.plan(WANTED, NOW, KEEPS):
        assert ("inference" in one.services) == (one.piece.resolution == rolling.RAW)


COST = Selector(instruments.COST)


def test_growth_from_before_the_start_is_added_to_what_is_seen() -> None:
    made = Book(rules.ALL)
    past = Past()
    begin = datetime.fromtimestamp(0, UTC)
    stretch = Stretch(Piece(rolling.RAW, begin, begin + timedelta(hours=1)), 15, [COST.name], [], [], by_node=False)
    past.add(stretch, [Growth("gateway", "", COST.name + '{model="a\\"b"}', step, 10) for step in (8, 4, 0)])
    made.recall(past)
    seen = Sample(COST.name, labels(model='a"b', service="gateway", node="U"), 7)
    made.take([seen], 3600)
    made.take([Sample(COST.name, seen.labels, 9)], 3615)
    assert made.increase(COST, Window(3616)) == {labels(model='a"b', service="gateway"): 30, seen.labels: 2}
    assert made.increase(COST, Window(3615 - 60)) == {labels(model='a"b', service="gateway"): 10, seen.labels: 2}
    assert made.increase(COST, Window(60, ago_seconds=3615 - 90)) == {labels(model='a"b', service="gateway"): 10, seen.labels: 0}
    made.take([], 9 * 86400)
    assert made._past[COST.name] == {}


def test_the_number_of_values_of_a_histogram_is_its_last_bucket() -> None:
    past = Past()
    stretch = Stretch(Piece(rolling.RAW, NOW, NOW), 15, [], [], [], by_node=False)
    past.add(stretch, [Growth("gateway", "", 'ai_platform_ttft_seconds_bucket{le="+Inf",model="m"}', 0, 3)])
    own = labels(model="m", service="gateway")
    at = NOW.timestamp()
    assert {(name, own): steps for name, own, steps in past.by_series()} == {
        ("ai_platform_ttft_seconds_bucket", labels(le="+Inf", model="m", service="gateway")): [(at, 3)],
        ("ai_platform_ttft_seconds_count", own): [(at, 3)],
    }


# --- over a real history ------------------------------------------------------------------------------------------------


class Mesh:
    """A metrics service that counts requests, a gateway that measures, and a worker that lies and crashes."""

    def __init__(self) -> None:
        self.now = NOW - timedelta(days=4)
        self.nodes = {"UM": Metrics("metrics"), "UG": Metrics("gateway"), "UW": Metrics("inference")}
        self.looks = 0
        #: What everybody who looks now is told; None until somebody does.
        self._text: str | None = None

    async def text(self) -> str:
        if self._text is None:
            sources = [
                Source(one.render(), {"service": service, "node": node})
                for (node, one), service in zip(self.nodes.items(), ("metrics", "gateway", "inference"), strict=True)
            ]
            self._text = prometheus.render(prometheus.merge(sources))
        return self._text

    def work(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.looks += 1
        self._text = None
        metrics, gateway, worker = self.nodes.values()
        calls = seconds / 5
        metrics.completed_requests.labels(status="success", model="m").inc(calls)
        metrics.completed_requests.labels(status="error", model="m").inc(calls / 50)
        gateway.cost.labels(model="m").inc(100 * calls)
        for number in range(3):
            gateway.ttft_seconds.labels(model="m").observe(0.2 + 4 * (number == 0))
            worker.ttft_seconds.labels(model="m").observe(9)
        if self.looks % 40 == 0:
            worker.engine_restarts.labels(model="m").inc()
            gateway.wrong_counts.labels(node="UW").inc()


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[Store]:
    async with Store.open(postgres_url, "UM", rules.ALL) as opened:
        yield opened


def seen_by(book: Book) -> dict[str, float]:
    """Every growth that a recalled rule looks at."""
    return {
        f"{rule.name} {part.of.of.name} {part.of.of.where} {part.of.window} {key}": value
        for rule in rules.ALL
        if recalled(rule) == {True}
        for part in walk(rule.when)
        if isinstance(part, Aggregate) and isinstance(part.of, Increase)
        for key, value in evaluating.evaluate(part, book).items()
        if value
    }


@pytest.mark.timeout(600)  # four days are computed, and written in one go
async def test_after_a_restart_every_long_look_back_sees_what_it_would_have_seen_without(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "MAX_WAITING", 100_000)
    # After a late answer alerts begin without what the history tells, which is the next test's matter.
    monkeypatch.setattr(history_store, "_READ_SECONDS", 120.0)
    monkeypatch.setattr(history_store, "_WRITE_SECONDS", 120.0)
    mesh = Mesh()
    history = keeping.Keeper(mesh.text, KEEPS, lambda: mesh.now)
    throughout = Book(rules.ALL)
    # Every five minutes for four days, and as it really is for the last two hours.
    for seconds in [300.0] * (94 * 12) + [15.0] * 480:
        mesh.work(seconds)
        await history.look()
        throughout.take(samples.read(await mesh.text(), throughout.wanted), mesh.now.timestamp())
    await history.keep(store.history)
    mesh.now += timedelta(seconds=1)

    watch = Watch(mesh.text, lambda _news: None, mesh.now.timestamp)
    await Keeper(watch, "UM", lambda: True, mesh.now.timestamp, KEEPS).keep(store)
    await watch.look()
    expected, found = seen_by(throughout), seen_by(watch.book)
    assert set(found) == set(expected)
    assert len(found) > 30
    for what, value in expected.items():
        assert math.isclose(found[what], value, rel_tol=0.02, abs_tol=1.01 if "wrong" in what or "crash" in what else 0), what
    firing = {(alarm.rule.name, dict(alarm.labels)["window"]) for alarm in watch.desk.firing() if alarm.rule in objectives.RULES}
    assert ("availability_burn", "3d") in firing

    monkeypatch.setattr(recalling, "MAX_STEPS", 500)
    bounded = Watch(mesh.text, lambda _news: None, mesh.now.timestamp)
    await Keeper(bounded, "UM", lambda: True, mesh.now.timestamp, KEEPS).keep(store)
    assert 500 <= sum(len(one.times) for past in bounded.book._past.values() for one in past.values()) <= 1000

    forgetful = Watch(mesh.text, lambda _news: None, mesh.now.timestamp)
    await Keeper(forgetful, "UM", lambda: True, mesh.now.timestamp, None).keep(store)
    await forgetful.look()
    assert forgetful.desk.firing() == []


async def test_a_history_that_cannot_be_read_costs_the_alerts_three_tries(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    async def too_slow(_stretch: Stretch, _most: int) -> Sequence[Growth]:
        nonlocal tries
        tries += 1
        raise errors.Unavailable("PostgreSQL does not answer", hint="is it running?")

    monkeypatch.setattr(store.history, "growth", too_slow)
    mesh = Mesh()
    watch = Watch(mesh.text, lambda _news: None, mesh.now.timestamp)
    keeper = Keeper(watch, "UM", lambda: True, mesh.now.timestamp, KEEPS)
    for _ in range(3):
        keeper.forget_connection()
        with pytest.raises(errors.Unavailable):
            await keeper.keep(store)
        assert not keeper.resumed.is_set()
    keeper.forget_connection()
    await keeper.keep(store)
    assert (tries, keeper.resumed.is_set()) == (3, True)
