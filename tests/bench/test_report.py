"""A bench that fails or runs out of time prints, writes and names the rows that it has."""

import argparse
import asyncio
import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from bench import contenders, engine, report
from bench.report import Better, Rows, Table

PARTS, QUICK_PARTS = ("quick", "slow", "last"), ("quick", "last")


def _options(*words: str) -> argparse.Namespace:
    return report.arguments("A bench.", {"time_limit": (600.0, 60.0), "rounds": (3, 1)}, PARTS, QUICK_PARTS, words)


def _add(rows: Rows, claim: str) -> None:
    rows.against(claim, 3.0, "calls/s", "theirs", 2.0)


def _against(unit: str, rival_value: float, **target: Any) -> report.Row:
    rows = Rows()
    rows.against("a claim", 3.0, unit, "theirs", rival_value, **target)
    return rows[0]


def _paired(values: list[float], others: list[float], **target: Any) -> report.Row:
    rows = Rows()
    rows.paired("ours", values, "tokens/s", "theirs", others, **target)
    return rows[0]


async def _forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("words", "seconds"), [("", 600), ("--quick", 60), ("--time-limit 7", 7), ("--quick --time-limit 7", 7), ("--time-limit 0", 0)]
)
def test_the_time_limit_is_that_of_the_form_unless_it_is_given(words: str, seconds: float) -> None:
    assert _options(*words.split()).time_limit == seconds


def test_a_bench_that_runs_out_of_its_time_prints_the_rows_that_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def quick(rows: Rows, _shared: None, _options: argparse.Namespace) -> None:
        _add(rows, "a whole part")

    async def slow(rows: Rows, _shared: None, _options: argparse.Namespace) -> None:
        _add(rows, "the beginning of a part")
        await _forever()

    options = _options("--time-limit", "1", "--json", str(tmp_path / "rows.json"))
    table = Table(options)
    with pytest.raises(SystemExit) as ended:
        table.run({"quick": quick, "slow": slow, "last": quick})
    assert ended.value.code == report.OUT_OF_TIME == 124
    claims = ["a whole part", "the beginning of a part"]
    out, err = capsys.readouterr()
    assert all(claim in out for claim in claims)
    assert "out of time (1 s); not measured to its end: slow, last" in err
    assert [row["claim"] for row in json.loads((tmp_path / "rows.json").read_text())] == claims


def test_a_bench_that_fails_prints_the_rows_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    async def fail(rows: Rows, _shared: None, _options: argparse.Namespace) -> None:
        _add(rows, "before the fault")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Table(_options()).run(dict.fromkeys(PARTS, fail))
    assert "before the fault" in capsys.readouterr().out


def test_a_timeout_of_what_is_measured_is_no_end_of_the_benchs_time() -> None:
    async def measure(_rows: Rows, _shared: None, _options: argparse.Namespace) -> None:
        async with asyncio.timeout(0):
            await _forever()

    with pytest.raises(TimeoutError):
        Table(_options()).run(dict.fromkeys(PARTS, measure))


def test_a_bench_that_is_asked_to_end_prints_the_rows_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    problems: list[object] = []

    async def measure(rows: Rows, _shared: None, _options: argparse.Namespace) -> None:
        _add(rows, "before SIGTERM")
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: problems.append(context))
        # Supervisors and users repeat SIGTERM when nothing seems to happen.
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            await _forever()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            handled = loop.create_future()
            loop.call_later(0.01, handled.set_result, None)
            await handled

    with pytest.raises(SystemExit) as ended:
        Table(_options()).run(dict.fromkeys(PARTS, measure))
    assert ended.value.code == report.OUT_OF_TIME
    assert "before SIGTERM" in capsys.readouterr().out
    assert problems == []


def test_no_part_begins_when_the_time_is_over() -> None:
    async def slow(rows: Rows, _shared: None, _options: argparse.Namespace) -> None:
        _add(rows, "slow, and without an await")
        begun = time.monotonic()
        while time.monotonic() < begun + 0.05:
            pass

    async def last(_rows: Rows, _shared: None, _options: argparse.Namespace) -> None:
        pytest.fail("the part has begun")

    table = Table(_options("--time-limit", "0.05", "--only", "slow", "last"))
    with pytest.raises(SystemExit):
        table.run({"slow": slow, "last": last})
    assert [row.claim for row in table.rows["slow"]] == ["slow, and without an await"]
    assert table.unfinished == ["last"]


