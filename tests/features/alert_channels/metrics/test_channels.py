"""What a webhook and a mail server receive, and what happens while they are down."""

from collections.abc import AsyncIterator

import pytest

from features.alert_channels.metrics import channels
from features.alert_channels.metrics.channels import GATHER_SECONDS, MAX_DESCRIBED, MailChannel, Webhook
from features.alert_channels.settings import AlertChannelSettings
from services.metrics.alerting.notices import Notice
from services.metrics.alerting.rules import Severity
from shared.mail import mailer
from tests.features.alert_channels.metrics.chat import Chat
from tests.services.web.servers import serving
from tests.shared.mail.mail_server import MailServer
from tests.shared.mail.mail_server import serving as serving_mail

NOON = 1_800_000_000.0
PAGES = "https://ai.example.org/"
FROM = "aimesh <noreply@example.org>"


def notice(summary: str = "No worker is up", severity: Severity = Severity.PAGE, *, ended: float | None = None, **labels: str) -> Notice:
    found = tuple(sorted(labels.items()))
    changed_at = NOON if ended is None else ended
    return Notice(
        "a1b2",
        "no_worker",
        severity,
        found,
        summary,
        "No answers.",
        "docs/runbooks/no_worker.md",
        "aimesh-workers",
        NOON - 60,
        0,
        changed_at,
        ended,
    )


# --- the webhook --------------------------------------------------------------------------------------------------------


async def test_webhook_gets_alertmanagers_format_with_a_key() -> None:
    chat = Chat()
    async with serving(chat) as url:
        assert await Webhook(url, PAGES).send([notice(node="n1"), notice(ended=NOON + 60)], NOON) == ""
    ended, began = chat.got
    assert (began["version"], began["status"], began["receiver"], ended["status"]) == ("4", "firing", "aimesh", "resolved")
    [alert] = began["alerts"]
    assert alert["labels"] == {"alertname": "no_worker", "severity": "page", "node": "n1"}
    assert alert["annotations"]["runbook_url"] == "docs/runbooks/no_worker.md"
    assert (alert["fingerprint"], alert["startsAt"]) == ("a1b2", "2027-01-15T07:59:00Z")
    assert (alert["endsAt"], alert["generatorURL"]) == ("0001-01-01T00:00:00Z", "https://ai.example.org/admin/alerts")
    assert ended["alerts"][0]["endsAt"] == "2027-01-15T08:01:00Z"


async def test_webhook_that_fails_is_named_without_its_address() -> None:
    chat = Chat()
    chat.status = 500
    async with serving(chat) as url:
        assert await Webhook(f"{url}/s3cret", "").send([notice()], NOON) == "returned 500"
    trouble = await Webhook("http://127.0.0.1:1/s3cret", "").send([notice()], NOON)
    assert trouble.startswith("not responding: ")
    assert "s3cret" not in trouble


# --- email --------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    made = MailServer()
    async with serving_mail(made):
        yield made


def channel(server: MailServer) -> MailChannel:
    return MailChannel("alert mail", mailer.parse(f"smtp://localhost:{server.port}", FROM), "ops@example.org", PAGES)


async def test_notices_share_an_email(server: MailServer) -> None:
    assert await channel(server).send([notice(ended=NOON), notice("m is slow", Severity.WARNING, model="m"), notice()], NOON) == ""
    ((sender, to, mail),) = server.mails
    assert (sender, to, mail["From"]) == ("noreply@example.org", "ops@example.org", FROM)
    assert mail["Subject"] == "aimesh: 2 firing, 1 resolved: No worker is up"


async def test_mail_server_that_is_down_is_named(server: MailServer) -> None:
    sink = mailer.parse("smtp://localhost:1", FROM)
    assert "ops@" not in await MailChannel("alert mail", sink, "ops@example.org", "").send([notice()], NOON) != ""


async def test_address_that_is_refused_is_tried_with_the_next_email(server: MailServer) -> None:
    made = MailChannel("alert mail", mailer.parse(f"smtp://localhost:{server.port}", FROM), "nobody@example.org", "")
    server.answers["RCPT"] = ["550 no such user"]
    assert await made.send([notice()], NOON) != ""
    assert made.due_at([notice()]) == NOON + GATHER_SECONDS


async def test_severe_notices_are_sent_at_once_and_others_wait_for_more(server: MailServer) -> None:
    made = channel(server)
    mild = notice(severity=Severity.WARNING)
    assert made.due_at([mild, notice()]) == NOON
    assert made.due_at([mild]) == made.due_at([notice(ended=NOON)]) == NOON + GATHER_SECONDS
    await made.send([notice()], NOON)
    assert made.due_at([notice()]) == NOON + GATHER_SECONDS, "nobody reads an email per minute"


def test_email_says_what_to_do() -> None:
    subject, text = channels.write_mail([notice(node="n,1 https://evil.example")], "https://ai.example.org/admin/alerts", NOON)
    assert subject == "aimesh: No worker is up"
    assert text.startswith("Current alerts: https://ai.example.org/admin/alerts\nAs of 15 January 2027, 08:00 UTC.\n")
    for line in (
        "  page, since 15 January 2027, 07:59 UTC",
        "  runbook: docs/runbooks/no_worker.md",
        "  silence it for 2 hours: aicli alerts silence no_worker --for 2h --label node=n%2C1%20https%3A//evil.example",
    ):
        assert f"\n{line}\n" in text
    assert channels.write_mail([notice(ended=NOON)], "here", NOON)[0] == "aimesh: 1 resolved: No worker is up"


def test_a_storm_is_one_email_of_bounded_length() -> None:
    subject, text = channels.write_mail([notice(f"worker {number}\nis gone") for number in range(300)], "here", NOON)
    assert subject == "aimesh: 300 firing: worker 0 is gone"
    assert text.count("runbook:") == MAX_DESCRIBED
    assert text.endswith(f"\nand {300 - MAX_DESCRIBED} more: here\n")


def test_each_address_is_a_channel_of_its_own() -> None:
    settings = AlertChannelSettings(
        alert_webhook_url="http://chat",
        alert_mail_to=("a@example.org", "b@example.org"),
        smtp_url="smtp://mail",
    )
    assert [one.name for one in channels.open_channels(settings)] == ["alert webhook", "alert mail", "alert mail 2"]
    assert list(channels.open_channels(AlertChannelSettings())) == []
