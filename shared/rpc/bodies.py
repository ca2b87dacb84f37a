"""Encodes and decodes message bodies, and names the field if a body is invalid."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from shared import errors
from shared.api.method import field_name
from shared.protocol import field_errors, null_characters

T = TypeVar("T")

encode = msgspec.msgpack.Encoder().encode


_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """Return the type's decoder, which is created once."""
    found = _decoders.get(kind)
    if found is None:
        found = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return found.decode


def decode_request(kind: type[T], body: bytes, method: str) -> T:
    """Decode a caller's request. Raises BadRequest, which names the field."""
    try:
        return decoder(kind)(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise bad_request(error, kind, method) from error


def ensure_without_null(request: msgspec.Struct, body: bytes, method: str) -> None:
    """Raises BadRequest for a text with U+0000. Services send each other what they have checked, and texts of errors."""
    if null_characters.are_in(request, body):
        raise errors.BadRequest(f"{method}: a text {null_characters.MISTAKE}", hint="remove it")


def bad_request(error: Exception, kind: type, method: str) -> errors.BadRequest:
    """Return the error for a body that is not a ``kind``."""
    path, must, _ = field_errors.explain(error, kind) if isinstance(error, msgspec.ValidationError) else ("", str(error), "")
    hint, field = "docs/reference/rpc.md has the fields of every method", field_name(path.rpartition(".")[2])
    return errors.BadRequest(f"{method}: {path} {must}" if path else f"{method}: {must}", hint=hint, field=field)


def decode_reply(kind: type[T], body: bytes, method: str) -> T:
    """Decode a serving node's reply. Raises ProtocolViolation."""
    try:
        return decoder(kind)(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.ProtocolViolation(f"the reply to {method} does not match the contract: {error}") from error


def milliseconds(seconds: float) -> int:
    """Return a deadline for the wire; at least 1, because 0 means that it has passed."""
    return max(1, math.ceil(seconds * 1000))
