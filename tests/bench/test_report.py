"""A bench that fails or runs out of its time prints, writes and names what it has."""

import argparse
import asyncio
import json
import math
import os
import signal
from pathlib import Path

import pytest

from bench import contenders, engine, report
from bench.report import Better, Table


def _options(*words: str) -> argparse.Namespace:
    return report.arguments("A bench.", limits=(600.0, 60.0), quick="one round").parse_args(words)


def _table(words: str = "") -> Table:
    with report.opened(_options(*words.split())) as table:
        return table


def _row(claim: str) -> report.Row:
    return report.against(claim, 3.0, "calls/s", "theirs", 2.0)


def _stopped() -> float:
    """A clock that lets every part begin, so that only waiting takes time."""
    return 0.0


async def _forever() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("words", "seconds"), [("", 600), ("--quick", 60), ("--time-limit 7", 7), ("--quick --time-limit 7", 7), ("--time-limit 0", 0)]
)
def test_the_time_limit_is_that_of_the_form_unless_it_is_given(words: str, seconds: float) -> None:
    assert _table(words).seconds == seconds


def test_a_bench_that_runs_out_of_its_time_prints_the_rows_that_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def measure(table: Table) -> None:
        table.expect(("first", "second", "third"))
        with table.part("first") as rows:
            rows.append(_row("a whole part"))
        with table.part("second") as rows:
            rows.append(_row("the beginning of a part"))
            await _forever()

    options = _options("--time-limit", "0.02", "--json", str(tmp_path / "rows.json"), "--save", str(tmp_path / "made" / "table.txt"))
    with pytest.raises(SystemExit) as ended, report.opened(options, clock=_stopped) as table:
        table.run(measure(table))
    assert ended.value.code == report.OUT_OF_TIME == 124
    claims = ["a whole part", "the beginning of a part"]
    out, err = capsys.readouterr()
    assert all(claim in out for claim in claims)
    assert "out of time (0.02 s); not measured to its end: second, third" in err
    assert [row["claim"] for row in json.loads((tmp_path / "rows.json").read_text())] == claims
    assert all(claim in (tmp_path / "made" / "table.txt").read_text() for claim in claims)


def test_a_bench_that_fails_prints_the_rows_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), report.opened(_options()) as table:
        table.add([_row("before the fault")])
        raise ZeroDivisionError
    assert "before the fault" in capsys.readouterr().out


def test_a_timeout_of_what_is_measured_is_no_end_of_the_benchs_time() -> None:
    async def measure() -> None:
        async with asyncio.timeout(0):
            await _forever()

    with pytest.raises(TimeoutError), report.opened(_options()) as table:
        table.run(measure())


def test_a_bench_that_is_asked_to_end_prints_the_rows_that_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    problems: list[object] = []

    async def measure(table: Table) -> None:
        table.add([_row("before SIGTERM")])
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: problems.append(context))
        # Supervisors and people send it again when nothing seems to happen.
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        try:
            await _forever()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            handled = loop.create_future()
            loop.call_later(0.01, handled.set_result, None)
            await handled

    with pytest.raises(SystemExit) as ended, report.opened(_options()) as table:
        table.run(measure(table))
    assert ended.value.code == report.OUT_OF_TIME
    assert "before SIGTERM" in capsys.readouterr().out
    assert problems == []


def test_no_part_begins_when_the_time_is_over() -> None:
    now = 100.0
    table = Table(10.0, clock=lambda: now)
    table.expect(("one", "two"))
    with table.part("one") as rows:
        rows.append(_row("slow, and without an await"))
        now = 110.0
    with pytest.raises(report.OutOfTime), table.part("two"):
        pytest.fail("the part has begun")
    assert [row.claim for row in table.rows] == ["slow, and without an await"]
    assert table.unfinished == ["two"]


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
    row = report.against("a claim", 3.0, unit, "theirs", 2.0, at_most=at_most, at_least=at_least)
    assert (row.ratio, row.better) == (1.5, better)


def test_a_ratio_of_an_unknown_unit_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match="whether more 'turns' is better"):
        report.against("a claim", 3.0, "turns", "theirs", 2.0)


def test_a_rival_that_did_nothing_gives_no_ratio() -> None:
    row = report.against("a claim", 3.0, "ms", "theirs", 0.0, at_most=1.0)
    assert row.ratio is not None
    assert math.isnan(row.ratio)
    assert row.met is False


# --- bench.engine --------------------------------------------------------------------------------------------------------


def _rates(**levels: int) -> engine.Rates:
    """Each contender's rates of so many rounds at one stream."""
    rates = engine.Rates()
    for who, count in levels.items():
        name = {"ours": contenders.Ours(contenders.MODES[0]).name, "theirs": contenders.LlamaServer.name}[who]
        for number in range(count):
            rates.add(name, 1, 100.0 + number)
    return rates


@pytest.mark.parametrize(
    ("rates", "rows"),
    [
        pytest.param({"ours": 1}, 0, id="the rival has not had its turn"),
        pytest.param({"ours": 1, "theirs": 1}, 1, id="one level of one mode"),
        pytest.param({"ours": 2, "theirs": 1}, 1, id="in the middle of the second round"),
    ],
)
def test_the_engines_rows_are_those_of_which_both_sides_were_measured(rates: dict[str, int], rows: int) -> None:
    found = engine.throughput_rows(_rates(**rates))
    assert len(found) == rows
    assert all(row.ratio == 1.0 for row in found)


def test_the_engines_bench_keeps_the_sections_that_it_had_time_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def quick(rows: list[report.Row], _rounds: int, _threads: int) -> None:
        rows.append(_row("throughput"))

    async def slow(rows: list[report.Row], _rounds: int, _threads: int) -> None:
        rows.append(_row("the first contender's wait"))
        await _forever()

    for name, section in {"throughput": quick, "first_token": slow, "shared_prefix": quick}.items():
        monkeypatch.setitem(engine.SECTIONS, name, section)
    with pytest.raises(SystemExit), report.opened(_options("--time-limit", "0.02"), clock=_stopped) as table:
        table.run(engine.measure(table, engine.QUICK_SECTIONS, 1, 2))
    out, err = capsys.readouterr()
    assert [row.claim for row in table.rows] == ["throughput", "the first contender's wait"]
    assert "the first contender's wait" in out
    assert "not measured to its end: first_token, shared_prefix" in err
