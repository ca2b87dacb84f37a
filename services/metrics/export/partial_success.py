"""Parse an OTLP endpoint's ``partial_success`` response, and remember rejections for the health. Pure.

The response should be JSON like the request, but some endpoints send protobuf. Invalid responses are ignored.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec

#: How long the health reports the last rejection.
REMEMBERED_SECONDS: Final = 600.0
#: Truncates reasons, because they can quote the request.
_MAX_WORDS: Final = 200
_MAX_REASONS: Final = 8
_MAX_BITS: Final = 63
_NUMBER: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Rejection:
    #: 0 for a warning only.
    count: int
    #: The reason as one short line; empty if unknown.
    why: str


class _PartialSuccess(msgspec.Struct, rename="camel"):
    #: Should be JSON strings, but some endpoints send numbers.
    rejected_spans: Annotated[int, msgspec.Meta(ge=0)] | None = None
    rejected_log_records: Annotated[int, msgspec.Meta(ge=0)] | None = None
    error_message: str | None = None


class _ExportResponse(msgspec.Struct, rename="camel"):
    partial_success: _PartialSuccess | None = None


def read(content_type: str, body: bytes) -> Rejection | None:
    """Return None if everything was accepted, or if the response is invalid."""
    try:
        match content_type.partition(";")[0].strip().lower():
            case "application/json":
                count, why = _read_json(body)
            case "application/x-protobuf":
                count, why = _read_protobuf(body)
            case _:
                return None
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return Rejection(count, _one_line(why)) if (count or why) and count < 2**_MAX_BITS else None


def _read_json(body: bytes) -> tuple[int, str]:
    success = msgspec.json.decode(body, type=_ExportResponse, strict=False).partial_success
    return (0, "") if success is None else (success.rejected_spans or success.rejected_log_records or 0, success.error_message or "")


def _one_line(text: str) -> str:
    return " ".join("".join(each if each.isprintable() else " " for each in text[: 4 * _MAX_WORDS]).split())[:_MAX_WORDS]


# --- protobuf: https://protobuf.dev/programming-guides/encoding/ --------------------------------------------------------

#: Wire type -> size in bytes, for types of fixed size.
_SIZES: Final = {1: 8, 5: 4}
_VARINT, _BYTES = 0, 2


def _read_protobuf(body: bytes) -> tuple[int, str]:
    count, why = 0, ""
    for number, content in _fields(body):
        if number == 1 and isinstance(content, bytes):
            for inner, value in _fields(content):
                if inner == 1 and isinstance(value, int):
                    count = value
                elif inner == 2 and isinstance(value, bytes):
                    why = value.decode()
    return count, why


def _fields(body: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(body):
        key, at = _varint(body, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(body, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(body, at)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise ValueError("unknown wire type")
        if at + size > len(body):
            raise ValueError("truncated message")
        yield key >> 3, body[at : at + size]
        at += size


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """Return a number and the position after it. Rejects negative numbers, which have ten bytes."""
    value = 0
    for shift in range(0, _MAX_BITS, 7):
        if at >= len(body):
            raise ValueError("truncated message")
        value |= (body[at] & 0x7F) << shift
        at += 1
        if body[at - 1] < 0x80:
            return value, at
    raise ValueError("number too long")


# --- rejections ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rejections:
    """The rejections of one type of data, such as spans. Times are monotonic seconds."""

    what: str
    _count: int = 0
    _why: str = ""
    _at: float | None = None
    _reasons: set[str] = field(default_factory=set)

    def note(self, found: Rejection, now: float) -> bool:
        """Note a rejection and return whether to log it. Reasons that differ only in numbers count as one."""
        if self._at is None or now - self._at > REMEMBERED_SECONDS:
            self._count = 0
            self._reasons.clear()
            self._at = now
        if found.count:
            self._count, self._why, self._at = self._count + found.count, found.why, now
        reason = f"{bool(found.count)} {_NUMBER.sub('#', found.why)}"
        is_news = reason not in self._reasons and len(self._reasons) < _MAX_REASONS
        if is_news:
            self._reasons.add(reason)
        return is_news

    def end(self, now: float) -> bool:
        """Note that a whole batch was accepted. Returns whether to log that rejections ended."""
        is_over = bool(self._count) and self._at is not None and now - self._at > REMEMBERED_SECONDS
        if is_over:
            self._count, self._at = 0, None
        return is_over

    def complaint(self, now: float) -> str:
        """Return the problem; empty without one."""
        if not self._count or self._at is None or now - self._at > REMEMBERED_SECONDS:
            return ""
        why = f", the last one because: {self._why}" if self._why else " without a reason"
        return f"it rejected {self._count:,} {self.what}{why}; check its log, and see docs/runbooks/spans_lost.md"
