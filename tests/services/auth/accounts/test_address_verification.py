"""Free tokens are for verified addresses, one account each: on the running auth service, which mails to a real server."""

import asyncio
import random
import re
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import msgspec
import pytest

import services.auth
from services.auth.accounts.request_limits import FOR_AN_ACCOUNT
from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from services.auth.store import AccountTables, opened
from shared import errors
from shared.api import accounts, audit, auth, billing, organizations
from shared.api.auth import Change
from shared.api.organizations import TeamRole
from shared.mail import letters
from shared.stores.database import Database
from shared.types import Credential, Peer, Role, TenantId, UserId
from tests.cases import case
from tests.services.auth import by_hand
from tests.services.auth.surroundings import CLIENT, PASSWORD, Surroundings
from tests.shared.mail.mail_server import MailServer, serving

GATEWAY = Peer(Role.GATEWAY, CLIENT.node)
NEW = "another good password"


@dataclass
class Mesh:
    """auth, and the server that gets its mails."""

    world: Surroundings
    mails: MailServer

    async def register(self, name: str, email: str, invitation: str | None = None) -> Credential:
        """Return an access token."""
        await self.world.ask(auth.register_user, auth.RegisterUser(auth.UserData(name, email, PASSWORD), invitation=invitation))
        return (await self.world.login(name)).access_token

    async def code_in(self, number: int, to: str, page: str = "verify") -> str:
        """Return the code in a mail, counted from 1."""
        await self.mails.wait_for(number)
        _, recipient, mail = self.mails.mails[number - 1]
        found = re.search(rf"https://ai\.example/{page}#(\S+)", mail.get_content())
        assert (recipient, bool(found)) == (to, True)
        return str(found and found[1])

    async def verify(self, code: str) -> bool:
        return (await self.world.ask(accounts.verify_address, accounts.VerifyAddress(code))).has_free_tokens

    async def has_free_tokens(self, token: Credential) -> bool:
        """Return what the gateway is told, which must be the same of a key, a login, the account and the invoice."""
        key = (await self.world.new_key(token, "a key")).api_key
        principals = [await self.world.ask(auth.identify, auth.Identify(each)) for each in (key, token)]
        user_id = principals[0].user_id
        described = await self.world.ask(billing.describe_account, billing.DescribeAccount(TenantId(user_id)), peer=GATEWAY)
        user = (await self.world.ask(accounts.get_account, accounts.GetAccount(), token)).user
        (found,) = {described.has_free_tokens, user.has_free_tokens, *(each.has_free_tokens for each in principals)}
        return found

    async def is_verified(self, token: Credential) -> bool:
        return (await self.world.ask(accounts.get_account, accounts.GetAccount(), token)).is_verified


@pytest.fixture
async def mails() -> AsyncIterator[MailServer]:
    async with serving(MailServer()) as server:
        yield server


@pytest.fixture
async def mesh(settings: AuthSettings, mails: MailServer) -> AsyncIterator[Mesh]:
    world = Surroundings()
    with_mail = msgspec.structs.replace(settings, money="on", smtp_url=f"smtp://localhost:{mails.port}", public_url="https://ai.example")
    async with AuthService.open(with_mail, world.as_node()) as world.service:
        yield Mesh(world, mails)


async def test_free_tokens_wait_for_the_mailed_code(mesh: Mesh) -> None:
    ada = await mesh.register("ada", "ada@example.com")
    assert (await mesh.has_free_tokens(ada), await mesh.is_verified(ada)) == (False, False)
    code = await mesh.code_in(1, "ada@example.com")
    assert await mesh.verify(f" {code}\n")
    assert (await mesh.has_free_tokens(ada), await mesh.is_verified(ada)) == (True, True)
    for wrong in (code, "x" * 43, ""):
        with case(wrong), pytest.raises(errors.NotAuthenticated, match="wrong, was used, or has expired"):
            await mesh.verify(wrong)
    rows = (await mesh.world.administer(audit.list_audit, audit.ListAudit(action="account.verify"))).rows
    assert len(rows) == 1


