"""What a tier includes, from the settings. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from shared.api.ledger import MICRO
from shared.types import MicroCredits, Tier

#: What may be set of a tier, by the name it has in the settings.
NUMBERS = ("requests_per_hour", "requests_per_minute", "tokens_per_minute", "concurrency", "credits")
#: Instead of a number: no limit.
UNLIMITED = "unlimited"


@dataclass(frozen=True, slots=True)
class Plan:
    """None is no limit."""

    requests_per_hour: int | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    #: Requests of one user that run at once.
    concurrency: int | None
    #: Credits of each month.
    credits: int | None

    @property
    def monthly_micro(self) -> MicroCredits | None:
        return None if self.credits is None else MicroCredits(self.credits * MICRO)


DEFAULTS = {
    Tier.FREE: Plan(100, 10, None, 10, 100_000),
    Tier.PRO: Plan(1_000, 100, None, 100, 1_000_000),
    # What an enterprise gets is agreed with it.
    Tier.ENTERPRISE: Plan(None, None, None, None, None),
}


def changed(plan: Plan, numbers: Mapping[str, str]) -> Plan:
    """The plan with other numbers. Raises ValueError, for people."""
    return replace(plan, **{name: _number(name, text) for name, text in numbers.items()})


def _number(name: str, text: str) -> int | None:
    if name not in NUMBERS:
        raise ValueError(f"{name!r} is none of {', '.join(NUMBERS)}")
    if text == UNLIMITED:
        return None
    if not text.isascii() or not text.isdigit() or not (0 if name == "credits" else 1) <= int(text) <= 10**12:
        raise ValueError(f"{name}={text}: say a whole number, or {UNLIMITED}")
    return int(text)
