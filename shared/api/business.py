"""Reports for administrators. gateway: usage and cost by day, user, model, worker owner and label. auth: new accounts and names."""

from datetime import date
from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.method import PEOPLE, PEOPLE_OR_GATEWAY, Body, Method
from shared.types import KeyId, MicroCredits, UserId

#: The longest period of one report.
MAX_DAYS = 750
MAX_ROWS = 1000


class BusinessGrouping(StrEnum):
    DAY = "day"
    USER = "user"
    MODEL = "model"
    #: The owner of the worker.
    OWNER = "owner"
    #: A label of the worker.
    LABEL = "label"
    ROUTE = "route"
    #: A target of a route, as route/target.
    TARGET = "target"
    #: Who pays: an organization, or a user outside any.
    ORGANIZATION = "organization"
    #: An API key; none for a login.
    KEY = "key"
    #: The plan of the account when the request began.
    PLAN = "plan"


class GetBusinessReport(Body, frozen=True):
    """By the UTC day on which a request began."""

    since: date
    #: Exclusive.
    until: date
    by: BusinessGrouping = BusinessGrouping.DAY
    #: For grouping by label: the label whose values to compare; None groups by all labels together.
    label: str | None = None
    #: Also count repeated questions, which reads the request log of the period.
    counts_repeated: bool = False


class BusinessSum(Body, frozen=True, omit_defaults=False):
    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    #: Refused by a limit; not in any other count.
    limited: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: What was paid from balances.
    cost_micro: MicroCredits = MicroCredits(0)
    #: The tokens at their list prices, also those that a plan or the cache has paid for: without prices of requests and of compute seconds,
    #: and without the discount of batches.
    token_value_micro: MicroCredits = MicroCredits(0)
    #: The sum over successful requests.
    response_ms: int = 0
    #: Output tokens of successful requests that a worker ran, and how long they took.
    made_tokens: int = 0
    made_ms: int = 0
    #: Answered from the cache, and what that saved (without compute time, which is unknown).
    cached: int = 0
    saved_micro: MicroCredits = MicroCredits(0)
    #: Requests whose messages contain no earlier answer.
    conversations: int = 0
    #: For answers to requests of this period, whenever they were rated.
    thumbs_up: int = 0
    thumbs_down: int = 0
    #: What providers asked, and what answers of our own machines would have cost there.
    upstream_micro: MicroCredits = MicroCredits(0)
    avoided_micro: MicroCredits = MicroCredits(0)
    #: Successful requests that a provider answered.
    external: int = 0
    #: Distinct users. They do not add up, because a user may be in several rows.
    users: int = 0

    @property
    def requests(self) -> int:
        """Return the number of admitted requests."""
        return self.succeeded + self.failed + self.timed_out + self.cancelled


class BusinessRow(Body, frozen=True, omit_defaults=False):
    #: A day, a user's, owner's or key's id, a model, a plan, a label value, or all labels as a JSON object; None if there is none.
    name: str | None
    sum: BusinessSum


class ActiveUsers(Body, frozen=True, omit_defaults=False):
    """Distinct users with a request, up to now, whatever the period of the report."""

    #: In the last hour and the last 24 hours.
    hour: int
    day: int
    #: Today (UTC) and the 6 or 29 days before.
    week: int
    month: int


class BusinessReport(Body, frozen=True, omit_defaults=False):
    total: BusinessSum
    #: Days in order; everything else by cost, highest first.
    rows: tuple[BusinessRow, ...]
    #: There are more rows; the total includes them.
    more: bool
    #: Refunded in this period, whenever the requests ran.
    given_back_micro: MicroCredits
    active: ActiveUsers
    #: Answered requests that repeat a conversation of the same payer; None if it wasn't asked for.
    repeated: int | None = None


class CountNewAccounts(Body, frozen=True):
    """By UTC day, as in ``GetBusinessReport``."""

    since: date
    until: date


class NewOfDay(Body, frozen=True, omit_defaults=False):
    day: date
    #: Includes accounts that were erased since.
    registrations: int
    #: Includes keys that no longer work.
    keys: int


class NewAccounts(Body, frozen=True, omit_defaults=False):
    #: Days with at least one, in order.
    days: tuple[NewOfDay, ...]


class NameUsers(Body, frozen=True):
    """Look up the names for a report grouped by user, owner, organization or key."""

    ids: Annotated[tuple[UserId | KeyId, ...], msgspec.Meta(max_length=MAX_ROWS)]


class UserNames(Body, frozen=True, omit_defaults=False):
    #: By id; unknown ids are missing.
    names: dict[str, str]


get_business_report = Method("gateway.getBusinessReport", GetBusinessReport, BusinessReport, callers=PEOPLE)
count_new_accounts = Method("auth.countNewAccounts", CountNewAccounts, NewAccounts, callers=PEOPLE_OR_GATEWAY)
name_users = Method("auth.nameUsers", NameUsers, UserNames, callers=PEOPLE_OR_GATEWAY)
