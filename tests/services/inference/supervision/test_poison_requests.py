from collections.abc import Callable

import pytest

from services.inference.jobs import GenerationJob
from services.inference.supervision import poison_requests
from services.inference.supervision.poison_requests import KEPT_SECONDS, MAX_SUSPECTS, PoisonRequests, RequestSuspicion
from shared.api.generation import ChatMessage, FormatKind, OutputFormat
from tests.clocks import Clock
from tests.services.inference.standins import job

A, B = b"a" * 32, b"b" * 32


def test_every_request_running_during_a_crash_is_suspect() -> None:
    suspected = PoisonRequests(Clock())
    suspected.died([A], alone=False)
    assert [suspected.suspicion(one) for one in (A, B)] == [RequestSuspicion.SUSPECT, RequestSuspicion.CLEAR]


def test_crash_with_others_never_convicts() -> None:
    suspected = PoisonRequests(Clock())
    for _ in range(3):
        suspected.died([A, B], alone=False)
    assert [suspected.suspicion(one) for one in (A, B)] == [RequestSuspicion.SUSPECT, RequestSuspicion.SUSPECT]


def test_second_crash_alone_convicts() -> None:
    suspected = PoisonRequests(Clock())
    suspected.died([A, B], alone=False)
    suspected.died([A], alone=True)
    assert [suspected.suspicion(one) for one in (A, B)] == [RequestSuspicion.POISON, RequestSuspicion.SUSPECT]
    suspected.died([A], alone=False)
    assert suspected.suspicion(A) is RequestSuspicion.POISON, "another engine that died of it makes it no better"


def test_successful_run_clears_a_suspect() -> None:
    suspected = PoisonRequests(Clock())
    suspected.died([A], alone=False)
    suspected.clear(A)
    suspected.clear(B)
    assert suspected.suspicion(A) is RequestSuspicion.CLEAR


def test_old_suspicion_expires() -> None:
    clock = Clock()
    suspected = PoisonRequests(clock)
    suspected.died([A], alone=True)
    clock.now = KEPT_SECONDS - 1
    assert suspected.suspicion(A) is RequestSuspicion.POISON
    clock.now = KEPT_SECONDS
    assert suspected.suspicion(A) is RequestSuspicion.CLEAR


def test_oldest_records_are_dropped() -> None:
    suspected = PoisonRequests(Clock())
    requests = [number.to_bytes(32) for number in range(MAX_SUSPECTS + 1)]
    suspected.died(requests[:-1], alone=False)
    suspected.died(requests[:1], alone=False)
    suspected.died(requests[-1:], alone=False)
    assert [suspected.suspicion(one) for one in (requests[0], requests[1], requests[-1])] == [
        RequestSuspicion.SUSPECT,
        RequestSuspicion.CLEAR,
        RequestSuspicion.SUSPECT,
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
def test_same_request_has_the_same_fingerprint(other: Callable[[], GenerationJob], same: bool) -> None:
    assert (poison_requests.fingerprint(job("hello")) == poison_requests.fingerprint(other())) is same


def test_resumed_request_has_the_same_fingerprint_and_another_grammar_has_not() -> None:
    plain = job("hello")
    resumed = GenerationJob(plain.model, plain.messages, plain.parameters, plain.requested, salt="tenant", delivered=(1, 2), request="r")
    bound = job("hello", format=OutputFormat(FormatKind.JSON))
    assert poison_requests.fingerprint(resumed) == poison_requests.fingerprint(plain) != poison_requests.fingerprint(bound)
