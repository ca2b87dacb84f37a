"""The rate limit headers of answers."""

import httpx
import pytest

from services.gateway.billing.reservations import InsufficientCredits
from services.gateway.facts.tightest_limit import TightestLimit
from services.gateway.http_api import http_errors, response_formats
from services.gateway.limits.limit_rules import Count, LimitReached, LimitScope, RequestLimit
from shared import errors
from shared.api.gateway import LimitState
from shared.types import Tier
from tests.services.gateway import http_answers
from tests.services.gateway.fakes import FakeWorker, RunningService
from tests.services.gateway.http_answers import BEARER, CHAT, problem
from tests.services.gateway.limits import kinds

REQUESTS = LimitState(LimitScope.USER, kinds.MINUTE.name, 10, 0, 59.2)
TOKENS = LimitState(LimitScope.KEY, kinds.TOKENS.name, 90_000, 85_904, 2.731)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.0004, "1ms"), (0.12, "120ms"), (1, "1s"), (1.5, "1.5s"), (59.9999, "1m0s"), (360, "6m0s"), (3723.25, "1h2m3.25s")],
)
def test_durations_are_formatted_like_openais(seconds: float, text: str) -> None:
    assert response_formats.duration(seconds) == text


def test_both_limits_are_in_the_headers_and_none_without_limits() -> None:
    assert dict(response_formats.allowance_headers(TightestLimit(REQUESTS, TOKENS))) == {
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"0",
        b"x-ratelimit-reset-requests": b"59.2s",
        b"x-ratelimit-limit-tokens": b"90000",
        b"x-ratelimit-remaining-tokens": b"85904",
        b"x-ratelimit-reset-tokens": b"2.731s",
    }
    assert response_formats.allowance_headers(TightestLimit()) == []


def test_a_refusal_has_a_retry_time_in_milliseconds() -> None:
    limits = [
        RequestLimit(LimitScope.USER, kinds.MINUTE, "requests", 10),
        RequestLimit(LimitScope.KEY, kinds.TOKENS, "tokens", 90_000),
    ]
    counts = [Count(0, 5.2001, 59.2), Count(85_904, 0, 2.731)]
    headers = dict(http_errors.headers(LimitReached(limits, counts, Tier.FREE)))
    assert (headers[b"retry-after"], headers[b"retry-after-ms"]) == (b"6", b"5201")
    assert headers[b"x-ratelimit-remaining-requests"] == b"0"
    assert headers[b"x-ratelimit-remaining-tokens"] == b"85904"


def test_limits_credits_and_overload_have_different_errors() -> None:
    refused = LimitReached([RequestLimit(LimitScope.USER, kinds.MINUTE, "requests", 10)], [Count(0, 5.2, 59.2)], Tier.FREE)
    statuses = [
        http_errors.status(error) for error in (refused, errors.BudgetExhausted("x"), errors.Overloaded("x"), errors.TokensTooLarge("x"))
    ]
    assert statuses == [429, 402, 503, 400]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
@pytest.mark.parametrize("key", [{}, {"idempotency-key": "one"}])
async def test_a_budget_refusal_has_the_limit_headers(running_service: RunningService, path: str, key: dict[str, str]) -> None:
    running_service.books.refuses = InsufficientCredits(0)
    running_service.add_worker(2, FakeWorker(), "minilm", only_embeds=True)
    plain = CHAT if "chat" in path else {"input": "hi", "model": "minilm"}
    transport = httpx.ASGITransport(running_service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=BEARER | key) as client:
        for body in (plain, {**plain, "stream": True} if "chat" in path else plain):
            answer = await client.post(path, json=body)
            problem(answer, 429, "budget_exhausted")
            assert (answer.headers["x-should-retry"], "retry-after" in answer.headers) == ("false", False)
            assert answer.headers["x-ratelimit-limit-requests"] == "100"
            assert int(answer.headers["x-ratelimit-remaining-requests"]) < 100


async def test_a_refusal_without_the_ledger_has_the_limit_headers(running_service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.billing.ledger.RESERVE_SECONDS", 0.01)
    running_service.books.away = True
    async with http_answers.connected(running_service) as client:
        answer = await client.post("/v1/chat/completions", json=CHAT)
    problem(answer, 503, "ledger_unavailable")
    assert answer.headers.get_list("x-ratelimit-remaining-requests") == ["99"]


@pytest.mark.parametrize(
    ("error", "status"), [(errors.BadRequest("no"), 400), (errors.Overloaded("full"), 503), (errors.DeadlineExceeded("late"), 504)]
)
async def test_a_workers_error_has_the_limit_headers_once(running_service: RunningService, error: errors.AimeshError, status: int) -> None:
    running_service.worker.fails_with = error
    async with http_answers.connected(running_service) as client:
        for stream in (False, True):
            answer = await client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
            assert answer.status_code == status
            assert len(answer.headers.get_list("x-ratelimit-remaining-requests")) == 1
