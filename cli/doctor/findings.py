"""A finding of `aicli doctor`: what was looked at, whether it is well, and what to do if not."""

from collections.abc import Iterator

import msgspec

from shared import errors


class DoctorFinding(msgspec.Struct, frozen=True):
    check: str
    #: None: could not be checked.
    ok: bool | None
    detail: str
    #: What to do; empty when nothing is.
    hint: str = ""


def wrong(check: str, error: errors.AimeshError) -> DoctorFinding:
    return DoctorFinding(check, False, error.message, error.hint)


def unchecked(because: str, *checks: str) -> Iterator[DoctorFinding]:
    """One for each check that has no sense before ``because`` is mended."""
    return (DoctorFinding(check, None, f"not checked: {because} first") for check in checks)
