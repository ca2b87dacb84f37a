from collections.abc import Callable

import pytest

from services.inference.backends import suspects
from services.inference.backends.suspects import KEPT_SECONDS, MOST_SUSPECTS, Standing, Suspects
from services.inference.jobs import Job
from shared.api.generation import ChatMessage
from tests.services.inference.standins import job

A, B = b"a" * 32, b"b" * 32


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_whoever_ran_when_an_engine_died_is_suspect() -> None:
    suspected = Suspects(Clock())
    suspected.died([A], alone=False)
    assert [suspected.standing(one) for one in (A, B)] == [Standing.SUSPECT, Standing.CLEAR]


def test_company_never_convicts() -> None:
    suspected = Suspects(Clock())
    for _ in range(3):
        suspected.died([A, B], alone=False)
    assert [suspected.standing(one) for one in (A, B)] == [Standing.SUSPECT, Standing.SUSPECT]


def test_a_second_death_alone_convicts() -> None:
    suspected = Suspects(Clock())
    suspected.died([A, B], alone=False)
    suspected.died([A], alone=True)
    assert [suspected.standing(one) for one in (A, B)] == [Standing.POISON, Standing.SUSPECT]
    suspected.died([A], alone=False)
    assert suspected.standing(A) is Standing.POISON, "another engine that died of it makes it no better"


def test_who_ran_well_is_cleared() -> None:
    suspected = Suspects(Clock())
    suspected.died([A], alone=False)
    suspected.clear(A)
    suspected.clear(B)
    assert suspected.standing(A) is Standing.CLEAR


def test_what_was_long_ago_is_forgotten() -> None:
    clock = Clock()
    suspected = Suspects(clock)
    suspected.died([A], alone=True)
    clock.now = KEPT_SECONDS - 1
    assert suspected.standing(A) is Standing.POISON
    clock.now = KEPT_SECONDS
    assert suspected.standing(A) is Standing.CLEAR


def test_the_oldest_give_way() -> None:
    suspected = Suspects(Clock())
    requests = [number.to_bytes(32) for number in range(MOST_SUSPECTS + 1)]
    suspected.died(requests[:-1], alone=False)
    suspected.died(requests[:1], alone=False)
    suspected.died(requests[-1:], alone=False)
    assert [suspected.standing(one) for one in (requests[0], requests[1], requests[-1])] == [
        Standing.SUSPECT,
        Standing.CLEAR,
        Standing.SUSPECT,
    ]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        pytest.param(lambda: job("hello"), True, id="the same words"),
        pytest.param(lambda: job("hello", seed=7), True, id="another seed"),
        pytest.param(lambda: job("hello!"), False, id="other words"),
        pytest.param(lambda: job((ChatMessage("system", "hello"),)), False, id="the same words of somebody else"),
        pytest.param(lambda: job("hello", temperature=0.1), False, id="another temperature"),
        pytest.param(lambda: job("hello", max_tokens=1), False, id="another length"),
        pytest.param(lambda: job("hello", model="other"), False, id="another model"),
    ],
)
def test_a_request_is_known_again(other: Callable[[], Job], same: bool) -> None:
    assert (suspects.fingerprint(job("hello")) == suspects.fingerprint(other())) is same


def test_an_answer_that_goes_on_is_the_same_request_and_another_grammar_is_not() -> None:
    plain = job("hello")
    resumed = Job(plain.model, plain.messages, plain.parameters, plain.asked, salt="tenant", delivered=(1, 2), request="r")
    bound = Job(plain.model, plain.messages, plain.parameters, plain.asked, grammar='root ::= "a"')
    assert suspects.fingerprint(resumed) == suspects.fingerprint(plain) != suspects.fingerprint(bound)
