"""A worker's LoRA adapter is a model: the gateway lists it with its parent, and prices, permits and serves it by its own name."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import gguf_files
from tests.gguf_files import LlamaShape
from tests.integration import asking
from tests.people import Person
from tests.stacks import RunningStack, until

SHAPE = LlamaShape(layers=2, embedding=64, heads=4, kv_heads=2, feed_forward=96, vocabulary=300, context=512)
BASE, SQL, BAD = "tiny", "tiny:sql", "tiny:bad"
#: Prices in millionths of a credit per token.
INPUT, OUTPUT = 300, 700


@pytest.fixture
async def worker(stack: RunningStack, tmp_path: Path) -> AsyncIterator[None]:
    gguf_files.write_llama(tmp_path / "tiny.gguf", SHAPE, weights="q8_0", seed=1)
    gguf_files.write_adapter(tmp_path / "sql.gguf", SHAPE, weights="q8_0", seed=2)
    (tmp_path / "bad.gguf").write_bytes(b"not an adapter")
    models = tmp_path / "models.yaml"
    models.write_text("- {name: tiny, file: tiny.gguf, preload: true, adapters: {sql: {file: sql.gguf}, bad: {file: bad.gguf}}}")
    process = await stack.start_aicli("worker", "--backend", "llama", MODELS_YAML=str(models), ENGINE_THREADS="1")
    assert process.stdout is not None
    reading = asyncio.create_task(process.stdout.read())
    try:
        yield
    finally:
        process.terminate()
        await process.wait()
        await reading


@pytest.mark.nightly("long")
async def test_an_adapter_is_priced_and_permitted_like_a_model(stack: RunningStack, worker: None, ann: Person) -> None:
    only = ("keys", "create", "--json", "--model")
    keys = {model: (await stack.aicli(*only, model, model, AICLI_API_KEY=ann.key.secret)).json()["key"] for model in (BASE, SQL)}

    async with stack.http(ann.key.secret) as http, stack.http(keys[BASE]) as base_only, stack.http(keys[SQL]) as sql_only:

        async def listed() -> dict[str, str | None]:
            shown = (await http.get("/v1/models")).json()["data"]
            return {model["id"]: model["parent"] for model in shown if model["id"].startswith(BASE)}

        async def is_served() -> bool:
            return await listed() == {BASE: None, SQL: BASE}

        await until(is_served, seconds=60, what="the worker serves the model and the adapter that is sound")
        assert (await http.get(f"/v1/models/{SQL}")).json()["parent"] == BASE
        await stack.aicli("admin", "prices", "set", SQL, "--input", "0.0003", "--output", "0.0007")

        body = {"prompt": "SELECT", "maxTokens": 8, "temperature": 0}
        answers = {model: (await http.post("/api/inference", json=body | {"model": model})).json() for model in (BASE, SQL)}
        assert answers[BASE]["response"] != answers[SQL]["response"]
        usage = answers[SQL]["usage"]
        await stack.recorded(ann.id, 2)
        async with stack.database("gateway") as database:
            rows = await database.fetch("SELECT model_used AS model, cost_micro FROM request_logs WHERE user_id = $1", ann.id)
        costs = {row["model"]: row["cost_micro"] for row in rows}
        assert costs[SQL] == INPUT * usage["prompt_tokens"] + OUTPUT * usage["completion_tokens"]
        usage = answers[BASE]["usage"]
        assert costs[BASE] == 100 * usage["prompt_tokens"] + 200 * usage["completion_tokens"]

        asking.problem(await base_only.post("/api/inference", json=body | {"model": SQL}), 403, "not_allowed")
        asking.problem(await sql_only.post("/api/inference", json=body | {"model": BASE}), 403, "not_allowed")
        assert (await sql_only.post("/api/inference", json=body | {"model": SQL})).json()["response"] == answers[SQL]["response"]
        asked = await stack.aicli("infer", "-m", SQL, "--max-tokens", "8", "--temperature", "0", "SELECT", AICLI_API_KEY=keys[SQL])
        assert asked.out.strip() == answers[SQL]["response"].strip()

        embedded = await http.post("/v1/embeddings", json={"model": SQL, "input": "x"})
        assert "tiny:sql is an adapter, which only generates text" in embedded.text
        refused = await http.post("/api/inference", json=body | {"model": BAD})
        assert refused.status_code >= 400, json.dumps(refused.json())
