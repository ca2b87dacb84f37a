"""Emails about sign-ins and expiring keys, with three replicas, real stores and a mail server on loopback."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from services.auth.accounts import notice_store, notices
from services.auth.accounts.notices import Notices
from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared.api import accounts, auth, billing, organizations
from shared.api import notices as notices_api
from shared.api.accounts import Preferences
from shared.api.notices import LimitUsed, Notice, PaymentLate
from shared.types import KeyId, TenantId, UserId
from tests import feature_parts
from tests.cases import case
from tests.services.auth.accounts.surroundings import by_hand
from tests.services.auth.mfa.equipment import WEB, ApiClient
from tests.services.auth.surroundings import Surroundings
from tests.shared.mail.mail_server import MailServer, serving

OLDER = "UPDATE users SET created_at = created_at - interval '1 day'"


@dataclass
class Mesh:
    """Three replicas of auth. Their notices are sent only when a test says so."""

    settings: AuthSettings
    mails: MailServer
    replicas: list[Surroundings]

    @property
    def api_client(self) -> ApiClient:
        return ApiClient(self.replicas[0])

    async def send(self) -> list[tuple[str, str]]:
        """Let all replicas work at once. Return the recipients and subjects that arrived."""
        self.mails.mails.clear()
        await asyncio.gather(*(notices_of(replica).work() for replica in self.replicas))
        return sorted((to, mail["Subject"]) for _, to, mail in self.mails.mails)

    async def sql(self, statement: str, *arguments: object) -> list[asyncpg.Record]:
        return await by_hand(self.settings.database_url, statement, *arguments)

    async def registered(self, name: str = "anna") -> None:
        await self.replicas[0].register(name)
        await self.sql(OLDER)

    async def key(self, name: str, expires_in: str, *, lifetime: str = "90 days", owner: str = "anna") -> None:
        await self.sql(
            "INSERT INTO api_keys (id, user_id, key_hash, name, preview, kind, created_at, expires_at)"
            " SELECT gen_random_uuid(), users.id, $1, $1, 'aip_live_abc…wxyz', 'live', ends.at - $3::text::interval, ends.at"
            " FROM users, (SELECT now() + $2::text::interval) AS ends (at) WHERE username = $4",
            *(name, expires_in, lifetime, owner),
        )

    async def let_retry(self) -> None:
        await self.sql("UPDATE notices SET due_at = now() WHERE due_at IS NOT NULL")

    async def switch_off(self) -> None:
        session = await self.api_client.login()
        chosen = accounts.SetPreferences(Preferences(notify_by_mail=False))
        await self.replicas[0].ask(accounts.set_preferences, chosen, session.access_token)


def notices_of(world: Surroundings) -> Notices:
    at_login = [getattr(each, "__self__", None) for each in ApiClient(world).logins._opening._at_login]
    (found,) = [each for each in at_login if isinstance(each, Notices)]
    return found


@pytest.fixture
async def mesh(settings: AuthSettings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(notices, "_EVERY_SECONDS", 3600.0)
    server = MailServer()
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(serving(server))
        settings = msgspec.structs.replace(settings, smtp_url=f"smtp://localhost:{server.port}", public_url="https://ai.example.com")
        replicas = []
        for _ in range(3):
            world = Surroundings()
            world.service = await stack.enter_async_context(AuthService.open(settings, world.as_node()))
            replicas.append(world)
        yield Mesh(settings, server, replicas)


SIGN_IN = ("anna@example.com", "New sign-in to your account")
KEY = ("anna@example.com", "An API key expires soon")


async def test_a_sign_in_from_a_new_browser_is_mailed_once(mesh: Mesh) -> None:
    await mesh.registered()
    first = await mesh.api_client.browse()
    assert await mesh.send() == [SIGN_IN]
    text = mesh.mails.mails[0][2].get_content()
    for said in ("203.0.113.7", "Mozilla/5.0", "change your password", "https://ai.example.com/settings"):
        assert said in text
    assert await mesh.send() == []
    await mesh.api_client.browse(browser=first.browser or "")
    await mesh.api_client.login()
    assert await mesh.send() == [], "a known browser, and a program"
    await mesh.api_client.browse()
    assert await mesh.send() == [SIGN_IN]
    assert [tuple(row) for row in await mesh.sql("SELECT due_at, details, tries FROM notices")] == [(None, None, 1)] * 2


async def test_a_login_link_in_an_unknown_browser_is_mailed_once_per_address(mesh: Mesh) -> None:
    await mesh.registered()
    known = await mesh.api_client.browse()
    await mesh.send()
    world = mesh.replicas[1]
    for address, browser, mailed in (
        ("203.0.113.9", known.browser, []),
        ("203.0.113.9", "", [SIGN_IN]),
        ("203.0.113.9", "", []),
        ("203.0.113.10", "forged.mark", [SIGN_IN]),
    ):
        link = await world.ask(auth.create_login_link, auth.CreateLoginLink(), known.access_token)
        request = auth.RedeemLoginLink(link.token, auth.ClientFacts(address, "Firefox"), browser or "")
        await world.ask(auth.redeem_login_link, request, peer=WEB)
        assert await mesh.send() == mailed, address


async def test_a_halfway_login_is_mailed_only_once_it_is_complete(mesh: Mesh) -> None:
    client = mesh.api_client
    _, phone, _ = await client.with_factor()
    await mesh.sql(OLDER)
    half = await client.browse()
    assert await mesh.send() == []
    await client.confirm(half, phone.next_code())
    assert await mesh.send() == [SIGN_IN]


async def test_registering_and_switching_off_mail_nothing(mesh: Mesh) -> None:
    await mesh.replicas[0].register("anna")
    await mesh.api_client.browse()
    assert await mesh.send() == []
    await mesh.sql(OLDER)
    await mesh.api_client.browse()
    await mesh.switch_off()
    assert await mesh.send() == [], "switched off before it was sent"
    await mesh.api_client.browse()
    await mesh.key("ending", "3 days")
    assert await mesh.send() == []
    assert [row["sent_at"] for row in await mesh.sql("SELECT sent_at FROM notices")] == [None]


async def test_sign_ins_cannot_fill_a_mailbox(mesh: Mesh) -> None:
    await mesh.registered()
    for _ in range(notice_store.MAX_SIGN_INS + 3):
        await mesh.api_client.browse()
    assert await mesh.send() == [SIGN_IN] * notice_store.MAX_SIGN_INS


async def test_a_key_is_announced_a_week_and_a_day_ahead(mesh: Mesh) -> None:
    await mesh.registered()
    await mesh.registered("bert")
    await mesh.key("ending", "6 days 23 hours")
    await mesh.key("later", "7 days 1 hour")
    await mesh.key("short", "6 days", lifetime="6 days 12 hours")
    await mesh.key("ended", "-1 hour")
    await mesh.key("revoked", "6 days")
    await mesh.key("bert's", "25 hours", owner="bert")
    await mesh.sql("UPDATE api_keys SET is_active = false WHERE name = 'revoked'")
    assert await mesh.send() == [KEY, ("bert@example.com", "An API key expires soon")]
    text = next(mail.get_content() for _, to, mail in mesh.mails.mails if to == "anna@example.com")
    assert "ending (aip_live_abc…wxyz)" in text
    assert await mesh.send() == []
    await mesh.sql("UPDATE api_keys SET expires_at = now() + interval '8 days' WHERE name = 'later'")
    assert await mesh.send() == []
    await mesh.sql("UPDATE api_keys SET expires_at = now() + interval '6 days 23 hours 30 minutes' WHERE name = 'later'")
    assert await mesh.send() == [KEY], "its week has begun"
    await mesh.sql("UPDATE api_keys SET expires_at = now() + interval '23 hours' WHERE name = 'ending'")
    await mesh.key("for a day", "23 hours", lifetime="24 hours")
    await mesh.key("for a weekend", "23 hours", lifetime="50 hours")
    assert await mesh.send() == [KEY, KEY], "the last day of two of them"
    assert await mesh.send() == []


async def test_a_round_has_a_bound_and_the_next_one_does_the_rest(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notices, "KEY_BATCH", 2)
    monkeypatch.setattr(notice_store, "KEY_BATCH", 2)
    monkeypatch.setattr(notices, "_MAX_BATCHES", 2)
    monkeypatch.setattr(notices, "MAX_MAILS", 3)
    await mesh.registered()
    for number in range(11):
        await mesh.key(f"key {number}", "5 days")
    replica = notices_of(mesh.replicas[0])
    searched = []
    for _ in range(4):
        await replica.work()
        searched.append((len(await mesh.sql("SELECT FROM notices")), len(mesh.mails.mails)))
    assert searched == [(4, 3), (8, 6), (11, 9), (11, 11)]


async def test_a_mail_server_that_is_down_delays_a_notice(mesh: Mesh) -> None:
    await mesh.registered()
    await mesh.key("ending", "5 days")
    mesh.mails.answers["MAIL"] = ["451 later", "451 later", "451 later", "250 ok"]
    assert await mesh.send() == []
    assert await mesh.send() == [], "it waits before it tries again"
    assert [row["tries"] for row in await mesh.sql("SELECT tries FROM notices WHERE due_at > now() + interval '4 minutes'")] == [1]
    mesh.mails.answers.clear()
    await mesh.let_retry()
    assert await mesh.send() == [KEY]
    (row,) = await mesh.sql("SELECT tries, sent_at IS NOT NULL AS is_sent, due_at FROM notices")
    assert tuple(row) == (2, True, None)


async def test_a_notice_is_given_up_after_its_last_try(mesh: Mesh) -> None:
    await mesh.registered()
    await mesh.key("ending", "5 days")
    mesh.mails.answers["RCPT"] = ["550 no such mailbox"]
    for tries in range(1, notices.MAX_TRIES + 1):
        await mesh.let_retry()
        assert await mesh.send() == []
        (row,) = await mesh.sql("SELECT tries, due_at IS NULL AS is_over, sent_at FROM notices")
        assert tuple(row) == (tries, tries == notices.MAX_TRIES, None)


async def test_a_notice_of_a_later_release_is_left_alone(mesh: Mesh) -> None:
    await mesh.registered()
    await mesh.sql(
        "INSERT INTO notices (user_id, kind, subject, details) SELECT id, 'budget', 'may', '{}' FROM users WHERE username = 'anna'"
    )
    assert await mesh.send() == []
    assert [row["tries"] for row in await mesh.sql("SELECT tries FROM notices")] == [0]


async def test_keys_are_found_by_the_index(mesh: Mesh) -> None:
    """However many keys there are, a round reads those that it has not seen."""
    await mesh.registered()
    await mesh.sql(
        "INSERT INTO api_keys (id, user_id, key_hash, name, preview, kind, expires_at)"
        " SELECT gen_random_uuid(), users.id, 'h' || n, 'many', 'p', 'live', now() + interval '30 days' + n * interval '1 second'"
        " FROM users, generate_series(1, 20000) AS n WHERE username = 'anna'"
    )
    await mesh.sql("ANALYZE api_keys")
    query = mesh.replicas[0].parts.store._db._queries["add_key_notices"].text
    kind = notice_store.NoticeKind.KEY_EXPIRES
    arguments = (notice_store.KEY_DAYS[kind], notice_store.KEY_BATCH, kind)
    plan = "\n".join(row[0] for row in await mesh.sql(f"EXPLAIN {query}", *arguments))
    assert "api_keys_expiring" in plan
    assert "Seq Scan on api_keys" not in plan


def used(of: Literal["allowance", "budget", "balance"], percent: int, key: KeyId | None = None) -> LimitUsed:
    return LimitUsed(of, percent, 900_000, 1_000_000, key, datetime(2026, 12, 1, tzinfo=UTC))


async def tell(mesh: Mesh, owner: UserId | TenantId, subject: str, notice: Notice) -> None:
    """Say it to two replicas, as a gateway does that was killed before it could note that auth has it."""
    for replica in mesh.replicas[:2]:
        await replica.ask(notices_api.add_notice, notices_api.AddNotice(TenantId(owner), subject, notice, "EUR"))


#: Notices of features with the subjects of their mails and what these say.
OF_FEATURES = [case for part in feature_parts.modules("auth.notices") for case in part.NOTICES]


async def test_what_the_gateway_tells_is_mailed_once(mesh: Mesh) -> None:
    user, made = await mesh.replicas[0].user_with_key("anna")
    page = "https://ai.example.com/billing"
    for number, (notice, subject, said) in enumerate((
        (used("allowance", 80), "The allowance is 80 % used", ("900,000 tokens of 1,000,000 tokens", "01 December 2026, 00:00 UTC", page)),
        (used("allowance", 100), "The allowance is used up", ("Left: 100,000 tokens", page)),
        (used("budget", 80), "The budget is 80 % used", ("0.90 EUR of 1.00 EUR", "administrator", page)),
        (used("budget", 100, made.key.id), f"The budget of the key {made.key.name} is used up", ("https://ai.example.com/api-keys",)),
        (used("balance", 90), "The balance is 90 % used", ("Left: 0.10 EUR", page)),
        *OF_FEATURES,
        (PaymentLate(), "A payment failed", ("card", page)),
        (PaymentLate("INV-2026-000001", datetime(2026, 12, 1, tzinfo=UTC)), "The invoice INV-2026-000001 is not paid", ("due on", page)),
    )):  # fmt: skip
        with case(subject):
            await tell(mesh, user.id, f"subject {number}", notice)
            assert await mesh.send() == [("anna@example.com", subject)]
            text = mesh.mails.mails[0][2].get_content()
            assert all(each in text for each in (*said, "To stop these emails"))
            assert await mesh.send() == []
    await mesh.switch_off()
    await tell(mesh, user.id, "another", used("balance", 90))
    assert await mesh.send() == []


async def test_the_owners_of_an_organization_are_told(mesh: Mesh) -> None:
    _, eve = [await mesh.replicas[0].register(name) for name in ("anna", "eve")]
    await mesh.replicas[0].register("max")
    login = (await mesh.replicas[0].login("anna")).access_token
    team = await mesh.replicas[0].ask(organizations.create_organisation, organizations.CreateOrganization("Acme"), login)
    member = "INSERT INTO organisation_members (organisation_id, user_id, role) VALUES ($1, $2, $3)"
    await mesh.sql(member, team.id, eve.id, "owner")
    await mesh.sql(member, team.id, (await mesh.sql("SELECT id FROM users WHERE username = 'max'"))[0][0], "member")
    await tell(mesh, TenantId(team.id), "one", used("budget", 80))
    assert await mesh.send() == [(f"{name}@example.com", "The budget is 80 % used") for name in ("anna", "eve")]
    assert "the organization Acme" in mesh.mails.mails[0][2].get_content()
    await tell(mesh, TenantId(uuid4()), "one", used("budget", 80))
    assert await mesh.send() == [], "nobody has this id"


async def test_a_changed_plan_is_mailed_once(mesh: Mesh) -> None:
    user = await mesh.replicas[0].register("anna")
    for plan, mailed in (("pro@2", 1), ("pro@2", 0), ("free@1", 1)):
        for _ in range(2):
            await mesh.replicas[0].ask(billing.apply_plan, billing.ApplyPlan(TenantId(user.id), plan))
        assert await mesh.send() == [("anna@example.com", "Your plan has changed")] * mailed
    text = mesh.mails.mails[0][2].get_content()
    assert "Your plan is now free; it was pro." in text
