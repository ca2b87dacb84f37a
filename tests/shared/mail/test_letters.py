"""No text that a user chooses becomes a header of a mail, or another recipient."""

import time
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import default

import pytest

from shared import errors
from shared.mail import letters
from shared.mail.letters import Letter, MailSender

AT = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SENDER = MailSender("aimesh", "noreply@example.com")


def test_a_message_can_be_parsed_again() -> None:
    letter = Letter("anna@example.com", "Grüße – ein neues Passwort", "Hallo Änna,\n\n" + "x" * 300 + "\n.\nEnde\n")
    read = BytesParser(policy=default).parsebytes(letters.written(letter, SENDER, AT, "abc"))
    assert (read["To"], read["From"], read["Subject"]) == (letter.to, "aimesh <noreply@example.com>", letter.subject)
    assert read["Message-ID"] == "<abc@example.com>"
    assert read["Auto-Submitted"] == "auto-generated"
    assert read["Date"].datetime == AT
    assert read.get_content().replace("\r\n", "\n") == letter.text


@pytest.mark.parametrize("bad", ["\n", "\r", "\r\n", "\0", "\v", "\f", "\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("where", ["to", "subject"])
def test_no_newline_gets_into_a_header(bad: str, where: str) -> None:
    injected = f"anna@example.com{bad}Bcc: everybody@example.com"
    with pytest.raises(errors.BadRequest, match=r"mail: a subject is one line of at most|mail: the recipient's address is invalid"):
        Letter(injected if where == "to" else "anna@example.com", injected if where == "subject" else "hello", "text")


@pytest.mark.parametrize("to", ["", "anna", "anna@example.com, eve@example.com", "Anna <anna@example.com>", "<anna@example.com>", "ä@b.c"])
def test_exactly_one_recipient(to: str) -> None:
    with pytest.raises(errors.BadRequest, match="mail: the recipient's address is invalid"):
        Letter(to, "hello", "text")


@pytest.mark.parametrize("subject", ["", "x" * 201])
def test_a_subject_has_a_maximum_length(subject: str) -> None:
    with pytest.raises(errors.BadRequest, match="mail: a subject is one line of at most 200 printable characters"):
        Letter("anna@example.com", subject, "text")


@pytest.mark.parametrize("hostile", ["\nBcc: a@b.c", "x@y.z>\r\nBcc: <a@b.c", '"', "<script>", "=?utf-8?q?=0ABcc:_a@b.c?="])
def test_a_text_is_plain_text(hostile: str) -> None:
    letter = Letter("anna@example.com", "hello", f"Hello {hostile}")
    read = BytesParser(policy=default).parsebytes(letters.written(letter, SENDER, AT, "abc"))
    assert read["Bcc"] is None
    assert set(read.keys()) <= {
        "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Content-Type", "Content-Transfer-Encoding", "MIME-Version",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sender"),
    [
        ("aimesh <noreply@localhost>", MailSender("aimesh", "noreply@localhost")),
        ("noreply@example.com", MailSender("", "noreply@example.com")),
        ('"A, B" <noreply@example.com>', MailSender("A, B", "noreply@example.com")),
    ],
)
def test_valid_senders(text: str, sender: MailSender) -> None:
    assert letters.parse_sender(text) == sender


@pytest.mark.parametrize("text", ["", "aimesh", "aimesh <>", "a <b@c.d>\nBcc: x@y.z", "aimesh <no reply@localhost>"])
def test_invalid_senders(text: str) -> None:
    with pytest.raises(ValueError, match="use Name"):
        letters.parse_sender(text)


@pytest.mark.parametrize(
    "text", ["anna@example.org", "a.b+c@mail.example.org", "root@localhost", "!#$%&'*+/=^_`{|}~-?@1.2.3.4", f"{'a' * 90}@b.c"]
)
def test_valid_addresses(text: str) -> None:
    assert letters.may_be_email(text)
    read = BytesParser(policy=default).parsebytes(letters.written(Letter(text, "hello", "text"), SENDER, AT, "abc"))
    assert read["To"].addresses[0].addr_spec == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "anna", "anna@", "@example.org", "a@b@c", "a b@c.d", "anna@example.org\n", "a@b.c,d@e.f", "a@-b.c", "ä@b.c"),
        *("a..b@example.org", ".a@example.org", "a.@example.org", "=?utf-8?q?x?=@example.org"),
    ],
)
def test_invalid_addresses(text: str) -> None:
    """An accepted address that no header can contain would end the mail task, and with it the service."""
    assert not letters.may_be_email(text)


def test_the_length_limit_and_overlong_addresses_are_cheap() -> None:
    longest = "a" * (letters.MAX_ADDRESS - len("@example.org")) + "@example.org"
    assert letters.may_be_email(longest)
    assert not letters.may_be_email("a" + longest)
    began = time.process_time()
    assert not letters.may_be_email("a@" + "a-" * 10_000_000)
    assert time.process_time() - began < 0.5
