"""What an administrator is told of everybody. gateway: what was used and what that cost, by day, user, model, whose machine and its
labels. auth: how many came, and who they are."""

from datetime import date
from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.method import Body, Method
from shared.types import MicroCredits, Role, UserId

#: The longest time that one report is about.
MOST_DAYS = 750
#: A message has room for more; a person reads fewer.
MOST_ROWS = 1000


class BusinessGrouping(StrEnum):
    DAY = "day"
    USER = "user"
    MODEL = "model"
    #: Who answers for the worker.
    OWNER = "owner"
    #: Of the worker.
    LABEL = "label"


class GetBusinessReport(Body, frozen=True):
    """Days are those of UTC on which requests began."""

    since: date
    #: The first day that is not in it.
    until: date
    by: BusinessGrouping = BusinessGrouping.DAY
    #: With ``by`` label, the one whose values are told apart; None for all labels of a worker together.
    label: str | None = None


class BusinessSum(Body, frozen=True, omit_defaults=False):
    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    #: Refused by a limit; in no other number.
    limited: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_micro: MicroCredits = MicroCredits(0)
    #: Of those that succeeded, all together.
    response_ms: int = 0
    #: Output of those that succeeded and that a worker ran, and how long they took.
    made_tokens: int = 0
    made_ms: int = 0
    #: Answered from what was answered before, and what they would have cost otherwise (less the time of compute, which nobody knows).
    cached: int = 0
    saved_micro: MicroCredits = MicroCredits(0)
    #: Requests without an earlier answer among their messages.
    conversations: int = 0
    #: On answers to requests of this time, whenever they were given.
    thumbs_up: int = 0
    thumbs_down: int = 0
    #: Different people. The only number that does not add up: somebody may be in several rows.
    users: int = 0

    @property
    def requests(self) -> int:
        """All that were let in."""
        return self.succeeded + self.failed + self.timed_out + self.cancelled


class BusinessRow(Body, frozen=True, omit_defaults=False):
    #: A day, a user's or an owner's id, a model, a label's value or all labels as a JSON object; None for what has none.
    name: str | None
    sum: BusinessSum


class ActiveUsers(Body, frozen=True, omit_defaults=False):
    """Who asked for anything until now, whatever time the report is about."""

    #: In the last hour, and in the last 24.
    hour: int
    day: int
    #: On this UTC day and the 6, or the 29, before it.
    week: int
    month: int


class BusinessReport(Body, frozen=True, omit_defaults=False):
    total: BusinessSum
    #: Days in their order; others by what they cost, the most first.
    rows: tuple[BusinessRow, ...]
    #: There are more rows; the total has them.
    more: bool
    #: Given back in this time of what requests had cost, whenever that was.
    given_back_micro: MicroCredits
    active: ActiveUsers


class CountNewAccounts(Body, frozen=True):
    """Of UTC days, as ``GetBusinessReport`` has them."""

    since: date
    until: date


class NewOfDay(Body, frozen=True, omit_defaults=False):
    day: date
    #: Also those that were erased since.
    registrations: int
    #: Keys that were made, whether they still open anything or not.
    keys: int


class NewAccounts(Body, frozen=True, omit_defaults=False):
    #: Days on which there was any, in their order.
    days: tuple[NewOfDay, ...]


class NameUsers(Body, frozen=True):
    """For a report's rows by user or owner."""

    ids: Annotated[tuple[UserId, ...], msgspec.Meta(max_length=MOST_ROWS)]


class UserNames(Body, frozen=True, omit_defaults=False):
    #: By the id, of those that there are.
    names: dict[str, str]


get_business_report = Method("gateway.getBusinessReport", GetBusinessReport, BusinessReport, callers={Role.CLIENT, Role.WEB, Role.OPERATOR})
count_new_accounts = Method("auth.countNewAccounts", CountNewAccounts, NewAccounts, callers={Role.CLIENT, Role.WEB, Role.OPERATOR})
name_users = Method("auth.nameUsers", NameUsers, UserNames, callers={Role.CLIENT, Role.WEB, Role.OPERATOR})
