"""Texts of mails. A person's name can neither change the shape of a mail nor add a line to it."""

import json
from datetime import UTC, datetime

import pytest

from services.auth import api_keys, mail_texts
from services.auth.mail_texts import AccountMail
from shared.mail import mailer
from shared.mail.letters import Letter
from shared.telemetry import logs

AT = datetime(2026, 12, 21, 7, 5, tzinfo=UTC)


def every_text(name: str) -> list[AccountMail]:
    return [
        mail_texts.reset("anna", "https://ai.example.com/reset", "TOKEN", 30),
        mail_texts.reset("anna", "", "TOKEN", 30),
        mail_texts.reset_at_provider("anna", name),
        mail_texts.password_changed("anna"),
        mail_texts.address_changed_to("anna"),
        mail_texts.address_changed_from("anna"),
        mail_texts.invitation(name, name, "https://ai.example.com/invitation", "TOKEN", 7),
        mail_texts.invitation(name, name, "", "TOKEN", 7),
        mail_texts.erasure_planned("anna", AT, "https://ai.example.com"),
        mail_texts.erasure_called_off("anna"),
    ]


@pytest.mark.parametrize(
    "name", ["Acme", "a\r\nBcc: x@y.z", "x" * 5000, "Win! https://evil.example/login now", "\u2028two\u2029lines", "", "\0\x1b[31m"]
)
def test_a_name_is_one_short_line_without_a_link(name: str) -> None:
    for text in every_text(name):
        Letter("anna@example.com", text.subject, text.text)
        assert text.text.startswith("Hello")
        assert text.text.endswith("\n")
        assert "://evil" not in text.text
        assert "\nBcc" not in text.text
        assert "\0" not in text.text
        assert max(map(len, text.text.splitlines())) < 300


def test_a_link_carries_its_token_where_no_server_sees_it() -> None:
    text = mail_texts.reset("anna", "https://ai.example.com/reset", "TOKEN", 30).text
    assert "https://ai.example.com/reset#TOKEN\n" in text
    assert "30 minutes" in text
    assert "\n\nTOKEN\n\n" in text, "for a page without scripts"


def test_without_a_public_url_the_mail_has_only_the_code() -> None:
    text = mail_texts.reset("anna", "", "TOKEN", 30).text
    assert "#" not in text
    assert "\n\nTOKEN\n\n" in text


def test_the_day_of_an_erasure_is_named() -> None:
    assert "21 December 2026, 07:05 UTC" in mail_texts.erasure_planned("anna", AT, "").text


async def test_without_a_mail_server_the_log_has_the_mail_with_a_working_link(capsys: pytest.CaptureFixture[str]) -> None:
    token = api_keys.random_text()
    logs.configure("auth")
    try:
        async with mailer.opened(mailer.parse(None, "aimesh <noreply@example.com>")) as opened:
            text = mail_texts.reset("anna", "http://localhost:3000/reset", token, 30)
            await opened.send("anna@example.com", text.subject, text.text)
            assert "SMTP_URL" in opened.check().detail
    finally:
        logs.silence()
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["event"] == "mail, printed because SMTP_URL is not set"
    assert f"http://localhost:3000/reset#{token}\n" in line["text"], "not masked as a secret"
