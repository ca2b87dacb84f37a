"""Mails to a real server on loopback, and to servers that hang, refuse, fail for a while or have the wrong identity."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared import errors
from shared.mail import mailer
from shared.mail.mailer import MAX_WAITING, Mailer
from shared.telemetry import logs
from tests.shared.mail.mail_server import MailServer, serving, throw_away_certificate

FROM = "aimesh <noreply@example.com>"
TEXT = "Hello,\n\nyour code is 4711.\n.\n..two dots\nBye ä\n"


@contextlib.asynccontextmanager
async def mailing(server: MailServer, url: str) -> AsyncIterator[Mailer]:
    async with serving(server), mailer.opened(mailer.parse(url.format(server.port), FROM)) as opened:
        yield opened


async def until_told(opened: Mailer, words: str) -> None:
    async with asyncio.timeout(30):
        while words not in opened.check().detail:  # noqa: ASYNC110 - the mailer has no event to wait for
            await asyncio.sleep(0.01)


async def test_a_mail_arrives_as_sent() -> None:
    server = MailServer()
    async with mailing(server, "smtp://localhost:{}") as opened:
        await opened.send("anna@example.com", "Hello ä", TEXT)
        await server.wait_for(1)
    sender, to, mail = server.mails[0]
    assert (sender, to) == ("noreply@example.com", "anna@example.com")
    assert (mail["Subject"], mail["To"], mail["From"]) == ("Hello ä", "anna@example.com", FROM)
    assert mail.get_content().replace("\r\n", "\n") == TEXT
    assert opened.check().detail == ""


async def test_starttls_and_login_reveal_nothing_to_an_eavesdropper(tmp_path: Path) -> None:
    tls, ca_file = throw_away_certificate(tmp_path)
    server = MailServer(tls=tls, users={"us er": "p@ss"})
    async with mailing(server, "smtp://us%20er:p%40ss@localhost:{}?ca=" + str(ca_file)) as opened:
        await opened.send("anna@example.com", "hello", TEXT)
        await server.wait_for(1)
    assert [line.partition(" ")[0].upper() for line in server.plain] == ["EHLO", "STARTTLS"]
    assert [line.partition(" ")[0].upper() for line in server.sealed[:3]] == ["EHLO", "AUTH", "MAIL"]


async def test_tls_from_the_first_byte(tmp_path: Path) -> None:
    tls, ca_file = throw_away_certificate(tmp_path)
    server = MailServer(tls=tls, at_once=True)
    async with mailing(server, "smtps://localhost:{}?ca=" + str(ca_file)) as opened:
        await opened.send("anna@example.com", "hello", TEXT)
        await server.wait_for(1)
    assert server.plain == []


async def test_without_starttls_nothing_is_sent(tmp_path: Path) -> None:
    tls, ca_file = throw_away_certificate(tmp_path)
    server = MailServer(tls=tls, offers_starttls=False, users={"user": "s3cret"})
    async with mailing(server, "smtp://user:s3cret@localhost:{}?ca=" + str(ca_file)) as opened:
        await opened.send("anna@example.com", "hello", TEXT)
        await until_told(opened, "STARTTLS")
    assert server.mails == []
    assert not [line for line in server.plain if line.upper().startswith(("AUTH", "MAIL"))]


@pytest.mark.parametrize("name", ["mail.example.com", "localhost"])
async def test_another_servers_certificate_is_refused(tmp_path: Path, name: str) -> None:
    """A certificate for another name, and a certificate for this name by an unknown authority."""
    tls, ca_file = throw_away_certificate(tmp_path, name)
    if name == "localhost":
        other = tmp_path / "other"
        other.mkdir()
        _, ca_file = throw_away_certificate(other, name)
    server = MailServer(tls=tls)
    async with mailing(server, "smtp://localhost:{}?ca=" + str(ca_file)) as opened:
        await opened.send("anna@example.com", "hello", TEXT)
        await until_told(opened, "certificate")
    assert server.mails == []


async def test_a_wrong_password_is_reported_and_not_retried(tmp_path: Path) -> None:
    server = MailServer(users={"user": "right"})
    async with mailing(server, "smtp://user:wr0ng@localhost:{}") as opened:
        await opened.send("anna@example.com", "hello", TEXT)
        await until_told(opened, "user name and password (535)")
        assert "1 lost" in opened.check().detail
        assert "wr0ng" not in opened.check().detail
        assert opened.check().ok, "a service without mail still serves"


async def test_a_server_without_login_gets_no_password() -> None:
    server = MailServer()
    async with mailing(server, "smtp://user:s3cret@localhost:{}") as opened:
        await opened.send("anna@example.com", "hello", TEXT)
        await until_told(opened, "1 lost: the server does not offer what the settings ask for")
    assert server.mails == []
    assert [line.partition(" ")[0].upper() for line in server.plain] == ["EHLO"]


async def test_capabilities_from_before_tls_are_ignored_after_it(tmp_path: Path) -> None:
    """RFC 3207 §4.2: a login offered only in plain text is not tried, and answers injected before TLS are discarded."""
    tls, ca_file = throw_away_certificate(tmp_path)
    server = MailServer(tls=tls, users={"user": "s3cret"}, after_starttls="250-evil\r\n250 AUTH PLAIN\r\n")
    async with mailing(server, "smtp://user:s3cret@localhost:{}?ca=" + str(ca_file)) as opened:
        await opened.send("anna@example.com", "hello", TEXT)
        await server.wait_for(1)
    assert [line.partition(" ")[0].upper() for line in server.sealed[:3]] == ["EHLO", "AUTH", "MAIL"]


@pytest.mark.parametrize("tls_at_once", [True, False])
async def test_an_unreachable_server_is_retried(tls_at_once: bool) -> None:
    server = MailServer()
    async with serving(server):
        pass
    scheme = "smtps" if tls_at_once else "smtp"
    async with mailer.opened(mailer.parse(f"{scheme}://localhost:{server.port}", FROM)) as opened:
        await opened.send("anna@example.com", "hello", TEXT)
        await until_told(opened, "1 mails waiting, 0 lost: the connection failed: ")
        assert str(server.port) not in opened.check().detail


async def test_a_temporarily_failing_server_gets_the_mail_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailer, "PAUSES_SECONDS", (0.01, 0.01, 0.01))
    server = MailServer(answers={"RCPT": ["451 greylisted", "421 busy", "250 ok"]})
    async with mailing(server, "smtp://localhost:{}") as opened:
        await opened.send("anna@example.com", "hello", TEXT)
        async with asyncio.timeout(30):
            await server.wait_for(1)
    assert server.connections == 3


async def test_after_four_attempts_a_mail_is_dropped_and_the_next_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailer, "PAUSES_SECONDS", (0.01, 0.01, 0.01))
    server = MailServer(answers={"MAIL": ["451 a", "451 b", "451 c", "451 d", "250 ok"]})
    async with mailing(server, "smtp://localhost:{}") as opened:
        await opened.send("anna@example.com", "first", TEXT)
        await until_told(opened, "1 lost")
        await opened.send("anna@example.com", "second", TEXT)
        await server.wait_for(1)
        assert server.connections == 5
    assert server.mails[0][2]["Subject"] == "second"


async def test_a_refused_recipient_is_neither_retried_nor_logged(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("auth")
    try:
        server = MailServer(answers={"RCPT": ["550 5.1.1 <anna@example.com>: no such user"]})
        async with mailing(server, "smtp://localhost:{}") as opened:
            await opened.send("anna@example.com", "hello", TEXT)
            await until_told(opened, "recipient (550)")
            assert "anna" not in opened.check().detail
        assert server.connections == 1
    finally:
        logs.silence()
    said = capsys.readouterr().out
    assert "mail not sent" in said
    assert "anna" not in said
    assert "4711" not in said


async def test_a_silent_server_blocks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailer, "DEADLINE_SECONDS", 1.0)
    server = MailServer(hangs=True)
    async with mailing(server, "smtp://localhost:{}") as opened:
        await opened.send("anna@example.com", "hello", TEXT)
        await until_told(opened, "too slow")
        await server.wait_until_ended(1)
        server.hangs = False
        await opened.send("bert@example.com", "hello", TEXT)
        await server.wait_for(1)
    assert server.mails[0][1] == "bert@example.com"


async def test_a_dead_mail_server_does_not_delay_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailer, "SHUTDOWN_SECONDS", 0.05)
    server = MailServer(hangs=True)
    async with serving(server):
        async with asyncio.timeout(30), mailer.opened(mailer.parse(f"smtp://localhost:{server.port}", FROM)) as opened:
            await opened.send("anna@example.com", "hello", TEXT)
            await server.wait_for_connections(1)
        await server.wait_until_ended(1)


async def test_the_queue_is_bounded_and_overflow_is_reported() -> None:
    server = MailServer(hangs=True)
    async with mailing(server, "smtp://localhost:{}") as opened:
        for _ in range(MAX_WAITING + 30):
            await opened.send("anna@example.com", "hello", TEXT)
        assert "30 lost" in opened.check().detail
        server.hangs = False
        # The hanging delivery is canceled at the end of the test; nothing here waits for it.


async def test_an_invalid_address_is_refused_before_anything_is_sent() -> None:
    server = MailServer()
    async with mailing(server, "smtp://localhost:{}") as opened:
        with pytest.raises(errors.BadRequest, match="mail: the recipient's address is invalid"):
            await opened.send("anna@example.com\r\nRCPT TO:<eve@example.com>", "hello", TEXT)
    assert server.connections == 0


@pytest.mark.parametrize(
    ("url", "sender", "mistakes"),
    [
        pytest.param("http://s3cret", "nobody", ["SMTP_URL", "neither smtp", "MAIL_FROM", "Name <"], id="both"),
        pytest.param("smtps://mail?ca=/nowhere/ca.pem", FROM, ["SMTP_URL", "No such file"], id="no such file"),
    ],
)
def test_all_mistakes_in_the_settings_are_reported_together(url: str, sender: str, mistakes: list[str]) -> None:
    with pytest.raises(errors.BadSettings) as refused:
        mailer.parse(url, sender)
    for mistake in mistakes:
        assert mistake in refused.value.message
    assert "s3cret" not in refused.value.message
