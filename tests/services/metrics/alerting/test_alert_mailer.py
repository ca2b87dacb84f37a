"""Alerts by email to a real server on loopback: a server that accepts them, is down, or hangs; and an alert storm."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.metrics.alerting import alert_mailer
from services.metrics.alerting.alert_emails import GATHER_SECONDS, MOST_AN_HOUR, MOST_WAITING
from services.metrics.alerting.alert_mailer import AlertMailer
from services.metrics.alerting.alert_state import AlertNotice
from services.metrics.alerting.alerting_module import AlertingModule
from services.metrics.alerting.rules.alert_rule import Severity
from services.metrics.alerting.worker_attendance import WorkerAttendance
from services.metrics.service import MetricsService
from services.metrics.settings import MOST_MAILED, MetricsSettings
from shared import errors
from shared.mail import mailer
from shared.telemetry import logs
from shared.types import Role
from tests.services.metrics.alerting.sample_alerts import NOON, alert, began, ended
from tests.shared.mail.mail_server import MailServer, serving
from tests.testnet import MESH, testnet, until

OPS = "ops@example.org"
FROM = "aimesh <noreply@example.org>"


async def _nothing() -> str:
    return ""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float, mailing: AlertMailer) -> None:
        """Advance the clock, and wake the mailer without a notice."""
        self.now += seconds
        mailing.notify(AlertNotice())


@asynccontextmanager
async def running_mailer(server: MailServer, clock: Clock, *to: str) -> AsyncIterator[AlertMailer]:
    async with serving(server):
        mailing = AlertMailer(mailer.parse(f"smtp://localhost:{server.port}", FROM), to or (OPS,), "https://ai.example.org", clock)
        running = asyncio.create_task(mailing.run())
        try:
            yield mailing
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_alerts_of_one_evaluation_go_to_all_recipients_in_one_mail() -> None:
    server = MailServer()
    async with running_mailer(server, Clock(), OPS, "anna@example.org") as mailing:
        mailing.notify(
            AlertNotice((alert(), alert("{model} is slow", Severity.WARNING, model="llama3")), (alert("disk full", ended=NOON + 60),))
        )
        await server.wait_for(2)
        await until(lambda: mailing.waiting == 0)
    assert [to for _, to, _ in server.mails] == [OPS, "anna@example.org"]
    sender, _, mail = server.mails[0]
    assert (sender, mail["From"], mail["To"]) == ("noreply@example.org", FROM, OPS)
    assert mail["Subject"] == "aimesh: 2 alerts firing, including: No worker is up; 1 resolved"
    text = mail.get_content()
    assert "https://ai.example.org/admin/alerts" in text
    assert "llama3 is slow" in text
    assert "1 alert resolved" in text
    assert (mailing.check().ok, mailing.check().needed, mailing.check().detail) == (True, False, "")


async def test_warnings_are_batched() -> None:
    server, clock = MailServer(), Clock()
    async with running_mailer(server, clock) as mailing:
        for number in range(10):
            mailing.notify(began(alert(f"number {number}", Severity.WARNING)))
            clock.pass_by(10, mailing)
        await asyncio.sleep(0.05)
        assert (server.connections, mailing.waiting) == (0, 10)
        clock.pass_by(GATHER_SECONDS, mailing)
        await server.wait_for(1)
        await until(lambda: mailing.waiting == 0)
    assert [mail["Subject"] for _, _, mail in server.mails] == ["aimesh: 10 alerts firing, including: number 0"]


async def test_alert_storm_sends_twenty_mails_and_one_summary() -> None:
    server, clock = MailServer(), Clock()
    async with running_mailer(server, clock) as mailing:
        for number in range(300):
            mailing.notify(began(alert(f"number {number}")))
            clock.now += 1
            # Let the mailer's task run.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await server.wait_for(MOST_AN_HOUR)
        await until(lambda: mailing.waiting == 300 - MOST_AN_HOUR)
        assert "last of 20 emails in this hour" in server.mails[-1][2].get_content()
        clock.pass_by(3600, mailing)
        await server.wait_for(MOST_AN_HOUR + 1)
        await until(lambda: mailing.waiting == 0)
    assert len(server.mails) == MOST_AN_HOUR + 1
    held = server.mails[-1][2]
    assert held["Subject"] == "aimesh: 280 alerts firing, including: number 20"
    assert "280 alerts were held back" in held.get_content()
    assert "https://ai.example.org/admin/alerts" in held.get_content()


async def test_mails_are_sent_once_an_unavailable_server_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_mailer, "PAUSES_SECONDS", (0.01,) * 1000)
    server = MailServer(answers={"MAIL": ["421 go away"]})
    async with running_mailer(server, Clock()) as mailing:
        mailing.notify(began(alert()))
        await until(lambda: server.connections > len(mailer.PAUSES_SECONDS) + 1)
        check = mailing.check()
        assert (check.ok, check.needed) == (False, False)
        assert ", 0 lost: the server refuses (421)" in check.detail
        # The mail still counts as waiting, so a restart does not lose it.
        assert mailing.waiting == 1
        server.answers["MAIL"] = ["250 ok"]
        await server.wait_for(1)
        await until(lambda: mailing.waiting == 0)
        assert mailing.check().ok


async def test_unsent_mails_are_bounded_and_the_rest_is_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    server, clock = MailServer(hangs=True), Clock()
    people = tuple(f"number{number}@example.org" for number in range(MOST_MAILED))
    async with running_mailer(server, clock, *people) as mailing:
        for number in range(3 * MOST_WAITING):
            mailing.notify(began(alert(f"number {number}")))
            clock.now += 60
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await until(lambda: server.connections > 0)
        opened = mailing._smtp
        assert opened is not None
        assert 0 < opened.waiting <= mailer.MOST_WAITING + 1
        assert len(mailing._batching._waiting) == MOST_WAITING
        # No mail was lost for lack of room.
        assert "0 lost" in opened.check().detail or not opened.check().detail


async def test_rejected_recipient_does_not_block_the_others_and_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("metrics")
    try:
        server = MailServer(answers={"RCPT": [f"550 5.1.1 <{OPS}>: no such user", "250 ok"]})
        async with running_mailer(server, Clock(), OPS, "anna@example.org") as mailing:
            mailing.notify(began(alert()))
            await server.wait_for(1)
            await until(lambda: mailing.waiting == 0)
            assert "1 lost" in mailing.check().detail
            assert "example" not in mailing.check().detail
    finally:
        logs.silence()
    output = capsys.readouterr().out
    assert "mail not sent" in output
    assert "mail sent" in output
    assert "example" not in output


async def test_newlines_in_a_label_add_no_header_or_recipient() -> None:
    server = MailServer()
    async with running_mailer(server, Clock()) as mailing:
        hostile = "x\r\nBcc: eve@example.com\r\n\r\n.\r\nMAIL FROM:<eve@example.com>"
        mailing.notify(began(alert("{model} is gone", model=hostile)))
        mailing.notify(ended(alert("{model} is gone", model=hostile, ended=NOON)))
        mailing.notify(began(alert()))
        await server.wait_for(1)
    commands = [line.partition(":")[0].upper() for line in server.plain]
    assert (commands.count("MAIL FROM"), commands.count("RCPT TO")) == (1, 1)
    [(_, to, mail)] = server.mails
    assert (to, mail["Bcc"]) == (OPS, None)


async def test_service_sends_mail_and_reports_its_state_in_the_health() -> None:
    server = MailServer()
    async with testnet() as net, serving(server):
        settings = MetricsSettings(
            node_key_file=net.server.key("metrics", Role.METRICS),
            port=0,
            prometheus_port=0,
            mesh=MESH,
            nats_url=net.server.url,
            alert_mail_to=(OPS,),
            smtp_url=f"smtp://localhost:{server.port}",
        )
        running = await net.start(MetricsService, settings)  # type: ignore[arg-type]
        assert isinstance(running.service, MetricsService)
        running.service._alerting._delivery.note([alert()])
        running.service._alerting._delivery.hand_over()
        await server.wait_for(1)
        assert [check.ok for check in await running.service.checks() if check.name == "alert mail"] == [True]
    assert server.mails[0][2]["From"] == "aimesh <noreply@localhost>"


async def test_invalid_mail_server_stops_the_service_at_start(tmp_path: Path) -> None:
    settings = MetricsSettings(
        node_key_file=tmp_path / "node.nk", mesh=MESH, alert_mail_to=(OPS,), smtp_url="http://s3cret", mail_from="me"
    )
    with pytest.raises(errors.BadSettings) as refused:
        AlertingModule(settings, "UAAA", _nothing, WorkerAttendance())
    assert "SMTP_URL cannot be used" in refused.value.message
    assert "MAIL_FROM cannot be used" in refused.value.message
    assert "s3cret" not in refused.value.message
