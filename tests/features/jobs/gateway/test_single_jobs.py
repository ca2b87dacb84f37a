"""Requests that nobody waits for: /api/jobs."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from features.files.contract import ListFiles
from features.jobs.gateway.job_orders import read_id
from features.jobs.gateway.rest_jobs import RestJobs
from features.jobs.gateway.rules.batch_input import MAX_LINE_BYTES
from features.jobs.gateway.store import Job
from services.gateway.http_api import openapi
from shared.stores import objects
from tests.features.files.gateway.file_site import ADA
from tests.features.jobs.gateway import single_site
from tests.features.jobs.gateway.batch_site import ENDPOINT, MODEL, jsonl, line
from tests.features.jobs.gateway.single_site import SingleSite
from tests.services.gateway.http_answers import problem

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "CANARY"}]}
ORDER = {"endpoint": ENDPOINT, "body": BODY}
ANSWER = {"id": "chat-1", "choices": []}
REFUSAL = {"error": {"message": "no", "type": "invalid_request_error", "code": "bad_request"}}


@pytest.fixture
async def site(plain_url: str, tmp_path: Path) -> AsyncIterator[SingleSite]:
    async with single_site.running(plain_url, objects.open_store(str(tmp_path / "store"), {})) as found:
        yield found


@pytest.fixture
async def http(site: SingleSite) -> AsyncIterator[httpx.AsyncClient]:
    async with site.http() as client:
        yield client


async def order(http: httpx.AsyncClient, key: str | None = None, **changes: Any) -> httpx.Response:
    return await http.post("/api/jobs", json=ORDER | changes, headers={} if key is None else {"idempotency-key": key})


async def start(http: httpx.AsyncClient, **changes: Any) -> str:
    answer = await order(http, **changes)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/api/jobs/{answer.json()['id']}"
    return str(answer.json()["id"])


async def stored(site: SingleSite, job: str) -> Job:
    found = await site.batches.jobs.find(ADA.tenant_id, read_id(job))
    assert found is not None
    return found


async def run(site: SingleSite, job: str, status: int = 200, body: dict[str, Any] = ANSWER) -> None:
    await site.batches.answer(await stored(site, job), lambda _custom_id: (status, body))


async def end(site: SingleSite) -> None:
    await site.batches.work.move()
    await site.batches.work.finalize()


def fits_the_document(early: httpx.Response) -> None:
    nothing: Any = None
    document = openapi.document(RestJobs(nothing, nothing, nothing).routes())
    described = document["paths"]["/api/jobs/{job}/result"]["get"]["responses"]["202"]
    schema = described["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**schema, "components": document["components"]}).validate(early.json())
    assert {"X-Request-Id", "Retry-After"} == set(described["headers"])


async def test_a_request_runs_at_once_and_its_answer_is_the_endpoints(site: SingleSite, http: httpx.AsyncClient) -> None:
    job = await start(http, metadata={"for": "tests"})
    facts = (await http.get(f"/api/jobs/{job}")).json()
    assert (facts["state"], facts["kind"], facts["total"], facts["model"]) == ("in_progress", "single", 1, MODEL)
    assert (facts["metadata"], facts.keys() & {"result", "inputFile", "outputFile"}) == ({"for": "tests"}, set())
    early = await http.get(f"/api/jobs/{job}/result")
    fits_the_document(early)
    assert (early.status_code, early.json()["id"], early.headers["retry-after"]) == (202, job, "2")
    assert not (await stored(site, job)).is_live
    await run(site, job)
    for _ in range(2):
        result = await http.get(f"/api/jobs/{job}/result")
        assert (result.status_code, result.json()) == (200, ANSWER)
        facts = (await http.get(f"/api/jobs/{job}")).json()
        assert (facts["statusCode"], facts["result"]) == (200, ANSWER)
        await end(site)
    assert (facts := (await http.get(f"/api/jobs/{job}")).json())["state"] == "completed"
    assert facts.keys() & {"inputFile", "outputFile", "errorFile"} == set()
    row = await stored(site, job)
    assert row.ended_at is not None
    assert (row.delete_at - row.ended_at).total_seconds() == 24 * 3600
    assert (row.expires_at - row.created_at).total_seconds() == 24 * 3600


async def test_what_the_endpoint_refuses_fails_with_its_error(site: SingleSite, http: httpx.AsyncClient) -> None:
    job = await start(http)
    await run(site, job, 400, REFUSAL)
    await end(site)
    result = await http.get(f"/api/jobs/{job}/result")
    assert (result.status_code, result.json()) == (400, REFUSAL)
    facts = (await http.get(f"/api/jobs/{job}")).json()
    assert (facts["state"], facts["statusCode"], facts["result"]) == ("failed", 400, REFUSAL)


async def test_live_requests_cost_as_much_and_dont_wait(site: SingleSite, http: httpx.AsyncClient) -> None:
    assert (await stored(site, await start(http, priority="live"))).is_live
    site.refuses_flex = True
    problem(await order(http), 403, "policy_forbidden")


async def test_the_request_is_a_hidden_file_until_the_end(site: SingleSite, http: httpx.AsyncClient) -> None:
    job = await stored(site, await start(http))
    assert job.input_file is not None
    file = await site.batches.files.storage.find_used(ADA.tenant_id, job.input_file)
    content = b"".join([piece async for piece in site.batches.files.storage.read(file, 0, file.facts.size)])
    assert content.startswith(b'{"custom_id":"')
    assert content.endswith(
        b'"method":"POST","url":"/v1/chat/completions","body":{"model":"echo","messages":[{"role":"user","content":"CANARY"}]}}'
    )
    assert (await site.batches.files.storage.list_of(ADA.tenant_id, ListFiles())).files == ()
    await run(site, job.public_id)
    await end(site)
    await site.batches.files.storage.clean()
    assert await site.batches.files.count("files") == 0


async def test_a_repeat_under_the_key_is_the_same_job(site: SingleSite, http: httpx.AsyncClient) -> None:
    first, second = await asyncio.gather(order(http, "k1"), order(http, "k1"))
    assert first.status_code == second.status_code == 202
    job = first.json()["id"]
    assert second.json()["id"] == job
    again = {"body": dict(reversed(BODY.items())), "endpoint": ENDPOINT}
    assert (await http.post("/api/jobs", json=again, headers={"idempotency-key": "k1"})).json()["id"] == job
    await site.batches.files.storage.clean()
    assert await site.batches.files.count("files") == 1
    problem(await order(http, "k1", priority="live"), 409, "idempotency_conflict")
    assert (await order(http, "k2")).json()["id"] != job
    assert (await http.delete(f"/api/jobs/{job}")).status_code == 200
    assert (await order(http, "k1")).json()["id"] != job


async def test_a_canceled_job_has_no_answer(site: SingleSite, http: httpx.AsyncClient) -> None:
    job = await start(http)
    canceled = await http.post(f"/api/jobs/{job}/cancel")
    assert (canceled.status_code, canceled.json()["state"]) == (200, "cancelling")
    problem(await http.get(f"/api/jobs/{job}/result"), 410, "answer_gone")
    await end(site)
    assert (await http.get(f"/api/jobs/{job}")).json()["state"] == "cancelled"
    done = await start(http)
    await run(site, done)
    assert (await http.post(f"/api/jobs/{done}/cancel")).json()["state"] == "in_progress"
    await end(site)
    assert (await http.post(f"/api/jobs/{done}/cancel")).json()["state"] == "completed"


async def test_an_expired_job_has_an_error(site: SingleSite, http: httpx.AsyncClient) -> None:
    job = await start(http)
    await site.batches.execute("UPDATE jobs SET expires_at = now() - interval '1 s'")
    await end(site)
    assert (await http.get(f"/api/jobs/{job}")).json()["state"] == "expired"
    assert "it was expired" in problem(await http.get(f"/api/jobs/{job}/result"), 410, "answer_gone")["message"]


@pytest.mark.parametrize("when", ["queued", "running", "ended"])
async def test_nothing_of_a_deleted_job_is_left(site: SingleSite, http: httpx.AsyncClient, when: str) -> None:
    job = await start(http)
    if when == "running":
        await site.batches.jobs.claim(MODEL, [read_id(job)], "r")  # type: ignore[list-item]
    if when == "ended":
        await run(site, job)
        await end(site)
    assert (await http.delete(f"/api/jobs/{job}")).json() == {"id": job, "deleted": True}
    problem(await http.get(f"/api/jobs/{job}"), 404, "not_found")
    problem(await http.delete(f"/api/jobs/{job}"), 404, "not_found")
    assert (await http.get("/api/jobs")).json() == {"jobs": []}
    await site.batches.execute("UPDATE job_lines SET lease_until = now() - interval '1 s' WHERE state = 'running'")
    await end(site)
    await site.batches.jobs.delete_old()
    await site.batches.files.storage.clean()
    assert [await site.batches.files.count(table) for table in ("jobs", "job_lines", "files")] == [0, 0, 0]


async def test_jobs_are_their_tenants(site: SingleSite, http: httpx.AsyncClient) -> None:
    jobs = [await start(http) for _ in range(3)]
    page = (await http.get("/api/jobs", params={"limit": 2})).json()
    assert ([job["id"] for job in page["jobs"]], page["hasMore"]) == ([jobs[2], jobs[1]], True)
    rest = (await http.get("/api/jobs", params={"after": jobs[1], "kind": "single"})).json()
    assert [job["id"] for job in rest["jobs"]] == [jobs[0]]
    async with site.http("eve") as eve:
        assert (await eve.get("/api/jobs")).json() == {"jobs": []}
        for answer in (
            await eve.get(f"/api/jobs/{jobs[0]}"), await eve.get(f"/api/jobs/{jobs[0]}/result"), await eve.delete(f"/api/jobs/{jobs[0]}"),
            await eve.post(f"/api/jobs/{jobs[0]}/cancel"),
        ):  # fmt: skip
            problem(answer, 404, "not_found")


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"body": BODY | {"stream": True}}, 400, ("bad_request", "body.stream")),
        ({"body": BODY | {"model": 5}}, 400, ("bad_request", "body.model")),
        ({"endpoint": "/v1/embeddings", "body": {"input": "hi"}}, 400, ("bad_request", "body.model")),
        ({"body": BODY | {"model": "gpt-9"}}, 404, ("unknown_model", "model")),
        ({"endpoint": "/v1/files"}, 400, ("bad_request", "endpoint")),
        ({"priority": "high"}, 400, ("bad_request", "priority")),
        ({"body": BODY | {"user": "x" * (MAX_LINE_BYTES - 200)}}, 413, ("too_large", None)),
    ],
)  # fmt: skip
async def test_bad_orders(
    site: SingleSite, http: httpx.AsyncClient, changes: dict[str, Any], status: int, said: tuple[str, str | None]
) -> None:
    code, param = said
    assert problem(await order(http, **changes), status, code)["param"] == param
    assert [await site.batches.files.count(table) for table in ("jobs", "files")] == [0, 0]


async def test_more_lines_than_may_wait_are_refused_and_nothing_is_stored(site: SingleSite, http: httpx.AsyncClient) -> None:
    site.batches.most_lines = 1
    await start(http)
    problem(await order(http), 403, "not_allowed")
    await site.batches.files.storage.clean()
    assert [await site.batches.files.count(table) for table in ("jobs", "files")] == [1, 1]


async def test_the_default_model(site: SingleSite, http: httpx.AsyncClient) -> None:
    job = await stored(site, await start(http, body={"messages": []}))
    assert job.model == MODEL


async def test_a_batch_has_no_result_here(site: SingleSite, http: httpx.AsyncClient) -> None:
    batch = await site.batches.order(jsonl([line("a")]))
    problem(await http.get(f"/api/jobs/{batch.public_id}/result"), 400, "bad_request")
    assert (await http.get(f"/api/jobs/{batch.public_id}")).json()["kind"] == "batch"
    assert (await http.post(f"/api/jobs/{batch.public_id}/cancel")).json()["state"] == "cancelling"
