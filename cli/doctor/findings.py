"""The result of one check of `aicli doctor`."""

from collections.abc import Iterator

import msgspec

from shared import errors


class DoctorFinding(msgspec.Struct, frozen=True):
    check: str
    #: None: could not be checked.
    ok: bool | None
    detail: str
    #: What to do; empty if nothing.
    hint: str = ""


def wrong(check: str, error: errors.AimeshError) -> DoctorFinding:
    return DoctorFinding(check, False, error.message, error.hint)


def unchecked(because: str, *checks: str) -> Iterator[DoctorFinding]:
    """Return a finding for each check that makes no sense until ``because`` is fixed."""
    return (DoctorFinding(check, None, f"not checked: fix {because} first") for check in checks)
