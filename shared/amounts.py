"""Credits as people write them: decimals outside, whole micro-credits inside, and never a float between. Pure."""

import re
from decimal import Decimal

from shared.types import MicroCredits

#: 1 credit is 10 to the power of this many micro-credits.
DECIMALS = 6
#: A price is credits for a token outside, and micro-credits for a million tokens inside.
PRICE_DECIMALS = 12

#: PostgreSQL's bigint holds nine of them.
_MOST = 10**18
#: More than any amount has; what is longer is not even looked at.
_LONGEST = 50
#: So many digits of any decimal number survive being a float (IEEE 754 binary64).
_FLOAT_DIGITS = 15
_NUMBER = re.compile(r"(?P<sign>[-+]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]+))?")


def read(text: str, decimals: int = DECIMALS) -> MicroCredits:
    """Exactly what the text says. Raises ValueError, for people."""
    found = _NUMBER.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if found is None or not (found["whole"] or found["part"]):
        raise ValueError(f"{text[:_LONGEST]!r} is no amount: write digits, with a point before decimals, such as 2.5")
    part = (found["part"] or "").rstrip("0")
    if len(part) > decimals:
        raise ValueError(f"{text} has more than {decimals} decimals")
    amount = int((found["whole"] or "0") + part.ljust(decimals, "0"))
    if amount > _MOST:
        raise ValueError(f"{text} is more than anything here can cost")
    return MicroCredits(-amount if found["sign"] == "-" else amount)


def read_json(value: str | int | float) -> MicroCredits:
    """A number of JSON, or a text. Raises ValueError for a float that may not be what was sent, as ``read`` for the rest."""
    if not isinstance(value, float):
        return read(str(value))
    # The shortest text that makes this float: what was sent, if that was no longer than a float can hold.
    sent = Decimal(repr(value))
    if len(sent.as_tuple().digits) > _FLOAT_DIGITS:
        raise ValueError(f"{value!r} has too many digits for a number of JSON: send it as a string")
    return read(f"{sent:f}")


def written(amount: int, decimals: int = DECIMALS) -> str:
    """For people: as few decimals as it has. ``read`` gives the same amount again."""
    whole, part = divmod(abs(amount), 10**decimals)
    tail = f"{part:0{decimals}d}".rstrip("0")
    return ("-" if amount < 0 else "") + (f"{whole}.{tail}" if tail else str(whole))
