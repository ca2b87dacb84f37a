"""The oracle of the faults reports each kind of violation, and nothing if all is right."""

from dataclasses import replace
from uuid import UUID

import pytest

from shared.types import RequestId, UserId
from tests.chaos import history, invariants
from tests.chaos.history import LEFT, Call, Piece
from tests.chaos.invariants import Allowed
from tests.chaos.ledger import Account, Books, Logged, Reservation
from tests.chaos.oracle import CONNECTION_LOST, DONE, HANGS, Door

ID, OWNER = RequestId(UUID(int=1)), UserId(UUID(int=2))
PIECES = (Piece(1.1, "a", 1), Piece(1.2, " b", 2), Piece(1.3, " c", 3))
GOOD = Call(
    owner=OWNER, door=Door.GATEWAY, prompt="a b c", began=1, ended=2, pieces=PIECES, ends=(DONE,), status=200, request_id=ID, usage=(3, 3)
)
FAILED = replace(GOOD, pieces=PIECES[:2], ends=("link_lost",), usage=None)
BOOKS = Books(
    logged={ID: Logged("success", 3, 3, 9)},
    reservations={ID: Reservation("settled", 20, 9)},
    accounts={OWNER: Account(100, 0, 100, 0, left_tokens=50, entries_tokens=50)},
    charged={ID: 9},
)
FAILED_BOOKS = replace(BOOKS, logged={ID: Logged("error", 3, 2, 9)})
MAY_FAIL = Allowed(codes=frozenset({"link_lost"}), since=1.5, until=3)


@pytest.mark.parametrize(
    ("call", "books", "allowed"),
    [
        pytest.param(GOOD, BOOKS, Allowed(), id="a success"),
        pytest.param(FAILED, FAILED_BOOKS, MAY_FAIL, id="a failure that the fault allows"),
        pytest.param(replace(GOOD, pieces=PIECES[:1], ends=(LEFT,), usage=None), FAILED_BOOKS, Allowed(), id="its client left"),
        pytest.param(GOOD, Books(), Allowed(gateway_died=True), id="its gateway died before its row"),
        pytest.param(replace(FAILED, request_id=None), BOOKS, MAY_FAIL, id="it never learnt its id"),
        pytest.param(GOOD, replace(BOOKS, reservations={}, charged={}), Allowed(), id="a gateway without a ledger"),
    ],
)
def test_right(call: Call, books: Books, allowed: Allowed) -> None:
    assert invariants.violations([call], books, allowed) == []


def test_the_share_of_answered_requests_is_counted_plain_and_with_one_retry() -> None:
    twice = replace(FAILED, prompt="x")
    calls = [GOOD, replace(GOOD, prompt="left", ends=(LEFT,)), replace(FAILED, prompt="y"), replace(GOOD, prompt="y", attempt=2), twice]
    assert history.availability([*calls, replace(twice, attempt=2)]) == (0.5, 0.75)
    assert "answered 50.00%, with one retry as of our SDKs 75.000%" in history.service_level([*calls, replace(twice, attempt=2)])
    assert "retry" not in history.service_level([GOOD])


def test_an_outage_lasts_from_one_answer_to_the_next() -> None:
    calls = [replace(GOOD, began=began, ended=began + 1) for began in (0.0, 4.0, 5.0)]
    assert history.longest_outage(calls) == 4.0
    assert history.longest_outage([*calls, replace(FAILED, began=6.0, ended=30.0)]) == 24.0


@pytest.mark.parametrize(
    ("call", "books", "allowed", "what"),
    [
        (replace(GOOD, ends=()), BOOKS, Allowed(), "I1: 0 terminal events"),
        (replace(GOOD, ends=(DONE, DONE)), BOOKS, Allowed(), "I1: 2 terminal events"),
        (replace(GOOD, ended=100), BOOKS, Allowed(), "longer than its deadline"),
        (replace(FAILED, ends=(HANGS,)), FAILED_BOOKS, MAY_FAIL, "hangs must never be seen"),
        (replace(FAILED, ends=("internal",)), FAILED_BOOKS, MAY_FAIL, "internal must never be seen"),
        (replace(FAILED, ends=(CONNECTION_LOST,)), FAILED_BOOKS, MAY_FAIL, "not what this fault looks like"),
        (replace(FAILED, ended=1.4), FAILED_BOOKS, MAY_FAIL, "nothing was broken"),
        (replace(FAILED, began=4, ended=5), FAILED_BOOKS, MAY_FAIL, "nothing was broken"),
        (FAILED, FAILED_BOOKS, replace(MAY_FAIL, running_survive=True), "it was running when the fault came"),
        (replace(GOOD, pieces=PIECES[:2]), BOOKS, Allowed(), "I2: the text differs"),
        (replace(GOOD, pieces=(PIECES[0], PIECES[0], *PIECES[1:])), BOOKS, Allowed(), "I2: the text differs"),
        (replace(FAILED, pieces=(Piece(1.1, "x", 1),)), FAILED_BOOKS, MAY_FAIL, "I2: no beginning"),
        (replace(GOOD, pieces=(PIECES[0], replace(PIECES[1], number=1), PIECES[2])), BOOKS, Allowed(), "I2: the chunks' numbers"),
        (replace(GOOD, usage=(3, 4)), BOOKS, Allowed(), "I4: the usage"),
        (GOOD, replace(BOOKS, logged={}), Allowed(), "I3: it has no row"),
        (GOOD, replace(BOOKS, logged={ID: Logged("success", 3, 6, 9)}), Allowed(), "I3: its row says"),
        (FAILED, replace(BOOKS, logged={ID: Logged("error", 3, 7, 9)}), MAY_FAIL, "I4: 7 tokens are billed and 2"),
        (replace(FAILED, pieces=()), FAILED_BOOKS, MAY_FAIL, "I4: nothing was delivered"),
        (GOOD, replace(BOOKS, reservations={ID: Reservation("reserved", 20, None)}, charged={}), Allowed(), "I5: its reservation is open"),
        (GOOD, replace(BOOKS, reservations={ID: Reservation("released", 20, 0)}, charged={}), Allowed(), "I3: its reservation is released"),
        (GOOD, replace(BOOKS, charged={ID: 18}), Allowed(), "I3: 18 micro-credits were taken and 9 settled"),
        (GOOD, replace(BOOKS, reservations={}), Allowed(), "taken without a reservation"),
        (GOOD, replace(BOOKS, lopsided=("usage 1",)), Allowed(), "do not add up to zero"),
        (GOOD, replace(BOOKS, accounts={OWNER: Account(100, 0, 91, 0)}), Allowed(), "the entries say 91"),
        (GOOD, replace(BOOKS, accounts={OWNER: Account(100, 20, 100, 0)}), Allowed(), "I5: 20 micro-credits"),
        (GOOD, replace(BOOKS, accounts={OWNER: Account(100, 0, 100, 0, left_tokens=5)}), Allowed(), "5 tokens and the entries say 0"),
        (GOOD, replace(BOOKS, accounts={OWNER: Account(100, 0, 100, 0, held_tokens=7)}), Allowed(), "I5: 7 tokens"),
    ],
)
def test_each_kind_of_wrong(call: Call, books: Books, allowed: Allowed, what: str) -> None:
    assert any(what in found for found in invariants.violations([call], books, allowed))


def test_ids_are_different() -> None:
    assert any("two calls" in found for found in invariants.violations([GOOD, GOOD], BOOKS, Allowed()))
