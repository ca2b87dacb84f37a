"""The oracle reports each kind of violation, and nothing for a correct history."""

from dataclasses import replace
from uuid import UUID

import pytest

from shared.types import RequestId
from tests.chaos import oracle
from tests.chaos.oracle import CONNECTION_LOST, DONE, HANGS, Attempt, Door, Fault, Row

ID = RequestId(UUID(int=1))
FAULT = Fault(began=10, over=15, doors={Door.RPC}, codes={"link_lost"})
GOOD = Attempt(door=Door.GATEWAY, prompt="a b c", began=11, ended=12, text="a b c", ends=(DONE,), status=200, request_id=ID, usage=(3, 3))
ROWS = {ID: Row("success", 3, 3)}
FAILED = Attempt(door=Door.RPC, prompt="a b c d e f g h", began=9, ended=12, text="a b", ends=("link_lost",), request_id=ID)


@pytest.mark.parametrize(
    ("attempt", "rows"),
    [
        pytest.param(GOOD, ROWS, id="a success in the middle of the fault"),
        pytest.param(FAILED, {}, id="affected by a fault, without a row"),
        pytest.param(FAILED, {ID: Row("error", 0, 2)}, id="affected by a fault, with the tokens received"),
        pytest.param(FAILED, {ID: Row("error", 0, 5)}, id="a few tokens were on their way"),
        pytest.param(replace(FAILED, request_id=None), {}, id="it never learnt its id"),
        pytest.param(replace(FAILED, began=14.9, ended=18), {}, id="begun just before the end of the fault"),
    ],
)
def test_a_right_history(attempt: Attempt, rows: dict[RequestId, Row]) -> None:
    assert oracle.violations([attempt], FAULT, rows, deadline_seconds=10) == []


def test_only_a_success_in_a_fault_that_takes_the_store_may_lose_its_row() -> None:
    fault = replace(FAULT, loses_rows=True)
    assert oracle.violations([GOOD], fault, {}, deadline_seconds=10) == []
    for began, ended in ((8, 9), (15, 16)):
        assert oracle.violations([replace(GOOD, began=began, ended=ended)], fault, {}, deadline_seconds=10)


@pytest.mark.parametrize(
    ("attempt", "rows", "what"),
    [
        (replace(GOOD, ends=()), ROWS, "0 terminal events"),
        (replace(GOOD, ends=(DONE, DONE)), ROWS, "2 terminal events"),
        (replace(FAILED, ends=("link_lost", DONE)), {}, "2 terminal events"),
        (replace(GOOD, ended=30), ROWS, "took 19.0 s"),
        (replace(FAILED, status=500), {}, "an internal error"),
        (replace(FAILED, ends=("internal",)), {}, "an internal error"),
        (replace(GOOD, text="a b b c"), ROWS, "not what was asked for"),
        (replace(GOOD, usage=(3, 2)), {ID: Row("success", 3, 2)}, "the usage should be 3 and 3"),
        (GOOD, {}, "it has no row"),
        (replace(GOOD, request_id=None), ROWS, "it has no row"),
        (GOOD, {ID: Row("error", 3, 3)}, "its row says"),
        (GOOD, {ID: Row("success", 3, 2)}, "its row says"),
        (replace(FAILED, ended=9.9), {}, "failed before the fault"),
        (replace(FAILED, began=15, ended=16), {}, "failed after the fault"),
        (replace(FAILED, door=Door.WEB), {}, "does not touch it"),
        (replace(FAILED, ends=(CONNECTION_LOST,)), {}, "not what this fault looks like"),
        (replace(FAILED, ends=(HANGS,)), {}, "not what this fault looks like"),
        (replace(FAILED, text="b c"), {}, "not the beginning"),
        (FAILED, {ID: Row("error", 0, 6)}, "6 tokens are billed"),
    ],
)
def test_each_kind_of_wrong(attempt: Attempt, rows: dict[RequestId, Row], what: str) -> None:
    assert any(what in found for found in oracle.violations([attempt], FAULT, rows, deadline_seconds=10))


def test_ids_are_different() -> None:
    assert "two requests have the same id" in oracle.violations([GOOD, GOOD], FAULT, ROWS, deadline_seconds=10)


def test_usage_counts_what_was_delivered() -> None:
    rows = [Row("success", 3, 3), Row("error", 0, 2), Row("error", 0, 0), Row("limited", 0, 0), Row("success", 0, 0)]
    assert oracle.usage_of({RequestId(UUID(int=number)): row for number, row in enumerate(rows)}) == (3, 8)
