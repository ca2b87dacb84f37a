"""From the provider's claims to an account: roles from groups, user names, which account is used, and concurrent logins."""

import itertools
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.auth import name_rules
from services.auth.oidc import account_provisioning
from services.auth.oidc.account_provisioning import (
    BY_POWER,
    CreateAccount,
    FoundAccounts,
    Identity,
    LinkAccount,
    LogInToAccount,
    NameTaken,
    RoleTable,
)
from shared import errors
from shared.types import UserId, UserRole

# --- claims ---------------------------------------------------------------------------------------------------------

ROLES = RoleTable({"makers": UserRole.DEVELOPER, "cn=chiefs,ou=x": UserRole.ADMIN, "everybody": UserRole.USER})


def test_every_role_has_a_rank() -> None:
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
    assert ROLES.role_of(groups) is role


def test_without_a_table_the_provider_has_no_influence() -> None:
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
def test_how_claims_are_read(said: dict[str, Any], changed: dict[str, Any]) -> None:
    assert account_provisioning.read_identity("i", "s", said, "groups") == Identity("i", "s", **changed)


@pytest.mark.parametrize(
    ("said", "claim", "groups"),
    [
        pytest.param({"realm_access": {"roles": ["a"]}}, "realm_access.roles", ("a",), id="inside another claim"),
        pytest.param({"https://example.org/groups": ["a"]}, "https://example.org/groups", ("a",), id="a name with dots"),
        pytest.param({"realm_access": ["a"]}, "realm_access.roles", (), id="not inside"),
        pytest.param({}, "realm_access.roles", (), id="not there"),
    ],
)
def test_where_groups_are_found(said: dict[str, Any], claim: str, groups: tuple[str, ...]) -> None:
    assert account_provisioning.read_identity("i", "s", said, claim).groups == groups


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
    suggested = list(itertools.islice(account_provisioning.suggest_usernames(Identity("i", "s", email, username=username)), len(first)))
    assert suggested == first


def test_every_suggestion_is_a_valid_user_name() -> None:
    suggested = list(account_provisioning.suggest_usernames(Identity("i", "s", username="x" * 60)))
    assert len(suggested) == len(set(suggested)) == 1000
    for name in suggested:
        name_rules.check_username(name)
    with pytest.raises(errors.CallerError):
        name_rules.check_username("admin")


# --- which account is used --------------------------------------------------------------------------------------------

FIRST, SECOND = UserId(UUID(int=1)), UserId(UUID(int=2))
IDENTITY = Identity("i", "s", "ann@example.com", email_verified=True, groups=("makers",))
MAKERS = RoleTable({"makers": UserRole.DEVELOPER})


@pytest.mark.parametrize(
    ("link_to", "found", "table", "decision"),
    [
        pytest.param(None, FoundAccounts(FIRST), RoleTable(), LogInToAccount(FIRST, None), id="somebody who came before"),
        pytest.param(None, FoundAccounts(FIRST), MAKERS, LogInToAccount(FIRST, UserRole.DEVELOPER), id="a role from the groups"),
        pytest.param(
            None, FoundAccounts(FIRST, SECOND), MAKERS, LogInToAccount(FIRST, UserRole.DEVELOPER), id="the address is another account's"
        ),
        pytest.param(FIRST, FoundAccounts(FIRST), MAKERS, LogInToAccount(FIRST, UserRole.DEVELOPER), id="who is linked already"),
        pytest.param(FIRST, FoundAccounts(), MAKERS, LinkAccount(FIRST, UserRole.DEVELOPER), id="who asked to be linked"),
        pytest.param(FIRST, FoundAccounts(None, SECOND), RoleTable(), LinkAccount(FIRST, None), id="to another account"),
        pytest.param(None, FoundAccounts(), MAKERS, CreateAccount("ann@example.com", UserRole.DEVELOPER), id="somebody new"),
        pytest.param(None, FoundAccounts(), RoleTable(), CreateAccount("ann@example.com", UserRole.USER), id="somebody new, a plain user"),
    ],
)
def test_which_account_is_chosen(link_to: UserId | None, found: FoundAccounts, table: RoleTable, decision: object) -> None:
    assert account_provisioning.decide_account(IDENTITY, link_to, found, table) == decision


@pytest.mark.parametrize("verified", [True, False])
def test_a_matching_address_does_not_take_over_an_account(verified: bool) -> None:
    identity = Identity("i", "s", "ann@example.com", email_verified=verified)
    with pytest.raises(errors.AlreadyExists, match="with your email address") as refused:
        account_provisioning.decide_account(identity, None, FoundAccounts(None, FIRST), MAKERS)
    assert "password" in refused.value.hint
    assert "link" in refused.value.hint


def test_one_provider_login_does_not_open_two_accounts() -> None:
    with pytest.raises(errors.AlreadyExists, match="another account"):
        account_provisioning.decide_account(IDENTITY, SECOND, FoundAccounts(FIRST), MAKERS)


@pytest.mark.parametrize(
    ("email", "kind"),
    [
        (None, errors.BadRequest),
        ("no address", errors.BadRequest),
        ("ann@\0", errors.BadRequest),
        ("admin@localhost", errors.AlreadyExists),
    ],
)
def test_nobody_gets_an_account_without_an_address(email: str | None, kind: type[errors.AimeshError]) -> None:
    with pytest.raises(kind) as refused:
        account_provisioning.decide_account(Identity("i", "s", email), None, FoundAccounts(), MAKERS)
    assert refused.value.hint


# --- with tables in memory ---------------------------------------------------------------------------------------------

