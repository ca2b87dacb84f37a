"""How much somebody used: read by auth's getUserUsage and the gateway's readUsage, which both answer with it."""

from datetime import date

from shared.api.method import Body
from shared.types import KeyId, UserId


class UsageDay(Body, frozen=True):
    """One row of usage_stats."""

    date: date
    api_key_id: KeyId
    request_count: int
    tokens_used: int


class UserUsage(Body, frozen=True):
    user_id: UserId
    request_count: int
    tokens_used: int
    #: Newest first; at most a year.
    days: tuple[UsageDay, ...] = ()
