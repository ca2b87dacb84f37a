"""Summaries of days and their reports, on a real PostgreSQL with row-level security in force."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from msgspec import structs

from services.gateway import store as stores
from services.gateway.facts.request_record import RequestRow, ReservationState, RouteUse
from services.gateway.facts.upstream_prices import TargetSpending
from services.gateway.store import GatewayStore
from services.gateway.usage_store import DaysStore, UsageStore
from shared.api.business import BusinessGrouping, BusinessReport, BusinessSum, GetBusinessReport
from shared.stores import database
from shared.types import KeyId, MicroCredits, ModelName, RequestId, RequestStatus, TenantId, UserId
from tests.stacks import until

#: Set for each test, because a run may pass midnight.
TODAY = BEGIN = datetime.min.replace(tzinfo=UTC)
#: The number of our own role's sessions that wait for a lock.
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = current_user"
ADA, BOB = UserId(UUID(int=1)), UserId(UUID(int=2))
TEAM = TenantId(UUID(int=50))
MODELS = [ModelName("smollm2"), ModelName("qwen"), None]
ROUTES = [None, RouteUse("chat", 1, "own", "own"), RouteUse("chat", 2, "own", "api"), RouteUse("code", 1, None, "own")]
OWNERS = [str(UUID(int=7)), str(UUID(int=8)), None]
LABELS: list[tuple[tuple[str, str], ...]] = [(("gpu", "a100"), ("region", "eu")), (("region", "us"),), ()]


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    monkeypatch.setattr(f"{__name__}.TODAY", now)
    monkeypatch.setattr(f"{__name__}.BEGIN", now - timedelta(days=4))


@pytest.fixture
async def opened(plain_url: str) -> AsyncIterator[database.Database]:
    async with stores.opened(plain_url) as found:
        yield found


@pytest.fixture
async def connection(opened: database.Database, plain_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection with the service's password, but without a tenant."""
    found = await asyncpg.connect(plain_url, server_settings={"search_path": "gateway"})
    yield found
    await found.close()


@pytest.fixture
def days(opened: database.Database) -> DaysStore:
    return DaysStore(opened)


_TEMPLATE = RequestRow(
    id=RequestId(UUID(int=0)), user_id=ADA, api_key_id=KeyId(UUID(int=9)), prompt_hash="f" * 64, model_used=MODELS[0], response_time_ms=500,
    prompt_tokens=3, completion_tokens=2, status=RequestStatus.SUCCESS, error_code=None, created_at=BEGIN,
)  # fmt: skip


def row(**changed: object) -> RequestRow:
    return structs.replace(_TEMPLATE, **{"id": RequestId(uuid4()), "created_at": BEGIN, **changed})  # type: ignore[arg-type]


def some_rows(seed: int, number: int) -> list[RequestRow]:
    """Return rows of four whole days and the current one."""
    dice = random.Random(seed)
    return [
        row(
            user_id=dice.choice([ADA, BOB]),
            team_id=dice.choice([None, TEAM]),
            model_used=dice.choice(MODELS),
            response_time_ms=dice.randrange(70_000),
            prompt_tokens=dice.randrange(500),
            completion_tokens=dice.randrange(500),
            status=dice.choice(list(RequestStatus)),
            created_at=BEGIN + timedelta(microseconds=dice.randrange(5 * 24 * 3600 * 10**6)),
            cached=dice.random() < 0.2,
            worker_owner=dice.choice(OWNERS),
            worker_labels=dice.choice(LABELS),
            begins_conversation=dice.random() < 0.5,
            saved_micro=MicroCredits(dice.randrange(1000)),
            route=dice.choice(ROUTES),
            provider=dice.choice([None, None, "acme"]),
            spending=tuple(TargetSpending("chat", "api", MicroCredits(dice.randrange(1000))) for _ in range(dice.randrange(3))),
            avoided_micro=MicroCredits(dice.randrange(1000)),
            api_key_id=dice.choice([None, KeyId(UUID(int=9)), KeyId(UUID(int=10))]),
            plan=dice.choice([None, "free", "pro"]),
        )
        for _ in range(number)
    ]


