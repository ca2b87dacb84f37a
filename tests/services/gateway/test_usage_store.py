"""Usage reports on a real PostgreSQL. As in a running stack, the gateway's role owns its schema and row-level security applies to it."""

import random
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from math import ceil
from uuid import UUID

import asyncpg
import msgspec
import pytest

from services.gateway import store as stores
from services.gateway import usage_reports
from services.gateway.facts.request_record import RequestRow
from services.gateway.store import GatewayStore
from services.gateway.usage_store import DaysStore, UsageStore
from shared import errors
from shared.api.usage_report import Bucket, GetUsageReport, ListRequests, LoggedRequest, UsageSum
from shared.stores import database
from shared.types import KeyId, MicroCredits, ModelName, RequestId, RequestStatus, TenantId, UserId

#: The rows begin here: at midnight, so that whole days are tested, too.
BEGIN = datetime(2026, 3, 2, tzinfo=UTC)
DAYS = 4
MODELS = [ModelName("smollm2"), ModelName("qwen"), None]
KEYS = [KeyId(UUID(int=101)), KeyId(UUID(int=102)), None]
ADA, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
TEAM = TenantId(UUID(int=50))


@pytest.fixture
async def opened(plain_url: str) -> AsyncIterator[database.Database]:
    async with stores.opened(plain_url) as found:
        yield found


@pytest.fixture
def store(opened: database.Database) -> UsageStore:
    return UsageStore(opened)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


_TEMPLATE = RequestRow(
    id=RequestId(UUID(int=0)), user_id=ADA, api_key_id=KEYS[0], prompt_hash="f" * 64, model_used=MODELS[0], response_time_ms=5,
    prompt_tokens=3, completion_tokens=2, status=RequestStatus.SUCCESS, error_code=None, created_at=BEGIN,
)  # fmt: skip
_numbers = iter(range(10**6, 10**9))


def row(**changed: object) -> RequestRow:
    return msgspec.structs.replace(_TEMPLATE, **{"id": RequestId(UUID(int=next(_numbers))), **changed})  # type: ignore[arg-type]


async def write(opened: database.Database, rows: Sequence[RequestRow]) -> None:
    for start in range(0, len(rows), 500):
        await GatewayStore(opened).write_requests(rows[start : start + 500])


def some_rows(seed: int, number: int) -> list[RequestRow]:
    """Return requests of two users; some of the requests belong to an organization."""
    dice = random.Random(seed)
    return [
        row(
            user_id=dice.choice([ADA, BOB]),
            team_id=dice.choice([None, None, TEAM]),
            api_key_id=dice.choice(KEYS),
            model_used=dice.choice(MODELS),
            response_time_ms=dice.choice([1, 2, 3, 5, 8, 13, 400, 70_000]),
            prompt_tokens=dice.randrange(500),
            completion_tokens=dice.randrange(500),
            status=dice.choice(list(RequestStatus)),
            created_at=BEGIN + timedelta(microseconds=dice.randrange(DAYS * 24 * 3600 * 10**6)),
            cached=dice.random() < 0.2,
        )
        for _ in range(number)
    ]


# --- sums -----------------------------------------------------------------------------------------------------------------


#: These rows count only as refused.
REFUSED = (RequestStatus.LIMITED, RequestStatus.REJECTED)


def by_hand(rows: Sequence[RequestRow]) -> UsageSum:
    counted = [one for one in rows if one.status not in REFUSED]
    times = sorted(one.response_time_ms for one in counted if one.status is RequestStatus.SUCCESS)
    return UsageSum(
        requests=len(counted),
        errors=sum(one.status in (RequestStatus.ERROR, RequestStatus.TIMEOUT) for one in counted),
        prompt_tokens=sum(one.prompt_tokens for one in counted),
        completion_tokens=sum(one.completion_tokens for one in counted),
        cost_micro=MicroCredits(0),
        cached=sum(one.cached for one in counted),
        p50_ms=times[ceil(0.5 * len(times)) - 1] if times else None,
        p95_ms=times[ceil(0.95 * len(times)) - 1] if times else None,
        refused=sum(one.status in REFUSED for one in rows),
    )


def grouped(rows: Iterable[RequestRow], by: Callable[[RequestRow], object]) -> dict[object, UsageSum]:
    groups: dict[object, list[RequestRow]] = defaultdict(list)
    for one in rows:
        groups[by(one)].append(one)
    return {key: by_hand(group) for key, group in groups.items()}


