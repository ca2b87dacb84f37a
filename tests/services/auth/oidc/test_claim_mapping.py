"""Groups to roles, claims to an identity, and user names that may be had."""

import itertools
from typing import Any

import pytest

from services.auth import name_rules
from services.auth.oidc import claim_mapping
from services.auth.oidc.claim_mapping import BY_POWER, Identity, RoleTable
from shared import errors
from shared.types import UserRole

TABLE = RoleTable({"makers": UserRole.DEVELOPER, "cn=chiefs,ou=x": UserRole.ADMIN, "everybody": UserRole.USER})


def test_every_role_has_its_place() -> None:
    assert set(BY_POWER) == set(UserRole)
    assert BY_POWER[0] is UserRole.ADMIN


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        pytest.param(("everybody", "makers"), UserRole.DEVELOPER, id="the most powerful holds"),
        pytest.param(("makers", "cn=chiefs,ou=x"), UserRole.ADMIN, id="in whatever order"),
        pytest.param(("everybody",), UserRole.USER, id="the only one"),
        pytest.param((), UserRole.USER, id="no groups"),
        pytest.param(("strangers",), UserRole.USER, id="groups that give nothing"),
        pytest.param(("Makers", "makers "), UserRole.USER, id="a group is written as it is written"),
        pytest.param(("admin", "admins", "administrators"), UserRole.USER, id="nobody is an administrator by the sound of a group"),
    ],
)
def test_which_role_groups_give(groups: tuple[str, ...], role: UserRole) -> None:
    assert TABLE.role_of(groups) is role


def test_without_a_table_the_provider_has_no_say() -> None:
    assert RoleTable().role_of(("makers",)) is None


@pytest.mark.parametrize(
    ("said", "changed"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"email": " a@b.c ", "email_verified": True}, {"email": "a@b.c", "email_verified": True}, id="an address"),
        pytest.param({"email_verified": "true"}, {"email_verified": True}, id="a truth that is a text"),
        pytest.param({"email_verified": "false"}, {}, id="a falsehood that is a text"),
        pytest.param({"email_verified": 1}, {"email_verified": True}, id="a truth that is a number"),
        pytest.param({"email": ["a@b.c"], "preferred_username": 5, "amr": 1, "auth_time": "x"}, {}, id="claims of another form"),
        pytest.param({"groups": "one"}, {"groups": ("one",)}, id="one group is no list"),
        pytest.param({"groups": ["a", 5, None, ["b"], "c"]}, {"groups": ("a", "c")}, id="what is no group"),
        pytest.param({"groups": {"a": True}}, {}, id="groups of another form"),
        pytest.param({"amr": ["pwd", "otp"], "auth_time": 5}, {"methods": ("pwd", "otp"), "authenticated_at": 5.0}, id="how and when"),
    ],
)
def test_what_claims_mean(said: dict[str, Any], changed: dict[str, Any]) -> None:
    assert claim_mapping.read_identity("i", "s", said, "groups") == Identity("i", "s", **changed)


@pytest.mark.parametrize(
    ("said", "claim", "groups"),
    [
        pytest.param({"realm_access": {"roles": ["a"]}}, "realm_access.roles", ("a",), id="inside another claim"),
        pytest.param({"https://example.org/groups": ["a"]}, "https://example.org/groups", ("a",), id="a name with dots"),
        pytest.param({"realm_access": ["a"]}, "realm_access.roles", (), id="not inside"),
        pytest.param({}, "realm_access.roles", (), id="not there"),
    ],
)
def test_where_groups_are(said: dict[str, Any], claim: str, groups: tuple[str, ...]) -> None:
    assert claim_mapping.read_identity("i", "s", said, claim).groups == groups


@pytest.mark.parametrize(
    ("username", "email", "first"),
    [
        pytest.param("ann", "x@y.z", ["ann", "ann-2", "ann-3"], id="the preferred one"),
        pytest.param("Zoë Müller", None, ["Zoe-Muller"], id="accents and spaces"),
        pytest.param("ann@example.com", None, ["ann"], id="an address as a name"),
        pytest.param(None, "ann.b+x@example.com", ["ann.b-x"], id="of the address"),
        pytest.param("李", "x@y.z", ["user", "user-2"], id="nothing that could be left"),
        pytest.param("李", "wang@y.z", ["wang"], id="of the address where the name leaves nothing"),
        pytest.param("Admin", None, ["Admin-2"], id="never the administrator"),
        pytest.param("a" * 80, None, ["a" * 44, "a" * 44 + "-2"], id="a long one"),
        pytest.param("123e4567-e89b-42d3-a456-426614174000", None, ["123e4567-e89b-42d3-a456-426614174000"[:44] + "-2"], id="a user id"),
        pytest.param("../../etc", None, ["etc"], id="a path"),
        pytest.param("'; DROP TABLE users --", None, ["DROP-TABLE-users"], id="a statement"),
    ],
)
def test_which_user_names_are_suggested(username: str | None, email: str | None, first: list[str]) -> None:
    suggested = list(itertools.islice(claim_mapping.suggest_usernames(Identity("i", "s", email, username=username)), len(first)))
    assert suggested == first


def test_every_suggestion_is_a_good_user_name() -> None:
    suggested = list(claim_mapping.suggest_usernames(Identity("i", "s", username="x" * 60)))
    assert len(suggested) == len(set(suggested)) == 1000
    for name in suggested:
        name_rules.check_username(name)
    with pytest.raises(errors.CallerError, match="the user name admin is reserved"):
        name_rules.check_username("admin")
