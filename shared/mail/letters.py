"""What a mail is, and its form on the wire. Pure; nothing that a person chose can become a header or another recipient."""

from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr

from shared import errors
from shared.mail import email_address

#: RFC 5322 §2.1.1 allows 998 characters in a line; a subject that is longer than this is none.
_LONGEST_SUBJECT = 200


@dataclass(frozen=True, slots=True)
class MailSender:
    #: What is shown; may be empty.
    name: str
    address: str

    @property
    def domain(self) -> str:
        return self.address.rpartition("@")[2]


@dataclass(frozen=True, slots=True)
class Letter:
    """Raises BadRequest where it is made with an address that is none, or with a subject of several lines."""

    to: str
    subject: str
    text: str

    def __post_init__(self) -> None:
        if not email_address.may_be_email(self.to):
            raise errors.BadRequest("mail: the recipient's address is none", hint="give one such as you@example.com")
        if not (self.subject.isprintable() and 0 < len(self.subject) <= _LONGEST_SUBJECT):
            raise errors.BadRequest(f"mail: a subject is one line of at most {_LONGEST_SUBJECT} printable characters", hint="shorten it")


def parse_sender(text: str) -> MailSender:
    """`Name <name@example.com>`, or the address alone. Raises ValueError with a sentence."""
    name, found = parseaddr(text)
    if not (text.isprintable() and name.isprintable() and email_address.may_be_email(found)):
        raise ValueError("say Name <name@example.com>, or an address alone")
    return MailSender(name, found)


def written(letter: Letter, sender: MailSender, at: datetime, unique: str) -> bytes:
    """As it goes to the server. ``unique``: no two mails have the same."""
    message = EmailMessage(policy=SMTP)
    message["From"] = Address(display_name=sender.name, addr_spec=sender.address)
    message["To"] = Address(addr_spec=letter.to)
    message["Subject"] = letter.subject
    message["Date"] = format_datetime(at)
    message["Message-ID"] = f"<{unique}@{sender.domain}>"
    # RFC 3834: so that nobody's absence is answered to us.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(letter.text)
    return message.as_bytes()


def one_line(text: str, longest: int) -> str:
    """What others chose, for the words of a mail: in one short line, and with no address of a page in it."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    plain = " ".join(printable.replace("://", ": //").split())
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"