STEP = {Bucket.DAY: timedelta(days=1), Bucket.HOUR: timedelta(hours=1)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tenant", [TenantId(ADA), TEAM, None], ids=["one's own", "an organisation's", "everybody's"])
@pytest.mark.parametrize("bucket", [Bucket.DAY, Bucket.HOUR])
async def test_sums_equal_those_computed_by_hand(
    opened: database.Database, store: UsageStore, seed: int, tenant: TenantId | None, bucket: Bucket
) -> None:
    rows = some_rows(seed, 400)
    await write(opened, rows)
    since, until = BEGIN + timedelta(hours=7, minutes=11), BEGIN + timedelta(days=3, seconds=1)
    query = GetUsageReport(since, until, bucket)
    within = [one for one in rows if since <= one.created_at < until and tenant in (None, one.tenant_id)]
    assert len(within) > 50
    sums = await store.sums(tenant, query)
    assert sums.total == by_hand(within)
    assert {bucket.at: bucket.sum for bucket in sums.buckets} == grouped(
        within, lambda one: BEGIN + (one.created_at - BEGIN) // STEP[bucket] * STEP[bucket]
    )
    assert {model.model: model.sum for model in sums.models} == {
        name: found for name, found in grouped(within, lambda one: one.model_used).items() if name is not None
    }
    assert {key.key_id: key.sum for key in sums.keys} == grouped(within, lambda one: one.api_key_id)
    assert {bucket.at for bucket in sums.buckets} <= set(usage_reports.buckets(query))


async def test_a_tenant_without_usage_has_empty_sums(store: UsageStore) -> None:
    sums = await store.sums(TenantId(ADA), GetUsageReport(BEGIN, BEGIN + timedelta(days=1)))
    assert (sums.total, sums.buckets, sums.models, sums.keys) == (UsageSum(), (), (), ())


async def test_the_ends_of_a_period_are_exact(opened: database.Database, store: UsageStore) -> None:
    moment = timedelta(microseconds=1)
    noon = BEGIN + timedelta(hours=12)
    await write(opened, [row(created_at=noon + moment * step, prompt_tokens=10**step) for step in range(4)])
    sums = await store.sums(TenantId(ADA), GetUsageReport(noon + moment, noon + 3 * moment))
    assert sums.total.prompt_tokens == 10 + 100


@pytest.mark.parametrize(
    ("times", "p50", "p95"),
    [
        ([7], 7, 7),
        ([1, 9], 1, 9),
        (list(range(1, 101)), 50, 95),
        ([1] * 19 + [1000], 1, 1),
        ([1] * 18 + [1000] * 2, 1, 1000),
        ([], None, None),
    ],
)
async def test_percentiles_are_actual_response_times(
    opened: database.Database, store: UsageStore, times: list[int], p50: int | None, p95: int | None
) -> None:
    failed = [row(response_time_ms=10**6, status=status) for status in RequestStatus if status is not RequestStatus.SUCCESS]
    answered = [row(response_time_ms=time) for time in times]
    random.Random(1).shuffle(answered)
    await write(opened, [*failed, *answered])
    total = (await store.sums(TenantId(ADA), GetUsageReport(BEGIN, BEGIN + timedelta(days=1)))).total
    assert (total.p50_ms, total.p95_ms) == (p50, p95)


# --- list and export ------------------------------------------------------------------------------------------------------


async def pages(store: UsageStore, limit: int, most_pages: int = 100) -> list[tuple[LoggedRequest, ...]]:
    found: list[tuple[LoggedRequest, ...]] = []
    before = None
    while page := await store.requests(TenantId(ADA), ListRequests(limit=limit, before=before)):
        found.append(page)
        before = page[-1].created_at
        assert len(found) < most_pages
    return found


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 50])
async def test_paging_returns_each_request_once_even_with_equal_times(opened: database.Database, store: UsageStore, limit: int) -> None:
    dice = random.Random(limit)
    rows = [row(created_at=BEGIN + timedelta(seconds=dice.randrange(8))) for _ in range(40)]
    await write(opened, [*rows, row(user_id=BOB)])
    found = [request for page in await pages(store, limit) for request in page]
    assert sorted(request.id for request in found) == sorted(one.id for one in rows)
    assert [request.created_at for request in found] == sorted((one.created_at for one in rows), reverse=True)


async def test_a_page_has_at_most_the_requested_length_if_times_differ(opened: database.Database, store: UsageStore) -> None:
    rows = [row(created_at=BEGIN + timedelta(microseconds=number)) for number in range(10)]
    await write(opened, rows)
    assert [len(page) for page in await pages(store, 4)] == [4, 4, 2]


