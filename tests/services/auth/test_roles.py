"""What a recognised caller may do."""

from uuid import UUID

import pytest

from services.auth import roles
from shared import errors
from shared.api.auth import Principal
from shared.types import Tier, UserId, UserRole

ME, OTHER = UserId(UUID(int=1)), UserId(UUID(int=2))


def principal(role: UserRole = UserRole.USER, limit: int | None = None) -> Principal:
    return Principal(ME, "me", role, Tier.FREE, key_requests_per_hour=limit)


@pytest.mark.parametrize(
    ("role", "named", "expected"),
    [
        pytest.param(UserRole.USER, None, ME, id="nobody named means oneself"),
        pytest.param(UserRole.USER, ME, ME, id="oneself by name"),
        pytest.param(UserRole.USER, OTHER, None, id="another is refused"),
        pytest.param(UserRole.DEVELOPER, OTHER, None, id="a developer too"),
        pytest.param(UserRole.ADMIN, OTHER, OTHER, id="an administrator may"),
        pytest.param(UserRole.ADMIN, None, ME, id="an administrator means oneself too"),
    ],
)
def test_subject_of(role: UserRole, named: UserId | None, expected: UserId | None) -> None:
    if expected is not None:
        assert roles.subject_of(principal(role), named) == expected
        return
    with pytest.raises(errors.NotAllowed):
        roles.subject_of(principal(role), named)


@pytest.mark.parametrize(
    ("ceiling", "asked", "error"),
    [
        pytest.param(None, None, None, id="no limit of either"),
        pytest.param(None, 5, None, id="an unlimited key makes a limited one"),
        pytest.param(5, 5, None, id="as limited"),
        pytest.param(5, 4, None, id="more limited"),
        pytest.param(5, 6, errors.NotAllowed, id="less limited"),
        pytest.param(5, None, errors.NotAllowed, id="without a limit"),
        pytest.param(None, 0, errors.BadRequest, id="nothing at all"),
        pytest.param(None, -1, errors.BadRequest, id="less than nothing"),
        pytest.param(None, 2**31, errors.BadRequest, id="more than the column holds"),
    ],
)
def test_limit_of_a_new_key(ceiling: int | None, asked: int | None, error: type[errors.AimeshError] | None) -> None:
    if error is None:
        roles.check_limit_of_new_key(principal(limit=ceiling), asked)
        return
    with pytest.raises(error):
        roles.check_limit_of_new_key(principal(limit=ceiling), asked)


def test_a_limited_key_opens_no_session() -> None:
    roles.check_may_open_session(principal())
    with pytest.raises(errors.NotAllowed):
        roles.check_may_open_session(principal(limit=5))


@pytest.mark.parametrize("role", UserRole)
def test_only_administrators_administer(role: UserRole) -> None:
    if role is UserRole.ADMIN:
        roles.check_admin(principal(role))
        return
    with pytest.raises(errors.NotAllowed):
        roles.check_admin(principal(role))
