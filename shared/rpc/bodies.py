"""The bodies of messages: contract types to bytes and back, with mistakes of the other side named."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from shared import errors

T = TypeVar("T")

encode = msgspec.msgpack.Encoder().encode


_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """The decoder of a type, made once."""
    found = _decoders.get(kind)
    if found is None:
        found = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return found.decode


def decode_request(kind: type[T], body: bytes, method: str) -> T:
    """Raises BadRequest, which names the field, for what a caller sent."""
    try:
        return decoder(kind)(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.BadRequest(f"{method}: {error}", hint="docs/reference/rpc.md has the fields of every method") from error


def decode_reply(kind: type[T], body: bytes, method: str) -> T:
    """Raises ProtocolViolation for what the serving node sent."""
    try:
        return decoder(kind)(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise errors.ProtocolViolation(f"the answer to {method} does not fit the contract: {error}") from error


def milliseconds(seconds: float) -> int:
    """A deadline for the wire; at least 1, because 0 means that it has passed."""
    return max(1, math.ceil(seconds * 1000))
