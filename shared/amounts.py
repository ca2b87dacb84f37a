"""Reads and writes amounts of credits: decimals outside, whole micro-credits inside, never floats; shows bytes and durations. Pure."""

import re
from decimal import Decimal

from shared.types import MicroCredits

#: 1 credit is 10 to the power of this many micro-credits.
DECIMALS = 6
#: Prices are credits per token outside, and micro-credits per million tokens inside.
PRICE_DECIMALS = 12

#: Fits into PostgreSQL's bigint nine times.
_MAX = 10**18
_MAX_CHARACTERS = 50
#: A decimal number with this many digits survives being a float (IEEE 754 binary64).
_FLOAT_DIGITS = 15
_NUMBER = re.compile(r"(?P<sign>[-+]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]+))?")


def read(text: str, decimals: int = DECIMALS) -> MicroCredits:
    """Parse an amount. Raises ValueError with a message for users."""
    found = _NUMBER.fullmatch(text.strip()) if len(text) <= _MAX_CHARACTERS else None
    if found is None or not (found["whole"] or found["part"]):
        raise ValueError(f"{text[:_MAX_CHARACTERS]!r} is not an amount: write digits, with a point before decimals, such as 2.5")
    part = (found["part"] or "").rstrip("0")
    if len(part) > decimals:
        raise ValueError(f"{text} has more than {decimals} decimals")
    amount = int((found["whole"] or "0") + part.ljust(decimals, "0"))
    if amount > _MAX:
        raise ValueError(f"{text} is larger than any amount allowed here")
    return MicroCredits(-amount if found["sign"] == "-" else amount)


def read_json(value: str | int | float) -> MicroCredits:
    """Parse a JSON number or string. Raises ValueError, also for a float that may differ from what was sent."""
    if not isinstance(value, float):
        return read(str(value))
    # The shortest text that gives this float is what was sent, if a float can hold that many digits.
    sent = Decimal(repr(value))
    if len(sent.as_tuple().digits) > _FLOAT_DIGITS:
        raise ValueError(f"{value!r} has too many digits for a JSON number: send it as a string")
    return read(f"{sent:f}")


def written(amount: int, decimals: int = DECIMALS) -> str:
    """Format an amount with as few decimals as possible, so that ``read`` returns the same amount."""
    whole, part = divmod(abs(amount), 10**decimals)
    tail = f"{part:0{decimals}d}".rstrip("0")
    return ("-" if amount < 0 else "") + (f"{whole}.{tail}" if tail else str(whole))


def grouped(amount: int) -> str:
    """Format for people: as ``written``, with commas between thousands."""
    whole, point, part = written(abs(amount)).partition(".")
    return f"{'-' if amount < 0 else ''}{int(whole):,}{point}{part}"


def show_bytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.{int(size < 100 * 2**20)}f} MiB"


def show_progress(done: int, total: int | None, bytes_per_second: float = 0.0) -> str:
    """Return how far a download is, such as `3.0 GiB of 5.0 GiB, 60 %, 12.0 MiB/s`."""
    share = "" if total is None else f" of {show_bytes(total)}, {done * 100 // max(1, total)} %"
    speed = f", {show_bytes(round(bytes_per_second))}/s" if bytes_per_second else ""
    return f"{show_bytes(done)}{share}{speed}"


def show_duration(seconds: float) -> str:
    """Return a duration in its largest unit, such as `3 d`, without its sign."""
    whole = round(abs(seconds))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
