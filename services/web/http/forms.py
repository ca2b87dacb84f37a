"""Decode form fields and JSON bodies into frozen structs, or raise BadRequest. Pure."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import cache
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from markupsafe import Markup
from msgspec import inspect

from shared import api, errors
from shared.api import membership
from shared.protocol import field_errors

F = TypeVar("F", bound=msgspec.Struct)
Word = TypeVar("Word", bound=StrEnum)

#: The largest form has about twenty.
MAX_FIELDS = 64
#: A registration form with the longest allowed values is under 2 KiB.
MAX_BODY_BYTES = 16 * 1024


class RegistrationFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str
    email: str
    password: str
    #: The invitation code, required when registration is closed.
    invitation: str | None = None


class RegistrationForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str
    email: str
    password: str
    then: str = ""
    #: As in ``RegistrationFields``; empty for none.
    invitation: str = ""


class LoginFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    password: str
    username: str | None = None
    email: str | None = None
    #: The code of the second factor, if enabled.
    code: str | None = None


class LoginForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    #: A username or an email address.
    name: str
    password: str
    then: str = ""


class Confirmation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A form without fields other than its token."""


@cache
def of_one_field(name: str, default: str | None) -> type[msgspec.Struct]:
    """Return a form with this one field, which is required without a default."""
    field = (name, str) if default is None else (name, str, default)
    return msgspec.defstruct("OneFieldForm", [field], frozen=True, forbid_unknown_fields=True)


def read_fields(content: bytes) -> dict[str, str]:
    """Return the fields of a form body. Raises BadRequest."""
    try:
        pairs = parse_qsl(
            content.decode(), keep_blank_values=True, strict_parsing=bool(content), errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise errors.BadRequest("the form cannot be decoded", hint="send it as application/x-www-form-urlencoded in UTF-8") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise errors.BadRequest("the form has a duplicate field", hint="reload the page and submit the form again")
    # PostgreSQL cannot store NUL.
    if any("\0" in value for value in fields.values()):
        raise errors.BadRequest("the form contains a NUL character", hint="remove it and submit the form again")
    return fields


def convert(fields: Mapping[str, str], kind: type[F]) -> F:
    """Convert fields to the form struct. Raises BadRequest."""
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise errors.BadRequest(f"the form is invalid: {error}", hint="reload the page and submit the form again") from None


def read_json(content: bytes, kind: type[F]) -> F:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fields = ", ".join(field.encode_name for field in msgspec.structs.fields(kind))
        raise errors.BadRequest(f"the body is invalid: {error}", hint=f"send a JSON object with {fields}") from None


def read_choice(kind: type[Word], text: str, what: str) -> Word:
    """Parse a form value as a member of an enum. Raises BadRequest."""
    try:
        return kind(text)
    except ValueError:
        words = ", ".join(kind)
        raise errors.BadRequest(f"unknown {what}", hint=f"choose one of {words}") from None


def read_moment(text: str, what: str, *, hint: str) -> datetime | None:
    """Parse a day or a time, in UTC unless it has a zone; None if it is empty. Raises BadRequest."""
    if not text.strip():
        return None
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise errors.BadRequest(f"{what} is not a date such as 2026-02-01", hint=hint) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def read_days(text: str, choices: Sequence[int]) -> int:
    """Return the period for a query parameter; unknown values mean the first choice."""
    return next((days for days in choices if text == str(days)), choices[0])


def find_number(text: str) -> int | None:
    """Parse a whole number of at most 10 digits; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 else None


def read_number(text: str, what: str, kind: type[msgspec.Struct], field: str) -> int | None:
    """Parse a number for this field of a request; None for an empty text. Raises BadRequest with the field's bounds."""
    if not (text := text.strip()):
        return None
    found: int = convert_value(text if (number := find_number(text)) is None else number, what, field_errors.type_of(kind, field), field)
    return found


def read_text(text: str, what: str, kind: type[msgspec.Struct], field: str) -> str:
    """Return the text for this field of a request, without spaces around it. Raises BadRequest with the field's bounds."""
    found: str = convert_value(text.strip(), what, field_errors.type_of(kind, field), field)
    return found


def convert_value(value: object, what: str, kind: Any, field: str) -> Any:
    """Convert to a type of the contract. Raises BadRequest with what it allows."""

    def refuse(what: str, must: str) -> errors.BadRequest:
        return errors.BadRequest(f"{what} {must}", hint="correct it and submit the form again", field=field)

    return field_errors.convert(what, value, kind, refuse)


@cache
def bounds(request: str | type[msgspec.Struct], field: str) -> Markup:
    """Return the attribute of an input that says how much a field of this request takes, such as `organizations.CreateOrganization`.
    Pages of features pass the type."""
    kind = request
    if isinstance(kind, str):
        module, _, name = kind.partition(".")
        kind = getattr(getattr(api, module), name)
    info = field_errors.bounds_of(cast("type[msgspec.Struct]", kind), field)
    most = info.max_length if isinstance(info, inspect.StrType) else len(str(cast("inspect.IntType", info).le))
    return Markup('maxlength="{}"').format(most)


def read_labels(text: str) -> dict[str, str]:
    """Parse labels such as `room=3, gpu=a100`. Raises BadRequest."""
    pairs = [each.strip().partition("=")[::2] for each in text.split(",") if each.strip()]
    for pair in pairs:
        try:
            msgspec.convert(pair, tuple[membership.Label, membership.Label])
        except msgspec.ValidationError:
            hint = "use letters, digits, '.', '_', '/' and '-', such as room=3, gpu=a100"
            raise errors.BadRequest(f"invalid label: {pair[0][:63]}={pair[1][:63]}", hint=hint) from None
    labels: dict[str, str] = convert_value(dict(pairs), "labels", membership.Labels, "labels")
    return labels
