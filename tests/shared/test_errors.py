"""The error tree: an error is the same after a transfer, and every kind has a fault."""

from shared import errors
from shared.errors import Fault, Problem
from tests.cases import case

KINDS = sorted(errors.BY_CODE.values(), key=lambda kind: kind.__name__)


def test_an_error_survives_the_wire() -> None:
    for kind in KINDS:
        with case(kind.__name__):
            sent = kind("what happened", hint="what to do", retry_after_seconds=1.5, field="name")
            received = errors.from_problem(sent.to_problem())
            assert type(received) is errors.BY_CODE[kind.code]
            assert (received.message, received.hint, received.retry_after_seconds, received.field) == (
                "what happened",
                "what to do",
                1.5,
                "name",
            )
            assert received.to_problem() == sent.to_problem()


def test_every_error_class_is_documented() -> None:
    for kind in KINDS:
        with case(kind.__name__):
            assert kind.__doc__
            assert "__doc__" in vars(kind)


def test_no_caller_or_peer_error_is_a_500() -> None:
    for kind in KINDS:
        with case(kind.__name__):
            assert (kind.status == 500) == (kind.fault is Fault.OURS)


def test_an_unknown_error_of_a_newer_peer_keeps_its_code() -> None:
    problem = Problem("of_tomorrow", "new", "update", Fault.PEER, retryable=True, retry_after_ms=250)
    received = errors.from_problem(problem)
    assert isinstance(received, errors.RemoteError)
    assert errors.code_of(received) == "of_tomorrow"
    assert received.to_problem() == problem
    assert received.retry_after_seconds == 0.25


def test_codes_are_words_that_scripts_can_match() -> None:
    assert all(code.isascii() and code.islower() and code.replace("_", "").isalpha() for code in errors.BY_CODE)
