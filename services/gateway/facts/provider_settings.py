"""How to reach a payment provider. Pure."""

from dataclasses import dataclass, field

LIVE_KEYS = ("sk_live_", "rk_live_", "pdl_live_")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSettings:
    name: str
    secret: str = field(repr=False)
    webhook_secret: str = field(repr=False)
    #: None: the provider's own address.
    api_url: str | None
    #: Where customers return to. That they do changes nothing.
    return_url: str
    currency: str
    #: Stripe adds taxes.
    has_tax: bool = False
