"""Responses in the background, as OpenAI's client asks for them."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from features.jobs.gateway.job_orders import read_id
from features.jobs.gateway.store import Job
from services.gateway.facts import line_run
from shared.stores import objects
from tests.features.files.gateway.file_site import ADA
from tests.features.jobs.gateway import single_site
from tests.features.jobs.gateway.batch_site import MODEL
from tests.features.jobs.gateway.single_site import SingleSite
from tests.services.gateway.http_answers import problem

TEXT = {"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}
MESSAGE = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [TEXT]}
ANSWER = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": MODEL, "output": [MESSAGE], "store": True}
PROBLEM = {
    "message": "no",
    "type": "invalid_request_error",
    "code": "bad_request",
    "param": None,
    "hint": "",
    "request_id": str(ADA.user_id),
}
REFUSAL = {"error": PROBLEM}


@pytest.fixture
async def site(plain_url: str, tmp_path: Path) -> AsyncIterator[SingleSite]:
    async with single_site.running(plain_url, objects.open_store(str(tmp_path / "store"), {})) as found:
        yield found


@pytest.fixture
async def client(site: SingleSite) -> AsyncIterator[openai.AsyncOpenAI]:
    async with site.client() as found:
        yield found


@pytest.fixture
async def http(site: SingleSite) -> AsyncIterator[httpx.AsyncClient]:
    async with site.http() as found:
        yield found


async def stored(site: SingleSite, response: str) -> Job:
    found = await site.batches.jobs.find(ADA.tenant_id, read_id(response))
    assert found is not None
    return found


async def run(site: SingleSite, response: str, status: int = 200, body: dict[str, Any] = ANSWER) -> None:
    await site.batches.answer(await stored(site, response), lambda _custom_id: (status, body))


async def end(site: SingleSite) -> list[tuple[str, str]]:
    """Return the events."""
    await site.batches.work.move()
    await site.batches.work.finalize()
    return await site.batches.events()


async def test_create_poll_and_read(site: SingleSite, client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(
        model=MODEL, input="CANARY", background=True, instructions="Be brief.", metadata={"for": "tests"}, temperature=0.5
    )
    assert (made.status, made.background, made.output, made.instructions, made.temperature) == ("queued", True, [], "Be brief.", 0.5)
    job = await stored(site, made.id)
    assert (job.is_live, job.endpoint, job.public_id) == (True, "/v1/responses", made.id)
    polled = await client.responses.retrieve(made.id)
    assert (polled.status, polled.id, polled.created_at, polled.metadata) == ("queued", made.id, made.created_at, {"for": "tests"})
    await site.batches.jobs.claim(MODEL, [read_id(made.id)], "r", live=True)  # type: ignore[list-item]
    assert (await client.responses.retrieve(made.id)).status == "in_progress"
    await site.batches.execute("UPDATE job_lines SET lease_until = now() - interval '1 s'")
    await run(site, made.id)
    for _ in range(2):
        done = await client.responses.retrieve(made.id)
        assert (done.status, done.id, done.created_at, done.output_text, done.background) == (
            "completed",
            made.id,
            made.created_at,
            "Hello",
            True,
        )
        assert await end(site) == [("response.completed", made.id)]
    await client.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(made.id)
    await site.batches.files.storage.clean()
    assert [await site.batches.files.count(table) for table in ("jobs", "job_lines", "files")] == [0, 0, 0]


async def test_the_request_runs_as_it_was_sent_but_alone(site: SingleSite, http: httpx.AsyncClient) -> None:
    sent = {
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "background": True, "service_tier": "flex",
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}], "unknown": 1,
    }  # fmt: skip
    made = await http.post("/v1/responses", json=sent)
    assert (made.status_code, made.headers["x-aimesh-ignored"]) == (200, "unknown"), made.text
    job = await stored(site, made.json()["id"])
    assert not job.is_live
    assert job.input_file is not None
    file = await site.batches.files.storage.find_used(ADA.tenant_id, job.input_file)
    line = json.loads(b"".join([piece async for piece in site.batches.files.storage.read(file, 0, file.facts.size)]))
    assert (line["url"], line["body"]["background"], line["body"]["model"]) == ("/v1/responses", False, MODEL)
    again = await http.post("/v1/responses", json=line["body"] | {"background": True})
    assert again.status_code == 200, again.text


async def test_cancel(site: SingleSite, client: openai.AsyncOpenAI) -> None:
    made = await client.responses.create(model=MODEL, input="hi", background=True)
    for _ in range(2):
        assert (await client.responses.cancel(made.id)).status == "cancelled"
        assert await end(site) == [("response.cancelled", made.id)]
    done = await client.responses.create(model=MODEL, input="hi", background=True)
    await run(site, done.id)
    assert (await client.responses.cancel(done.id)).status == "completed"


async def test_failures_and_incomplete_answers(site: SingleSite, client: openai.AsyncOpenAI) -> None:
    refused = await client.responses.create(model=MODEL, input="hi", background=True)
    await run(site, refused.id, 400, REFUSAL)
    found = await client.responses.retrieve(refused.id)
    assert found.error is not None
    assert (found.status, found.error.code, found.error.message) == ("failed", "invalid_prompt", "no")
    cut = await client.responses.create(model=MODEL, input="hi", background=True)
    await run(site, cut.id, 200, ANSWER | {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}})
    assert (await client.responses.retrieve(cut.id)).status == "incomplete"
    late = await client.responses.create(model=MODEL, input="hi", background=True)
    await site.batches.execute(f"UPDATE jobs SET expires_at = now() - interval '1 s' WHERE id = '{read_id(late.id)}'")
    events = await end(site)
    expired = await client.responses.retrieve(late.id)
    assert expired.error is not None
    assert (expired.status, expired.error.code) == ("failed", "server_error")
    assert "it was expired" in expired.error.message
    assert sorted(events) == sorted([("response.failed", refused.id), ("response.incomplete", cut.id), ("response.failed", late.id)])


async def test_a_repeat_under_the_key_is_the_same_response(http: httpx.AsyncClient) -> None:
    body, headers = {"input": "hi", "background": True}, {"idempotency-key": "k1"}
    first = (await http.post("/v1/responses", json=body, headers=headers)).json()
    assert (await http.post("/v1/responses", json=body, headers=headers)).json() == first
    problem(await http.post("/v1/responses", json=body | {"input": "ho"}, headers=headers), 409, "idempotency_conflict")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"stream": True}, "stream"),
        ({"store": False}, "store"),
        ({"input": ""}, "input"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
    ],
)
async def test_what_is_refused_at_once(site: SingleSite, http: httpx.AsyncClient, changes: dict[str, Any], field: str) -> None:
    answer = await http.post("/v1/responses", json={"input": "hi", "background": True} | changes)
    assert problem(answer, 400, "bad_request")["param"] == field
    assert await site.batches.files.count("jobs") == 0


async def test_a_line_of_a_job_is_no_background_response(site: SingleSite, http: httpx.AsyncClient) -> None:
    a_line: Any = object()
    line_run.current.set(a_line)
    answer = await http.post("/v1/responses", json={"input": "hi", "background": True})
    assert problem(answer, 400, "bad_request")["param"] == "background"


async def test_only_ones_own_responses_are_found(site: SingleSite, http: httpx.AsyncClient) -> None:
    made = (await http.post("/v1/responses", json={"input": "hi", "background": True})).json()["id"]
    job = (await http.post("/api/jobs", json={"endpoint": "/v1/responses", "body": {"input": "hi"}})).json()["id"]
    assert problem(await http.get(f"/v1/responses/{made}?stream=true"), 400, "bad_request")["param"] == "stream"
    async with site.http("eve") as eve:
        for client, name in ((eve, made), (http, job), (http, "resp_" + "0" * 32)):
            path = f"/v1/responses/{name}"
            for answer in (await client.get(path), await client.post(f"{path}/cancel"), await client.delete(path)):
                assert "those in the background are stored" in problem(answer, 404, "not_found")["message"]
    assert (await http.get(f"/api/jobs/{made}")).json()["kind"] == "response"


@pytest.mark.parametrize(("status", "answer", "shown"), [(200, ANSWER, "completed"), (400, REFUSAL, "failed")])
async def test_a_repeated_order_of_a_response_that_has_ended_gets_it(
    site: SingleSite, http: httpx.AsyncClient, status: int, answer: dict[str, Any], shown: str
) -> None:
    body, headers = {"input": "hi", "background": True}, {"idempotency-key": "k1"}
    first = (await http.post("/v1/responses", json=body, headers=headers)).json()
    assert first["status"] == "queued"
    await run(site, first["id"], status, answer)
    again = await http.post("/v1/responses", json=body, headers=headers)
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (200, first["id"], shown)
