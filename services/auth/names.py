"""Which user names, addresses and key names are good. Pure; raises BadRequest with the rule that was broken."""

import re
from uuid import UUID

from shared import errors

#: Made by auth itself at its first start, and by nobody else.
ADMIN_USERNAME = "admin"
ADMIN_EMAIL = "admin@localhost"

_USERNAME = re.compile(r"[A-Za-z0-9_.-]{3,50}")
# What <input type=email> accepts: https://html.spec.whatwg.org/#valid-e-mail-address. Only a letter sent there proves more.
_EMAIL = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
)
_LONGEST_EMAIL = 100
_LONGEST_KEY_NAME = 100


def check_username(username: str) -> None:
    if not may_be_username(username):
        raise errors.BadRequest("username: 3 to 50 letters, digits, `_`, `.` or `-`, without accents", hint="choose another user name")
    if find_uuid(username) is not None:
        raise errors.BadRequest("username: it must not look like a user id", hint="choose another user name")
    if username.lower() == ADMIN_USERNAME:
        raise errors.AlreadyExists(f"the user name {ADMIN_USERNAME} is reserved", hint="choose another user name")


def check_email(email: str) -> None:
    if not may_be_email(email):
        raise errors.BadRequest(f"email: an address such as you@example.com, at most {_LONGEST_EMAIL} characters", hint="check the address")
    if email.lower() == ADMIN_EMAIL:
        raise errors.AlreadyExists(f"the address {ADMIN_EMAIL} is reserved", hint="choose another address")


def check_key_name(name: str) -> None:
    if not may_be_key_name(name):
        raise errors.BadRequest(f"name: 1 to {_LONGEST_KEY_NAME} printable characters", hint="choose a name to recognise the key by")


def may_be_username(text: str) -> bool:
    return _USERNAME.fullmatch(text) is not None


def may_be_email(text: str) -> bool:
    # The length first: it also bounds the time of the pattern.
    return len(text) <= _LONGEST_EMAIL and _EMAIL.fullmatch(text) is not None


def may_be_key_name(text: str) -> bool:
    return bool(text.strip()) and len(text) <= _LONGEST_KEY_NAME and text.isprintable()


def find_uuid(text: str) -> UUID | None:
    """The id that ``text`` is, in the form that we write ids in (or without its dashes)."""
    try:
        found = UUID(text)
    except ValueError:
        return None
    return found if text.lower() in (str(found), found.hex) else None