async def test_gateways_that_cache_the_user_are_told(mesh: Mesh, settings: AuthSettings) -> None:
    ada = await mesh.register("ada", "ada@example.com")
    user_id = (await mesh.world.ask(auth.identify, auth.Identify(ada))).user_id

    async def changes() -> list[UserId | None]:
        async with opened(settings.database_url) as db:
            found: Sequence[Change] = await AccountTables(db).missed_changes(1)
        return [change.user_id for change in found]

    await by_hand.run(settings.database_url, "SELECT auth.log_change(NULL)")
    before = await changes()
    await mesh.verify(await mesh.code_in(1, "ada@example.com"))
    assert await changes() == [*before, user_id]


async def test_a_mailbox_gives_free_tokens_to_one_account(mesh: Mesh) -> None:
    ada, other = await mesh.register("ada", "ada@example.com"), await mesh.register("other", "Ada+x@Example.com")
    codes = [await mesh.code_in(1, "ada@example.com"), await mesh.code_in(2, "Ada+x@Example.com")]
    assert await mesh.verify(codes[1])
    assert not await mesh.verify(codes[0])
    assert (await mesh.has_free_tokens(ada), await mesh.is_verified(ada)) == (False, True)
    assert await mesh.has_free_tokens(other)


async def test_of_accounts_that_verify_at_once_one_gets_the_tokens(mesh: Mesh) -> None:
    names = [f"ada{number}" for number in range(6)]
    for name in names:
        await mesh.register(name, f"ada+{name}@example.com")
    codes = [await mesh.code_in(number, f"ada+{name}@example.com") for number, name in enumerate(names, start=1)]
    assert sorted(await asyncio.gather(*map(mesh.verify, codes))) == [False] * 5 + [True]


async def test_another_address_frees_no_mailbox_for_another_account(mesh: Mesh) -> None:
    ada = await mesh.register("ada", "ada@example.com")
    await mesh.verify(await mesh.code_in(1, "ada@example.com"))
    await mesh.world.ask(accounts.change_profile, accounts.ChangeProfile(email="thrown@example.net"), ada)
    assert (await mesh.has_free_tokens(ada), await mesh.is_verified(ada)) == (True, False)
    # Both addresses are told of the change.
    await mesh.mails.wait_for(3)
    again = await mesh.register("again", "ada@example.com")
    assert not await mesh.verify(await mesh.code_in(4, "ada@example.com"))
    assert not await mesh.has_free_tokens(again)
    # Nor does the new one, once it is verified.
    await mesh.world.ask(accounts.send_verification, accounts.SendVerification(), ada)
    assert await mesh.verify(await mesh.code_in(5, "thrown@example.net"))
    third = await mesh.register("third", "ada+y@example.com")
    assert not await mesh.verify(await mesh.code_in(6, "ada+y@example.com"))
    assert [await mesh.has_free_tokens(each) for each in (ada, again, third)] == [True, False, False]


async def test_a_code_is_for_the_address_to_which_it_was_mailed(mesh: Mesh) -> None:
    ada = await mesh.register("ada", "ada@example.com")
    code = await mesh.code_in(1, "ada@example.com")
    await mesh.world.ask(accounts.change_profile, accounts.ChangeProfile(email="of-others@example.com"), ada)
    with pytest.raises(errors.NotAuthenticated, match="wrong, was used, or has expired"):
        await mesh.verify(code)
    assert not await mesh.has_free_tokens(ada)


async def test_the_mail_is_sent_again_a_few_times_an_hour(mesh: Mesh) -> None:
    ada = await mesh.register("ada", "ada@example.com")
    for _ in range(FOR_AN_ACCOUNT):
        await mesh.world.ask(accounts.send_verification, accounts.SendVerification(), ada)
    with pytest.raises(errors.Limited, match="too many emails"):
        await mesh.world.ask(accounts.send_verification, accounts.SendVerification(), ada)
    first, last = await mesh.code_in(1, "ada@example.com"), await mesh.code_in(1 + FOR_AN_ACCOUNT, "ada@example.com")
    assert first != last
    assert await mesh.verify(first)


async def test_a_password_reset_by_mail_verifies(mesh: Mesh) -> None:
    await mesh.register("ada", "ada@example.com")
    await mesh.mails.wait_for(1)
    await mesh.world.ask(accounts.request_password_reset, accounts.RequestPasswordReset("ada"))
    code = await mesh.code_in(2, "ada@example.com", "reset")
    await mesh.world.ask(accounts.reset_password, accounts.ResetPassword(code, NEW))
    assert await mesh.has_free_tokens((await mesh.world.login("ada", NEW)).access_token)


