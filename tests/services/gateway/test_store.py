"""The gateway's store on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest

from services.gateway.facts.guard_counts import GuardCount, GuardPlace
from services.gateway.facts.request_record import RequestRow, RowsRefused
from services.gateway.store import GatewayStore
from services.gateway.store import opened as database_of
from shared.config_documents import GuardAction, GuardKind
from shared.types import KeyId, ModelName, RequestId, RequestStatus, UserId

KEY = KeyId(UUID(int=2))
NOON = datetime.now(UTC).replace(hour=12)


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[GatewayStore]:
    async with database_of(postgres_url) as opened:
        yield GatewayStore(opened)


def row(
    user: UserId, *, tokens: int = 10, status: RequestStatus = RequestStatus.SUCCESS, key: KeyId | None = KEY, days_ago: int = 0
) -> RequestRow:
    return RequestRow(
        id=RequestId(uuid4()), user_id=user, api_key_id=key, prompt_hash="f" * 64, model_used=ModelName("smollm2"), response_time_ms=5,
        prompt_tokens=tokens - tokens // 2, completion_tokens=tokens // 2, status=status, error_code=None,
        created_at=NOON - timedelta(days=days_ago),
    )  # fmt: skip


def user() -> UserId:
    return UserId(uuid4())


async def test_usage_by_day_and_key(store: GatewayStore) -> None:
    ada = user()
    await store.write_requests([row(ada), row(ada, tokens=5), row(ada, key=None), row(ada, days_ago=1), row(user())])
    usage = await store.read_usage(ada)
    assert (usage.request_count, usage.tokens_used) == (4, 35)
    assert [(day.api_key_id, day.request_count, day.tokens_used) for day in usage.days] == [(KEY, 2, 15), (None, 1, 10), (KEY, 1, 10)]
    assert usage.days[0].date == NOON.date()
    assert usage.days[-1].date == (NOON - timedelta(days=1)).date()


async def test_writing_a_row_again_changes_nothing(store: GatewayStore) -> None:
    ada = user()
    rows = [row(ada), row(ada)]
    for _ in range(3):
        await store.write_requests(rows)
    await store.write_requests([*rows, row(ada)])
    assert (await store.read_usage(ada)).request_count == 3


async def test_what_guardrails_find_is_counted_once_by_day_and_key(store: GatewayStore, postgres_url: str) -> None:
    ada = user()
    masked = GuardCount(GuardKind.CARD, GuardAction.MASK, GuardPlace.PROMPT, 3)
    refused = GuardCount(GuardKind.EMAIL, GuardAction.REFUSE, GuardPlace.ANSWER, 1)
    rows = [
        msgspec.structs.replace(row(ada), guard=(masked, refused)),
        msgspec.structs.replace(row(ada), guard=(masked,)),
        msgspec.structs.replace(row(ada, key=None), guard=(masked,)),
        row(ada),
    ]
    await asyncio.gather(*(store.write_requests(rows) for _ in range(3)))
    await store.write_requests([msgspec.structs.replace(row(ada), guard=(masked,))])
    connection = await asyncpg.connect(postgres_url)
    try:
        found = await connection.fetch("SELECT * FROM gateway.guard_counts WHERE tenant_id = $1 ORDER BY api_key_id, kind", ada)
    finally:
        await connection.close()
    columns = ("day", "api_key_id", "kind", "action", "place", "matches", "requests")
    assert [tuple(one[column] for column in columns) for one in found] == [
        (NOON.date(), KEY, "card", "mask", "prompt", 9, 3),
        (NOON.date(), KEY, "email", "refuse", "answer", 1, 1),
        (NOON.date(), None, "card", "mask", "prompt", 3, 1),
    ]


async def test_a_row_names_the_fields_that_had_no_effect(store: GatewayStore, postgres_url: str) -> None:
    ada = user()
    await store.write_requests([msgspec.structs.replace(row(ada), ignored_fields="store, tools[web_search]"), row(ada)])
    connection = await asyncpg.connect(postgres_url)
    try:
        found = await connection.fetch("SELECT ignored_fields FROM gateway.request_logs WHERE tenant_id = $1 ORDER BY 1", ada)
    finally:
        await connection.close()
    assert [one["ignored_fields"] for one in found] == ["store, tools[web_search]", None]


async def test_an_invalid_row_is_refused_without_quoting_it(store: GatewayStore) -> None:
    ada = user()
    for wrong in (msgspec.structs.replace(row(ada), error_code="\0secret"), msgspec.structs.replace(row(ada), response_time_ms=2**40)):
        with pytest.raises(RowsRefused) as refused:
            await store.write_requests([row(ada), wrong])
        assert "Error" in refused.value.message
        assert "secret" not in refused.value.message
    assert (await store.read_usage(ada)).request_count == 0


async def test_only_delivered_tokens_count_as_usage(store: GatewayStore, postgres_url: str) -> None:
    ada = user()
    await store.write_requests(
        [
            row(ada),
            row(ada, tokens=0),
            row(ada, tokens=3, status=RequestStatus.CANCELLED),
            row(ada, tokens=0, status=RequestStatus.LIMITED),
            row(ada, tokens=0, status=RequestStatus.ERROR),
        ]
    )
    usage = await store.read_usage(ada)
    assert (usage.request_count, usage.tokens_used) == (3, 13)
    connection = await asyncpg.connect(postgres_url)
    try:
        logged = await connection.fetch("SELECT * FROM gateway.request_logs WHERE user_id = $1", ada)
    finally:
        await connection.close()
    assert len(logged) == 5
    assert set(logged[0].keys()) >= {
        "id", "user_id", "api_key_id", "prompt_hash", "model_used", "response_time_ms", "tokens_used", "status", "created_at",
    }  # fmt: skip


async def test_concurrent_writers_lose_nothing(store: GatewayStore) -> None:
    ada, bob = user(), user()
    batches = [[row(ada), row(bob), row(ada, key=None), row(bob, days_ago=1)] for _ in range(20)]
    for batch in batches[::2]:
        batch.reverse()
    await asyncio.gather(*(store.write_requests(batch) for batch in batches))
    assert (await store.read_usage(ada)).tokens_used == 400
    assert (await store.read_usage(bob)).tokens_used == 400


async def test_a_refused_request_without_prompt_and_model_can_be_written(store: GatewayStore) -> None:
    ada = user()
    refused = RequestRow(
        id=RequestId(uuid4()), user_id=ada, api_key_id=None, prompt_hash=None, model_used=None, response_time_ms=0, prompt_tokens=0,
        completion_tokens=0, status=RequestStatus.ERROR, error_code="bad_request", created_at=NOON,
    )  # fmt: skip
    await store.write_requests([refused])
    usage = await store.read_usage(ada)
    assert usage.request_count == 0
    assert msgspec.json.encode(usage)


async def test_check_succeeds(store: GatewayStore) -> None:
    assert all(check.ok for check in await store.checks())
