"""auth and gateway: what a service runs with, for administrators. Settings are read here and changed where they come from."""

import msgspec

from shared.api.method import Body, Method
from shared.types import MicroCredits, Role, Tier

PEOPLE = {Role.CLIENT, Role.WEB, Role.OPERATOR}


class ShownSetting(Body, frozen=True, omit_defaults=False):
    """One variable as a service has it."""

    name: str
    #: Empty where it is not set; of a secret whether it is set, and no more.
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
    """What a tier may use; None is no limit."""

    tier: Tier
    requests_per_hour: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    #: Included each month.
    monthly_micro: MicroCredits | None = None


class Tiers(Body, frozen=True):
    tiers: tuple[TierTerms, ...] = msgspec.field(default_factory=tuple)


auth_settings = Method("auth.getSettings", GetSettings, ShownSettings, callers=PEOPLE)
gateway_settings = Method("gateway.getSettings", GetSettings, ShownSettings, callers=PEOPLE)
list_tiers = Method("gateway.listTiers", ListTiers, Tiers, callers=PEOPLE)