async def test_a_page_does_not_change_while_requests_arrive(opened: database.Database, store: UsageStore) -> None:
    await write(opened, [row(created_at=BEGIN + timedelta(seconds=number)) for number in range(6)])
    first = await store.requests(TenantId(ADA), ListRequests(limit=3))
    rest = ListRequests(limit=3, before=first[-1].created_at)
    second = await store.requests(TenantId(ADA), rest)
    await write(opened, [row(created_at=BEGIN + timedelta(minutes=1)) for _ in range(5)])
    assert await store.requests(TenantId(ADA), rest) == second


async def test_filters_of_the_list(opened: database.Database, store: UsageStore) -> None:
    rows = some_rows(7, 300)
    await write(opened, rows)
    own = [one for one in rows if one.tenant_id == ADA]
    cases: list[tuple[ListRequests, Callable[[RequestRow], bool]]] = [
        (ListRequests(limit=500), lambda one: True),
        *((ListRequests(status=each, limit=500), lambda one, each=each: one.status is each) for each in RequestStatus),
        (ListRequests(model=MODELS[1], limit=500), lambda one: one.model_used == MODELS[1]),
        (ListRequests(key_id=KEYS[0], limit=500), lambda one: one.api_key_id == KEYS[0]),
        (ListRequests(before=BEGIN + timedelta(days=1), limit=500), lambda one: one.created_at < BEGIN + timedelta(days=1)),
        (
            ListRequests(model=MODELS[0], status=RequestStatus.ERROR, limit=500),
            lambda one: one.model_used == MODELS[0] and one.status is RequestStatus.ERROR,
        ),
    ]
    for query, fits in cases:
        found = await store.requests(TenantId(ADA), query)
        assert {request.id for request in found} == {one.id for one in own if fits(one)}, query


async def test_a_row_is_shown_as_written(opened: database.Database, store: UsageStore) -> None:
    written = row(
        api_key_id=None, model_used=None, status=RequestStatus.ERROR, error_code="bad_request", response_time_ms=12, cached=True,
        completion_tokens=0,
    )  # fmt: skip
    await write(opened, [written])
    (shown,) = await store.requests(TenantId(ADA), ListRequests())
    assert shown == LoggedRequest(
        id=written.id, created_at=BEGIN, user_id=ADA, key_id=None, model=None, status=RequestStatus.ERROR, error_code="bad_request",
        prompt_tokens=3, completion_tokens=0, response_time_ms=12, cost_micro=MicroCredits(0), cached=True, rating=None,
    )  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 2, 7, 1000])
async def test_an_export_returns_every_row_once_oldest_first(opened: database.Database, store: UsageStore, at_once: int) -> None:
    dice = random.Random(at_once)
    rows = [row(created_at=BEGIN + timedelta(seconds=dice.randrange(6))) for _ in range(30)]
    await write(opened, [*rows, *(row(user_id=BOB, created_at=BEGIN) for _ in range(30))])
    found: list[LoggedRequest] = []
    at, last = BEGIN, None
    while read := await store.requests_after(TenantId(ADA), at, last, at_once):
        assert len(read) <= at_once
        found += read
        at, last = read[-1].created_at, read[-1].id
    assert [(one.created_at, one.id) for one in found] == sorted((one.created_at, one.id) for one in rows)


# --- feedback -------------------------------------------------------------------------------------------------------------


async def ratings(store: UsageStore, tenant: UUID = ADA) -> dict[RequestId, int | None]:
    return {request.id: request.rating for request in await store.requests(TenantId(tenant), ListRequests())}


async def test_a_rating_is_given_changed_and_withdrawn(opened: database.Database, store: UsageStore) -> None:
    first, second = row(), row(created_at=BEGIN + timedelta(seconds=1))
    await write(opened, [first, second])
    own = TenantId(ADA)
    assert await store.rate(own, ADA, first.id, 1)
    assert await ratings(store) == {first.id: 1, second.id: None}
    assert await store.rate(own, ADA, first.id, -1)
    assert await ratings(store) == {first.id: -1, second.id: None}
    for _ in range(2):
        await store.unrate(own, ADA, first.id)
    assert await ratings(store) == {first.id: None, second.id: None}