def by_hand(rows: Sequence[RequestRow]) -> BusinessSum:
    def number(status: RequestStatus) -> int:
        return sum(one.status is status for one in rows)

    good = [one for one in rows if one.status is RequestStatus.SUCCESS]
    uncached = [one for one in good if not one.cached]
    let_in = [one for one in rows if one.status not in (RequestStatus.LIMITED, RequestStatus.REJECTED)]
    return BusinessSum(
        succeeded=len(good),
        failed=number(RequestStatus.ERROR),
        timed_out=number(RequestStatus.TIMEOUT),
        cancelled=number(RequestStatus.CANCELLED),
        limited=number(RequestStatus.LIMITED),
        prompt_tokens=sum(one.prompt_tokens for one in rows),
        completion_tokens=sum(one.completion_tokens for one in rows),
        response_ms=sum(one.response_time_ms for one in good),
        made_tokens=sum(one.completion_tokens for one in uncached),
        made_ms=sum(one.response_time_ms for one in uncached),
        cached=sum(one.cached for one in rows),
        saved_micro=MicroCredits(sum(one.saved_micro for one in rows)),
        conversations=sum(one.begins_conversation for one in let_in),
        upstream_micro=MicroCredits(sum(one.upstream_micro for one in rows)),
        avoided_micro=MicroCredits(sum(one.avoided_micro for one in rows)),
        external=sum(one.provider is not None for one in good),
        users=len({one.user_id for one in let_in}),
    )


async def roll(days: DaysStore) -> list[date]:
    await days.open_days()
    rolled = []
    while (day := await days.roll_one()) is not None:
        rolled.append(day)
    return rolled


async def report(days: DaysStore, by: BusinessGrouping = BusinessGrouping.DAY, *, label: str | None = None) -> BusinessReport:
    return await days.report(GetBusinessReport(BEGIN.date(), TODAY.date() + timedelta(days=1), by, label))


async def test_a_report_is_the_same_before_and_after_days_are_summed_up(days: DaysStore, opened: database.Database) -> None:
    rows = some_rows(4, 300)
    await GatewayStore(opened).write_requests(rows)
    whole = by_hand(rows)

    def name(one: RequestRow, by: BusinessGrouping) -> str | None:
        names = {
            BusinessGrouping.DAY: one.created_at.date().isoformat(),
            BusinessGrouping.USER: str(one.user_id),
            BusinessGrouping.MODEL: one.model_used,
            BusinessGrouping.OWNER: one.worker_owner,
            BusinessGrouping.ROUTE: None if one.route is None else one.route.route,
            BusinessGrouping.TARGET: None if one.route is None else f"{one.route.route}/{one.route.target}",
            BusinessGrouping.ORGANIZATION: str(one.tenant_id),
            BusinessGrouping.KEY: None if one.api_key_id is None else str(one.api_key_id),
            BusinessGrouping.PLAN: one.plan,
            BusinessGrouping.LABEL: ", ".join(f'"{key}": "{value}"' for key, value in one.worker_labels) or None,
        }
        return names[by]

    before = {by: await report(days, by) for by in BusinessGrouping}
    for by, found in before.items():
        assert found.total == whole, by
        lines = {None if line.name is None else line.name.strip("{}"): line.sum for line in found.rows}
        names = {name(one, by) for one in rows}
        assert lines == {each: by_hand([one for one in rows if name(one, by) == each]) for each in names}, by
    assert len(await roll(days)) >= 4
    for by, found in before.items():
        assert await report(days, by) == found, by


async def test_repeated_questions_of_one_payer_are_counted(days: DaysStore, opened: database.Database) -> None:
    asked = [
        *(row(cached=cached) for cached in (False, True, False)),
        row(prompt_hash="a" * 64, cached=True),
        row(prompt_hash="b" * 64),
        row(team_id=TEAM),
        row(model_used=MODELS[1]),
        row(prompt_hash=None),
        row(status=RequestStatus.ERROR),
        row(created_at=BEGIN - timedelta(days=1)),
    ]
    await GatewayStore(opened).write_requests(asked)
    period = GetBusinessReport(BEGIN.date(), TODAY.date() + timedelta(days=1), counts_repeated=True)
    assert (await days.report(period)).repeated == 2 + 1
    assert (await days.report(structs.replace(period, counts_repeated=False))).repeated is None


async def test_values_of_one_label_are_kept_apart(days: DaysStore, opened: database.Database) -> None:
    await GatewayStore(opened).write_requests([row(worker_labels=labels) for labels in (*LABELS, LABELS[0])])
    found = await report(days, BusinessGrouping.LABEL, label="region")
    assert {line.name: line.sum.succeeded for line in found.rows} == {"eu": 2, "us": 1, None: 1}
    assert found.total.succeeded == 4


