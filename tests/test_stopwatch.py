"""The clock of the tests' time limits."""

import time

import pytest

from tests import stopwatch


def test_the_time_that_programs_waited_for_a_cpu_is_read() -> None:
    text = "some avg10=79.86 avg60=48.06 avg300=55.78 total=14591788717\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    assert stopwatch.read_waited(text) == pytest.approx(14591.788717)


def test_a_second_in_which_somebody_waited_counts_a_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, waited = 100.0, 7.0
    monkeypatch.setattr(time, "monotonic", lambda: wall)
    monkeypatch.setattr(stopwatch, "_waited_seconds", lambda: waited)
    began = stopwatch.now()
    wall += 1
    assert stopwatch.now() - began == pytest.approx(1)
    wall, waited = wall + 1, waited + 1
    assert stopwatch.now() - began == pytest.approx(1.1)


def test_a_bound_holds_at_night_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 3.0, 0.0, 3.0, 0.0, 2.0])
    monkeypatch.setattr(stopwatch, "now", lambda: next(times))
    monkeypatch.setattr(stopwatch, "bounds_hold", False)
    with stopwatch.within(3):
        pass
    monkeypatch.setattr(stopwatch, "bounds_hold", True)
    with pytest.raises(AssertionError, match=r"it took 3\.00 s, not less than 3 s"), stopwatch.within(3):
        pass
    with stopwatch.within(3):
        pass


def test_a_short_wait_is_long_enough_for_a_busy_machine_but_at_night(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "bounds_hold", False)
    assert [stopwatch.patience(seconds) for seconds in (0.5, 100)] == [stopwatch.HANG_SECONDS, 100]
    monkeypatch.setattr(stopwatch, "bounds_hold", True)
    assert stopwatch.patience(0.5) == 0.5
