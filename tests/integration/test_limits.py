"""Hourly limits under load: exact, per user and per key, and effective at once after a change of tier."""

import asyncio
from collections import Counter

import httpx
import pytest

from tests.integration import asking
from tests.people import ApiClient, Key, Person
from tests.stacks import RunningStack, until

#: DEFAULT_RATE_LIMIT and PREMIUM_RATE_LIMIT of a stack that sets neither.
FREE, PRO = 100, 1000


async def _statuses(stack: RunningStack, keys: list[Key], times: int) -> list[httpx.Response]:
    async with stack.http() as http:

        async def ask(key: Key) -> httpx.Response:
            headers = {"authorization": f"Bearer {key.secret}"}
            return await http.post("/api/inference", json={"model": "echo", "prompt": "hi"}, headers=headers)

        return await asyncio.gather(*(ask(keys[number % len(keys)]) for number in range(times)))


async def test_a_users_limit_holds_exactly_under_concurrency_and_over_keys_until_the_tier_is_raised(
    stack: RunningStack, api_client: ApiClient
) -> None:
    carl = await api_client.register("carl")
    second = await api_client.make_key(carl, "second")
    answers = await _statuses(stack, [carl.key, second], 150)
    assert Counter(answer.status_code for answer in answers) == {200: FREE, 429: 50}
    for answer in answers:
        if answer.status_code == 429:
            assert "limit of 100" in asking.problem(answer, 429, "rate_limited")["message"]
            # The window moves by whole minutes, so the oldest request may leave it up to a minute late.
            assert 1 <= int(answer.headers["retry-after"]) <= 3660
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            assert 0 < int(answer.headers["retry-after-ms"]) <= 3_660_000
        else:
            assert answer.headers["x-ratelimit-limit-requests"] == "100"
            assert 0 <= int(answer.headers["x-ratelimit-remaining-requests"]) < FREE
    async with stack.database("gateway") as database:

        async def all_written() -> bool:
            # On a busy machine, the last rows may still be in the journal when the callers get their answers.
            rows = await database.fetch("SELECT status, count(*) FROM request_logs WHERE user_id = $1 GROUP BY 1", carl.id)
            return {row["status"]: row["count"] for row in rows} == {"success": FREE, "limited": 50}

        await until(all_written, seconds=30, what="a row for each request")

    raised = await stack.aicli("admin", "users", "set-tier", carl.username, "pro")
    assert raised.status == 0, raised.err
    async with stack.http(second.secret) as http:
        # The change may reach the gateway after aicli has ended.
        async def taken() -> bool:
            return (await http.post("/api/inference", json={"model": "echo", "prompt": "hi"})).status_code == 200

        await until(taken, seconds=2, what="the new tier holds")
        quota = (await http.get("/api/quota")).json()
    assert (quota["tier"], quota["limit_per_hour"]) == ("pro", PRO)
    assert quota["used_this_hour"] == FREE + 1


async def test_a_plan_of_the_configuration_and_a_budget_hold_at_once(stack: RunningStack, api_client: ApiClient) -> None:
    dora = await api_client.register("dora")
    unknown = await stack.aicli("admin", "users", "set-tier", dora.username, "gold")
    assert (unknown.status, "there is no plan 'gold'" in unknown.err) == (1, True), unknown.err
    applied = await stack.aicli("admin", "config", "apply", "-f", "-", stdin="plans: {gold: {requests_per_hour: 7}}")
    assert applied.status == 0, applied.err
    set_ = await stack.aicli("admin", "users", "set-tier", dora.username, "gold")
    assert set_.status == 0, set_.err
    async with stack.http(dora.key.secret) as http:

        async def has_limit(most: int) -> bool:
            quota = (await http.get("/api/quota")).json()
            return (quota["tier"], quota["limit_per_hour"]) == ("gold", most)

        await until(lambda: has_limit(7), seconds=5, what="the plan holds")
        budget = await stack.aicli("admin", "budget", dora.username, "0.000001", "--every", "day")
        assert budget.out == f"{dora.username}: 0.000001 credits every day\n"

        async def refused() -> bool:
            answer = await http.post("/api/inference", json={"model": "echo", "prompt": "hi"})
            return answer.status_code == 402 and "the budget of your account is too low" in answer.text

        await until(refused, seconds=5, what="the budget holds")
        removed = await stack.aicli("admin", "config", "apply", "-f", "-", stdin="plans: {gold: ~}")
        assert removed.status == 0, removed.err
        await until(lambda: has_limit(FREE), seconds=5, what="the limits of free")


@pytest.mark.nightly("stacks")
async def test_the_tighter_limit_of_a_key_holds_for_that_key(stack: RunningStack, api_client: ApiClient, ann: Person) -> None:
    made = (await stack.aicli("keys", "create", "tight", "--requests-per-hour", "3", "--json", AICLI_API_KEY=ann.key.secret)).json()
    async with stack.http(made["key"]) as http:
        answers = await asyncio.gather(*(http.post("/api/inference", json={"model": "echo", "prompt": "hi"}) for _ in range(10)))
    assert Counter(answer.status_code for answer in answers) == {200: 3, 429: 7}
    refused = await stack.aicli("infer", "-m", "echo", "hi", "--json", AICLI_API_KEY=made["key"])
    assert refused.status == 4
    assert '"rate_limited"' in refused.err
    # The account's other key is not affected.
    assert (await stack.aicli("infer", "-m", "echo", "hi", AICLI_API_KEY=ann.key.secret)).out == "hi\n"