@pytest.mark.parametrize("status", RequestStatus)
async def test_a_canceled_request_can_be_rated_by_its_owner_but_not_one_that_never_began(
    opened: database.Database, store: UsageStore, status: RequestStatus
) -> None:
    has_text, is_empty = row(status=status), row(status=status, completion_tokens=0)
    await write(opened, [has_text, is_empty])
    assert not await store.rate(TenantId(BOB), BOB, has_text.id, -1)
    assert await store.rate(TenantId(ADA), ADA, has_text.id, -1)
    # A complete answer may have no text tokens: vectors have none.
    assert await store.rate(TenantId(ADA), ADA, is_empty.id, -1) is (status is RequestStatus.SUCCESS)
    assert await ratings(store) == {has_text.id: -1, is_empty.id: -1 if status is RequestStatus.SUCCESS else None}


async def test_only_ones_own_answered_requests_can_be_rated(opened: database.Database, store: UsageStore) -> None:
    bobs, without_model = row(user_id=BOB), row(model_used=None)
    for_team, bobs_for_team = row(team_id=TEAM), row(user_id=BOB, team_id=TEAM)
    await write(opened, [bobs, without_model, for_team, bobs_for_team])
    refused = [
        (TenantId(ADA), ADA, bobs.id),
        (TenantId(BOB), ADA, bobs.id),
        (TenantId(ADA), BOB, bobs.id),
        (TenantId(ADA), ADA, without_model.id),
        (TenantId(ADA), ADA, for_team.id),
        (TEAM, ADA, bobs_for_team.id),
        (TenantId(ADA), ADA, RequestId(UUID(int=404))),
    ]
    for tenant, user, request in refused:
        assert not await store.rate(tenant, user, request, 1), (tenant, user, request)
    assert await store.rate(TEAM, ADA, for_team.id, 1)
    for tenant, user, request in [(TenantId(ADA), ADA, for_team.id), (TEAM, BOB, for_team.id), (TenantId(BOB), BOB, for_team.id)]:
        await store.unrate(tenant, user, request)
    assert (await ratings(store, TEAM))[for_team.id] == 1, "nobody else can remove a rating"


async def test_ratings_are_summed_by_model(opened: database.Database, store: UsageStore) -> None:
    now = datetime.now(UTC)
    thumbs = [(MODELS[0], 1), (MODELS[0], 1), (MODELS[0], -1), (MODELS[1], -1)]
    rows = [row(model_used=model, created_at=now - timedelta(minutes=1)) for model, _ in thumbs]
    await write(opened, [*rows, row(created_at=now - timedelta(minutes=1))])
    for one, (_, rating) in zip(rows, thumbs, strict=True):
        assert await store.rate(TenantId(ADA), ADA, one.id, rating)
    query = GetUsageReport(now - timedelta(hours=1), now + timedelta(hours=1), Bucket.HOUR)
    for tenant in (TenantId(ADA), None):
        sums = await store.sums(tenant, query)
        assert {model.model: (model.sum.requests, model.up, model.down) for model in sums.models} == {
            "smollm2": (4, 2, 1),
            "qwen": (1, 0, 1),
        }
    assert (await store.sums(TenantId(BOB), query)).models == ()


# --- retention ------------------------------------------------------------------------------------------------------------


async def test_rows_past_their_retention_are_deleted_in_batches(opened: database.Database, store: UsageStore) -> None:
    now = datetime.now(UTC)
    old = [row(created_at=now - timedelta(days=31), user_id=user) for user in (ADA, BOB) for _ in range(6)]
    young = [row(created_at=now - timedelta(days=29)) for _ in range(3)]
    await write(opened, [*old, *young])
    for one in (*old, *young):
        assert await store.rate(one.tenant_id, one.user_id, one.id, 1)
    before = await GatewayStore(opened).read_usage(TenantId(ADA))
    days = DaysStore(opened)
    while await days.roll_one() is not None:
        pass
    await days.close_days(30)
    assert [await store.delete_old(30, 5) for _ in range(4)] == [5, 5, 2, 0]
    assert {request.id for request in await store.requests(TenantId(ADA), ListRequests())} == {one.id for one in young}
    assert await store.requests(TenantId(BOB), ListRequests()) == ()
    assert await GatewayStore(opened).read_usage(TenantId(ADA)) == before, "the sums of days stay"


async def test_ratings_are_deleted_like_rows(opened: database.Database, store: UsageStore, plain_url: str) -> None:
    rows = [row(created_at=datetime.now(UTC)) for _ in range(4)]
    await write(opened, rows)
    for one in rows:
        await store.rate(TenantId(ADA), ADA, one.id, 1)
    async with _connected(plain_url) as connection:
        await connection.execute("SELECT set_config('aimesh.tenant', '*', false)")
        aged = [one.id for one in rows[:3]]
        await connection.execute("UPDATE gateway.feedback SET at = now() - interval '31 days' WHERE request_id = ANY($1)", aged)
    assert [await store.delete_old(30, 2) for _ in range(3)] == [2, 1, 0]
    assert sorted((await ratings(store)).values(), key=str) == [1, None, None, None]


