"""What a report contains, and who may request which reports; with a fake store."""

import asyncio
import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from typing import cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import usage_reports
from services.gateway.usage_reports import UsageReports
from services.gateway.usage_store import UsageStore
from shared import errors
from shared.api import usage_report
from shared.api.auth import Principal
from shared.api.usage_report import Bucket, GetUsageReport, ListRequests, LoggedRequest, UsageBucket, UsageSum, UsageSummary
from shared.types import RequestId, TenantId, Tier, UserId, UserRole
from tests.services.gateway import fakes
from tests.services.gateway.fakes import PERSON, USER
from tests.services.gateway.log_lines import Lines

OTHER = TenantId(UUID(int=9))
ADMIN = Principal(UserId(UUID(int=7)), "root", UserRole.ADMIN, Tier.FREE)
ADMINS_EVERYDAY_KEY = Principal(ADMIN.user_id, "root", UserRole.ADMIN, Tier.FREE, scopes=("usage:read", "inference:execute"))
NOON = datetime(2026, 3, 28, 12, tzinfo=UTC)
REQUEST = RequestId(UUID(int=3))


def make_query(since: datetime, until: datetime, bucket: Bucket = Bucket.DAY, **more: object) -> GetUsageReport:
    return GetUsageReport(since, until, bucket, **more)  # type: ignore[arg-type]


# --- parts of a period ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "until", "bucket", "first", "number"),
    [
        pytest.param("2026-03-01T00:00:00Z", "2026-03-31T00:00:00Z", Bucket.DAY, "2026-03-01T00:00:00Z", 30, id="thirty whole days"),
        pytest.param("2026-03-01T23:59:59Z", "2026-03-02T00:00:01Z", Bucket.DAY, "2026-03-01T00:00:00Z", 2, id="two seconds of two days"),
        pytest.param("2026-03-01T10:00:00Z", "2026-03-01T10:00:01Z", Bucket.DAY, "2026-03-01T00:00:00Z", 1, id="a second of a day"),
        pytest.param("2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z", Bucket.DAY, "2026-03-01T00:00:00Z", 1, id="the end is excluded"),
        pytest.param("2026-03-01T10:59:59Z", "2026-03-01T11:00:00Z", Bucket.HOUR, "2026-03-01T10:00:00Z", 1, id="an hour's last second"),
        pytest.param("2026-03-01T10:05:30Z", "2026-03-01T10:07:30Z", Bucket.MINUTE, "2026-03-01T10:05:00Z", 3, id="minutes"),
        pytest.param("2026-03-01T00:30:00+02:00", "2026-03-01T02:00:00+02:00", Bucket.DAY, "2026-02-28T00:00:00Z", 1, id="days are in UTC"),
        pytest.param(
            "2026-03-01T10:45:00+05:30",
            "2026-03-01T11:45:00+05:30",
            Bucket.HOUR,
            "2026-03-01T05:00:00Z",
            2,
            id="hours are in UTC, in India too",
        ),
        pytest.param(
            "2026-03-29T00:00:00+01:00",
            "2026-03-30T00:00:00+02:00",
            Bucket.HOUR,
            "2026-03-28T23:00:00Z",
            23,
            id="daylight saving time begins",
        ),
    ],
)
def test_the_buckets_of_a_period(since: str, until: str, bucket: Bucket, first: str, number: int) -> None:
    buckets = usage_reports.buckets(make_query(datetime.fromisoformat(since), datetime.fromisoformat(until), bucket))
    assert (buckets[0], len(buckets)) == (datetime.fromisoformat(first), number)
    assert {at.utcoffset() for at in buckets} == {timedelta()}


STEPS = {Bucket.MINUTE: timedelta(minutes=1), Bucket.HOUR: timedelta(hours=1), Bucket.DAY: timedelta(days=1)}


@given(
    since=st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1)),  # noqa: DTZ001 - the zone is set below
    pieces=st.floats(0.00001, 740),
    zones=st.tuples(st.integers(-14 * 60, 14 * 60), st.integers(-14 * 60, 14 * 60)),
    bucket=st.sampled_from(Bucket),
)
def test_every_moment_of_the_period_is_in_one_bucket(since: datetime, pieces: float, zones: tuple[int, int], bucket: Bucket) -> None:
    begin = since.replace(tzinfo=timezone(timedelta(minutes=zones[0])))
    end = (begin + max(STEPS[bucket] * pieces, timedelta(microseconds=1))).astimezone(timezone(timedelta(minutes=zones[1])))
    buckets = usage_reports.buckets(make_query(begin, end, bucket))
    assert buckets[0] <= begin < buckets[0] + STEPS[bucket]
    assert buckets[-1] < end <= buckets[-1] + STEPS[bucket]
    assert all(later - earlier == STEPS[bucket] for earlier, later in itertools.pairwise(buckets))


