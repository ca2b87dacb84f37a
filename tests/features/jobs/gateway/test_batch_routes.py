"""/v1/batches with OpenAI's own client, unchanged."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from features.files.contract import FilePurpose
from shared.stores import objects
from tests.features.jobs.gateway import batch_site
from tests.features.jobs.gateway.batch_site import BatchSite, jsonl, line
from tests.services.gateway.http_answers import problem

LINES = jsonl([line("a"), line("b")])


@pytest.fixture
async def site(plain_url: str, tmp_path: Path) -> AsyncIterator[BatchSite]:
    async with batch_site.running(plain_url, objects.open_store(str(tmp_path / "store"), {})) as found:
        yield found


@pytest.fixture
async def client(site: BatchSite) -> AsyncIterator[openai.AsyncOpenAI]:
    async with site.files.client() as found:
        yield found


async def order(client: openai.AsyncOpenAI, data: bytes = LINES, **more: Any) -> Any:
    file = await client.files.create(file=("in.jsonl", data), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **more)


def no(custom_id: str) -> tuple[int, dict[str, Any]]:
    return (400, {"error": {"message": "no"}}) if custom_id == "b" else batch_site.good(custom_id)


async def test_openais_client_runs_a_batch(client: openai.AsyncOpenAI, site: BatchSite) -> None:
    made = await order(client, metadata={"purpose": "labels"})
    assert (made.object, made.status, made.endpoint, made.completion_window) == ("batch", "validating", "/v1/chat/completions", "24h")
    assert (made.metadata, made.request_counts.total, made.errors) == ({"purpose": "labels"}, 0, None)
    assert made.expires_at == made.created_at + 24 * 3600
    await site.work.validate()
    job = await site.orders.find(batch_site.ADA.tenant_id, made.id)
    await site.answer(job, no)
    await site.end(job)
    ended = await client.batches.retrieve(made.id)
    assert (ended.status, ended.model, ended.metadata) == ("completed", "echo", {"purpose": "labels"})
    assert ended.request_counts is not None
    assert (ended.request_counts.total, ended.request_counts.completed, ended.request_counts.failed) == (2, 1, 1)
    assert ended.created_at <= ended.in_progress_at <= ended.finalizing_at <= ended.completed_at  # type: ignore[operator]
    assert (ended.failed_at, ended.cancelled_at, ended.expired_at) == (None, None, None)
    assert ended.usage is not None
    assert ended.usage.total_tokens == ended.usage.input_tokens + ended.usage.output_tokens
    assert ended.output_file_id is not None
    assert '"custom_id":"a"' in (await client.files.content(ended.output_file_id)).text
    assert ended.error_file_id is not None
    assert '"custom_id":"b"' in (await client.files.content(ended.error_file_id)).text
    written = [file async for file in client.files.list(purpose="batch_output")]
    assert {file.filename for file in written} == {f"{made.id}_output.jsonl", f"{made.id}_error.jsonl"}
    assert {file.expires_at - file.created_at for file in written if file.expires_at} == {30 * 24 * 3600}


async def test_a_batch_with_malformed_lines_says_which(client: openai.AsyncOpenAI, site: BatchSite) -> None:
    made = await order(client, b'{"custom_id": 1}\n{no}\n')
    await site.work.validate()
    failed = await client.batches.retrieve(made.id)
    assert (failed.status, failed.output_file_id, failed.error_file_id) == ("failed", None, None)
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [(error.code, error.line, error.param) for error in failed.errors.data] == [
        ("missing_required_parameter", 1, "custom_id"), ("invalid_json_line", 2, None),
    ]  # fmt: skip
    assert failed.failed_at is not None


async def test_openais_client_lists_and_cancels_batches(client: openai.AsyncOpenAI, site: BatchSite) -> None:
    made = [await order(client) for _ in range(3)]
    newest = [batch.id for batch in reversed(made)]
    assert [batch.id async for batch in client.batches.list(limit=2)] == newest
    page = await client.batches.list(limit=2)
    assert (page.has_more, len(page.data)) == (True, 2)
    assert [batch.id for batch in (await client.batches.list(after=newest[1])).data] == newest[2:]
    cancelled = await client.batches.cancel(newest[0])
    assert (cancelled.status, cancelled.cancelling_at is None) == ("cancelling", False)
    await site.work.move()
    await site.work.finalize()
    ended = await client.batches.cancel(newest[0])
    assert (ended.status, ended.cancelled_at is None) == ("cancelled", False)


async def test_what_is_wrong_is_refused_with_its_field(client: openai.AsyncOpenAI, site: BatchSite) -> None:
    file = (await site.files.store(LINES, purpose=FilePurpose.BATCH)).id
    other = (await site.files.store(LINES)).id
    good = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    async with site.files.http() as http:
        for changes, field in (
            ({"endpoint": "/v1/videos"}, "endpoint"), ({"completion_window": "7d"}, "completion_window"),
            ({"input_file_id": "file-1"}, "input_file_id"), ({"input_file_id": other}, "input_file_id"),
            ({"metadata": {str(i): "" for i in range(17)}}, "metadata"), ({"metadata": {"a": "x" * 513}}, "metadata"),
            ({"metadata": {"a" * 65: "x"}}, "metadata"),
        ):  # fmt: skip
            assert str(problem(await http.post("/v1/batches", json=good | changes), 400, "bad_request")["param"]).startswith(field)
        answer = await http.post("/v1/batches", json=good | {"completion_window": "1h", "output_expires_after": {"seconds": 3600}})
        assert (answer.json()["completion_window"], answer.headers["x-aimesh-ignored"]) == ("1h", "output_expires_after")
        assert answer.json()["expires_at"] == answer.json()["created_at"] + 3600
        problem(await http.get("/v1/batches/nothing"), 404, "not_found")
        problem(await http.post(f"/v1/batches/batch_{'a' * 26}/cancel"), 404, "not_found")
    async with site.files.http("eve") as http:
        problem(await http.post("/v1/batches", json=good), 404, "not_found")
        problem(await http.get(f"/v1/batches/{answer.json()['id']}"), 404, "not_found")
        problem(await http.post(f"/v1/batches/{answer.json()['id']}/cancel"), 404, "not_found")
        assert (await http.get("/v1/batches")).json()["data"] == []


async def test_a_repeated_order_returns_the_same_batch(client: openai.AsyncOpenAI, site: BatchSite) -> None:
    file = (await site.files.store(LINES, purpose=FilePurpose.BATCH)).id
    good = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    async with site.files.http() as http:
        answers = [await http.post("/v1/batches", json=good, headers={"idempotency-key": "k1"}) for _ in range(2)]
        assert answers[0].json()["id"] == answers[1].json()["id"]
        conflict = await http.post("/v1/batches", json=good | {"metadata": {"a": "b"}}, headers={"idempotency-key": "k1"})
        problem(conflict, 409, "idempotency_conflict")
    assert await site.files.count("jobs") == 1