# --- row-level security -----------------------------------------------------------------------------------------------------

TABLES = ("request_logs", "usage_stats", "feedback")


async def test_a_bound_tenant_reads_no_other_tenants_row_by_its_id(opened: database.Database, store: UsageStore) -> None:
    """All arguments are valid: even knowing an id gives no access."""
    bobs = [row(user_id=BOB) for _ in range(20)]
    await write(opened, bobs)
    ids = [one.id for one in bobs]
    assert [await store.rate(TenantId(BOB), BOB, one, 1) for one in ids[:5]] == [True] * 5
    for guessed in ids:
        async with opened.bound(ADA) as transaction:
            # A bug in our own code may pass the rightful tenant's arguments.
            assert await transaction.run("rate_request", guessed, BOB, BOB, -1) == 0
            assert await transaction.run("unrate_request", guessed, BOB, BOB) == 0
    async with opened.bound(ADA) as transaction:
        assert await transaction.rows("list_requests", BOB, None, None, None, None, 1000) == []
        assert await transaction.rows("export_requests", BOB, BEGIN, UUID(int=0), 1000) == []
        assert await transaction.rows("sum_time", BOB, BEGIN, BEGIN + timedelta(days=1), "day") == []
        assert await transaction.rows("sum_time", None, BEGIN, BEGIN + timedelta(days=1), "day") == []
        assert await transaction.rows("sum_feedback", None, BEGIN, datetime.now(UTC) + timedelta(days=1)) == []
        assert await transaction.rows("list_usage_days", BOB) == []
    assert sum(rating == 1 for rating in (await _all_ratings(store)).values()) == 5


async def _all_ratings(store: UsageStore) -> dict[RequestId, int | None]:
    return {request.id: request.rating for request in await store.requests(TenantId(BOB), ListRequests(limit=500))} | {
        request.id: request.rating for request in await store.requests_after(TenantId(BOB), BEGIN, None, 1000)
    }


@pytest.mark.parametrize("table", TABLES)
async def test_a_statement_without_a_where_clause_only_sees_its_tenant(
    opened: database.Database, store: UsageStore, plain_url: str, table: str
) -> None:
    rows = [row(created_at=datetime.now(UTC), user_id=user) for user in (ADA, BOB)]
    await write(opened, rows)
    for one in rows:
        await store.rate(one.tenant_id, one.user_id, one.id, 1)
    seen = f"SELECT tenant_id FROM gateway.{table}"
    async with _connected(plain_url) as connection:
        assert await connection.fetch(seen) == [], "without a tenant, no row is visible"
        assert await connection.execute(f"DELETE FROM gateway.{table}") == "DELETE 0"
        for tenant, expected in [(str(ADA), {ADA}), (str(BOB), {BOB}), ("*", {ADA, BOB}), ("", set()), ("*,*", set()), ("%", set())]:
            await connection.execute("SELECT set_config('aimesh.tenant', $1, false)", tenant)
            assert {found["tenant_id"] for found in await connection.fetch(seen)} == expected, tenant
        await connection.execute("SELECT set_config('aimesh.tenant', $1, false)", str(ADA))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(f"UPDATE gateway.{table} SET tenant_id = $1", BOB)
        await connection.execute(f"ALTER TABLE gateway.{table} NO FORCE ROW LEVEL SECURITY")
        assert len(await connection.fetch(seen)) == 2, "FORCE applies the policy to the table's owner"


async def test_the_next_transaction_is_not_bound_to_the_last_ones_tenant(opened: database.Database, store: UsageStore) -> None:
    await write(opened, [row(), row(user_id=BOB)])
    day = GetUsageReport(BEGIN, BEGIN + timedelta(days=1))
    for _ in range(30):
        assert (await store.sums(TenantId(ADA), day)).total.requests == 1
        assert (await store.sums(None, day)).total.requests == 2


async def test_without_postgresql_it_raises_unavailable(
    opened: database.Database, store: UsageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(*_arguments: object, **_more: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr(opened, "_acquire", refused)
    with pytest.raises(errors.Unavailable):
        await store.sums(TenantId(ADA), GetUsageReport(BEGIN, BEGIN + timedelta(days=1)))
    with pytest.raises(errors.Unavailable):
        await store.requests(TenantId(ADA), ListRequests())
