"""Batches on a whole gateway with a worker: uploaded, validated, run, and written."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.features.jobs.gateway.job_mesh import Mesh, running_mesh

UNFINISHED = {"validating", "in_progress", "finalizing", "cancelling"}


@pytest.fixture
async def mesh(postgres_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with running_mesh(postgres_url, valkey_url, tmp_path) as found:
        yield found


async def run(mesh: Mesh, *models: str) -> Any:
    lines = [
        {
            "custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": "hi"}] if number else 1},
        }
        for number, model in enumerate(models)
    ]  # fmt: skip
    data = "\n".join(map(json.dumps, lines)).encode()
    file = (await mesh.http.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"})).json()["id"]
    order = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = await mesh.http.post("/v1/batches", json=order)
    assert made.status_code == 200, made.text
    return await mesh.poll(f"/v1/batches/{made.json()['id']}", until_not=UNFINISHED, field="status")


async def read(mesh: Mesh, file: str) -> list[Any]:
    return [json.loads(each) for each in (await mesh.http.get(f"/v1/files/{file}/content")).text.splitlines()]


async def test_a_batch_runs_and_the_lines_that_the_endpoint_refuses_have_its_error(mesh: Mesh) -> None:
    ended = await run(mesh, *["smollm2"] * 4)
    assert (ended["status"], ended["model"], ended["request_counts"]) == (
        "completed", "smollm2", {"total": 4, "completed": 3, "failed": 1},
    )  # fmt: skip
    output, (failed,) = await read(mesh, ended["output_file_id"]), await read(mesh, ended["error_file_id"])
    assert [each["custom_id"] for each in output] == ["1", "2", "3"]
    assert {each["response"]["body"]["choices"][0]["message"]["content"] for each in output} == {"Hello world"}
    assert (failed["custom_id"], failed["response"]["status_code"], failed["error"]) == ("0", 400, None)
    assert "messages" in failed["response"]["body"]["error"]["message"]
    assert ended["usage"]["output_tokens"] == 6
    assert mesh.worker.ran == 3
    metrics = (await mesh.http.get("/metrics")).text
    for line in ('lines_total{model="smollm2",result="done"} 3.0', 'lines_total{model="smollm2",result="failed"} 1.0'):
        assert f"ai_platform_job_{line}\n" in metrics
    assert 'ai_platform_job_line_run_seconds_count{model="smollm2"} 4.0' in metrics


async def test_a_model_that_nobody_has_fails_the_batch(mesh: Mesh) -> None:
    ended = await run(mesh, "gpt-9", "gpt-9")
    assert (ended["status"], [error["code"] for error in ended["errors"]["data"]]) == ("failed", ["model_not_found"])
    assert mesh.worker.ran == 0


async def test_message_batches_run(mesh: Mesh) -> None:
    params = {"model": "smollm2", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    requests = [{"custom_id": "a", "params": params}, {"custom_id": "b", "params": {"model": "smollm2"}}]
    made = await mesh.http.post("/v1/messages/batches", json={"requests": requests})
    assert made.status_code == 200, made.text
    await mesh.poll(f"/v1/messages/batches/{made.json()['id']}", until_not={"in_progress"}, field="processing_status")
    results = (await mesh.http.get(f"/v1/messages/batches/{made.json()['id']}/results")).text.splitlines()
    good, bad = [json.loads(each)["result"] for each in results]
    assert (good["type"], good["message"]["content"][0]["text"], good["message"]["type"]) == ("succeeded", "Hello world", "message")
    assert (bad["type"], bad["error"]["type"], bad["error"]["error"]["type"]) == ("errored", "error", "invalid_request_error")
