"""Amounts of memory, and the parsing of sizes and durations in settings.  Pure."""

import re
from dataclasses import dataclass

from shared.amounts import show_bytes

#: Larger values are typing mistakes.
MAX_BYTES = 2**50
MAX_SECONDS = 366 * 86_400.0

_SIZE = re.compile(r"(?P<number>[0-9]{1,16}(\.[0-9]{1,6})?)\s*(?P<unit>[kmgt]?i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*([smhd])", re.IGNORECASE)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_FOREVER = ("forever", "-1")


@dataclass(frozen=True, slots=True)
class MemoryBytes:
    """Memory of the machine and of its GPUs, counted apart."""

    ram: int = 0
    vram: int = 0

    def __add__(self, other: "MemoryBytes") -> "MemoryBytes":
        return MemoryBytes(self.ram + other.ram, self.vram + other.vram)

    def __sub__(self, other: "MemoryBytes") -> "MemoryBytes":
        return MemoryBytes(self.ram - other.ram, self.vram - other.vram)

    def __str__(self) -> str:
        return f"{show_bytes(self.vram)} of GPU memory and {show_bytes(self.ram)}" if self.vram else show_bytes(self.ram)

    def fits(self, room: "MemoryBytes") -> bool:
        return self.ram <= room.ram and self.vram <= room.vram


def parse_bytes(text: str) -> int:
    """Parse ``4GiB``, ``16GB``, ``500 MB`` or a number of bytes. Raises ValueError with a message for people."""
    found = _SIZE.fullmatch(text.strip())
    unit = "" if found is None else found["unit"].lower()
    if found is None or unit == "i":
        raise ValueError(f"{text[:40]!r} is not a size; write 4GiB, 16GB or a number of bytes")
    factor = 1024 if unit.endswith("i") else 1000
    size = round(float(found["number"]) * float(factor ** _POWERS[unit.removesuffix("i")]))
    if not 0 < size <= MAX_BYTES:
        raise ValueError(f"{text[:40]!r} must be more than 0 and at most 1024 TiB")
    return size


def parse_seconds(text: str) -> float | None:
    """Parse ``5m``, ``1h30m``, a number of seconds, or ``forever``, which is None. Raises ValueError with a message for people."""
    written = text.strip().lower()
    if written in _FOREVER:
        return None
    if re.fullmatch(r"[0-9.]+", written):
        written += "s"
    parts = _DURATION.findall(written)
    if not parts or _DURATION.sub("", written).strip():
        raise ValueError(f"{text[:40]!r} is not a duration; write 5m, 1h30m, a number of seconds, or forever")
    seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds > MAX_SECONDS:
        raise ValueError(f"{text[:40]!r} is more than a year; write forever")
    return seconds
