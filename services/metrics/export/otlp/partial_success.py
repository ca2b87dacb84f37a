"""What an OTLP endpoint says where it took a batch and not all of it (``partial_success``), and how long that is remembered. Pure.

An answer has the form of what was sent, which is JSON; some answer in protobuf all the same. One that cannot be read says nothing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec

#: After the last one the health says nothing of it.
REMEMBERED_SECONDS: Final = 600.0
#: It may quote what was sent.
_MOST_WORDS: Final = 200
#: Within the time above so many reasons are said in the log; who has more of them makes them up.
_MOST_REASONS: Final = 8
#: Of a count, which is an int64.
_MOST_BITS: Final = 63
_NUMBER: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Rejection:
    #: 0 where all was taken, and it only has something to say.
    count: int
    #: One short line; empty where it does not say why.
    why: str


class _PartialSuccess(msgspec.Struct, rename="camel"):
    #: 64 bits are text in JSON, and not everybody knows.
    rejected_spans: Annotated[int, msgspec.Meta(ge=0)] | None = None
    rejected_log_records: Annotated[int, msgspec.Meta(ge=0)] | None = None
    error_message: str | None = None


class _ExportResponse(msgspec.Struct, rename="camel"):
    partial_success: _PartialSuccess | None = None


def read(content_type: str, body: bytes) -> Rejection | None:
    """None where all was taken, and where the answer is none."""
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
    return Rejection(count, _one_line(why)) if (count or why) and count < 2**_MOST_BITS else None


def _read_json(body: bytes) -> tuple[int, str]:
    told = msgspec.json.decode(body, type=_ExportResponse, strict=False).partial_success
    return (0, "") if told is None else (told.rejected_spans or told.rejected_log_records or 0, told.error_message or "")


def _one_line(text: str) -> str:
    return " ".join("".join(each if each.isprintable() else " " for each in text[: 4 * _MOST_WORDS]).split())[:_MOST_WORDS]


# --- protobuf: https://protobuf.dev/programming-guides/encoding/ --------------------------------------------------------

#: Kind of a field -> its bytes, where they are always as many.
_SIZES: Final = {1: 8, 5: 4}
_VARINT, _BYTES = 0, 2


def _read_protobuf(body: bytes) -> tuple[int, str]:
    """Field 1 of the answer is the message; in it 1 is the number, and 2 says why."""
    count, why = 0, ""
    for number, told in _fields(body):
        if number == 1 and isinstance(told, bytes):
            for inner, value in _fields(told):
                if inner == 1 and isinstance(value, int):
                    count = value
                elif inner == 2 and isinstance(value, bytes):
                    why = value.decode()
    return count, why


def _fields(body: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Raises ValueError where it is none."""
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
            raise ValueError("a kind of field that there is not")
        if at + size > len(body):
            raise ValueError("it breaks off")
        yield key >> 3, body[at : at + size]
        at += size


def _varint(body: bytes, at: int) -> tuple[int, int]:
    """And what is behind it. Negative ones, of ten bytes, are counts of nothing."""
    value = 0
    for shift in range(0, _MOST_BITS, 7):
        if at >= len(body):
            raise ValueError("it breaks off")
        value |= (body[at] & 0x7F) << shift
        at += 1
        if body[at - 1] < 0x80:
            return value, at
    raise ValueError("a number without an end")


# --- what is remembered -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Rejections:
    """Of one kind of thing, such as spans. Times are seconds that are never set back."""

    #: What they are, for people.
    what: str
    _count: int = 0
    _why: str = ""
    _at: float | None = None
    _reasons: set[str] = field(default_factory=set)

    def note(self, found: Rejection, now: float) -> bool:
        """True where the log does not say it yet. Reasons that differ by a number are one."""
        if self._at is None or now - self._at > REMEMBERED_SECONDS:
            self._count = 0
            self._reasons.clear()
            self._at = now
        if found.count:
            self._count, self._why, self._at = self._count + found.count, found.why, now
        reason = f"{bool(found.count)} {_NUMBER.sub('#', found.why)}"
        is_news = reason not in self._reasons and len(self._reasons) < _MOST_REASONS
        if is_news:
            self._reasons.add(reason)
        return is_news

    def end(self, now: float) -> bool:
        """A batch was taken as a whole. True where that is news, which it is when none was rejected for a while."""
        is_over = bool(self._count) and self._at is not None and now - self._at > REMEMBERED_SECONDS
        if is_over:
            self._count, self._at = 0, None
        return is_over

    def complaint(self, now: float) -> str:
        """Empty where there is nothing to say."""
        if not self._count or self._at is None or now - self._at > REMEMBERED_SECONDS:
            return ""
        why = f", the last because of: {self._why}" if self._why else " and does not say why"
        return f"it took what it was sent but for {self._count:,} {self.what}{why}; its own log says more, see docs/runbooks/spans_lost.md"
