"""Money as documents and payment providers write it: whole minor units, such as cents. Pure."""

from decimal import Decimal

from shared import amounts
from shared.types import MicroCredits

#: ISO 4217: how many decimals a currency has, where it isn't two.
_DECIMALS = {
    **dict.fromkeys(["BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW", "PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"], 0),
    **dict.fromkeys(["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"], 3),
}
_MICRO_DECIMALS = 6


def decimals(currency: str) -> int:
    return _DECIMALS.get(currency, 2)


def minor(micro: MicroCredits, currency: str) -> int:
    """Convert from the ledger's unit. Rounds down, in the customer's favor."""
    return int(micro // 10 ** (_MICRO_DECIMALS - decimals(currency)))


def micro(minor_units: int, currency: str) -> MicroCredits:
    return MicroCredits(minor_units * 10 ** (_MICRO_DECIMALS - decimals(currency)))


def read(text: str, currency: str) -> int:
    """Parse `29` or `29.00`. Raises ValueError with a message for users."""
    return int(amounts.read(text, decimals(currency)))


def written(minor_units: int, currency: str) -> str:
    """Return `1,029.00 USD`."""
    places = decimals(currency)
    return f"{Decimal(minor_units).scaleb(-places):,.{places}f} {currency}"
