"""Check email addresses and build emails. Pure. User-supplied text can become neither a header nor another recipient."""

import re
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr

from shared import errors

# What <input type=email> accepts (https://html.spec.whatwg.org/#valid-e-mail-address), except misplaced dots and encoded words (RFC 2047):
# no header can be written with these. Only a delivered mail proves more.
_EMAIL = re.compile(
    r"(?!.*=\?)[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
MAX_ADDRESS = 100
#: RFC 5322 §2.1.1 allows 998 characters per line.
_MAX_SUBJECT = 200


def may_be_email(text: str) -> bool:
    # The length first: it also bounds the time of the pattern.
    return len(text) <= MAX_ADDRESS and _EMAIL.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class MailSender:
    #: May be empty.
    name: str
    address: str

    @property
    def domain(self) -> str:
        return self.address.rpartition("@")[2]


@dataclass(frozen=True, slots=True)
class Letter:
    """Creating it raises BadRequest for an invalid address, or a subject of several lines."""

    to: str
    subject: str
    text: str

    def __post_init__(self) -> None:
        if not may_be_email(self.to):
            raise errors.BadRequest("mail: the recipient's address is invalid", hint="use one such as you@example.com")
        if not (self.subject.isprintable() and 0 < len(self.subject) <= _MAX_SUBJECT):
            raise errors.BadRequest(f"mail: a subject is one line of at most {_MAX_SUBJECT} printable characters", hint="shorten it")


def parse_sender(text: str) -> MailSender:
    """Parse `Name <name@example.com>`, or an address alone. Raises ValueError with a sentence."""
    name, found = parseaddr(text)
    if not (text.isprintable() and name.isprintable() and may_be_email(found)):
        raise ValueError("use Name <name@example.com>, or an address alone")
    return MailSender(name, found)


def written(letter: Letter, sender: MailSender, at: datetime, unique: str) -> bytes:
    """Return the mail as sent to the server. ``unique`` must differ for every mail."""
    message = EmailMessage(policy=SMTP)
    message["From"] = Address(display_name=sender.name, addr_spec=sender.address)
    message["To"] = Address(addr_spec=letter.to)
    message["Subject"] = letter.subject
    message["Date"] = format_datetime(at)
    message["Message-ID"] = f"<{unique}@{sender.domain}>"
    # RFC 3834: keeps out-of-office replies away.
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(letter.text)
    return message.as_bytes()


def one_line(text: str, longest: int) -> str:
    """Shorten user-supplied text to one line without URLs."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    plain = " ".join(printable.replace("://", ": //").split())
    return plain if len(plain) <= longest else f"{plain[: longest - 1]}…"
