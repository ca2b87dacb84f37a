"""auth's table of provider logins on a real PostgreSQL, and a whole login from the real provider to the account."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import uuid4

import pytest

from services.auth.oidc import account_provisioning
from services.auth.oidc.account_provisioning import FoundAccounts, Identity, NameTaken, RoleTable
from services.auth.oidc.discovery import ClientRegistration
from services.auth.oidc.flow import LoginPurpose
from services.auth.oidc.oidc_store import OidcStore
from shared import errors
from shared.api.audit import AuditedAct
from shared.stores.database import Database
from shared.types import Tier, UserId, UserRole
from tests.services.auth import by_hand
from tests.services.auth.oidc.real_provider import PEOPLE, REDIRECT_URI, SECRET, Browser, real_provider
from tests.services.auth.oidc.surroundings import AUTH, OpenOidc

ANN = Identity("https://a", "1", "ann@example.com", email_verified=True, username="ann")


class Kept:
    """An audit log that a test can inspect."""

    def __init__(self, acts: list[AuditedAct]) -> None:
        self._acts = acts

    async def add(self, transaction: object, act: AuditedAct) -> None:
        self._acts.append(act)

    def note(self, act: AuditedAct) -> None:
        self._acts.append(act)


@pytest.fixture
def acts() -> list[AuditedAct]:
    return []


@pytest.fixture
async def links(postgres_url: str, acts: list[AuditedAct]) -> AsyncIterator[OidcStore]:
    async with Database.open(postgres_url, schema="auth", package=AUTH) as db:
        yield OidcStore(db, Kept(acts))


async def add(links: OidcStore, username: str = "ann", identity: Identity = ANN, role: UserRole = UserRole.USER) -> UserId:
    made = await links.add(username, identity.email or "", role, identity)
    assert not isinstance(made, NameTaken)
    return made


async def role_of(url: str, user_id: UserId) -> str:
    return str(await by_hand.value(url, "SELECT role FROM auth.users WHERE id = $1", user_id))


async def test_a_new_user_is_added_with_the_identity(links: OidcStore, postgres_url: str) -> None:
    assert await links.find(ANN) == FoundAccounts(None, None)
    user_id = await add(links, role=UserRole.DEVELOPER)
    assert await links.find(ANN) == FoundAccounts(user_id, user_id)
    assert await links.find(replace(ANN, subject="2", email="ANN@Example.com")) == FoundAccounts(None, user_id)
    assert await links.find(replace(ANN, issuer="https://b", email=None)) == FoundAccounts(None, None)
    assert await role_of(postgres_url, user_id) == "developer"
    assert await by_hand.value(postgres_url, "SELECT password_hash FROM auth.users WHERE id = $1", user_id) is None


@pytest.mark.parametrize(
    ("username", "identity", "taken"),
    [
        pytest.param("ANN", Identity("https://a", "2", "other@example.com"), NameTaken.USERNAME, id="the name in other letters"),
        pytest.param("other", Identity("https://a", "2", "ANN@example.com"), NameTaken.EMAIL, id="the address in other letters"),
        pytest.param("other", Identity("https://a", "1", "other@example.com"), NameTaken.IDENTITY, id="the same person"),
    ],
)
async def test_a_taken_name_adds_no_user(links: OidcStore, postgres_url: str, username: str, identity: Identity, taken: NameTaken) -> None:
    await add(links)
    assert await links.add(username, identity.email or "", UserRole.USER, identity) is taken
    assert await by_hand.value(postgres_url, "SELECT count(*) FROM auth.users") == 1


async def test_an_identity_opens_one_account(links: OidcStore) -> None:
    user_id, other = await add(links), await add(links, "bob", Identity("https://a", "2", "bob@example.com"))
    third = Identity("https://b", "1", "ann@b.example")
    assert await links.link(user_id, third)
    assert not await links.link(other, third)
    assert (await links.find(third)).known == user_id


async def test_a_login_at_the_provider_gives_a_free_account_its_tier_once(
    postgres_url: str, acts: list[AuditedAct], links: OidcStore
) -> None:
    async def tier_of(user_id: UserId) -> str:
        return str(await by_hand.value(postgres_url, "SELECT subscription_tier FROM auth.users WHERE id = $1", user_id))

    free, chosen = await add(links), await add(links, "bob", Identity("https://a", "2", "bob@example.com"))
    assert await tier_of(free) == "free", "the setting's default"
    await by_hand.run(postgres_url, "UPDATE auth.users SET subscription_tier = 'pro' WHERE id = $1", chosen)
    async with Database.open(postgres_url, schema="auth", package=AUTH) as db:
        links = OidcStore(db, Kept(acts), Tier.ENTERPRISE)
        new = Identity("https://a", "3", "cid@example.com")
        made = await add(links, "cid", new)
        assert await tier_of(made) == "enterprise"
        for number, user_id in enumerate((free, chosen)):
            await links.link(user_id, Identity("https://b", str(number), None))
        assert (await tier_of(free), await tier_of(chosen)) == ("enterprise", "pro")
        assert [(act.target, act.details["after"]) for act in acts if act.action == "user.tier"] == [(str(free), "enterprise")]
        # An administrator limits an account; the next login leaves it so.
        await by_hand.run(postgres_url, "UPDATE auth.users SET subscription_tier = 'free' WHERE id = $1", made)
        await links.note_login(made, new, None)
        assert await tier_of(made) == "free"


async def test_a_login_records_the_current_address(links: OidcStore, postgres_url: str) -> None:
    user_id = await add(links)
    other = Identity("https://b", "1", "no address")
    await links.link(user_id, other)
    await links.note_login(user_id, replace(ANN, email="new@example.com"), None)
    listed = {linked.issuer: linked for linked in await links.list_of(user_id)}
    assert listed["https://a"].email == "new@example.com"
    assert listed["https://b"].email == ""
    recorded = "SELECT string_agg(issuer, ' ') FROM auth.oidc_identities WHERE last_login_at IS NOT NULL"
    assert await by_hand.value(postgres_url, recorded) == "https://a"


async def test_an_address_that_the_provider_has_verified_is_verified_here(links: OidcStore, postgres_url: str) -> None:
    async def is_verified(user_id: UserId) -> bool:
        return bool(await by_hand.value(postgres_url, "SELECT verified_at IS NOT NULL FROM auth.users WHERE id = $1", user_id))

    assert await is_verified(await add(links))
    claimed = Identity("https://a", "2", "bob@example.com")
    bob = await add(links, "bob", claimed)
    assert not await is_verified(bob)
    for identity, expected in (
        (claimed, False),
        (replace(claimed, email="another@example.com", email_verified=True), False),
        (replace(claimed, email="Bob@Example.com", email_verified=True), True),
    ):
        await links.note_login(bob, identity, None)
        assert await is_verified(bob) is expected


async def test_roles_follow_but_the_last_administrator_stays_one(links: OidcStore, postgres_url: str) -> None:
    user_id = await add(links)
    for role, became in [
        (UserRole.DEVELOPER, "developer"),
        (None, "developer"),
        (UserRole.ADMIN, "admin"),
        (UserRole.USER, "admin"),
    ]:
        await links.note_login(user_id, ANN, role)
        assert await role_of(postgres_url, user_id) == became
    other = await add(links, "bob", Identity("https://a", "2", "bob@example.com"), UserRole.ADMIN)
    await by_hand.run(postgres_url, "UPDATE auth.users SET is_active = false WHERE id = $1", other)
    await links.note_login(user_id, ANN, UserRole.USER)
    assert await role_of(postgres_url, user_id) == "admin"
    await by_hand.run(postgres_url, "UPDATE auth.users SET is_active = true WHERE id = $1", other)
    await links.note_login(user_id, ANN, UserRole.USER)
    assert await role_of(postgres_url, user_id) == "user"


async def test_the_last_way_to_log_in_cannot_be_removed(links: OidcStore, postgres_url: str) -> None:
    user_id = await add(links)
    second = Identity("https://b", "1")
    await links.link(user_id, second)
    assert not await links.remove(UserId(uuid4()), "https://a", "1")
    assert await links.remove(user_id, "https://a", "1")
    assert not await links.remove(user_id, "https://a", "1")
    assert not await links.remove(user_id, "https://b", "1")
    await by_hand.run(postgres_url, "UPDATE auth.users SET password_hash = 'x' WHERE id = $1", user_id)
    assert await links.remove(user_id, "https://b", "1")
    assert await links.list_of(user_id) == ()


async def test_changes_are_in_the_audit_log(links: OidcStore, acts: list[AuditedAct]) -> None:
    user_id = await add(links)
    second = Identity("https://b", "1")
    await links.link(user_id, second)
    await links.link(user_id, second)
    await links.note_login(user_id, ANN, UserRole.DEVELOPER)
    await links.note_login(user_id, ANN, UserRole.DEVELOPER)
    await links.note_login(user_id, ANN, None)
    await links.remove(user_id, "https://b", "1")
    await links.remove(user_id, "https://a", "1")
    assert [(act.action, act.actor) for act in acts] == [
        (action, user_id) for action in ("user.register", "oidc.link", "user.role", "oidc.unlink")
    ]
    assert {act.target for act in acts} == {str(user_id)}, "a target is never erased, and a subject may be somebody's address"
    assert [act.details for act in acts if act.action in ("oidc.link", "oidc.unlink")] == [{"issuer": "https://b", "subject": "1"}] * 2


async def test_a_new_user_in_ten_browsers_is_one_user(links: OidcStore, postgres_url: str) -> None:
    admitted = await asyncio.gather(*(account_provisioning.provision_account(ANN, None, links, RoleTable()) for _ in range(10)))
    assert len({each.user_id for each in admitted}) == 1
    assert sum(each.is_new for each in admitted) == 1
    assert await by_hand.value(postgres_url, "SELECT count(*) FROM auth.users") == 1


async def test_from_the_real_provider_to_an_account(links: OidcStore, postgres_url: str, open_oidc: OpenOidc) -> None:
    table = RoleTable({"makers": UserRole.DEVELOPER})
    async with real_provider() as issuer, Browser.open() as browser:
        scopes = ("openid", "profile", "email", "groups")
        async with open_oidc(ClientRegistration(issuer=issuer, client_id="ES256", client_secret=SECRET, scopes=scopes)) as oidc:

            async def log_in(person: str, link_to: UserId | None = None) -> UserId:
                browser.http.cookies.clear()
                begun = await oidc.begin(LoginPurpose(redirect_uri=REDIRECT_URI, link_to=link_to))
                finished = await oidc.finish(await browser.log_in(begun.url, person), begun.binding)
                return (await account_provisioning.provision_account(finished.identity, finished.link_to, links, table)).user_id

            ann = await log_in("ann-1")
            assert await log_in("ann-1") == ann
            assert await role_of(postgres_url, ann) == "developer"
            bob = await log_in("bob-2")
            # Bob prefers the same name as Ann.
            assert await by_hand.value(postgres_url, "SELECT username FROM auth.users WHERE id = $1", bob) == "ann-2"
            assert await role_of(postgres_url, bob) == "user"
            with pytest.raises(errors.AlreadyExists, match="this login at the provider belongs to another account here"):
                await log_in("ann-1", link_to=bob)
            assert PEOPLE["ann-1"]["preferred_username"] == "Ann"
