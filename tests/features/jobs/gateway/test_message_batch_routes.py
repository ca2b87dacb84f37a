"""/v1/messages/batches, as Anthropic's clients call it."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from features.files.contract import ListFiles
from features.jobs.contract import JobState
from shared import body_limits
from shared.stores import objects
from tests.features.files.gateway.file_site import ADA
from tests.features.jobs.gateway import batch_site
from tests.features.jobs.gateway.batch_site import MODEL, BatchSite

PATH = "/v1/messages/batches"


@pytest.fixture
async def site(plain_url: str, tmp_path: Path) -> AsyncIterator[BatchSite]:
    async with batch_site.running(plain_url, objects.open_store(str(tmp_path / "store"), {})) as found:
        yield found


@pytest.fixture
async def http(site: BatchSite) -> AsyncIterator[httpx.AsyncClient]:
    async with site.files.http() as found:
        yield found


def request(custom_id: str, **changes: Any) -> dict[str, Any]:
    params = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": f"say\n{custom_id}"}]}
    return {"custom_id": custom_id, "params": params} | changes


def answer(custom_id: str) -> tuple[int, dict[str, Any]]:
    if custom_id == "b":
        return 400, {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    return 200, {"id": f"msg_{custom_id}", "type": "message", "content": []}


async def order(http: httpx.AsyncClient, *custom_ids: str, **headers: str) -> dict[str, Any]:
    # With line breaks within, as some clients write it.
    body = json.dumps({"requests": [request(each) for each in custom_ids]}, indent=1)
    made = await http.post(PATH, content=body, headers={"content-type": "application/json", **headers})
    assert made.status_code == 200, made.text
    return dict(made.json())


async def results(http: httpx.AsyncClient, batch: dict[str, Any]) -> list[Any]:
    found = await http.get(batch["results_url"])
    assert (found.status_code, found.headers["content-type"]) == (200, "application/x-jsonl")
    return [json.loads(each) for each in found.text.splitlines()]


async def test_a_batch_is_created_runs_and_has_results(site: BatchSite, http: httpx.AsyncClient) -> None:
    made = await order(http, "a", "b", "c")
    assert (made["type"], made["processing_status"], made["ended_at"], made["results_url"]) == ("message_batch", "in_progress", None, None)
    await site.work.validate()
    job = await site.orders.find(ADA.tenant_id, made["id"])
    assert (job.state, job.total, job.model) == (JobState.IN_PROGRESS, 3, MODEL)
    assert (await site.files.storage.list_of(ADA.tenant_id, ListFiles())).files == (), "its input is hidden"
    await site.answer(job, answer, most=1)
    counts = {"processing": 2, "succeeded": 1, "errored": 0, "canceled": 0, "expired": 0}
    assert (await http.get(f"{PATH}/{made['id']}")).json()["request_counts"] == counts
    await site.answer(job, answer)
    await site.end(job)
    ended = (await http.get(f"{PATH}/{made['id']}")).json()
    assert (ended["processing_status"], ended["request_counts"]["succeeded"], ended["request_counts"]["errored"]) == ("ended", 2, 1)
    assert await results(http, ended) == [
        {"custom_id": "a", "result": {"type": "succeeded", "message": answer("a")[1]}},
        {"custom_id": "c", "result": {"type": "succeeded", "message": answer("c")[1]}},
        {"custom_id": "b", "result": {"type": "errored", "error": answer("b")[1]}},
    ]
    await site.files.storage.clean()
    assert await site.files.count("files") == 2, "its input is gone"


async def test_canceled_and_expired_requests_say_so(site: BatchSite, http: httpx.AsyncClient) -> None:
    first, second = await order(http, "a"), await order(http, "d", "e")
    await site.work.validate()
    assert (await http.post(f"{PATH}/{first['id']}/cancel")).json()["processing_status"] == "canceling"
    await site.execute("UPDATE job_lines SET state = 'failed', error_code = 'lease_lost_repeatedly' WHERE custom_id = 'd'")
    await site.execute("UPDATE jobs SET expires_at = now(), failed = 1 WHERE total = 2")
    await site.work.move()
    await site.work.finalize()
    canceled, expired = [(await http.get(f"{PATH}/{each['id']}")).json() for each in (first, second)]
    assert (canceled["processing_status"], canceled["request_counts"]["canceled"]) == ("ended", 1)
    assert canceled["cancel_initiated_at"] is not None
    assert (expired["request_counts"]["expired"], expired["request_counts"]["errored"]) == (1, 1)
    assert await results(http, canceled) == [{"custom_id": "a", "result": {"type": "canceled"}}]
    lost, late = await results(http, expired)
    assert late == {"custom_id": "e", "result": {"type": "expired"}}
    assert (lost["result"]["type"], lost["result"]["error"]["error"]["type"]) == ("errored", "api_error")


async def test_batches_are_listed_and_deleted(site: BatchSite, http: httpx.AsyncClient) -> None:
    await site.order(batch_site.jsonl([batch_site.line("other")]))
    made = [(await order(http, "a"))["id"] for _ in range(3)]
    page = (await http.get(PATH, params={"limit": 2, "beta": "true"})).json()
    assert ([each["id"] for each in page["data"]], page["has_more"], page["last_id"]) == (made[:0:-1], True, made[1])
    assert [each["id"] for each in (await http.get(PATH, params={"after_id": made[1]})).json()["data"]] == [made[0]]
    refused = await http.delete(f"{PATH}/{made[0]}")
    assert (refused.status_code, refused.json()["error"]["type"]) == (409, "invalid_request_error")
    await site.work.validate()
    job = await site.orders.find(ADA.tenant_id, made[0])
    await site.jobs.cancel(job.id)
    await site.end(job)
    assert (await http.delete(f"{PATH}/{made[0]}")).json() == {"id": made[0], "type": "message_batch_deleted"}
    for gone in (made[0], f"{made[0]}/results"):
        assert (await http.get(f"{PATH}/{gone}")).status_code == 404
    await site.files.storage.clean()
    assert await site.files.count("files WHERE purpose = 'batch_output'") == 0


async def test_others_see_nothing_and_a_batch_of_another_endpoint_is_none(site: BatchSite, http: httpx.AsyncClient) -> None:
    made, other = await order(http, "a"), await site.order(batch_site.jsonl([batch_site.line("other")]))
    assert (await http.get(f"{PATH}/{other.public_id}")).status_code == 404
    assert (await http.get(f"{PATH}/{made['id']}/results")).status_code == 404, "not before its end"
    async with site.files.http("eve") as eve:
        for call in (eve.get(f"{PATH}/{made['id']}"), eve.delete(f"{PATH}/{made['id']}"), eve.post(f"{PATH}/{made['id']}/cancel")):
            assert (await call).status_code == 404


async def test_a_repeated_order_returns_the_same_batch(site: BatchSite, http: httpx.AsyncClient) -> None:
    made = [await order(http, "a", **{"idempotency-key": "k"}) for _ in range(2)]
    assert made[0]["id"] == made[1]["id"]
    assert await site.files.count("files") == 1


@pytest.mark.parametrize(
    ("requests", "field", "message"),
    [
        pytest.param([], "requests", "is empty", id="none"),
        pytest.param([request("a"), {"custom_id": "b"}], "requests[1]", "params", id="no params"),
        pytest.param([request("a"), request("a")], "requests[1].custom_id", "same custom_id", id="duplicate"),
        pytest.param([request("")], "requests[0].custom_id", "1 to 512", id="no custom_id"),
        pytest.param([request("a", params=[1])], "requests[0].params", "object", id="a list"),
        pytest.param([request("a", params={"model": MODEL, "stream": True})], "requests[0].params.stream", "no streams", id="a stream"),
        pytest.param([request("a"), request("b", params={"model": "x"})], "requests[1].params.model", "same model", id="two models"),
    ],
)
async def test_malformed_requests_are_refused_and_nothing_is_stored(
    site: BatchSite, http: httpx.AsyncClient, requests: list[Any], field: str, message: str
) -> None:
    refused = await http.post(PATH, json={"requests": requests})
    error = refused.json()["error"]
    assert (refused.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"].startswith(field)
    assert message in error["message"]
    assert (await site.files.count("jobs"), await site.files.count("files")) == (0, 0)


async def test_an_unknown_model_and_a_body_that_is_too_large_are_refused(site: BatchSite, http: httpx.AsyncClient) -> None:
    unknown = await http.post(PATH, json={"requests": [request("a", params={"model": "unknown"})]})
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "not_found_error")
    large = await http.post(PATH, content=b" " * (body_limits.LARGE_BYTES[PATH] + 1), headers={"content-type": "application/json"})
    assert (large.status_code, large.json()["error"]["type"]) == (413, "request_too_large")
    assert (await site.files.count("jobs"), await site.files.count("files")) == (0, 0)


async def test_a_large_body_takes_little_more_memory_than_its_size(site: BatchSite, http: httpx.AsyncClient) -> None:
    text = "word " * 3000
    body = json.dumps({"requests": [request(str(i), params={"model": MODEL, "text": f"{i}{text}"}) for i in range(2000)]}).encode()
    assert 28 << 20 < len(body) < body_limits.LARGE_BYTES[PATH]
    tracemalloc.start()
    made = await http.post(PATH, content=body, headers={"content-type": "application/json"})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.status_code == 200
    # httpx's copy in this process, the body, and the part that is being stored.
    assert peak < 3 * len(body)
    await asyncio.wait_for(site.work.validate(), 60)
    assert (await site.orders.find(ADA.tenant_id, made.json()["id"])).total == 2000
