import pytest

from services.inference import engine_speed as measured
from services.inference.engine import engine_messages
from services.inference.engine_speed import WINDOW_SECONDS, EngineSpeed, StepMeter
from shared.types import FinishReason


def step(seconds: float, decode_seconds: float, tokens: int = 1) -> engine_messages.StepReport:
    return engine_messages.StepReport((engine_messages.AnswerProgress(1, (7,), "a"),) * tokens, seconds, decode_seconds, 1, 0)


def test_speed_without_steps_is_zero() -> None:
    assert StepMeter().figures(100.0) == EngineSpeed()


def test_time_outside_of_decoding_is_overhead() -> None:
    meter = StepMeter()
    meter.record(step(0.1, 0.09, 4), 0.0)
    meter.record(step(0.3, 0.29, 8), 0.5)
    figures = meter.figures(1.0)
    assert figures.steps == 2
    assert figures.overhead == pytest.approx(0.05)
    assert figures.step_seconds == pytest.approx(0.2)
    assert figures.tokens_per_second == pytest.approx(30.0)


def test_every_token_of_a_draft_counts() -> None:
    meter = StepMeter()
    meter.record(step(0.5, 0.5, tokens=6), 0.0)
    meter.record(engine_messages.StepReport((engine_messages.AnswerProgress(1, (), "", FinishReason.STOP),), 0.5, 0.5, 1, 0), 0.0)
    assert meter.figures(0.0).tokens_per_second == pytest.approx(6.0)


def test_share_of_batch_answers_is_that_of_their_tokens() -> None:
    meter = StepMeter()
    live, batch = engine_messages.AnswerProgress(1, (7,), "a"), engine_messages.AnswerProgress(2, (8, 9), "bc", seconds=0.25)
    meter.record(engine_messages.StepReport((live, live, batch), 0.5), 0.0)
    assert meter.figures(0.0).batch_share == 0.5
    assert EngineSpeed().batch_share == 0.0


def test_old_steps_do_not_count() -> None:
    meter = StepMeter()
    meter.record(step(0.1, 0.0), 0.0)
    meter.record(step(0.1, 0.1), WINDOW_SECONDS)
    assert meter.figures(WINDOW_SECONDS) == EngineSpeed(steps=1, seconds=0.1, decode_seconds=0.1, tokens_per_second=10.0)
    assert meter.figures(3 * WINDOW_SECONDS) == EngineSpeed()


@pytest.mark.parametrize(
    ("seconds", "decode_seconds", "overhead"),
    [
        pytest.param(0.1, 0.2, 0.0, id="clocks that disagree are no negative overhead"),
        pytest.param(0.1, -1.0, 1.0, id="nor more than all"),
        pytest.param(0.0, 0.0, 0.0, id="a step of no time has none"),
    ],
)
def test_overhead_is_a_share(seconds: float, decode_seconds: float, overhead: float) -> None:
    meter = StepMeter()
    meter.record(step(seconds, decode_seconds), 0.0)
    assert meter.figures(0.0).overhead == overhead


def test_fast_engine_is_measured_over_the_window_only() -> None:
    meter = StepMeter()
    for number in range(20_000):
        meter.record(step(0.001, 0.001), number / 1000)
    assert meter.figures(20.0).steps == pytest.approx(10_000, rel=0.11)


def test_speeds_of_replicas_are_added() -> None:
    busy = EngineSpeed(steps=30, seconds=3.0, decode_seconds=2.7, tokens_per_second=80.0)
    slow = EngineSpeed(steps=10, seconds=1.0, decode_seconds=0.5, tokens_per_second=20.0)
    both = measured.together([busy, slow, EngineSpeed()])
    assert both.steps == 40
    assert (both.overhead, both.step_seconds, both.tokens_per_second) == pytest.approx((0.2, 0.1, 100.0))
    assert measured.together([EngineSpeed(), EngineSpeed()]) == EngineSpeed()


def test_use_of_replicas_is_added_and_that_of_the_cache_is_the_last_reported() -> None:
    meter = StepMeter()
    for hits in (1, 3):
        meter.record(engine_messages.StepReport((), 0.1, 0.1, 1, 0, 500, hits), 0.0)
    assert (meter.figures(0.0).cache_bytes, meter.figures(0.0).cache_hits) == (500, 3)
    idle = meter.figures(3 * WINDOW_SECONDS)
    assert idle == EngineSpeed(cache_bytes=500, cache_hits=3)
    other = EngineSpeed(cpu_seconds=1.5, ram_bytes=7, cache_bytes=1)
    assert measured.together([idle, other, other]) == EngineSpeed(cpu_seconds=3.0, ram_bytes=14, cache_bytes=502, cache_hits=3)
