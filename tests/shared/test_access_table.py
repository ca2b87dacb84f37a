"""Who may call what: the decision, over its whole table."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import access_table, answer_table, errors
from shared.access_rules import AccessRule, Audience
from shared.access_table import IS_SENSITIVE
from shared.api import declared
from shared.api.auth import Principal, Step
from shared.types import KeyId, Permission, Tier, UserId, UserRole

NOW = 1_000_000.0
EVERY = sorted(Permission)


def person(role: UserRole = UserRole.USER, scopes: tuple[str, ...] | None = None, **changed: object) -> Principal:
    key = None if scopes is None else KeyId(UUID(int=2))
    return Principal(UserId(UUID(int=1)), "ada", role, Tier.FREE, key, scopes=scopes, **changed)  # type: ignore[arg-type]


def needing(*permissions: Permission, **changed: bool) -> AccessRule:
    return AccessRule(who=Audience.PERSON, needs=frozenset(permissions), **changed)  # type: ignore[arg-type]


def is_refused(row: AccessRule, caller: Principal, now: float = NOW) -> bool:
    try:
        access_table.check(row, caller, now)
    except errors.NotAllowed:
        return True
    return False


def test_every_contract_method_has_an_access_rule_and_every_rule_a_method() -> None:
    assert {method.name for method in declared.methods()} == set(access_table.METHODS)


def test_every_method_without_a_user_says_whom_it_answers() -> None:
    of_nodes = {method for method in declared.methods() if access_table.of_method(method.name).who is Audience.NODE}
    assert {method.name for method in of_nodes} == set(answer_table.METHODS)
    for method in of_nodes:
        answer_table.check(method.name, method.callers)


def test_a_method_without_a_rule_prevents_the_start() -> None:
    with pytest.raises(ValueError, match="say who may call it"):
        access_table.of_method("auth.newMethod")
    with pytest.raises(ValueError, match="say who may use it"):
        access_table.of_route("GET", "/new")


@pytest.mark.parametrize(
    ("role", "may"),
    [
        (UserRole.USER, {"inference:execute", "usage:read", "key:write", "account:write"}),
        (UserRole.NODE_OWNER, {"inference:execute", "usage:read", "key:write", "account:write", "node:own"}),
        (UserRole.DEVELOPER, {"inference:execute", "usage:read", "key:write", "account:write", "model:read", "model:write"}),
        (UserRole.ADMIN, set(EVERY)),
    ],
)
def test_a_login_may_do_what_its_role_may(role: UserRole, may: set[str]) -> None:
    assert {permission for permission in EVERY if access_table.may(person(role), permission)} == may


@given(st.sampled_from(list(UserRole)), st.lists(st.sampled_from(EVERY), unique=True))
def test_a_key_may_do_no_more_than_its_owner_and_its_scopes(role: UserRole, scopes: list[Permission]) -> None:
    key = person(role, tuple(scopes))
    for permission in EVERY:
        if access_table.may(key, permission):
            assert access_table.may(person(role), permission)
            assert permission in scopes or Permission.EVERYTHING in scopes


def test_one_of_several_permissions_is_enough() -> None:
    row = needing(Permission.READ_MODELS, Permission.INFER)
    assert not is_refused(row, person(UserRole.USER))
    assert is_refused(row, person(UserRole.USER, ("usage:read",)))
    assert is_refused(row, person(UserRole.USER, ()))
    assert not is_refused(needing(), person(UserRole.USER, ()))


def test_an_unfinished_login_may_do_nothing_else() -> None:
    for step in (Step.ENTER_CODE, Step.SET_UP_MFA):
        halfway = person(UserRole.ADMIN, step=step, confirmed_at=NOW)
        allowed = {name for name, row in access_table.METHODS.items() if row.who is Audience.PERSON and not is_refused(row, halfway)}
        assert allowed == {"auth.confirmLogin", "auth.beginMfa", "auth.enableMfa"}


def test_a_sensitive_action_needs_a_fresh_login_but_not_from_a_key() -> None:
    row = needing(Permission.WRITE_KEYS, fresh=True)
    stale = NOW - access_table.FRESH_SECONDS - 1
    with pytest.raises(errors.ConfirmationNeeded, match=IS_SENSITIVE):
        access_table.check(row, person(confirmed_at=stale), NOW)
    assert not is_refused(row, person(confirmed_at=NOW - access_table.FRESH_SECONDS))
    assert not is_refused(row, person(UserRole.USER, ("key:write",), confirmed_at=None))


def test_a_refusal_names_what_is_missing_and_who_has_it() -> None:
    with pytest.raises(errors.NotAllowed, match="no administrator") as refused:
        access_table.check(needing(Permission.EVERYTHING), person(), NOW)
    assert "administrator" in refused.value.hint
    with pytest.raises(errors.NotAllowed, match="model:write") as refused:
        access_table.check(needing(Permission.WRITE_MODELS), person(UserRole.DEVELOPER, ("usage:read",)), NOW)
    assert "scope" in refused.value.hint


@pytest.mark.parametrize(
    ("networks", "address", "let_in"),
    [
        ((), None, True),
        (("192.0.2.0/24",), "192.0.2.7", True),
        (("192.0.2.0/24",), "192.0.3.7", False),
        (("192.0.2.0/24",), "::ffff:192.0.2.7", True),
        (("2001:db8::/32",), "2001:db8::1", True),
        (("2001:db8::/32",), "192.0.2.7", False),
        (("10.0.0.0/8", "192.0.2.7/32"), "192.0.2.7", True),
        (("192.0.2.0/24",), None, False),
        (("192.0.2.0/24",), "not an address", False),
        (("192.0.2.0/24",), "", False),
    ],
)
def test_a_key_works_only_from_its_networks(networks: tuple[str, ...], address: str | None, *, let_in: bool) -> None:
    caller = person(UserRole.USER, ("inference:execute",), networks=networks)
    try:
        access_table.check_network(caller, address)
    except errors.NotAllowed:
        assert not let_in
    else:
        assert let_in
