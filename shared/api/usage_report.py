"""gateway: a tenant's usage over time, by model and by key; its request log; and ratings of answers."""

from datetime import date
from enum import StrEnum
from typing import Annotated

import msgspec

from shared.api.method import PEOPLE, Body, Method, Nothing, StreamMethod
from shared.types import KeyId, MicroCredits, ModelName, Moment, RequestId, RequestStatus, Role, TenantId, UserId


class DailyUsage(Body, frozen=True):
    """One row of usage_stats."""

    date: date
    #: None for usage with an access token.
    api_key_id: KeyId | None
    request_count: int
    tokens_used: int
    cost_micro: MicroCredits = MicroCredits(0)
    #: None also for a key whose name is no longer known.
    api_key_name: str | None = None


class UserUsage(Body, frozen=True):
    user_id: UserId
    request_count: int
    tokens_used: int
    #: Newest first; at most a year.
    days: tuple[DailyUsage, ...] = ()
    cost_micro: MicroCredits = MicroCredits(0)


#: The longest report.
MAX_BUCKETS = 750


class GetUserUsage(Body, frozen=True):
    user_id: UserId | None = None


class Bucket(StrEnum):
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


class GetUsageReport(Body, frozen=True):
    """Of the caller's tenant. Only administrators may name another, or ask for all."""

    since: Moment
    until: Moment
    bucket: Bucket = Bucket.DAY
    tenant_id: TenantId | None = None
    everybody: bool = False


class UsageSum(Body, frozen=True, omit_defaults=False):
    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_micro: MicroCredits = MicroCredits(0)
    cached: int = 0
    #: Of answered requests; None if there were none.
    p50_ms: int | None = None
    p95_ms: int | None = None
    #: By limits, or because they were invalid; not in ``requests``.
    refused: int = 0


class UsageBucket(Body, frozen=True):
    at: Moment
    sum: UsageSum


class UsageOfModel(Body, frozen=True, omit_defaults=False):
    model: ModelName
    sum: UsageSum
    #: Ratings.
    up: int = 0
    down: int = 0


class UsageOfKey(Body, frozen=True, omit_defaults=False):
    #: None for requests with a login.
    key_id: KeyId | None
    sum: UsageSum


class UsageSummary(Body, frozen=True):
    total: UsageSum
    #: Every bucket of the period, also empty ones.
    buckets: tuple[UsageBucket, ...]
    models: tuple[UsageOfModel, ...]
    keys: tuple[UsageOfKey, ...]


class ListRequests(Body, frozen=True):
    """Newest first."""

    status: RequestStatus | None = None
    model: ModelName | None = None
    key_id: KeyId | None = None
    #: For the next page: only requests that began before this time.
    before: Moment | None = None
    tenant_id: TenantId | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] = 50


class LoggedRequest(Body, frozen=True, omit_defaults=False):
    """A request without its prompt and answer, which are never stored."""

    id: RequestId
    created_at: Moment
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
    #: 1 or -1; None if not rated.
    rating: int | None = None
    #: The path of the field that it was refused for, never the value.
    error_field: str | None = None
    #: The fields of its body, and the types of its tools, that had no effect.
    ignored_fields: str | None = None


class LoggedRequests(Body, frozen=True):
    requests: tuple[LoggedRequest, ...]


class ExportRequests(Body, frozen=True):
    """All stored requests, oldest first."""

    since: Moment | None = None


class GiveFeedback(Body, frozen=True):
    """Rate the answer to one's own request, even if it was stopped early. A new rating replaces the old one; 0 removes it."""

    request_id: RequestId
    rating: Annotated[int, msgspec.Meta(ge=-1, le=1)]


get_user_usage = Method("auth.getUserUsage", GetUserUsage, UserUsage, callers={*PEOPLE, Role.GATEWAY})
get_usage_report = Method("gateway.getUsageReport", GetUsageReport, UsageSummary, callers=PEOPLE)
list_requests = Method("gateway.listRequests", ListRequests, LoggedRequests, callers=PEOPLE)
export_requests = StreamMethod("gateway.exportRequests", ExportRequests, item=LoggedRequests, end=Nothing, callers=PEOPLE)
give_feedback = Method("gateway.giveFeedback", GiveFeedback, Nothing, callers=PEOPLE)
