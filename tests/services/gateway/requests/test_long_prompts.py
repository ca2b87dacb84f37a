"""Prompts that are larger than the contexts of their targets are refused before anything is counted or reserved, in words of agents."""

import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from services.gateway.billing.prices import Price
from services.gateway.billing.reservations import InsufficientCredits
from services.gateway.facts import model_routes, tiers
from services.gateway.facts.model_names import ModelNames
from services.gateway.facts.tiers import LimitRules
from services.gateway.requests.plan import AdmissionRecord
from shared import errors
from shared.api.generation import MAX_PROMPT_BYTES
from shared.api.ledger import ModelPrice
from shared.config_documents import RouteDocument, TargetConditions, TargetDocument
from shared.types import MicroCredits, ModelName, Tier
from tests.services.gateway import fakes
from tests.services.gateway.fakes import FakeWorker, RunningService
from tests.services.gateway.http_answers import BEARER, events, problem

#: How Claude Code and others recognize it.
ANTHROPIC_WORDS = re.compile(r"prompt is too long[^0-9]*(\d+)\s*tokens?\s*>\s*(\d+)", re.IGNORECASE)
OPENAI_WORDS = re.compile(r"maximum context length is \d+ tokens")
#: As the gateway estimates it, 20,000 tokens; almost certainly more than 7,500.
TEXT = "word " * 12_000


@pytest.fixture
async def service() -> AsyncIterator[RunningService]:
    async with fakes.running_service(free=10**6) as service:
        service.add_worker(1, service.worker, "small", context_tokens=8192)
        yield service


@pytest.fixture
async def http(service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app()), base_url="http://gateway", headers=BEARER) as client:
        yield client


async def ask(http: httpx.AsyncClient, text: str = TEXT, model: str = "small", **fields: object) -> httpx.Response:
    return await http.post("/v1/chat/completions", json={"model": model, "messages": [{"role": "user", "content": text}], **fields})


def set_routes(service: RunningService, *targets: TargetDocument) -> None:
    route = model_routes.compile_route("route", 1, RouteDocument(tuple(targets)))
    service.config = replace(service.config, names=ModelNames({}, None, routes={"route": route}))


def target(model: str, order: int, **more: Any) -> TargetDocument:
    return TargetDocument(model, model, share=100 if order == 1 else None, order=None if order == 1 else order, **more)


def ensure_nothing_happened(service: RunningService) -> None:
    assert not service.books.reserved
    assert not service.worker.received
    assert not service.memory.held_bytes


async def test_a_prompt_of_4_mib_for_8192_tokens_is_refused_at_once(service: RunningService, http: httpx.AsyncClient) -> None:
    await ask(http, "hi")
    service.books.reserved.clear()
    service.worker.received.clear()
    body = json.dumps({"model": "small", "messages": [{"role": "user", "content": "word " * (MAX_PROMPT_BYTES // 5)}]}).encode()
    began = time.process_time()
    answer = await http.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    seconds = time.process_time() - began
    error = problem(answer, 400, "context_length_exceeded")
    assert error["code"] == "context_length_exceeded"
    assert seconds < 0.1
    ensure_nothing_happened(service)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT * 2}]}),
        ("/v1/responses", {"input": TEXT * 2}),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": TEXT * 2}]}),
        ("/v1/completions", {"prompt": TEXT * 2}),
        ("/api/inference", {"prompt": TEXT * 2}),
    ],
)
async def test_agents_recognize_a_prompt_that_is_too_long(
    service: RunningService, http: httpx.AsyncClient, path: str, fields: dict[str, Any]
) -> None:
    answer = await http.post(path, json={"model": "small", **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("context_length_exceeded", "invalid_request_error")
    found = ANTHROPIC_WORDS.search(error["message"])
    assert found is not None
    assert int(found[1]) > int(found[2]) == 8191
    assert OPENAI_WORDS.search(error["message"])
    ensure_nothing_happened(service)


@pytest.mark.parametrize(
    ("path", "fields", "refusal"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 4_194_305}]}, (400, "4194305 bytes > 4194304 maximum")),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}] * 10_001}, (400, "10001 messages > 10000 maximum")),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": "x"}] * 10_001}, (400, "10001 messages")),
        ("/v1/responses", {"input": [{"role": "user", "content": "x"}] * 40_001}, (400, "40001 messages > 40000 maximum")),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [[]] * 140_000}]}, (400, "more than 131072 arrays")),
        ("/v1/messages", {"max_tokens": 5, "messages": [{"role": "user", "content": "x" * 17_825_792}]}, (413, "the body is larger")),
        ("/v1/responses", {"input": "x" * 17_825_792}, (413, "the body is larger than 17825792 bytes")),
    ],
)  # fmt: skip
async def test_agents_recognize_every_limit_of_a_prompt(
    service: RunningService, http: httpx.AsyncClient, path: str, fields: dict[str, Any], refusal: tuple[int, str]
) -> None:
    answer = await http.post(path, json={"model": "small", **fields})
    error = answer.json()["error"]
    status, words = refusal
    assert (answer.status_code, error["code"]) == (status, "context_length_exceeded")
    assert error["message"].startswith("prompt is too long: ")
    assert words in error["message"]
    too_large = "request_too_large" if path == "/v1/messages" else "invalid_request_error"
    assert error["type"] == (too_large if status == 413 else "invalid_request_error")
    ensure_nothing_happened(service)


