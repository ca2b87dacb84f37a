"""auth and gateway: a service's settings, for administrators. They are read-only here."""

import msgspec

from shared.api.method import PEOPLE, PEOPLE_OR_GATEWAY, Body, Method
from shared.types import MicroCredits, Tier


class ShownSetting(Body, frozen=True, omit_defaults=False):
    name: str
    #: Empty if not set. For a secret, only whether it is set.
    value: str
    default: str
    help: str
    is_secret: bool = False


class GetSettings(Body, frozen=True):
    pass


class ShownSettings(Body, frozen=True):
    settings: tuple[ShownSetting, ...]


class ListTiers(Body, frozen=True):
    pass


class TierTerms(Body, frozen=True, omit_defaults=False):
    """A tier's limits; None is unlimited."""

    tier: Tier
    requests_per_hour: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    #: Credits included each month.
    monthly_micro: MicroCredits | None = None


class Tiers(Body, frozen=True):
    tiers: tuple[TierTerms, ...] = msgspec.field(default_factory=tuple)


auth_settings = Method("auth.getSettings", GetSettings, ShownSettings, callers=PEOPLE_OR_GATEWAY)
gateway_settings = Method("gateway.getSettings", GetSettings, ShownSettings, callers=PEOPLE)
list_tiers = Method("gateway.listTiers", ListTiers, Tiers, callers=PEOPLE)
