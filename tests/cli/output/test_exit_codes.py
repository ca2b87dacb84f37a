"""Every error has an exit status, and those that scripts branch on have the documented one."""

import pytest

from cli.output import exit_codes
from cli.output.exit_codes import ExitCode
from shared import errors


def test_every_error_has_an_exit_code() -> None:
    assert set(exit_codes.BY_ERROR) == set(errors.BY_CODE)


def test_every_exit_code_is_documented() -> None:
    assert set(exit_codes.MEANINGS) == set(ExitCode)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.BadRequest, 2),
        (errors.BadSettings, 2),
        (errors.NotAuthenticated, 3),
        (errors.Limited, 4),
        (errors.BudgetExhausted, 4),
        (errors.UnknownModel, 5),
        (errors.NotReachable, 5),
        (errors.Unavailable, 5),
        (errors.NotAllowed, 1),
        (errors.Internal, 1),
        (errors.Cancelled, 130),
    ],
)
def test_exit_codes_for_scripts(error: type[errors.AimeshError], expected: int) -> None:
    assert exit_codes.for_error(error.code) == expected


def test_unknown_error_of_a_newer_peer_is_a_plain_failure() -> None:
    assert exit_codes.for_error("invented_tomorrow") is ExitCode.FAILED