async def test_a_day_starts_at_midnight_utc(days: DaysStore, opened: database.Database) -> None:
    tick = timedelta(microseconds=1)
    await GatewayStore(opened).write_requests(
        [row(created_at=BEGIN + day - before) for day in (timedelta(days=1), timedelta(days=2)) for before in (tick, 0 * tick)]
    )
    for _ in range(2):
        assert [(line.name, line.sum.succeeded) for line in (await report(days)).rows] == [
            ((BEGIN + timedelta(days=number)).date().isoformat(), succeeded) for number, succeeded in enumerate((1, 2, 1))
        ]
        only = await days.report(GetBusinessReport((BEGIN + timedelta(days=1)).date(), (BEGIN + timedelta(days=2)).date()))
        assert only.total.succeeded == 2
        await roll(days)


async def test_a_day_is_summed_up_once_and_late_requests_are_added(
    days: DaysStore, opened: database.Database, connection: asyncpg.Connection
) -> None:
    await GatewayStore(opened).write_requests([row(), row()])
    assert BEGIN.date() in await roll(days)
    assert await roll(days) == []
    # Without their rows, only the stored sums still include these two.
    await connection.execute("SET aimesh.tenant = '*'")
    await connection.execute("DELETE FROM request_logs")
    await GatewayStore(opened).write_requests([late := row()])
    for _ in range(2):
        assert (await report(days)).total.succeeded == 3
        assert await roll(days) == []
        await GatewayStore(opened).write_requests([late])