async def test_a_verification_code_sets_no_password(mesh: Mesh) -> None:
    await mesh.register("ada", "ada@example.com")
    code = await mesh.code_in(1, "ada@example.com")
    with pytest.raises(errors.NotAuthenticated, match="wrong, was used, or has expired"):
        await mesh.world.ask(accounts.reset_password, accounts.ResetPassword(code, NEW))


async def test_an_administrator_vouches_for_the_address(mesh: Mesh) -> None:
    made = await mesh.world.administer(organizations.invite_colleague, organizations.InviteColleague("ben@example.com"))
    ben = await mesh.register("ben", "ben@example.com", made.token)
    added = await mesh.world.administer(auth.register_user, auth.RegisterUser(auth.UserData("cleo", "cleo@example.com", PASSWORD)))
    cleo = (await mesh.world.login("cleo")).access_token
    assert [await mesh.has_free_tokens(each) for each in (ben, cleo)] == [True, True]
    assert added.has_free_tokens
    await mesh.register("ada", "ada@example.com")
    # Only the invitation and Ada's code were mailed.
    await mesh.code_in(2, "ada@example.com")


async def test_an_invitation_to_an_organization_proves_no_address(mesh: Mesh) -> None:
    """Whoever sends it is shown its code, and anyone can create an organization."""
    ada = await mesh.register("ada", "ada@example.com")
    team = await mesh.world.ask(organizations.create_organisation, organizations.CreateOrganization("Acme"), ada)
    offer = organizations.InviteMember(team.id, "made-up@example.com", TeamRole.MEMBER)
    invited = await mesh.world.ask(organizations.invite_member, offer, ada)
    eve = await mesh.register("eve", "made-up@example.com")
    await mesh.world.ask(organizations.accept_invitation, organizations.AcceptInvitation(invited.token), eve)
    assert not await mesh.has_free_tokens(eve)
    session = await mesh.world.login("eve")
    as_team = await mesh.world.ask(
        accounts.switch_organisation, accounts.SwitchTeam(team.id), session.access_token, peer=Peer(Role.WEB, GATEWAY.node)
    )
    # What an organization gets is its own plan's matter.
    for credential in (as_team.access_token, (await mesh.world.new_key(as_team.access_token)).api_key):
        assert (await mesh.world.ask(auth.identify, auth.Identify(credential))).has_free_tokens
    described = await mesh.world.ask(billing.describe_account, billing.DescribeAccount(team.id), peer=GATEWAY)
    assert (described.shares_limits, described.has_free_tokens) == (True, True)


@pytest.mark.parametrize("changed", [{"money": "on"}, {"smtp_url": "smtp://localhost:{port}"}], ids=["no mail", "MONEY=off"])
async def test_without_mail_or_money_nothing_is_asked(settings: AuthSettings, mails: MailServer, changed: dict[str, str]) -> None:
    world = Surroundings()
    chosen = {name: text.format(port=mails.port) for name, text in changed.items()}
    async with AuthService.open(msgspec.structs.replace(settings, **chosen), world.as_node()) as world.service:
        mesh = Mesh(world, mails)
        tokens = [await mesh.register(name, f"ada+{name}@example.com") for name in ("ada", "ben")]
        for token in tokens:
            assert (await mesh.has_free_tokens(token), await mesh.is_verified(token)) == (True, True)
        with pytest.raises(errors.NotFound, match="doesn't ask for verified addresses"):
            await world.ask(accounts.send_verification, accounts.SendVerification(), tokens[0])
    assert mails.mails == []


