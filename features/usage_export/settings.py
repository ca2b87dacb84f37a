"""The settings of the usage export."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from shared.config import Settings, Variable


class UsageExportSettings(Settings, frozen=True, kw_only=True):
    usage_export_url: Annotated[
        str | None,
        Variable("USAGE_EXPORT_URL", "gets settled usage as batches of CloudEvents; see docs/howto/usage-export.md", secret=True),
    ] = None
    usage_export_token_file: Annotated[
        Path | None, Variable("USAGE_EXPORT_TOKEN_FILE", "file with the bearer token for USAGE_EXPORT_URL")
    ] = None
    usage_export_file: Annotated[
        Path | None,
        Variable("USAGE_EXPORT_FILE", "gets settled usage as CloudEvents, one a line; 64 MB each, earlier ones have a time as suffix"),
    ] = None
    usage_export_stripe_meter: Annotated[
        str | None,
        Variable("USAGE_EXPORT_STRIPE_METER", "event name of the meter at Stripe that gets tokens beyond plans; needs PAYMENTS=stripe"),
    ] = None
    usage_export_unit: Annotated[
        Literal["request", "minute"],
        Variable("USAGE_EXPORT_UNIT", "one event per request, or per account, model and minute in which requests were settled"),
    ] = "request"

    @property
    def exports_usage(self) -> bool:
        return any(each is not None for each in (self.usage_export_url, self.usage_export_file, self.usage_export_stripe_meter))

    def mistakes(self) -> Iterator[str]:
        if self.usage_export_token_file is not None and self.usage_export_url is None:
            yield "USAGE_EXPORT_TOKEN_FILE needs USAGE_EXPORT_URL"
        if self.usage_export_url is not None and not self.usage_export_url.startswith(("https://", "http://")):
            yield "USAGE_EXPORT_URL is no http:// or https:// address"

    def mistakes_beside(self, own: Settings) -> Iterator[str]:
        sells_with_stripe = getattr(own, "payments", "") == "stripe" and getattr(own, "money", "") != "off"
        if self.usage_export_stripe_meter is not None and not sells_with_stripe:
            yield "USAGE_EXPORT_STRIPE_METER needs MONEY=on and PAYMENTS=stripe"


#: Service -> what it reads.
SETTINGS = {"gateway": UsageExportSettings}
