import pytest

from shared.node.machine import MAX_BYTES, MAX_SOURCES, CounterRate, Processors, cpu_share


@pytest.mark.parametrize(
    ("before", "now", "share"),
    [
        pytest.param((10, 100), (15, 110), 0.5, id="half of the time"),
        pytest.param((10, 100), (10, 110), 0.0, id="idle"),
        pytest.param((10, 100), (20, 110), 1.0, id="all of it"),
        pytest.param((10, 100), (21, 110), 1.0, id="a little more than there was, by the clock's inaccuracy"),
        pytest.param((10, 100), (9.9, 110), 0.0, id="busy went back"),
        pytest.param((10, 100), (10, 100), None, id="no time went by"),
        pytest.param((10, 100), (10, 90), None, id="the system counts anew"),
    ],
)
def test_a_share_is_between_zero_and_one(before: tuple[float, float], now: tuple[float, float], share: float | None) -> None:
    found = cpu_share(Processors("machine", *before), Processors("machine", *now))
    assert found == (share if share is None else pytest.approx(share))


def test_readings_under_different_limits_are_not_compared() -> None:
    assert cpu_share(Processors("machine", 10, 100), Processors("a group", 15, 110)) is None


def test_a_counter_starts_with_the_systems_value() -> None:
    growth = CounterRate()
    assert growth.take({"eth0": 5_000_000_000_000, "eth1": 1}, float("inf")) == 5_000_000_000_001
    assert growth.take({"eth0": 5_000_000_000_010, "eth1": 2}, 1) == 11


@pytest.mark.parametrize(
    ("totals", "grown"),
    [
        pytest.param([100, 100], [0], id="nothing moved"),
        pytest.param([100, 40, 70], [0, 30], id="the system counts anew"),
        pytest.param([2**32 - 10, 5, 25], [0, 20], id="a counter of 32 bits wraps"),
        pytest.param([100, 2**64 - 1, 110], [0, 10], id="a driver says -1 as if it were a number"),
        pytest.param([100, -1, 110], [0, 10], id="a negative total"),
        pytest.param([100, MAX_BYTES - 1, 110, 120], [0, 0, 10], id="more than a machine can move"),
    ],
)
def test_a_counter_never_goes_back_or_jumps(totals: list[int], grown: list[int]) -> None:
    growth = CounterRate()
    growth.take({"eth0": totals[0]}, float("inf"))
    assert [growth.take({"eth0": total}, 1) for total in totals[1:]] == grown


def test_an_interface_that_disappears_and_returns_changes_no_total() -> None:
    growth = CounterRate()
    growth.take({"eth0": 100, "wg0": 1_000}, float("inf"))
    assert growth.take({"eth0": 110}, 1) == 10
    assert growth.take({"eth0": 110, "wg0": 1_005}, 1) == 5


def test_a_new_interface_counts_from_its_first_byte() -> None:
    growth = CounterRate()
    growth.take({"eth0": 100}, float("inf"))
    assert growth.take({"eth0": 100, "veth1": 7}, 1) == 7


def test_old_interface_names_are_forgotten_oldest_first() -> None:
    growth = CounterRate()
    growth.take({"eth0": 100}, float("inf"))
    for number in range(MAX_SOURCES * 2):
        assert growth.take({"eth0": 100, f"veth{number}": 1}, 1) == 1
    assert len(growth._last) == MAX_SOURCES
    assert growth.take({"eth0": 101}, 1) == 1