async def test_the_current_day_is_summed_up_in_ten_minute_pieces(
    days: DaysStore, opened: database.Database, connection: asyncpg.Connection
) -> None:
    now = datetime.now(UTC)
    piece = now.replace(minute=now.minute // 10 * 10, second=0, microsecond=0)
    await days.open_days()
    await connection.execute("SET aimesh.tenant = '*'")
    # Pretend that this day started later, so that the test's result is the same at any time of day.
    await connection.execute("UPDATE usage_rolls SET rolled_until = $1 WHERE day = $2", piece - timedelta(minutes=20), piece.date())
    begun = max(piece - timedelta(minutes=20), TODAY)
    await GatewayStore(opened).write_requests([row(created_at=begun), row(created_at=datetime.now(UTC))])
    assert piece.date() not in await roll(days)
    assert (await report(days)).total.succeeded == 2
    summed_up = await connection.fetchval("SELECT coalesce(sum(succeeded), 0) FROM usage_days WHERE day = $1", TODAY.date())
    assert summed_up == (begun + timedelta(minutes=10) < datetime.now(UTC) - timedelta(minutes=5))


async def test_a_rating_counts_for_the_day_of_its_request(days: DaysStore, opened: database.Database) -> None:
    answered = row()
    usage = UsageStore(opened)
    await GatewayStore(opened).write_requests([answered])
    for rating, thumbs in ((1, (1, 0)), (-1, (0, 1)), (0, (0, 0))):
        await roll(days)
        if rating:
            assert await usage.rate(TenantId(ADA), ADA, answered.id, rating)
        else:
            await usage.unrate(TenantId(ADA), ADA, answered.id)
        for _ in range(2):
            line = (await report(days)).rows[0]
            assert (line.name, line.sum.thumbs_up, line.sum.thumbs_down) == (BEGIN.date().isoformat(), *thumbs)
            await roll(days)


async def test_sums_outlive_the_request_log(days: DaysStore, opened: database.Database) -> None:
    rows = some_rows(5, 100)
    await GatewayStore(opened).write_requests(rows)
    usage = UsageStore(opened)
    assert await usage.delete_old(1, 1000) == 0, "no row is deleted before its day is summarized"
    await roll(days)
    before = await report(days)
    await days.close_days(1)
    assert await usage.delete_old(1, 1000) > 0
    assert await report(days) == before
    # A late row must not recompute the day, of which no other row is left.
    await GatewayStore(opened).write_requests([row()])
    assert await roll(days) == []
    assert await report(days) == before


async def test_the_current_day_is_never_summed_up(days: DaysStore, opened: database.Database) -> None:
    await GatewayStore(opened).write_requests([row(created_at=datetime.now(UTC))])
    assert TODAY.date() not in await roll(days)
    assert (await report(days)).total.succeeded == 1


async def test_days_are_reported_even_if_not_summed_up_for_long(
    days: DaysStore, opened: database.Database, connection: asyncpg.Connection
) -> None:
    await days.open_days()
    await connection.execute("UPDATE usage_rolls SET day = day - 4")
    await days.open_days()
    assert await connection.fetchval("SELECT count(*) FROM usage_rolls") == 5


async def test_the_cost_of_requests_equals_the_ledgers_revenue(
    days: DaysStore, opened: database.Database, connection: asyncpg.Connection
) -> None:
    dice = random.Random(6)
    await connection.execute("SET aimesh.tenant = '*'")
    await connection.execute(
        "INSERT INTO prices (input_micro_per_million, output_micro_per_million, request_micro, compute_second_micro) VALUES (0, 0, 0, 0)"
    )
    rows = some_rows(6, 60)
    for one in rows:
        # The reservation limits the payment.
        held = dice.randrange(10**12)
        await connection.execute(
            "INSERT INTO accounts AS account (owner, reserved_micro) VALUES ($1, $2)"
            " ON CONFLICT (owner) DO UPDATE SET reserved_micro = account.reserved_micro + $2",
            one.tenant_id, held,
        )  # fmt: skip
        await connection.execute(
            "INSERT INTO reservations"
            " (request_id, owner, model, price_id, reserved_micro, prompt_tokens, completion_tokens, gateway, lease_until)"
            " VALUES ($1, $2, 'm', 1, $3, 1, 1, 'g', now())",
            one.id, one.tenant_id, held,
        )  # fmt: skip
    await GatewayStore(opened).write_requests(
        [structs.replace(one, cost_micro=MicroCredits(dice.randrange(10**12)), reservation=ReservationState.SETTLED) for one in rows]
    )
    taken = await connection.fetchval("SELECT sum(amount_micro) FROM entries WHERE kind = 'usage' AND account = 'revenue'")
    assert taken > 0
    for by in BusinessGrouping:
        found = await report(days, by)
        assert found.total.cost_micro == sum(line.sum.cost_micro for line in found.rows) == taken
        await roll(days)
    back = await connection.fetchrow("SELECT request_id, settled_micro FROM reservations WHERE settled_micro > 0 LIMIT 1")
    await connection.execute("SELECT revert($1, 'sorry')", back["request_id"])
    found = await report(days)
    assert (found.total.cost_micro, found.given_back_micro) == (taken, back["settled_micro"])
    assert await connection.fetchval("SELECT sum(amount_micro) FROM entries WHERE account = 'revenue'") == taken - found.given_back_micro


async def test_the_token_value_is_the_tokens_at_the_last_price_of_their_day(
    days: DaysStore, opened: database.Database, connection: asyncpg.Connection
) -> None:
    """Tokens that a plan covers cost nothing, and a report said nothing of what they are worth."""
    for model, micro, hours in ((None, 1, -200), ("m", 5, 30), ("m", 10, 36)):
        await connection.execute(
            "INSERT INTO prices (model, input_micro_per_million, output_micro_per_million, request_micro, compute_second_micro, since)"
            " VALUES ($1, $2, $3, 7, 7, $4)",
            *(model, micro * 10**6, 2 * micro * 10**6, BEGIN + timedelta(hours=hours)),
        )
    await GatewayStore(opened).write_requests(
        [
            row(model_used=ModelName(model), created_at=BEGIN + timedelta(hours=hours), prompt_tokens=100, completion_tokens=10)
            for model, hours in (("m", 1), ("m", 25), ("n", 25))
        ]
    )
    found = await report(days)
    assert found.total.cost_micro == 0
    assert [line.sum.token_value_micro for line in found.rows] == [120, 1200 + 120]
    assert found.total.token_value_micro == 1440


async def test_active_users(days: DaysStore, opened: database.Database) -> None:
    now = datetime.now(UTC)
    people = [UserId(UUID(int=number)) for number in range(1, 6)]
    ages = (timedelta(minutes=5), timedelta(hours=20), timedelta(days=5), timedelta(days=25), timedelta(days=40))
    await GatewayStore(opened).write_requests([row(user_id=who, created_at=now - age) for who, age in zip(people, ages, strict=True)])
    await GatewayStore(opened).write_requests([row(user_id=UserId(UUID(int=77)), created_at=now, status=RequestStatus.LIMITED)])
    for _ in range(2):
        active = (await report(days)).active
        assert (active.hour, active.day, active.week, active.month) == (1, 2, 3, 4)
        await roll(days)


async def test_a_tenant_sees_no_other_tenants_days(days: DaysStore, opened: database.Database, connection: asyncpg.Connection) -> None:
    await GatewayStore(opened).write_requests([row(), row(user_id=BOB)])
    await roll(days)
    seen = {}
    for tenant in ("", str(ADA), "*"):
        await connection.execute("SELECT set_config('aimesh.tenant', $1, false)", tenant)
        seen[tenant] = await connection.fetchval("SELECT count(*) FROM usage_days")
    assert seen == {"": 0, str(ADA): 1, "*": 2}


async def test_a_period_without_requests_is_empty(days: DaysStore) -> None:
    found = await report(days)
    assert (found.total, found.rows, found.more) == (BusinessSum(), (), False)


async def test_requests_written_while_their_day_is_summed_up_are_counted(
    days: DaysStore, opened: database.Database, connection: asyncpg.Connection
) -> None:
    await GatewayStore(opened).write_requests([row()])

    async def it_waits() -> bool:
        return bool(await connection.fetchval(WAITING))

    async with asyncio.TaskGroup() as tasks, opened.transaction() as rolling:
        piece = await rolling.row("take_roll_piece")
        assert piece is not None
        assert piece["day"] == BEGIN.date()
        await rolling.run("roll_piece", piece["since"], piece["until"])
        tasks.create_task(GatewayStore(opened).write_requests([row()]))
        await until(it_waits, seconds=10, what="the late row waits for the roll")
        await rolling.run("end_piece", piece["day"], piece["until"], False)
    assert (await report(days)).total.succeeded == 2
    assert BEGIN.date() in await roll(days)
    assert (await report(days)).total.succeeded == 2


async def test_two_gateways_sum_up_each_day_once(days: DaysStore, opened: database.Database) -> None:
    rows = some_rows(7, 100)
    await GatewayStore(opened).write_requests(rows)
    rolled = await asyncio.gather(roll(days), roll(days))
    assert len(both := [*rolled[0], *rolled[1]]) == len(set(both)) >= 4
    assert (await report(days)).total == by_hand(rows)


@pytest.mark.parametrize(
    ("costs", "times"),
    [
        pytest.param([100] * 7 + [100, 0], 1, id="as usual"),
        pytest.param([100] * 7 + [100, 160], 1.6, id="today is higher"),
        pytest.param([70, 130, 100, 0, 200, 100, 100, 170, 10], 1.7, id="yesterday was higher"),
        pytest.param([0] + [100] * 6 + [300, 300], 300 / (900 / 7), id="yesterday had no cost eight days ago"),
        pytest.param([0] * 8 + [100], 0, id="nothing is usual yet"),
    ],
)
async def test_cost_is_compared_with_the_usual(
    days: DaysStore, opened: database.Database, connection: asyncpg.Connection, costs: list[int], times: float
) -> None:
    """The first cost is of eight days ago, and the last one of today."""
    rows = [row(created_at=TODAY - timedelta(days=8 - at)) for at in range(len(costs))]
    await GatewayStore(opened).write_requests(rows)
    await connection.execute("SET aimesh.tenant TO '*'")
    changes = [(one.id, cost) for one, cost in zip(rows, costs, strict=True)]
    await connection.executemany("UPDATE request_logs SET cost_micro = $2 WHERE id = $1", changes)
    assert await days.compare_cost() == pytest.approx(times)
    await roll(days)
    assert await days.compare_cost() == pytest.approx(times)


async def test_providers_of_this_month_are_summed_up(days: DaysStore, opened: database.Database) -> None:
    assert await days.sum_upstream() == 0
    spent = (TargetSpending("chat", "api", MicroCredits(7)), TargetSpending("chat", "other", MicroCredits(5)))
    before = TODAY.replace(day=1) - timedelta(seconds=1)
    await GatewayStore(opened).write_requests([row(spending=spent, created_at=at) for at in (TODAY, TODAY.replace(day=1), before)])
    assert await days.sum_upstream() == 24
