"""The administrators' setup checklist: its facts, what is stored, and the test email to a real server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from services.auth.accounts import setup_rpc
from services.auth.service import AuthService
from services.auth.settings import AuthSettings
from shared import errors
from shared.api import accounts, audit, auth, organizations, service_settings
from shared.types import Credential, UserRole
from tests.services.auth import by_hand
from tests.services.auth.surroundings import Surroundings
from tests.shared.mail.mail_server import MailServer, serving

ADMIN = "boss@example.com"


@contextlib.asynccontextmanager
async def running(settings: AuthSettings, **changed: object) -> AsyncIterator[Surroundings]:
    world = Surroundings()
    async with AuthService.open(msgspec.structs.replace(settings, **changed), world.as_node()) as world.service:
        yield world


async def boss(world: Surroundings) -> Credential:
    """An administrator with an email address."""
    user = await world.register("boss", email=ADMIN)
    await world.administer(auth.set_role, auth.SetRole(str(user.id), UserRole.ADMIN))
    return (await world.login("boss")).access_token


async def facts(world: Surroundings, credential: Credential) -> service_settings.SetupFacts:
    return await world.ask(service_settings.get_setup, service_settings.GetSetup(), credential)


async def mail_of(world: Surroundings, credential: Credential) -> service_settings.MailTestResult:
    return await world.ask(service_settings.send_test_mail, service_settings.SendTestMail(), credential)


async def test_a_new_mesh_has_everything_to_do(world: Surroundings) -> None:
    assert await facts(world, await world.admin_token()) == service_settings.SetupFacts(
        has_second_factor=False, is_dismissed=False, public_url="", has_mail_server=False, mail_tested_at=None,
        open_registration=True, is_registration_confirmed=False, colleagues=0, invitations=0,
    )  # fmt: skip


async def test_colleagues_and_invitations_are_counted(world: Surroundings, postgres_url: str) -> None:
    admin = await world.admin_token()
    await world.register("ben")
    await world.register("eve")
    await by_hand.run(postgres_url, "UPDATE auth.users SET is_active = false WHERE username = 'eve'")
    for email in ("carl@example.com", "dora@example.com"):
        await world.administer(organizations.invite_colleague, organizations.InviteColleague(email))
    found = await facts(world, admin)
    assert (found.colleagues, found.invitations) == (1, 2)


async def test_each_administrator_dismisses_their_own_list_on_every_replica(settings: AuthSettings) -> None:
    async with running(settings) as one, running(settings) as other:
        admin, second = await one.admin_token(), await boss(one)
        await one.ask(accounts.set_preferences, accounts.SetPreferences(accounts.Preferences(theme="dark")), admin)
        await one.ask(service_settings.dismiss_setup, service_settings.DismissSetup(), admin)
        assert (await facts(other, admin)).is_dismissed
        assert not (await facts(other, second)).is_dismissed
        # Saving the preferences does not change the dismissal, and vice versa.
        await other.ask(accounts.set_preferences, accounts.SetPreferences(accounts.Preferences(theme="light")), admin)
        assert (await facts(one, admin)).is_dismissed
        await other.ask(service_settings.dismiss_setup, service_settings.DismissSetup(is_dismissed=False), admin)
        assert not (await facts(one, admin)).is_dismissed
        assert (await one.ask(accounts.get_account, accounts.GetAccount(), admin)).preferences.theme == "light"


async def test_a_confirmed_registration_counts_until_the_setting_changes(settings: AuthSettings) -> None:
    async with running(settings, open_registration=True) as world:
        admin = await world.admin_token()
        with pytest.raises(errors.BadRequest, match="registration is open"):
            await world.ask(service_settings.confirm_registration, service_settings.ConfirmRegistration(is_open=False), admin)
        assert not (await facts(world, admin)).is_registration_confirmed
        await world.ask(service_settings.confirm_registration, service_settings.ConfirmRegistration(is_open=True), admin)
        assert (await facts(world, admin)).is_registration_confirmed
        rows = (await world.ask(audit.list_audit, audit.ListAudit(), admin)).rows
        assert [row.act.details["after"] for row in rows if row.act.action == "registration.confirm"] == ["open"]
    async with running(settings, open_registration=False) as world:
        assert not (await facts(world, await world.admin_token())).is_registration_confirmed


async def test_a_test_mail_says_what_the_server_answered(settings: AuthSettings) -> None:
    server = MailServer()
    async with serving(server), running(settings, smtp_url=f"smtp://localhost:{server.port}") as world:
        admin = await boss(world)
        assert (await facts(world, admin)).mail_tested_at is None
        sent = await mail_of(world, admin)
        assert sent.is_accepted
        assert sent.answer
        assert (await facts(world, admin)).mail_tested_at is not None
        ((_, to, mail),) = server.mails
        assert (to, mail["Subject"]) == (ADMIN, "Test email")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            "550 no \x1b[31m such user <https://evil.example>",
            "the server refuses the recipient (550): no [31m such user <https: //evil.example>",
        ),
        ("451 try later", "the server refuses the recipient (451): try later"),
    ],
)
async def test_a_refused_test_mail_quotes_the_server_in_one_plain_line(settings: AuthSettings, answer: str, says: str) -> None:
    server = MailServer(answers={"RCPT": [answer]})
    async with serving(server), running(settings, smtp_url=f"smtp://localhost:{server.port}") as world:
        admin = await boss(world)
        assert await mail_of(world, admin) == service_settings.MailTestResult(False, says)
        assert (await facts(world, admin)).mail_tested_at is None


async def test_a_silent_mail_server_ends_at_the_deadline(settings: AuthSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_rpc, "TEST_SECONDS", 0.05)
    server = MailServer(hangs=True)
    async with serving(server), running(settings, smtp_url=f"smtp://localhost:{server.port}") as world:
        assert await mail_of(world, await boss(world)) == service_settings.MailTestResult(False, "the server is too slow")
        await server.wait_until_ended(1)


async def test_test_mails_are_limited_for_each_administrator_also_at_once(settings: AuthSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_rpc, "MAX_TEST_MAILS", 2)
    server = MailServer()
    async with serving(server), running(settings, smtp_url=f"smtp://localhost:{server.port}") as world:
        admin = await boss(world)
        outcomes = await asyncio.gather(*(mail_of(world, admin) for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(outcome, service_settings.MailTestResult) for outcome in outcomes) == len(server.mails) == 2
        refused = [outcome for outcome in outcomes if isinstance(outcome, errors.Limited)]
        assert {error.message for error in refused} == {"you sent too many test emails"}


async def test_without_a_mail_server_the_answer_says_what_to_set(world: Surroundings) -> None:
    sent = await mail_of(world, await world.admin_token())
    assert sent == service_settings.MailTestResult(False, "No mail server is configured. Set SMTP_URL.")


async def test_the_checklist_is_for_administrators_only(world: Surroundings) -> None:
    await world.register("eve")
    eve = (await world.login("eve")).access_token
    for method, request in (
        (service_settings.get_setup, service_settings.GetSetup()),
        (service_settings.dismiss_setup, service_settings.DismissSetup()),
        (service_settings.confirm_registration, service_settings.ConfirmRegistration(True)),
        (service_settings.send_test_mail, service_settings.SendTestMail()),
    ):
        with pytest.raises(errors.NotAllowed, match="eve is no administrator"):
            await world.ask(method, request, eve)  # type: ignore[arg-type]  # pairs of a method and its request
