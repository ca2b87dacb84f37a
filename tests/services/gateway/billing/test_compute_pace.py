"""How long a request computes at the usual speed of its model."""

from services.gateway.billing.compute_pace import ComputePaces, Pace
from shared.types import ModelName

MODEL = ModelName("m")


def measured(*seconds: float, tokens: int = 100, prompt_seconds: float = 0.5) -> ComputePaces:
    paces = ComputePaces()
    paces.find(MODEL, 0.0)
    for each in seconds:
        paces.record(MODEL, prompt_seconds=prompt_seconds, seconds=each, tokens=tokens, now=0.0)
    return paces


def test_the_p95_counts() -> None:
    assert measured(4.5).find(MODEL, 0.0) == Pace(0.5, 0.04)
    # 19 of 20 compute up to 0.19 s for a token.
    paces = measured(*(0.5 + number for number in range(1, 21)))
    assert paces.find(MODEL, 0.0) == Pace(0.5, 0.19)
    assert paces.find(ModelName("another"), 0.0) is None


def test_one_slow_request_of_many_changes_nothing() -> None:
    assert measured(*[2.5] * 40, 500.5).find(MODEL, 0.0) == Pace(0.5, 0.02)


def test_a_request_gets_half_as_much_again() -> None:
    assert Pace(2.0, 0.02).seconds(1000) == 33.0
    assert Pace(2.0, 0.0).seconds(1000) == 3.0


def test_only_the_last_hour_counts() -> None:
    paces = measured(100.5)
    assert paces.find(MODEL, 3600.0) == Pace(0.5, 1.0)
    paces.record(MODEL, prompt_seconds=0.5, seconds=2.5, tokens=100, now=3000.0)
    assert paces.find(MODEL, 3601.0) == Pace(0.5, 0.02)
    assert paces.find(MODEL, 6601.0) is None


def test_the_memory_is_bounded() -> None:
    paces = measured(*[100.5] * 600)
    for _ in range(475):
        paces.record(MODEL, prompt_seconds=0.5, seconds=2.5, tokens=100, now=0.0)
    assert paces.find(MODEL, 0.0) == Pace(0.5, 0.02), "25 of the last 500 are slow"
    for number in range(200):
        paces.find(ModelName(f"m{number}"), 0.0)
        paces.record(ModelName(f"m{number}"), prompt_seconds=0.0, seconds=1.0, tokens=1, now=0.0)
    assert paces.find(ModelName("m0"), 0.0) == Pace(0.0, 1.0)
    assert paces.find(MODEL, 0.0) is None, "it was measured longest ago"


def test_a_model_whose_pace_nobody_asks_for_is_not_measured() -> None:
    paces, found = ComputePaces(), []
    for seconds in (100.5, 2.5):
        paces.record(MODEL, prompt_seconds=0.5, seconds=seconds, tokens=100, now=0.0)
        found.append(paces.find(MODEL, 0.0))
    assert found == [None, Pace(0.5, 0.02)]


def test_a_pace_stands_for_a_second() -> None:
    paces = measured(2.5)
    assert paces.find(MODEL, 1.0) == Pace(0.5, 0.02)
    paces.record(MODEL, prompt_seconds=0.5, seconds=100.5, tokens=100, now=1.0)
    assert paces.find(MODEL, 1.9) == Pace(0.5, 0.02)
    assert paces.find(MODEL, 2.0) == Pace(0.5, 1.0)