def test_the_number_of_buckets_is_limited() -> None:
    most = usage_report.MAX_BUCKETS
    assert len(usage_reports.buckets(make_query(NOON, NOON + timedelta(minutes=most), Bucket.MINUTE))) == most
    with pytest.raises(errors.BadRequest, match=f"the period has {most + 1} minutes; the limit is {most}"):
        usage_reports.buckets(make_query(NOON, NOON + timedelta(minutes=most, seconds=1), Bucket.MINUTE))


EARLIEST, LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("since", "until"),
    [
        pytest.param(NOON, NOON, id="an empty period"),
        pytest.param(NOON, NOON - timedelta(days=1), id="backwards"),
        pytest.param(NOON.replace(tzinfo=None), NOON + timedelta(days=1), id="since without a zone"),
        pytest.param(NOON, (NOON + timedelta(days=1)).replace(tzinfo=None), id="until without a zone"),
        pytest.param(EARLIEST, LATEST, id="all of time"),
        pytest.param(EARLIEST.replace(tzinfo=timezone(timedelta(hours=14))), NOON, id="before the first year"),
        pytest.param(
            LATEST.replace(hour=0, tzinfo=timezone(-timedelta(hours=14))),
            LATEST.replace(tzinfo=timezone(-timedelta(hours=14))),
            id="after the last year",
        ),
        pytest.param(
            EARLIEST.replace(hour=1, tzinfo=timezone(timedelta(hours=14))),
            EARLIEST.replace(hour=2, tzinfo=timezone(timedelta(hours=14))),
            id="an hour before the first year",
        ),
    ],
)
def test_an_invalid_period_is_a_client_error(since: datetime, until: datetime) -> None:
    with pytest.raises(errors.BadRequest):
        usage_reports.buckets(make_query(since, until, Bucket.HOUR))


# --- access ---------------------------------------------------------------------------------------------------------------


@dataclass
class StandIn:
    """A store that records its calls."""

    found: UsageSummary = field(default_factory=lambda: UsageSummary(UsageSum(), (), (), ()))
    asked_for: list[TenantId | None] = field(default_factory=list)
    rated: list[tuple[TenantId, UserId, RequestId, int | None]] = field(default_factory=list)
    has_request: bool = True
    #: The number of rows that each call deletes, or its error; after the last one, calls wait forever.
    old: list[int | errors.AimeshError] = field(default_factory=list)
    ended: list[tuple[int, int]] = field(default_factory=list)
    is_idle: asyncio.Event = field(default_factory=asyncio.Event)

    async def sums(self, tenant: TenantId | None, make_query: GetUsageReport) -> UsageSummary:
        self.asked_for.append(tenant)
        return self.found

    async def requests(self, tenant: TenantId, make_query: ListRequests) -> tuple[LoggedRequest, ...]:
        self.asked_for.append(tenant)
        return ()

    async def rate(self, tenant: TenantId, user: UserId, request: RequestId, rating: int) -> bool:
        self.rated.append((tenant, user, request, rating))
        return self.has_request

    async def unrate(self, tenant: TenantId, user: UserId, request: RequestId) -> None:
        self.rated.append((tenant, user, request, None))

    async def delete_old(self, days: int, most: int) -> int:
        self.ended.append((days, most))
        if not self.old:
            self.is_idle.set()
            await asyncio.Event().wait()
        deleted = self.old.pop(0)
        if isinstance(deleted, errors.AimeshError):
            raise deleted
        return deleted


@pytest.fixture
def store() -> StandIn:
    return StandIn()


@pytest.fixture
def reports(store: StandIn) -> UsageReports:
    return UsageReports(cast("UsageStore", store), request_log_days=90)


DAY = make_query(NOON, NOON + timedelta(days=1))


@pytest.mark.parametrize(
    ("caller", "about", "expected"),
    [
        pytest.param(PERSON, {}, TenantId(USER), id="one's own by default"),
        pytest.param(PERSON, {"tenant_id": TenantId(USER)}, TenantId(USER), id="one's own by name"),
        pytest.param(ADMIN, {"tenant_id": OTHER}, OTHER, id="an administrator sees another tenant's"),
        pytest.param(ADMIN, {"everybody": True}, None, id="an administrator sees everybody's"),
        pytest.param(ADMIN, {}, TenantId(ADMIN.user_id), id="an administrator's own by default"),
        pytest.param(ADMIN, {"everybody": True, "tenant_id": OTHER}, None, id="everybody overrides a tenant"),
    ],
)
async def test_whose_usage_is_reported(
    store: StandIn, reports: UsageReports, caller: Principal, about: dict[str, object], expected: TenantId | None
) -> None:
    await reports.get_usage_report(make_query(NOON, NOON + timedelta(days=1), **about), fakes.rpc_call(caller))  # type: ignore[arg-type]
    assert store.asked_for == [expected]


