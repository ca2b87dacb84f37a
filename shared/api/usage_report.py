"""gateway: what a tenant used, over time and by model and key; its requests one by one; and what people thought of answers."""

from datetime import date, datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.method import Body, Method, Nothing, StreamMethod
from shared.types import KeyId, MicroCredits, ModelName, RequestId, RequestStatus, Role, TenantId, UserId


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


PEOPLE = {Role.CLIENT, Role.WEB, Role.OPERATOR}

#: The longest time that one report is about.
MOST_BUCKETS = 750


class Bucket(StrEnum):
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


class GetUsageReport(Body, frozen=True):
    """Of the tenant of the call's credential; another's, and everybody's together, only for an admin."""

    since: datetime
    until: datetime
    bucket: Bucket = Bucket.DAY
    tenant_id: TenantId | None = None
    everybody: bool = False


class UsageSum(Body, frozen=True, omit_defaults=False):
    requests: int = 0
    #: Of them; a refusal is none of them.
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_micro: MicroCredits = MicroCredits(0)
    cached: int = 0
    #: Of the requests that were answered; None where there were none.
    p50_ms: int | None = None
    p95_ms: int | None = None


class UsageBucket(Body, frozen=True):
    at: datetime
    sum: UsageSum


class UsageOfModel(Body, frozen=True, omit_defaults=False):
    model: ModelName
    sum: UsageSum
    #: Thumbs.
    up: int = 0
    down: int = 0


class UsageOfKey(Body, frozen=True, omit_defaults=False):
    #: None for what came with a login.
    key_id: KeyId | None
    sum: UsageSum


class UsageSummary(Body, frozen=True):
    total: UsageSum
    #: Every one of the time asked for, also those without requests.
    buckets: tuple[UsageBucket, ...]
    models: tuple[UsageOfModel, ...]
    keys: tuple[UsageOfKey, ...]


class ListRequests(Body, frozen=True):
    """The newest first."""

    status: RequestStatus | None = None
    model: ModelName | None = None
    key_id: KeyId | None = None
    #: Only those that began before, to go on with a list.
    before: datetime | None = None
    tenant_id: TenantId | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 50


class LoggedRequest(Body, frozen=True, omit_defaults=False):
    """A request without its prompt and its answer, which are nowhere."""

    id: RequestId
    created_at: datetime
    user_id: UserId
    key_id: KeyId | None
    model: ModelName | None
    status: RequestStatus
    error_code: str | None
    prompt_tokens: int
    completion_tokens: int
    response_time_ms: int
    cost_micro: MicroCredits
    cached: bool
    #: 1 or -1; None where nobody said.
    rating: int | None = None


class LoggedRequests(Body, frozen=True):
    requests: tuple[LoggedRequest, ...]


class ExportRequests(Body, frozen=True):
    """All that are kept, for a table or for one's own data; the oldest first."""

    since: datetime | None = None


class GiveFeedback(Body, frozen=True):
    """A thumb for one's own request that has an answer, or the part of one until it was stopped; another thumb later takes its place, 0
    takes it back."""

    request_id: RequestId
    rating: Annotated[int, msgspec.Meta(ge=-1, le=1)]


get_usage_report = Method("gateway.getUsageReport", GetUsageReport, UsageSummary, callers=PEOPLE)
list_requests = Method("gateway.listRequests", ListRequests, LoggedRequests, callers=PEOPLE)
export_requests = StreamMethod("gateway.exportRequests", ExportRequests, item=LoggedRequests, end=Nothing, callers=PEOPLE)
give_feedback = Method("gateway.giveFeedback", GiveFeedback, Nothing, callers=PEOPLE)