@pytest.mark.parametrize(
    ("unit", "at_most", "at_least", "better"),
    [
        pytest.param("calls/s", None, None, Better.HIGHER, id="a rate"),
        pytest.param("ms", None, None, Better.LOWER, id="a time"),
        pytest.param("MB", None, None, Better.LOWER, id="a size"),
        pytest.param("turns", 2.0, None, Better.LOWER, id="at most"),
        pytest.param("turns", None, 2.0, Better.HIGHER, id="at least"),
    ],
)
def test_every_ratio_says_which_way_is_better(unit: str, at_most: float | None, at_least: float | None, better: Better) -> None:
    row = _against(unit, 2.0, at_most=at_most, at_least=at_least)
    assert (row.ratio, row.better) == (1.5, better)


def test_a_ratio_of_an_unknown_unit_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match="whether more 'turns' is better"):
        _against("turns", 2.0)


def test_a_rival_that_did_nothing_gives_no_ratio() -> None:
    row = _against("ms", 0.0, at_most=1.0)
    assert row.ratio is not None
    assert math.isnan(row.ratio)
    assert row.met is False


# --- rounds --------------------------------------------------------------------------------------------------------------


def test_the_ratio_is_of_pairs_and_not_of_medians() -> None:
    # The machine is half as fast in the second round, for both.
    row = _paired([200.0, 90.0, 220.0], [100.0, 50.0, 100.0], at_least=2.0)
    assert (row.value, row.rival_value) == (200.0, 100.0)
    assert row.ratio == pytest.approx(2.0)
    assert (row.claim, row.between) == ("ours", (1.8, 2.2))
    assert row.met


@pytest.mark.parametrize("others", [[0.0, 100.0, 100.0], [math.nan, 100.0, 100.0]], ids=["nothing", "no number"])
def test_a_round_without_a_figure_leaves_no_ratio(others: list[float]) -> None:
    row = _paired([200.0, 90.0, 220.0], others, at_least=1.0)
    assert row.ratio is not None
    assert math.isnan(row.ratio)
    assert row.met is False


@pytest.mark.parametrize(
    ("at_most", "at_least", "met"),
    [
        pytest.param(1.1, None, True, id="little enough"),
        pytest.param(0.9, None, False, id="too much"),
        pytest.param(None, 1.0, True, id="just enough"),
        pytest.param(None, 1.01, False, id="too little"),
        pytest.param(None, None, None, id="for information"),
    ],
)
def test_a_target_is_met_or_not(at_most: float | None, at_least: float | None, met: bool | None) -> None:
    row = _paired([5.0], [5.0], at_most=at_most, at_least=at_least)
    assert row.met is met
    assert (row.target is None) == (met is None)


def test_everybody_goes_first_once() -> None:
    everyone = contenders.EVERYONE
    firsts = [report.in_turn(everyone, number)[0] for number in range(len(everyone))]
    assert tuple(firsts) == everyone
    assert all(set(report.in_turn(everyone, number)) == set(everyone) for number in range(5))


# --- bench.engine --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "rivals_rounds", "rows"),
    [
        pytest.param(1, 0, 0, id="the rival has not had its turn"),
        pytest.param(1, 1, 1, id="one mode"),
        pytest.param(2, 1, 1, id="in the middle of the second round"),
    ],
)
def test_the_engines_rows_are_those_of_which_both_sides_were_measured(rounds: int, rivals_rounds: int, rows: int) -> None:
    contestants = (*(contender.name for contender in engine.EVERYONE), engine.BATCHED_BENCH)
    rates = [dict.fromkeys(engine.LEVELS, engine.Rate(100.0 + number, math.nan)) for number in range(rounds)]
    ours, theirs = contenders.OURS[contenders.MODES[0]].name, contenders.LLAMA_SERVER.name
    found = engine.throughput_rows(dict.fromkeys(contestants, ()) | {ours: rates, theirs: rates[:rivals_rounds]})
    assert [row.claim for row in found] == [f"{ours}: {level} stream{'s' if level > 1 else ''}" for level in engine.LEVELS] * rows
    assert all(row.ratio == 1.0 for row in found)


async def test_the_figures_so_far_are_told_after_each_turn() -> None:
    async def measure() -> int:
        return 1

    seen: list[dict[str, int]] = []
    await report.take_turns(
        {"a": measure, "b": measure}, 2, lambda found: seen.append({name: len(figures) for name, figures in found.items()})
    )
    assert seen == [{"a": 1, "b": 0}, {"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 2}]


def test_the_parts_that_are_measured_are_those_of_the_form_or_of_the_command_line() -> None:
    async def measure(rows: Rows, shared: None, options: argparse.Namespace) -> None:
        _add(rows, f"{options.rounds} rounds")

    for words, parts, rounds in (("", PARTS, 3), ("--quick", QUICK_PARTS, 1), ("--only slow --rounds 7", ("slow",), 7)):
        table = Table(_options(*words.split()))
        table.run(dict.fromkeys(PARTS, measure))
        assert {name: [row.claim for row in rows] for name, rows in table.rows.items()} == {name: [f"{rounds} rounds"] for name in parts}
