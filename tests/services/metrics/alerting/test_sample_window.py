"""Growth over any window, across counter resets, without series that disappeared."""

from hypothesis import given
from hypothesis import strategies as st

from services.metrics.alerting import sample_window
from services.metrics.alerting.rules import all_rules
from services.metrics.alerting.rules.alert_rule import AlertRule, DashboardName, Severity
from services.metrics.alerting.rules.evaluation import labels
from services.metrics.alerting.rules.expressions import DAY, HOUR, MINUTE, TimeWindow, above, grown, series, total
from services.metrics.alerting.sample_window import Sample, SampleWindow
from shared.telemetry import instruments

COST = series(instruments.COST)
QUEUE = series(instruments.QUEUE_DEPTH, service="gateway")
STEP = 15.0


def rule(window: TimeWindow | int | None = None) -> AlertRule:
    when = above(total(QUEUE), 0) if window is None else above(grown(COST, window), 0)
    return AlertRule(name="one", severity=Severity.WARNING, when=when, summary="s", description="d", board=DashboardName.OVERVIEW)


def cost(value: float, **more: str) -> Sample:
    return Sample(COST.name, labels(model="llama3", **more), value)


def filled(values: list[float], window: int) -> SampleWindow:
    made = SampleWindow([rule(window)])
    for number, value in enumerate(values):
        made.take([cost(value)], number * STEP)
    return made


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=300), st.integers(1, 280))
def test_growth_within_the_last_hour_is_exact(values: list[int], steps: int) -> None:
    made = filled([float(value) for value in values], HOUR)
    start = max(0, len(values) - 1 - min(steps, 240))
    pairs = zip(values[start:], values[start + 1 :], strict=False)
    expected = sum(after - before if after >= before else after for before, after in pairs)
    assert made.increase(COST, TimeWindow(min(steps, 240) * int(STEP))) == {labels(model="llama3"): expected}


def test_growth_over_days_is_accurate_to_five_minutes() -> None:
    made = SampleWindow([rule(8 * DAY)])
    for step in range(0, 8 * DAY, 60):
        made.take([cost(float(step))], float(step))
    grew = made.increase(COST, TimeWindow(DAY, ago_seconds=DAY))[labels(model="llama3")]
    assert abs(grew - DAY) <= 600
    points = sum(len(track.times) for track in made._series[COST.name][labels(model="llama3")].tracks)
    assert points < 4_000


def test_unseen_series_have_no_growth() -> None:
    made = SampleWindow([rule(HOUR)])
    assert made.increase(COST, TimeWindow(HOUR)) == {}
    made.take([cost(5)], 0.0)
    assert made.increase(COST, TimeWindow(HOUR)) == {labels(model="llama3"): 0}


def test_series_that_disappeared_have_no_latest_value() -> None:
    made = SampleWindow([rule(10 * MINUTE), rule()])
    here = Sample(QUEUE.name, labels(service="gateway", model="a"), 3)
    there = Sample(QUEUE.name, labels(service="inference", model="a"), 9)
    made.take([here, there, cost(1)], 0.0)
    assert made.latest(QUEUE) == {here.labels: 3}
    made.take([], 15.0)
    assert made.latest(QUEUE) == {}
    assert len(made) == 2, "what no rule means is not kept"
    made.take([], 700.0)
    assert len(made) == 0


def test_series_above_the_limit_are_dropped_and_counted() -> None:
    made = SampleWindow([rule(HOUR)])
    many = [cost(1, node=str(number)) for number in range(sample_window.MAX_SERIES + 7)]
    made.take(many, 0.0)
    assert (len(made), made.left_out) == (sample_window.MAX_SERIES, 7)


def test_series_that_no_rule_uses_are_not_stored() -> None:
    made = SampleWindow(all_rules.ALL)
    calls = (instruments.REQUEST_DURATION.name + "_bucket", instruments.TTFT_SECONDS.name + "_bucket")
    of_workers = [
        Sample(name, labels(service="inference", node=str(number), model="", le="1.0"), 1.0) for name in calls for number in range(9)
    ]
    made.take([*of_workers, Sample(calls[0], labels(service="auth", method="x", model="", le="1.0"), 1.0)], 0.0)
    assert (len(made), made.left_out) == (1, 0)


def test_mesh_of_200_workers_fits() -> None:
    text = (
        "".join(
            f'{name}{{service="inference",node="n{node}",model="m{model}",le="{bound}"}} 1\n'
            for name in (instruments.REQUEST_DURATION.name + "_bucket", instruments.TTFT_SECONDS.name + "_bucket")
            for node in range(200)
            for model in ("", 1, 2, 3)
            for bound in instruments.TTFT_SECONDS.buckets
        )
        + f'{instruments.LEDGER_DRIFT.name}{{service="gateway",node="g"}} 3\n'
    )
    made = SampleWindow(all_rules.ALL)
    made.take(sample_window.read_samples(text, made.wanted), 0.0)
    assert (len(made), made.left_out) == (1, 0)


def test_wanted_series_are_those_of_the_rules() -> None:
    names = SampleWindow(all_rules.ALL).wanted
    assert instruments.LEDGER_DRIFT.name in names
    assert instruments.BUILD_INFO.name not in names