async def test_the_context_counts_before_all_other_limits(service: RunningService, http: httpx.AsyncClient) -> None:
    service.config = replace(service.config, limits=LimitRules({Tier.FREE: replace(tiers.NO_LIMITS, tokens_per_minute=100)}))
    service.books.refuses = InsufficientCredits(0)
    problem(await ask(http, TEXT * 2), 400, "context_length_exceeded")
    problem(await ask(http, TEXT), 400, "tokens_too_large")
    service.config = replace(service.config, limits=LimitRules({Tier.FREE: tiers.NO_LIMITS}))
    problem(await ask(http, TEXT * 2), 400, "context_length_exceeded")
    problem(await ask(http, TEXT), 429, "budget_exhausted")


async def test_a_prompt_that_may_fit_is_left_to_the_worker(service: RunningService, http: httpx.AsyncClient) -> None:
    """Its tokens may be long, so that 60,000 characters are fewer than 8,192."""
    assert (await ask(http)).status_code == 200
    service.add_worker(2, service.worker, "unknown", context_tokens=0)
    assert (await ask(http, TEXT * 10, model="unknown")).status_code == 200


async def test_one_worker_with_a_longer_context_is_enough(service: RunningService, http: httpx.AsyncClient) -> None:
    service.add_worker(2, FakeWorker(), "small", context_tokens=131_072)
    assert (await ask(http, TEXT * 2)).status_code == 200


async def test_a_route_whose_targets_are_all_too_small(service: RunningService, http: httpx.AsyncClient) -> None:
    service.add_worker(2, service.worker, "smaller", context_tokens=4096)
    set_routes(service, target("small", 1), target("smaller", 2))
    error = problem(await ask(http, TEXT * 2, model="route"), 400, "context_length_exceeded")
    assert "40016 tokens > 8191 maximum" in error["message"]
    set_routes(service, target("small", 1), target("smaller", 2), target("away", 3))
    problem(await ask(http, TEXT * 2, model="route"), 503, "not_reachable")
    set_routes(service, target("small", 1, when=TargetConditions(tools=True)), target("away", 2))
    problem(await ask(http, TEXT * 2, model="route"), 503, "not_reachable")
    ensure_nothing_happened(service)


async def test_a_hold_has_at_most_the_context_of_its_target(service: RunningService, http: httpx.AsyncClient) -> None:
    """A prompt has at most as many tokens as bytes, but a model never reads more than its context."""
    assert (await ask(http, max_tokens=100)).status_code == 200
    [reserved] = service.books.reserved
    assert (reserved.prompt_tokens, reserved.max_tokens) == (8192, 100)
    assert reserved.price.cost(reserved.prompt_tokens, 0, 0) == 8192


async def test_a_hold_is_that_of_the_dearest_target(service: RunningService, http: httpx.AsyncClient) -> None:
    """The model with the longer context is cheaper, even with all of the prompt."""
    million = 1_000_000
    prices = {"small": 10, "long": 1}
    service.books.prices = (
        *service.books.prices,
        *(
            Price(number, ModelPrice(ModelName(model), MicroCredits(price * million), MicroCredits(price * million)))
            for number, (model, price) in enumerate(prices.items(), 2)
        ),
    )
    await service.ledger.refresh_prices()
    service.add_worker(2, FakeWorker(), "long", context_tokens=131_072)
    set_routes(service, target("long", 1), target("small", 2))
    # The first target alone would hold 24,016 of these.
    assert (await ask(http, "word " * 4800, model="route", max_tokens=100)).status_code == 200
    [reserved] = service.books.reserved
    assert (reserved.model, reserved.prompt_tokens, reserved.price.cost(reserved.prompt_tokens, 0, 0)) == ("small", 8192, 81_920)


def test_a_ceiling_holds_at_most_the_context_too() -> None:
    record = AdmissionRecord(most_prompt_tokens=20_000, contexts={ModelName("small"): 8192, ModelName("unknown"): 0})
    assert [record.most_usage(ModelName(model), 5).prompt_tokens for model in ("small", "unknown", "other")] == [8192, 20_000, 20_000]


@pytest.mark.parametrize("count", [1, 40_001])
async def test_codex_reads_it_in_its_stream(service: RunningService, http: httpx.AsyncClient, count: int) -> None:
    """It compacts for an event with this code, and gives up for a status."""
    text = TEXT * 2 if count == 1 else "x"
    body = {"model": "small", "stream": True, "input": [{"role": "user", "content": text}] * count}
    answer = await http.post("/v1/responses", json=body)
    assert answer.status_code == 200
    created, progress, failed = events(answer)
    assert [created["type"], progress["type"], failed["type"]] == ["response.created", "response.in_progress", "response.failed"]
    assert failed["response"]["error"]["code"] == "context_length_exceeded"
    assert failed["response"]["error"]["message"].startswith("prompt is too long: ")
    ensure_nothing_happened(service)


async def test_codex_reads_the_workers_refusal_in_its_stream(service: RunningService, http: httpx.AsyncClient) -> None:
    service.worker.fails_with = errors.ContextExceeded.of_tokens(9000, 8192, hint="shorten it")
    answer = await http.post("/v1/responses", json={"model": "small", "stream": True, "input": TEXT})
    *_, failed = events(answer)
    assert (failed["type"], failed["response"]["error"]["code"]) == ("response.failed", "context_length_exceeded")
    assert failed["response"]["model"] == "small"
