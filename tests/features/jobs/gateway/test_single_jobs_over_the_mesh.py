"""Single jobs on a whole gateway with a worker: they run, are paid once, and leave their answer."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from tests.features.jobs.gateway.job_mesh import Mesh, running_mesh
from tests.services.gateway.test_service import ADMIN_TOKEN
from tests.testnet import until


@pytest.fixture
async def mesh(postgres_url: str, valkey_url: str, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with running_mesh(postgres_url, valkey_url, tmp_path) as found:
        yield found


async def test_a_job_and_a_response_run_and_are_paid_once(mesh: Mesh) -> None:
    order = {"endpoint": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "CANARY"}]}}
    made = await mesh.http.post("/api/jobs", json=order)
    assert made.status_code == 202, made.text
    done = await mesh.poll(made.headers["location"], until_not={"in_progress", "finalizing"}, field="state")
    assert (done["state"], done["statusCode"], done["outputTokens"], done["model"]) == ("completed", 200, 2, "smollm2")
    answer = (await mesh.http.get(f"{made.headers['location']}/result")).json()
    assert (answer["choices"][0]["message"]["content"], answer == done["result"]) == ("Hello world", True)
    made = await mesh.http.post("/v1/responses", json={"input": "CANARY", "background": True})
    assert (made.status_code, made.json()["status"]) == (200, "queued"), made.text
    path = f"/v1/responses/{made.json()['id']}"
    shown = await mesh.poll(path, until_not={"queued", "in_progress"}, field="status")
    assert (shown["status"], shown["id"], shown["output"][0]["content"][0]["text"]) == ("completed", made.json()["id"], "Hello world")
    assert mesh.worker.ran == 2


async def test_the_job_of_an_account_in_debt_waits(postgres_url: str, valkey_url: str, tmp_path: Path) -> None:
    """The plan's tokens would cover it."""
    connection = await asyncpg.connect(postgres_url, server_settings={"search_path": "gateway", "aimesh.tenant": "*"})
    try:
        async with running_mesh(postgres_url, valkey_url, tmp_path, money="on") as mesh:
            order = {"endpoint": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "hi"}]}}
            first = await mesh.http.post("/api/jobs", json=order)
            await mesh.poll(first.headers["location"], until_not={"in_progress", "finalizing"}, field="state")
            assert mesh.worker.ran == 1
            await connection.execute("UPDATE accounts SET balance_micro = -2500000")
            made = await mesh.http.post("/api/jobs", json=order)
            held = await mesh.poll(made.headers["location"], until_not={None}, field="waiting")
            assert (held["waiting"], mesh.worker.ran) == ("no credits", 1)
    finally:
        await connection.close()


async def test_a_line_is_one_request_which_its_job_pays(mesh: Mesh) -> None:
    """Further prompts would run before callers' requests, and be paid again whenever the line is tried again."""
    order = {"endpoint": "/v1/completions", "body": {"model": "smollm2", "prompt": ["one", "two"]}}
    made = await mesh.http.post("/api/jobs", json=order)
    assert made.status_code == 202, made.text
    ended = await mesh.poll(made.headers["location"], until_not={"in_progress", "finalizing"}, field="state")
    assert (ended["state"], ended["statusCode"], ended["result"]["error"]["param"]) == ("failed", 400, "prompt")
    assert mesh.worker.ran == 0


async def test_a_running_response_is_canceled(mesh: Mesh) -> None:
    mesh.worker.hangs = True
    made = await mesh.http.post("/v1/responses", json={"input": "hi", "background": True})
    path = f"/v1/responses/{made.json()['id']}"
    assert (await mesh.poll(path, until_not={"queued"}, field="status"))["status"] == "in_progress"
    # A response is in progress before a worker has it.
    await until(lambda: mesh.worker.ran == 1)
    assert (await mesh.http.post(f"{path}/cancel")).json()["status"] == "cancelled"
    await until(lambda: mesh.worker.cancelled == 1)
    await mesh.poll(f"/api/jobs/{made.json()['id']}", until_not={"cancelling", "finalizing"}, field="state")
    assert (await mesh.http.get(path)).json()["status"] == "cancelled"
    assert (await mesh.http.delete(path)).status_code == 200
    assert (await mesh.http.get(path)).status_code == 404


async def test_a_request_continues_a_response_that_ran_in_the_background(mesh: Mesh) -> None:
    policy = {"name": "mesh", "policy": {"external": ["*"], "stored_prompts": "24h"}, "expectedVersion": 1}
    answer = await mesh.http.post("/rpc/gateway.setPolicy", json=policy, headers={"authorization": f"Bearer {ADMIN_TOKEN}"})
    assert answer.status_code == 200, answer.text
    first = (await mesh.http.post("/v1/responses", json={"input": "one", "background": True})).json()["id"]
    await mesh.poll(f"/v1/responses/{first}", until_not={"queued", "in_progress"}, field="status")
    body = {"input": "two", "previous_response_id": first, "background": True}
    second = (await mesh.http.post("/v1/responses", json=body)).json()
    assert second["previous_response_id"] == first
    shown = await mesh.poll(f"/v1/responses/{second['id']}", until_not={"queued", "in_progress"}, field="status")
    assert (shown["status"], shown["store"]) == ("completed", True)
    last = await mesh.http.post("/v1/responses", json={"input": "three", "previous_response_id": second["id"]})
    assert last.status_code == 200, last.text
    said = [message.content for message in mesh.worker.prompts[-1]]
    assert said == ["one", "Hello world", "two", "Hello world", "three"]
