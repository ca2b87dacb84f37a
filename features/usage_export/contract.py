"""gateway: the state of the usage export."""

from shared.api.method import PEOPLE, Body, Method
from shared.types import MicroCredits, Moment, TenantId


class ReadUsageExport(Body, frozen=True):
    """For administrators."""


class UsageTotal(Body, frozen=True, kw_only=True, omit_defaults=False):
    #: Requests and refunds.
    events: int
    tokens: int
    #: All but those that plans covered: what a meter at Stripe counts.
    uncovered_tokens: int
    cost_micro: MicroCredits


class AccountTotal(UsageTotal, frozen=True, kw_only=True, omit_defaults=False):
    owner: TenantId
    #: The day of the requests.
    since: Moment
    #: When the receiver acknowledged the last of them.
    acknowledged_at: Moment


class SinkExcess(UsageTotal, frozen=True, kw_only=True, omit_defaults=False):
    """What a receiver has acknowledged, and the database no longer knows."""

    #: When a gateway first ran on the restored database.
    found_at: Moment
    #: The 100 largest.
    accounts: tuple[AccountTotal, ...]


class UsageSink(Body, frozen=True, omit_defaults=False):
    """A system that gets the usage, and how far it is."""

    name: str
    #: When the export to it began.
    created_at: Moment
    #: How many settled requests it lacks, or a few less.
    waiting: int
    #: For how long the oldest of them has been settled.
    lag_seconds: float
    #: When it took events for the last time.
    sent_at: Moment | None = None
    #: Why it didn't take the next events; None if it did.
    error: str | None = None
    #: Since when it may have some of the next events.
    doubtful_since: Moment | None = None
    #: When yesterday and today were compared with the ledger, and how much differed: all sums are 0 if the export is exact.
    compared_at: Moment | None = None
    difference_tokens: int = 0
    difference_micro: MicroCredits = MicroCredits(0)
    #: None if it has no more than the database knows.
    excess: SinkExcess | None = None


class UsageExportState(Body, frozen=True, omit_defaults=False):
    #: Empty if no export is configured.
    sinks: tuple[UsageSink, ...]


read_usage_export = Method("gateway.readUsageExport", ReadUsageExport, UsageExportState, callers=PEOPLE)