TABLE = RoleTable({"makers": UserRole.DEVELOPER, "chiefs": UserRole.ADMIN})
NOBODY = RoleTable()
ANN = Identity("https://a", "1", "ann@example.com", email_verified=True, username="ann", groups=("makers",))
OTHER_ANN = Identity("https://a", "2", "ann@example.org", username="ann")


@dataclass
class Tables:
    """Like the real tables. ``meanwhile`` simulates a login that runs between two queries."""

    users: dict[UserId, tuple[str, str, UserRole]] = field(default_factory=dict)
    identities: dict[tuple[str, str], UserId] = field(default_factory=dict)
    #: Added to ``identities`` just after the next query.
    meanwhile: tuple[tuple[str, str], UserId] | None = None

    def have(self, username: str, email: str) -> UserId:
        user_id = UserId(uuid4())
        self.users[user_id] = (username, email, UserRole.USER)
        return user_id

    async def find(self, identity: Identity) -> FoundAccounts:
        same_email = [user for user, (_, email, _) in self.users.items() if email == identity.email]
        found = FoundAccounts(self.identities.get((identity.issuer, identity.subject)), same_email[0] if same_email else None)
        if self.meanwhile is not None:
            key, user = self.meanwhile
            self.identities[key] = user
            self.meanwhile = None
        return found

    async def add(self, username: str, email: str, role: UserRole, identity: Identity) -> UserId | NameTaken:
        if any(username == taken for taken, _, _ in self.users.values()):
            return NameTaken.USERNAME
        if any(email == taken for _, taken, _ in self.users.values()):
            return NameTaken.EMAIL
        if (identity.issuer, identity.subject) in self.identities:
            return NameTaken.IDENTITY
        user_id = self.have(username, email)
        await self.note_login(user_id, identity, role)
        self.identities[identity.issuer, identity.subject] = user_id
        return user_id

    async def link(self, user_id: UserId, identity: Identity) -> bool:
        return self.identities.setdefault((identity.issuer, identity.subject), user_id) is user_id

    async def note_login(self, user_id: UserId, identity: Identity, role: UserRole | None) -> None:
        username, email, before = self.users[user_id]
        self.users[user_id] = (username, email, role or before)


async def admit(identity: Identity, link_to: UserId | None, tables: Tables, table: RoleTable) -> UserId:
    return (await account_provisioning.provision_account(identity, link_to, tables, table)).user_id


@pytest.fixture
def tables() -> Tables:
    return Tables()


async def test_a_new_user_gets_an_account_and_keeps_it(tables: Tables) -> None:
    user_id = await admit(ANN, None, tables, TABLE)
    assert tables.users[user_id] == ("ann", "ann@example.com", UserRole.DEVELOPER)
    assert await admit(ANN, None, tables, TABLE) == user_id


async def test_only_the_first_login_is_new(tables: Tables) -> None:
    assert (await account_provisioning.provision_account(ANN, None, tables, NOBODY)).is_new
    assert not (await account_provisioning.provision_account(ANN, None, tables, NOBODY)).is_new


async def test_two_users_of_one_name_get_two_user_names(tables: Tables) -> None:
    await admit(ANN, None, tables, NOBODY)
    second = await admit(OTHER_ANN, None, tables, NOBODY)
    assert tables.users[second] == ("ann-2", "ann@example.org", UserRole.USER)


async def test_roles_follow_the_groups_at_every_login(tables: Tables) -> None:
    user_id = await admit(ANN, None, tables, TABLE)
    promoted = Identity("https://a", "1", groups=("chiefs",))
    for identity, table, role in [
        (promoted, TABLE, UserRole.ADMIN),
        (Identity("https://a", "1"), NOBODY, UserRole.ADMIN),
        (Identity("https://a", "1"), TABLE, UserRole.USER),
    ]:
        assert await admit(identity, None, tables, table) == user_id
        assert tables.users[user_id][2] is role


async def test_a_user_with_an_account_links_it(tables: Tables) -> None:
    own = tables.have("ann", "ann@example.com")
    with pytest.raises(errors.AlreadyExists, match="there is an account with your email address"):
        await admit(ANN, None, tables, NOBODY)
    assert await admit(ANN, own, tables, NOBODY) == own
    assert await admit(ANN, None, tables, NOBODY) == own


async def test_two_browsers_of_a_new_user_get_one_account(tables: Tables) -> None:
    faster = tables.have("ann-of-the-other-browser", "ann@elsewhere.example")
    tables.meanwhile = (("https://a", "1"), faster)
    assert await admit(ANN, None, tables, NOBODY) == faster
    assert len(tables.users) == 1


async def test_a_link_that_another_account_took_first_is_refused(tables: Tables) -> None:
    own, other = tables.have("ann", "ann@example.com"), tables.have("bob", "bob@example.com")
    tables.meanwhile = (("https://a", "1"), other)
    with pytest.raises(errors.AlreadyExists, match="another account"):
        await admit(ANN, own, tables, NOBODY)


class NeverThere(Tables):
    async def link(self, user_id: UserId, identity: Identity) -> bool:
        return False


async def test_provisioning_does_not_retry_forever() -> None:
    with pytest.raises(errors.Unavailable, match="this login at the provider is being used elsewhere at the same time"):
        await admit(ANN, UserId(UUID(int=1)), NeverThere(), NOBODY)


class EveryNameTaken(Tables):
    async def add(self, username: str, email: str, role: UserRole, identity: Identity) -> UserId | NameTaken:
        return NameTaken.USERNAME


async def test_a_name_with_a_thousand_holders_is_refused() -> None:
    with pytest.raises(errors.AlreadyExists, match="user name"):
        await admit(ANN, None, EveryNameTaken(), NOBODY)
