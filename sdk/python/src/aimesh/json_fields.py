"""Read fields of JSON objects, strictly typed.  Pure."""

import json
import math
from datetime import date, datetime
from typing import NoReturn, TypeVar

from aimesh.errors import ProtocolError

K = TypeVar("K")


class JsonFields:
    """One object. Its methods raise ProtocolError, which names the field, if it is missing or of another type."""

    __slots__ = ("_found", "_where")

    def __init__(self, found: object, where: str) -> None:
        if not isinstance(found, dict):
            raise ProtocolError(f"{where} must be a JSON object, not {_kind(found)}", hint=_HINT)
        self._found: dict[str, object] = found
        self._where = where

    @classmethod
    def parse(cls, content: bytes, where: str) -> "JsonFields":
        try:
            found = json.loads(content, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ProtocolError(f"{where} is not JSON: {_why(error)}", hint=_HINT) from error
        return cls(found, where)

    def has(self, name: str) -> bool:
        """Return whether the field is present and not null."""
        return self._found.get(name) is not None

    def text(self, name: str) -> str:
        return self._get(name, str)

    def integer(self, name: str) -> int:
        return self._get(name, int)

    def number(self, name: str) -> float:
        value = self._get(name, float) if isinstance(self._found.get(name), float) else float(self._small(name))
        if not math.isfinite(value):
            self._refuse(name, "a number of a reasonable size")
        return value

    def flag(self, name: str) -> bool:
        """Return False if the field is missing."""
        return self._get(name, bool) if self.has(name) else False

    def maybe_text(self, name: str) -> str | None:
        return self.text(name) if self.has(name) else None

    def maybe_integer(self, name: str) -> int | None:
        return self.integer(name) if self.has(name) else None

    def octets(self, name: str) -> bytes:
        """Read a list of the values of bytes."""
        try:
            return bytes(self._get(name, list))
        except (TypeError, ValueError):
            self._refuse(name, "a list of bytes")

    def moment(self, name: str) -> datetime:
        """The time must have a zone."""
        try:
            found = datetime.fromisoformat(self.text(name))
        except ValueError:
            self._refuse(name, "an ISO 8601 time")
        if found.tzinfo is None:
            self._refuse(name, "a time with a zone")
        return found

    def day(self, name: str) -> date:
        try:
            return date.fromisoformat(self.text(name))
        except ValueError:
            self._refuse(name, "an ISO 8601 date")

    def child(self, name: str) -> "JsonFields":
        return JsonFields(self._get(name, dict), f"{self._where}.{name}")

    def children(self, name: str) -> "tuple[JsonFields, ...]":
        found: list[object] = self._get(name, list)
        return tuple(JsonFields(one, f"{self._where}.{name}[{index}]") for index, one in enumerate(found))

    def plain(self) -> dict[str, object]:
        """Return the parsed object."""
        return self._found

    def _get(self, name: str, kind: type[K]) -> K:
        value = self._found.get(name)
        # In Python True is an integer.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self._refuse(name, _NAMES[kind])
        return value

    def _small(self, name: str) -> int:
        value = self.integer(name)
        return value if abs(value) < 2**63 else self._refuse(name, "a number of a reasonable size")

    def _refuse(self, name: str, wanted: str) -> NoReturn:
        if name not in self._found:
            raise ProtocolError(f"{self._where}.{name} is missing", hint=_HINT)
        raise ProtocolError(f"{self._where}.{name} must be {wanted}, not {_kind(self._found[name])}", hint=_HINT)


_HINT = "is base_url the address of aimesh, and does this package fit its version?"
_NAMES: dict[type, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def _kind(value: object) -> str:
    return "null" if value is None else _NAMES.get(type(value), "something else")


def _why(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