@pytest.mark.parametrize("caller", [PERSON, ADMINS_EVERYDAY_KEY], ids=["a user", "an administrator's everyday key"])
@pytest.mark.parametrize("about", [{"tenant_id": OTHER}, {"everybody": True}], ids=["another's", "everybody's"])
async def test_another_tenants_report_is_refused_before_the_store_is_read(
    store: StandIn, reports: UsageReports, caller: Principal, about: dict[str, object]
) -> None:
    with pytest.raises(errors.NotAllowed, match=r"another tenant|administrator"):
        await reports.get_usage_report(make_query(NOON, NOON + timedelta(days=1), **about), fakes.rpc_call(caller))  # type: ignore[arg-type]
    if "tenant_id" in about:
        with pytest.raises(errors.NotAllowed, match="this belongs to another tenant"):
            await reports.list_requests(ListRequests(tenant_id=OTHER), fakes.rpc_call(caller))
    assert store.asked_for == []


async def test_a_member_reads_the_usage_of_their_current_organisation(store: StandIn, reports: UsageReports) -> None:
    member = Principal(USER, "ada", UserRole.USER, Tier.FREE, team_id=OTHER)
    await reports.get_usage_report(DAY, fakes.rpc_call(member))
    await reports.list_requests(ListRequests(), fakes.rpc_call(member))
    assert store.asked_for == [OTHER, OTHER]
    with pytest.raises(errors.NotAllowed, match="this belongs to another tenant"):
        await reports.list_requests(ListRequests(tenant_id=TenantId(USER)), fakes.rpc_call(member))


async def test_empty_buckets_are_included(store: StandIn, reports: UsageReports) -> None:
    begin = NOON.replace(hour=0)
    busy = UsageSum(requests=3, p50_ms=7)
    store.found = UsageSummary(busy, (UsageBucket(begin + timedelta(days=2), busy),), (), ())
    report = await reports.get_usage_report(make_query(begin, begin + timedelta(days=4)), fakes.rpc_call(PERSON))
    assert [bucket.at for bucket in report.buckets] == [begin + timedelta(days=day) for day in range(4)]
    assert [bucket.sum for bucket in report.buckets] == [UsageSum(), UsageSum(), busy, UsageSum()]
    assert report.total == busy


async def test_a_rating_is_given_withdrawn_and_refused_for_other_users_requests(store: StandIn, reports: UsageReports) -> None:
    for rating in (1, -1, 0):
        await reports.give_feedback(usage_report.GiveFeedback(REQUEST, rating), fakes.rpc_call(PERSON))
    own = TenantId(USER)
    assert store.rated == [(own, USER, REQUEST, 1), (own, USER, REQUEST, -1), (own, USER, REQUEST, None)]
    store.has_request = False
    with pytest.raises(errors.NotFound, match="no answered request") as caught:
        await reports.give_feedback(usage_report.GiveFeedback(REQUEST, 1), fakes.rpc_call(PERSON))
    assert "request log" in caught.value.hint


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(NOON.replace(tzinfo=None), id="without a zone"),
        pytest.param(EARLIEST.replace(tzinfo=timezone(timedelta(hours=1))), id="before the first year"),
        pytest.param(LATEST.replace(tzinfo=timezone(-timedelta(hours=1))), id="after the last year"),
    ],
)
async def test_paging_from_an_invalid_time_is_a_client_error(store: StandIn, reports: UsageReports, before: datetime) -> None:
    with pytest.raises(errors.BadRequest, match=r"^before (has no time zone|is not between)"):
        await reports.list_requests(ListRequests(before=before), fakes.rpc_call(PERSON))
    assert store.asked_for == []


# --- deletion of old rows --------------------------------------------------------------------------------------------------


async def test_old_rows_are_deleted_in_batches(store: StandIn, reports: UsageReports, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines(monkeypatch)
    store.old = [5000, 5000, 17, 0, errors.Unavailable("PostgreSQL does not answer")]
    await reports.delete_old()
    assert store.ended == [(90, 5000)] * 4
    assert len(lines.of("deleted old rows of the request log")) == 3
    with pytest.raises(errors.Unavailable, match="PostgreSQL does not answer"):
        await reports.delete_old()
