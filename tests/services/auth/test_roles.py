"""What a recognised caller may do."""

from uuid import UUID

import msgspec
import pytest

from services.auth import roles
from shared import errors
from shared.api.auth import KeyLimits, Principal
from shared.types import MicroCredits, Tier, UserId, UserRole

ME, OTHER = UserId(UUID(int=1)), UserId(UUID(int=2))


NONE = KeyLimits()


def principal(role: UserRole = UserRole.USER, limits: KeyLimits = NONE) -> Principal:
    return Principal(ME, "me", role, Tier.FREE, key_limits=limits)


def limits(name: str, value: int | None) -> KeyLimits:
    return msgspec.structs.replace(NONE, **{name: value})


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


@pytest.mark.parametrize("name", KeyLimits.__struct_fields__)
@pytest.mark.parametrize(
    ("ceiling", "asked", "error"),
    [
        pytest.param(None, None, None, id="no limit of either"),
        pytest.param(None, 5, None, id="an unlimited key makes a limited one"),
        pytest.param(5, 5, errors.NotAllowed, id="a limited key makes none"),
        pytest.param(5, None, errors.NotAllowed, id="without a limit"),
        pytest.param(None, 0, errors.BadRequest, id="nothing at all"),
        pytest.param(None, -1, errors.BadRequest, id="less than nothing"),
        pytest.param(None, 2**63, errors.BadRequest, id="more than the column holds"),
    ],
)
def test_limits_of_a_new_key(name: str, ceiling: int | None, asked: int | None, error: type[errors.AimeshError] | None) -> None:
    caller = principal(limits=limits(name, ceiling))
    if error is None:
        roles.check_limits_of_new_key(caller, limits(name, asked))
        return
    with pytest.raises(error):
        roles.check_limits_of_new_key(caller, limits(name, asked))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (KeyLimits(tokens_per_minute=0), "tokens_per_minute: a whole number from 1 to 2147483647"),
        (KeyLimits(concurrency=2**31), "concurrency: a whole number from 1 to 2147483647"),
        (KeyLimits(budget_micro=MicroCredits(0)), r"budget: from 0\.000001 to .* credits"),
    ],
)
def test_a_limit_that_is_none_says_what_is_one(asked: KeyLimits, says: str) -> None:
    with pytest.raises(errors.BadRequest, match=says):
        roles.check_limits_of_new_key(principal(), asked)


@pytest.mark.parametrize("name", KeyLimits.__struct_fields__)
def test_a_limited_key_opens_no_session(name: str) -> None:
    roles.check_may_open_session(principal())
    with pytest.raises(errors.NotAllowed):
        roles.check_may_open_session(principal(limits=limits(name, 5)))


@pytest.mark.parametrize("role", UserRole)
def test_only_administrators_administer(role: UserRole) -> None:
    if role is UserRole.ADMIN:
        roles.check_admin(principal(role))
        return
    with pytest.raises(errors.NotAllowed):
        roles.check_admin(principal(role))
