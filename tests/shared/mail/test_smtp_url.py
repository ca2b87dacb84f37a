"""What SMTP_URL may contain. No error message repeats any of it."""

from pathlib import Path

import pytest

from shared.mail import smtp_url
from shared.mail.smtp_url import MailServer, Security


@pytest.mark.parametrize(
    ("url", "server"),
    [
        pytest.param(
            "smtp://anna:p%40ss%2Fword@mail.example.com",
            MailServer(host="mail.example.com", port=587, security=Security.STARTTLS, username="anna", password="p@ss/word"),
            id="a password with signs",
        ),
        pytest.param(
            "smtps://mail.example.com:4465/", MailServer(host="mail.example.com", port=4465, security=Security.TLS), id="TLS at once"
        ),
        pytest.param("smtps://mail.example.com", MailServer(host="mail.example.com", port=465, security=Security.TLS), id="its port"),
        pytest.param("smtp://localhost:25", MailServer(host="localhost", port=25, security=Security.NONE), id="this machine"),
        pytest.param("smtp://127.0.0.2:25", MailServer(host="127.0.0.2", port=25, security=Security.NONE), id="this machine by number"),
        pytest.param("smtp://[::1]:25", MailServer(host="::1", port=25, security=Security.NONE), id="this machine by IPv6"),
        pytest.param("smtp://10.0.0.1:25", MailServer(host="10.0.0.1", port=25, security=Security.STARTTLS), id="the network is not"),
        pytest.param(
            "smtp://localhost.example.com",
            MailServer(host="localhost.example.com", port=587, security=Security.STARTTLS),
            id="a name like it",
        ),
        pytest.param(
            "smtp://localhost:25?ca=/etc/ca.pem",
            MailServer(host="localhost", port=25, security=Security.STARTTLS, ca_file=Path("/etc/ca.pem")),
            id="an authority asks for TLS",
        ),
    ],
)
def test_valid_urls(url: str, server: MailServer) -> None:
    assert smtp_url.parse(url) == server


@pytest.mark.parametrize(
    ("url", "mistakes"),
    [
        pytest.param("http://s3cret@mail", ["neither smtp:// nor smtps://", "go together"], id="another scheme"),
        pytest.param("s3cret", ["neither smtp:// nor smtps://", "no host", "after the host"], id="no URL"),
        pytest.param("smtp://s3cret:x@mail:99999", ["host or port is invalid"], id="a port beyond"),
        pytest.param("smtp://mail:0", ["port 0"], id="port 0"),
        pytest.param("smtp://s3cret@mail", ["go together"], id="half a login"),
        pytest.param("smtp://s3cret:a%0Ab@mail", ["cannot be printed"], id="a newline in the password"),
        pytest.param("smtp://mail/s3cret?x=1#y", ["after the host", "other than ca"], id="all at once"),
        pytest.param("smtp://mail?ca=", ["names no file"], id="an empty option"),
        pytest.param("smtp://ma%0Ail", ["no host"], id="a newline in the host"),
    ],
)
def test_all_mistakes_are_reported_without_quoting_the_url(url: str, mistakes: list[str]) -> None:
    with pytest.raises(ValueError, match=mistakes[0]) as refused:
        smtp_url.parse(url)
    for mistake in mistakes:
        assert mistake in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_password_is_not_shown() -> None:
    assert "p4ss" not in repr(smtp_url.parse("smtp://anna:p4ss@mail"))
