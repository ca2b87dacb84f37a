"""How much somebody used: read by auth's getUserUsage and the gateway's readUsage, which both answer with it."""

from datetime import date

from shared.api.method import Body
from shared.types import KeyId, MicroCredits, UserId


class DailyUsage(Body, frozen=True):
    """One row of usage_stats."""

    date: date
    #: None for what was used with an access token instead of a key.
    api_key_id: KeyId | None
    request_count: int
    tokens_used: int
    cost_micro: MicroCredits = MicroCredits(0)


class UserUsage(Body, frozen=True):
    user_id: UserId
    request_count: int
    tokens_used: int
    #: Newest first; at most a year.
    days: tuple[DailyUsage, ...] = ()
    cost_micro: MicroCredits = MicroCredits(0)
