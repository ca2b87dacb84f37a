"""The models of the documents that ordered this platform: 002's registry and 003's `inference:` block, as they stand, served by a mesh."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.people import Person
from tests.services.inference.fake_http import Answer, serving
from tests.services.inference.models.test_models_file import INFERENCE_BLOCK, REGISTRY
from tests.stacks import RunningStack, until

ROOT = Path(__file__).parents[4]
#: Answers with its name and the number of requests at a time.
VLLM = f"""#!{sys.executable}
import asyncio, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.services.inference.fake_http import serving
from tests.features.remote_servers.worker.fake_token_servers import TokenServer

async def main():
    options = dict(zip(sys.argv[3::2], sys.argv[4::2]))
    answer = options["--served-model-name"] + " for " + options["--max-num-seqs"]
    async with serving(TokenServer("vllm", answer).pages(), int(options["--port"])):
        await asyncio.Event().wait()

assert sys.argv[1] == "serve"
asyncio.run(main())
"""
HEALTHY = Answer(["ok"], headers={"content-type": "text/plain"})
VECTOR = Answer([json.dumps({"embedding": [3.0, 4.0]})])


@pytest.fixture
async def workers(stack: RunningStack, tmp_path: Path) -> AsyncIterator[None]:
    """A worker for each document."""
    program = tmp_path / "vllm"
    program.write_text(VLLM)
    program.chmod(0o755)
    registry, block = tmp_path / "registry.yaml", tmp_path / "inference.yaml"
    block.write_text(INFERENCE_BLOCK)
    async with AsyncExitStack() as running:
        text = REGISTRY
        for name, answer in (("llm-gptq", Answer([json.dumps({"text": "quantized"})])), ("embedding", VECTOR)):
            server = await running.enter_async_context(serving({"/infer": answer, "/healthz": HEALTHY}))
            # The only change: this machine has no cluster's names.
            text = text.replace(f"{name}-service.ai-models.svc.cluster.local", server.url.removeprefix("http://"))
        registry.write_text(text)
        path = f"{tmp_path}:{stack.environment['PATH']}"
        for backend, file in (("llama", block), ("http", registry)):
            variables = {"MODELS_YAML": str(file), "MODEL_MEMORY": "100GB", "PATH": path}
            process = await stack.start_aicli("worker", "--backend", backend, **variables)
            running.push_async_callback(process.communicate)
            running.callback(process.terminate)
        yield


@pytest.mark.nightly("long")
async def test_the_documents_models_are_listed_and_answer(stack: RunningStack, workers: None, ann: Person) -> None:
    async with stack.http(ann.key.secret) as http:

        async def served() -> dict[str, int]:
            return {model["name"]: model["workers"] for model in (await http.get("/api/models")).json()["models"]}

        wanted = dict.fromkeys(("llama-2-7b", "mistral-7b", "llm-gptq", "embeddings"), 1)

        async def are_served() -> bool:
            return wanted.items() <= (await served()).items()

        await until(are_served, seconds=60, what="both workers serve the models of their documents")
        for model, text in (("llama-2-7b", "llama-2-7b for 32"), ("mistral-7b", "mistral-7b for 16"), ("llm-gptq", "quantized")):
            answer = await http.post("/api/infer", json={"model": model, "payload": {"prompt": "hi", "max_tokens": 50}})
            assert answer.json()["response"] == text, answer.text
        answer = await http.post("/api/infer", json={"model": "embeddings", "payload": {"input": "hi"}})
        assert answer.json()["embeddings"] == [[pytest.approx(0.6), pytest.approx(0.8)]], answer.text