@pytest.mark.parametrize("tables_of", [None], ids=["empty"])
async def test_users_of_before_count_as_verified(postgres_url: str, tmp_path: Path) -> None:
    package = Path(services.auth.__file__).parent
    shutil.copytree(package / "queries", tmp_path / "queries")
    shutil.copytree(package / "migrations", tmp_path / "migrations")
    (tmp_path / "migrations" / "0026_pre_verified_addresses.sql").unlink()
    async with Database.open(postgres_url, schema="auth", package=tmp_path):
        await by_hand.run(
            postgres_url,
            """
            INSERT INTO auth.users (id, username, email, created_at, erased_at) VALUES
                (gen_random_uuid(), 'later', 'Anna+2@Example.com', '2026-02-02', NULL),
                (gen_random_uuid(), 'anna', 'anna@example.com', '2026-01-01', NULL),
                (gen_random_uuid(), 'erased-1', '1@erased.invalid', '2026-01-01', '2026-01-02');
            """,
        )
    async with opened(postgres_url) as db:
        store = AccountTables(db, verifies_addresses=True)
        assert [(await store.get_user_called(name)).has_free_tokens for name in ("anna", "later", "erased-1")] == [True, False, False]
    verified = "SELECT array_agg(username ORDER BY username) FROM auth.users WHERE verified_at = created_at"
    assert await by_hand.value(postgres_url, verified) == ["anna", "later"]


async def test_an_erased_account_keeps_no_address(mesh: Mesh, settings: AuthSettings) -> None:
    ada = await mesh.register("ada", "ada@example.com")
    await mesh.verify(await mesh.code_in(1, "ada@example.com"))
    await mesh.world.ask(accounts.request_erasure, accounts.RequestErasure(), ada)
    await by_hand.run(settings.database_url, "UPDATE auth.users SET erase_at = now() - interval '1 s' WHERE erase_at IS NOT NULL")
    (erasures,) = {handler.__self__ for handler in [mesh.world.dispatcher.find(accounts.request_erasure.name, GATEWAY).function]}  # type: ignore[attr-defined]
    await erasures.erase_due()
    left = "SELECT count(*) FROM auth.users WHERE username LIKE 'erased-%' AND verified_at IS NULL AND verified_address IS NULL"
    assert await by_hand.value(settings.database_url, left) == 1


# --- one mailbox, one address ----------------------------------------------------------------------------------------------


async def normalized(url: str, addresses: Sequence[str]) -> list[str]:
    connection = await asyncpg.connect(url, server_settings={"search_path": "auth"})
    try:
        found = await connection.fetchval(
            "SELECT array_agg(normalized_address(given) ORDER BY number) FROM unnest($1::text[]) WITH ORDINALITY AS each (given, number)",
            list(addresses),
        )
        return list(found)
    finally:
        await connection.close()


async def test_spellings_of_a_mailbox(postgres_url: str) -> None:
    expected = {
        "ada@example.com": "ada@example.com",
        "Ada@EXAMPLE.com": "ada@example.com",
        "ada+x@example.com": "ada@example.com",
        "ada+x+y@example.com": "ada@example.com",
        "a.da@example.com": "a.da@example.com",
        "a.d.a+x.y@gmail.com": "ada@gmail.com",
        "A.da@GoogleMail.com": "ada@gmail.com",
        "a.da@gmail.com.example": "a.da@gmail.com.example",
        "+ada@example.com": "+ada@example.com",
    }
    assert dict(zip(expected, await normalized(postgres_url, list(expected)), strict=True)) == expected


async def test_a_normalized_address_is_the_same_for_all_spellings_and_differs_for_others(postgres_url: str) -> None:
    chance = random.Random(26)
    atoms = "abcxyzABC019!#$%&'*/=^_`{|}~-"
    mailboxes, spellings = [], []
    for _ in range(3000):
        name, domain = "".join(chance.choices(atoms, k=chance.randint(1, 12))), chance.choice(["gmail.com", "example.com", "a-b.example"])
        mailboxes.append(f"{name}@{domain}".lower())
        if domain == "gmail.com":
            domain = chance.choice(["gmail.com", "GoogleMail.com", "GMAIL.com"])
            name = ".".join(name) if chance.random() < 0.5 else name
        suffix = "+" + "".join(chance.choices(atoms + "+", k=5)) if chance.random() < 0.5 else ""
        spellings.append("".join(chance.choice([letter.upper(), letter.lower()]) for letter in f"{name}{suffix}@{domain}"))
    assert all(map(letters.may_be_email, spellings))
    found = await normalized(postgres_url, spellings)
    assert found == mailboxes
    assert await normalized(postgres_url, found) == found
