"""Who gets an account, what happens where two come at once, and that roles follow the groups; with tables in memory."""

from dataclasses import dataclass, field
from uuid import UUID, uuid4

import pytest

from services.auth.oidc import account_provisioning
from services.auth.oidc.account_matching import FoundAccounts
from services.auth.oidc.account_provisioning import NameTaken
from services.auth.oidc.claim_mapping import Identity, RoleTable
from shared import errors
from shared.types import UserId, UserRole

TABLE = RoleTable({"makers": UserRole.DEVELOPER, "chiefs": UserRole.ADMIN})
NOBODY = RoleTable()
ANN = Identity("https://a", "1", "ann@example.com", email_verified=True, username="ann", groups=("makers",))
OTHER_ANN = Identity("https://a", "2", "ann@example.org", username="ann")


@dataclass
class Tables:
    """As the real ones, but that somebody else may be faster between two questions."""

    users: dict[UserId, tuple[str, str, UserRole]] = field(default_factory=dict)
    identities: dict[tuple[str, str], UserId] = field(default_factory=dict)
    #: Comes true just after the next question.
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
    return (await account_provisioning.admit(identity, link_to, tables, table)).user_id


@pytest.fixture
def tables() -> Tables:
    return Tables()


async def test_somebody_new_gets_an_account_and_keeps_it(tables: Tables) -> None:
    user_id = await admit(ANN, None, tables, TABLE)
    assert tables.users[user_id] == ("ann", "ann@example.com", UserRole.DEVELOPER)
    assert await admit(ANN, None, tables, TABLE) == user_id


async def test_only_the_first_login_is_new(tables: Tables) -> None:
    assert (await account_provisioning.admit(ANN, None, tables, NOBODY)).is_new
    assert not (await account_provisioning.admit(ANN, None, tables, NOBODY)).is_new


async def test_two_of_one_name_get_two_names(tables: Tables) -> None:
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


async def test_who_has_an_account_links_it(tables: Tables) -> None:
    own = tables.have("ann", "ann@example.com")
    with pytest.raises(errors.AlreadyExists, match="there is an account with your e-mail address"):
        await admit(ANN, None, tables, NOBODY)
    assert await admit(ANN, own, tables, NOBODY) == own
    assert await admit(ANN, None, tables, NOBODY) == own


async def test_two_browsers_of_somebody_new_get_one_account(tables: Tables) -> None:
    faster = tables.have("ann-of-the-other-browser", "ann@elsewhere.example")
    tables.meanwhile = (("https://a", "1"), faster)
    assert await admit(ANN, None, tables, NOBODY) == faster
    assert len(tables.users) == 1


async def test_a_link_that_another_account_got_first_is_refused(tables: Tables) -> None:
    own, other = tables.have("ann", "ann@example.com"), tables.have("bob", "bob@example.com")
    tables.meanwhile = (("https://a", "1"), other)
    with pytest.raises(errors.AlreadyExists, match="another account"):
        await admit(ANN, own, tables, NOBODY)


class NeverThere(Tables):
    async def link(self, user_id: UserId, identity: Identity) -> bool:
        return False


async def test_it_does_not_try_for_ever() -> None:
    with pytest.raises(errors.Unavailable, match="this login at the provider is being used elsewhere at the same time"):
        await admit(ANN, UserId(UUID(int=1)), NeverThere(), NOBODY)


class EveryNameTaken(Tables):
    async def add(self, username: str, email: str, role: UserRole, identity: Identity) -> UserId | NameTaken:
        return NameTaken.USERNAME


async def test_a_name_that_a_thousand_have() -> None:
    with pytest.raises(errors.AlreadyExists, match="user name"):
        await admit(ANN, None, EveryNameTaken(), NOBODY)
