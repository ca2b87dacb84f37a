import os
import subprocess
import sys

import pytest

from bench import processes
from bench.report import Rows
from tests.soak import soak
from tests.soak.soak import Reading


def _by_claim(first: dict[str, Reading], last: dict[str, Reading]) -> dict[str, bool | None]:
    rows = Rows()
    soak.compare(rows, first, last)
    return {row.claim: row.met for row in rows}


@pytest.mark.parametrize(
    ("after", "met"),
    [
        pytest.param(Reading(1, 104.9, 200.0), True, id="a little more, whatever is its own"),
        pytest.param(Reading(1, 105.1, 50.0), False, id="too much more"),
        pytest.param(Reading(1, 60.0, 50.0), True, id="less"),
    ],
)
def test_growth_is_judged_by_the_resident_set(after: Reading, met: bool) -> None:
    assert _by_claim({"auth": Reading(1, 100.0, 50.0)}, {"auth": after}) == {"auth: RSS": met, "auth: USS": None}


def test_a_process_that_was_started_again_has_forgotten_what_it_held() -> None:
    first = {"auth": Reading(1, 100.0, 50.0), "web": Reading(2, 100.0, 50.0)}
    last = {"auth": Reading(3, 90.0, 50.0), "inference: engine": Reading(4, 90.0, 50.0)}
    assert list(_by_claim(first, last).values()) == [False, False, False]


def test_the_median_of_readings() -> None:
    readings = [Reading(7, 100.0, 10.0), Reading(7, 300.0, 30.0), Reading(7, 200.0, 20.0)]
    assert soak.median(readings) == Reading(7, 200.0, 20.0)


def test_what_a_process_holds_and_whom_it_started() -> None:
    with subprocess.Popen([sys.executable, "-c", "held = b'x' * 50_000_000; print(); input()"], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        reading = soak.read(process.pid)
        assert process.pid in processes.children_of(os.getpid())
        process.communicate(b"\n")
    assert 50.0 < reading.uss < reading.rss < 100.0
