import pytest

from services.inference.supervision.engine_supervisor import (
    FIRST_STEP_SECONDS,
    LOAD_SECONDS,
    PATIENCE,
    STEP_SECONDS,
    TICK_SECONDS,
    Watchdog,
)


def ticks_to_the_end(watchdog: Watchdog) -> int:
    ticks = 1
    while not watchdog.tick():
        ticks += 1
    return ticks


def loaded(*steps: float, step_seconds: float = STEP_SECONDS) -> Watchdog:
    watchdog = Watchdog(step_seconds)
    watchdog.load_ended()
    for seconds in steps:
        watchdog.step_ended(seconds)
    return watchdog


@pytest.mark.parametrize(
    ("watchdog", "seconds"),
    [
        pytest.param(Watchdog(), LOAD_SECONDS, id="a load that stands still"),
        pytest.param(loaded(), FIRST_STEP_SECONDS, id="the first step"),
        pytest.param(loaded(0.01, 0.02), STEP_SECONDS, id="a step, where steps are short"),
        pytest.param(loaded(3.0, 0.02), PATIENCE * 3.0, id="a step, where one took long"),
        pytest.param(loaded(500.0), FIRST_STEP_SECONDS, id="a step is never given more than the first"),
        pytest.param(loaded(0.0, step_seconds=1200.0), 1200.0, id="a step, as it is asked for"),
    ],
)
def test_time_until_an_engine_counts_as_hung(watchdog: Watchdog, seconds: float) -> None:
    assert ticks_to_the_end(watchdog) == seconds / TICK_SECONDS


def test_any_report_ends_the_silence() -> None:
    watchdog = loaded(0.01)
    for _ in range(3):
        assert not any(watchdog.tick() for _ in range(int(STEP_SECONDS / TICK_SECONDS) - 1))
        watchdog.report_received()


def test_short_limit_has_short_ticks() -> None:
    watchdog = loaded(0.0, step_seconds=0.2)
    assert (watchdog.tick_seconds, ticks_to_the_end(watchdog)) == (0.05, 4)
