"""Usage over HTTP: quota, pages of the request log, and feedback. With a fake mesh and store."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from shared.api.auth import Every
from shared.api.gateway import KeyBudget
from shared.api.ledger import Account
from shared.api.usage_report import ListRequests, LoggedRequest
from shared.types import KeyId, MicroCredits, ModelName, RequestId, RequestStatus, UserId
from tests.services.gateway import fakes
from tests.services.gateway.fakes import USER, RunningService
from tests.services.gateway.http_answers import problem

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
OWN, ANOTHERS = RequestId(UUID(int=31)), RequestId(UUID(int=32))


def logged(number: RequestId, user: UserId = USER, **changed: Any) -> LoggedRequest:
    fields: dict[str, Any] = {
        "id": number, "created_at": NOON, "user_id": user, "key_id": KeyId(UUID(int=2)), "model": ModelName("smollm2"),
        "status": RequestStatus.SUCCESS, "error_code": None, "prompt_tokens": 3, "completion_tokens": 2, "response_time_ms": 41,
        "cost_micro": MicroCredits(1_500_000), "cached": False, "rating": None,
    }  # fmt: skip
    return LoggedRequest(**{**fields, **changed})


@pytest.fixture
async def running_service() -> AsyncIterator[RunningService]:
    async with fakes.running_service() as service:
        service.reports.rows = (logged(OWN, rating=-1), logged(ANOTHERS, UserId(UUID(int=99))))
        yield service


# --- the request log ------------------------------------------------------------------------------------------------------


async def test_a_logged_request_is_shown_without_its_caller_and_content(http: httpx.AsyncClient) -> None:
    answer = await http.get("/api/requests")
    assert answer.status_code == 200
    assert answer.json() == {
        "requests": [
            {
                "id": str(OWN), "created_at": "2026-03-02T12:00:00Z", "api_key_id": str(UUID(int=2)), "model": "smollm2",
                "status": "success", "error_code": None, "error_field": None, "ignored_fields": None,
                "prompt_tokens": 3, "completion_tokens": 2,
                "response_time_ms": 41,
                "cost": "1.5", "cached": False, "rating": -1,
            }
        ]
    }  # fmt: skip
    assert answer.headers["cache-control"] == "no-store"


async def test_query_parameters_filter_the_list(running_service: RunningService, http: httpx.AsyncClient) -> None:
    query: dict[str, str | int] = {"limit": 7, "before": "2026-03-02T13:00:00+01:00", "status": "limited", "model": "qwen 2"}
    assert (await http.get("/api/requests", params=query)).status_code == 200
    assert (await http.get("/api/requests?")).status_code == 200
    assert running_service.reports.received == [
        ListRequests(status=RequestStatus.LIMITED, model=ModelName("qwen 2"), before=NOON, limit=7),
        ListRequests(limit=50),
    ]


async def test_paging_continues_from_the_time_of_the_last_request(running_service: RunningService, http: httpx.AsyncClient) -> None:
    exact = NOON + timedelta(microseconds=123_456)
    running_service.reports.rows = (logged(OWN, created_at=exact),)
    shown = (await http.get("/api/requests")).json()["requests"][-1]["created_at"]
    assert (await http.get("/api/requests", params={"before": shown})).status_code == 200
    assert running_service.reports.received[-1].before == exact


@pytest.mark.parametrize(
    ("query", "named"),
    [
        pytest.param("limit=0", "limit", id="zero"),
        pytest.param("limit=501", "limit", id="more than a page"),
        pytest.param("limit=-1", "limit", id="negative"),
        pytest.param("limit=99999999999999999999", "limit", id="a number that is too large"),
        pytest.param("limit=1.5", "limit", id="a fraction"),
        pytest.param("limit=", "limit", id="an empty number"),
        pytest.param("limit=5&limit=6", "limit", id="two numbers"),
        pytest.param("status=fine", "status", id="an unknown status"),
        pytest.param("before=yesterday", "before", id="not a time"),
        pytest.param("before=2026-13-01T00:00:00Z", "before", id="a thirteenth month"),
        pytest.param("user_id=1", "user_id", id="an unknown field"),
        pytest.param("tenant_id=00000000-0000-0000-0000-000000000063", "tenant_id", id="another tenant"),
        pytest.param("limit", "query string", id="no value"),
        pytest.param("&".join(f"a{number}=1" for number in range(21)), "query string", id="too many parameters"),
        pytest.param("model=%ff", "query string", id="not UTF-8"),
    ],
)
async def test_an_invalid_query_names_its_field(running_service: RunningService, http: httpx.AsyncClient, query: str, named: str) -> None:
    error = problem(await http.get(f"/api/requests?{query}"), 400, "bad_request")
    assert named in error["message"]
    assert running_service.reports.received == []


async def test_a_time_without_a_time_zone_is_refused(running_service: RunningService, http: httpx.AsyncClient) -> None:
    error = problem(await http.get("/api/requests?before=2026-03-02T12:00:00"), 400, "bad_request")
    assert (error["param"], "zone" in error["message"]) == ("before", True)
    assert running_service.reports.received == []


# --- feedback -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rating", [1, -1, 0])
@pytest.mark.parametrize("name", ["request_id", "requestId"])
async def test_a_rating_is_given_and_withdrawn(running_service: RunningService, http: httpx.AsyncClient, rating: int, name: str) -> None:
    answer = await http.post("/api/feedback", json={name: str(OWN), "rating": rating})
    assert (answer.status_code, answer.json()) == (200, {"rating": rating})
    assert running_service.reports.ratings == {OWN: rating}


async def test_rating_another_users_request_is_a_404(running_service: RunningService, http: httpx.AsyncClient) -> None:
    for request in (ANOTHERS, UUID(int=404)):
        problem(await http.post("/api/feedback", json={"request_id": str(request), "rating": 1}), 404, "not_found")
    assert running_service.reports.ratings == {}


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"request_id": str(OWN), "rating": 2}, "rating"),
        ({"request_id": str(OWN), "rating": -2}, "rating"),
        ({"request_id": str(OWN), "rating": True}, "rating"),
        ({"request_id": str(OWN), "rating": "1"}, "rating"),
        ({"request_id": str(OWN), "rating": 10**30}, "rating"),
        ({"request_id": str(OWN), "rating": None}, "rating"),
        ({"request_id": str(OWN)}, "rating"),
        ({"rating": 1}, "request_id"),
        ({"request_id": "mine", "rating": 1}, "request_id"),
        ({"request_id": str(OWN), "rating": 1, "user_id": str(USER)}, "user_id"),
        ({"request_id": str(OWN), "requestId": str(OWN), "rating": 1}, "request_id"),
    ],
)
async def test_an_invalid_rating_names_its_field(
    running_service: RunningService, http: httpx.AsyncClient, body: dict[str, object], named: str
) -> None:
    assert named in problem(await http.post("/api/feedback", json=body), 400, "bad_request")["message"]
    assert running_service.reports.ratings == {}


# --- usage and quota ------------------------------------------------------------------------------------------------------


async def test_the_quota_has_the_money_and_tokens_of_the_account_and_the_budget_of_the_key(
    running_service: RunningService, http: httpx.AsyncClient
) -> None:
    quota = (await http.get("/api/quota")).json()
    assert quota["credits"] == {
        "available": "12", "balance": "12.5", "reserved": "0.5", "overage": "0",
        "included": "0", "monthly": "0", "renews_at": "2026-04-01T00:00:00Z",
    }, "the last three are for SDKs of release 0.3"  # fmt: skip
    assert quota["allowance"] == {"included": 100_000, "used": 2500, "held": 500, "renews_at": "2026-04-01T00:00:00Z"}
    assert quota["budget"] is None
    running_service.accounts.budget = KeyBudget(MicroCredits(2_000_000), MicroCredits(1_900_000), MicroCredits(300_000), Every.MONTH)
    budget = (await http.get("/api/quota")).json()["budget"]
    assert budget == {"limit": "2", "spent": "1.9", "reserved": "0.3", "available": "0", "every": "month"}


async def test_without_plans_the_quota_has_no_allowance_and_no_bound(running_service: RunningService, http: httpx.AsyncClient) -> None:
    running_service.accounts.account = Account(MicroCredits(-2_000_000), MicroCredits(500_000))
    quota = (await http.get("/api/quota")).json()
    found = quota["credits"]
    assert (found["available"], found["balance"], found["overage"], found["monthly"]) == ("-2.5", "-2", None, None)
    assert quota["allowance"] is None


async def test_the_limits_are_known_without_postgresql(running_service: RunningService, http: httpx.AsyncClient) -> None:
    running_service.accounts.away = True
    quota = (await http.get("/api/quota")).json()
    assert (quota["remaining"], quota["credits"], quota["budget"], quota["allowance"]) == (100, None, None, None)


async def test_usage_and_quota_are_the_callers_own(running_service: RunningService, http: httpx.AsyncClient) -> None:
    usage = (await http.get("/api/usage")).json()
    assert usage == {"user_id": str(USER), "request_count": 0, "tokens_used": 0, "days": []}
    quota = (await http.get("/api/quota")).json()
    assert (quota["user_id"], quota["tier"], quota["limit_per_hour"], quota["remaining"]) == (str(USER), "free", 100, 100)
    assert (await http.post("/api/inference", json={"prompt": "hi"})).status_code == 200
    after = (await http.get("/api/quota")).json()
    assert (after["used_this_hour"], after["remaining"]) == (1, 99)
    assert [(one["scope"], one["kind"], one["limit"]) for one in after["limits"]] == [("user", "requests_per_hour", 100)]
