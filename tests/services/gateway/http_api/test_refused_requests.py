"""Refused HTTP requests of known callers are in the metric, and a few of each key in the request log and the log."""

import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from services.gateway.limits.limit_rules import MAX_REFUSED_ROWS
from shared.api import auth
from shared.types import RequestStatus
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, OWNER, RunningService
from tests.services.gateway.log_lines import Lines
from tests.testnet import until

HI = [{"role": "user", "content": "hi"}]
SECRET = "my card is 4111 1111 1111 1111"
CHAT = "/v1/chat/completions"


@pytest.fixture
async def service() -> AsyncIterator[RunningService]:
    async with fakes.running_service() as running:
        yield running


@pytest.fixture
async def http(service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(service.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


def counted(service: RunningService) -> dict[tuple[str, str], float]:
    (family,) = service.metrics.refused_requests.collect()
    return {
        (one.labels["method"], one.labels["reason"]): one.value
        for one in family.samples
        if one.name == "ai_platform_refused_requests_total"
    }


@pytest.mark.parametrize(
    "refusal",
    [
        (CHAT, {"messages": HI, "temperature": 9}, "bad_request", "temperature"),
        ("/api/inference", {"messages": [{"role": "user", "content": SECRET, "x": 1}]}, "bad_request", "messages[0]"),
        ("/api/inference", {"messages": HI, "canary": 1}, "bad_request", None),
        (CHAT, {"messages": HI, "metadata": {"canary": 2**70}}, "bad_request", None),
        ("/rpc/gateway.processInferenceRequest", {"request": {"prompt": "hi", "canary": 1}}, "bad_request", None),
        ("/api/inference", {"prompt": "hi", "canary" * 20: 1}, "bad_request", None),
        (CHAT, {"messages": HI, "logit_bias": {SECRET: 1}}, "bad_request", "logit_bias"),
        (CHAT, {"messages": HI, "tool_choice": {"type": "function", "function": {"name": SECRET}}}, "bad_request", "tool_choice"),
        (CHAT, {"messages": HI, "model": "none"}, "unknown_model", "model"),
        (CHAT, {"messages": HI, "stop": [""]}, "bad_request", "stop[0]"),
        ("/v1/messages", {"max_tokens": 5, "messages": HI, "thread": {"type": SECRET}}, "bad_request", "thread"),
        ("/v1/embeddings", {"input": [SECRET, 1]}, "bad_request", "input"),
        ("/api/inference", {"prompt": SECRET, "top_k": -1}, "bad_request", "top_k"),
        ("/rpc/gateway.processInferenceRequest", {"request": {"n": 5}}, "bad_request", "request.n"),
    ],
)  # fmt: skip
async def test_a_refusal_leaves_one_row_with_the_path_and_never_the_value(
    service: RunningService, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, refusal: tuple[str, dict[str, Any], str, str | None]
) -> None:
    path, body, code, field = refusal
    lines = Lines(monkeypatch)
    answer = await http.post(path, json=body)
    assert answer.status_code in {400, 404}, answer.text
    await until(lambda: len(service.store.rows) == 1)
    row = service.store.only_row
    assert (row.status, row.error_code, row.error_field) == (RequestStatus.REJECTED, code, field)
    assert (row.user_id, row.api_key_id, row.prompt_tokens) == (OWNER.user_id, OWNER.key_id, 0)
    assert str(row.id) == answer.headers["x-request-id"]
    assert [*counted(service).values()] == [1]
    written = lines.of("request refused") + lines.of("request ended")
    assert len(written) == 1
    assert f"'error_code': '{code}'" in written[0]
    assert not re.search(f"{SECRET}|canary", str(row) + written[0])


async def test_a_key_leaves_ten_rows_a_minute_and_all_are_counted(
    service: RunningService, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines(monkeypatch)
    number = 3 * MAX_REFUSED_ROWS
    for _ in range(number):
        assert (await http.post(CHAT, json={"messages": HI, "n": 0})).status_code == 400
    await until(lambda: len(service.store.rows) == MAX_REFUSED_ROWS)
    assert len(lines.of("request refused")) == MAX_REFUSED_ROWS
    assert [*counted(service).values()] == [number]
    # Another credential has rows.
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(service.app()), base_url="http://gateway", headers={"authorization": f"Bearer {fakes.TOKEN}"}
    ) as other:
        assert (await other.post(CHAT, json={"messages": HI, "n": 0})).status_code == 400
    await until(lambda: len(service.store.rows) == MAX_REFUSED_ROWS + 1)
    service.counters.now += 60
    assert (await http.post(CHAT, json={"messages": HI, "n": 0})).status_code == 400
    await until(lambda: len(service.store.rows) == MAX_REFUSED_ROWS + 2)


async def test_a_caller_that_may_not_do_it_leaves_a_row_and_a_stranger_none(service: RunningService, http: httpx.AsyncClient) -> None:
    service.rpc.answers["auth.validateApiKey"] = _only_models
    assert (await http.post(CHAT, json={"messages": HI})).status_code == 403
    await until(lambda: len(service.store.rows) == 1)
    assert (service.store.only_row.error_code, service.store.only_row.error_field) == ("not_allowed", None)
    answer = await http.post(CHAT, json={"messages": HI, "n": 0}, headers={"authorization": "Bearer unknown"})
    assert answer.status_code == 401
    assert sum(counted(service).values()) == 1


async def _only_models(_request: Any) -> auth.Principal:
    return msgspec.structs.replace(OWNER, scopes=("usage:read",))


async def test_other_requests_leave_a_line_and_no_row(
    service: RunningService, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = Lines(monkeypatch)
    assert (await http.post("/api/feedback", json={"request_id": str(OWNER.user_id), "rating": 1})).status_code == 404
    (written,) = lines.of("request refused")
    assert "'error_code': 'not_found'" in written
    assert counted(service) == {("giveFeedback", "not_found"): 1}
    assert not service.store.rows


async def test_a_failure_of_ours_and_an_answer_are_no_refusals(service: RunningService, http: httpx.AsyncClient) -> None:
    assert (await http.post(CHAT, json={"messages": HI})).status_code == 200
    assert (await http.post("/rpc/auth.listApiKeys", json={})).status_code == 503
    assert counted(service) == {}
    assert [row.status for row in service.store.rows.values()] == [RequestStatus.SUCCESS]


async def test_a_full_recorder_does_not_change_the_answer(service: RunningService, http: httpx.AsyncClient) -> None:
    service.recorder._capacity = 0
    assert (await http.post(CHAT, json={"messages": HI, "n": 0})).status_code == 400
    assert [*counted(service).values()] == [1]
    assert not service.store.rows
