"""What people send, typed: form fields and JSON bodies decoded into frozen structs, or BadRequest saying what is wrong. Pure."""

from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec

from shared import errors

F = TypeVar("F", bound=msgspec.Struct)

#: The largest form has some twenty.
MAX_FIELDS = 64
#: A register form with the longest allowed values is under 2 KiB.
MAX_BODY_BYTES = 16 * 1024


class Registration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str
    email: str
    password: str
    #: Where registration is closed: the code of an open invitation to the address.
    invitation: str | None = None


class RegistrationForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str
    email: str
    password: str
    #: The page that asked for somebody to sign in.
    then: str = ""
    #: As of a ``Registration``; empty for none.
    invitation: str = ""


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    password: str
    username: str | None = None
    email: str | None = None
    #: Of the second factor, where there is one.
    code: str | None = None


class LoginForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: A username or an e-mail address: whichever a person remembers.
    name: str
    password: str
    #: The page that asked for the login.
    then: str = ""


class LoginLinkForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    link: str


class Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A button: nothing but the proof that it was pressed on our page."""


def read_fields(content: bytes) -> dict[str, str]:
    """As the browser sent them. Raises BadRequest."""
    try:
        pairs = parse_qsl(
            content.decode(), keep_blank_values=True, strict_parsing=bool(content), errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise errors.BadRequest("the form cannot be read", hint="send it as application/x-www-form-urlencoded in UTF-8") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise errors.BadRequest("the form names a field twice", hint="open the page again and send the form from there")
    # No field of ours has a use for NUL, and PostgreSQL cannot store it.
    if any("\0" in value for value in fields.values()):
        raise errors.BadRequest("the form has a NUL character in it", hint="type the value again")
    return fields


def convert(fields: Mapping[str, str], kind: type[F]) -> F:
    """Raises BadRequest where they are not those of our form."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise errors.BadRequest(f"the form does not fit: {error}", hint="open the page again and send the form from there") from None


def read_json(content: bytes, kind: type[F]) -> F:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fields = ", ".join(field.encode_name for field in msgspec.structs.fields(kind))
        raise errors.BadRequest(f"the body does not fit: {error}", hint=f"send a JSON object with {fields}") from None


def read_limit(text: str, what: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= 1):
        raise errors.BadRequest(f"{what}: not a whole number from 1 up", hint="leave it empty for the limit of your tier")
    return int(text)
