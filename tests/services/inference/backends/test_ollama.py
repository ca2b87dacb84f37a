import asyncio

import pytest

from services.inference.backends import ollama
from services.inference.backends.ollama import OllamaBackend
from shared import errors
from shared.api.generation import Generation, Usage
from shared.api.inference import ModelState
from shared.types import FinishReason
from tests.services.inference.fake_http import Answer, serving
from tests.services.inference.standins import Reader, Watch, job, until

TAGS = Answer(['{"models": [{"name": "smollm2:latest"}, {"name": "qwen3:8b"}]}'])


async def listed(backend: OllamaBackend) -> None:
    await until(lambda: backend.models()[0].state is ModelState.READY)


async def test_it_serves_what_the_server_has_and_streams_an_answer() -> None:
    chat = Answer(
        [
            '{"message": {"role": "assistant", "content": "Hel"}, "done": false}\n{"message"',
            ': {"role": "assistant", "content": "lo"}, "done": false}\n',
            '{"message": {"content": ""}, "done": true, "done_reason": "length", "prompt_eval_count": 12, "eval_count": 2}\n',
        ]
    )
    reader = Reader()
    async with serving({"/api/tags": TAGS, "/api/chat": chat}) as server, ollama.opened(server.url, 4, 32, Watch()) as backend:
        await listed(backend)
        assert [status.model_id for status in backend.models()] == ["smollm2", "qwen3:8b"]
        end = await backend.generate(job("hi", max_tokens=5, temperature=0, stop=("x",), seed=9), reader)
    assert reader.text == "Hello"
    assert end == Generation(FinishReason.LENGTH, Usage(12, 2))
    assert server.asked[0]["messages"] == [{"role": "user", "content": "hi"}]
    assert server.asked[0]["options"] == {"temperature": 0, "top_p": 0.95, "top_k": 40, "seed": 9, "num_predict": 5, "stop": ["x"]}


async def test_a_server_that_is_not_there_is_said_and_nothing_is_ready() -> None:
    async with serving({}) as server:
        url = server.url
    async with ollama.opened(url, 4, 32, Watch()) as backend:
        await until(lambda: "does not answer" in backend.models()[0].detail)
        assert backend.models()[0].state is ModelState.LOADING
        with pytest.raises(errors.Unavailable):
            await backend.generate(job(), Reader())


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        pytest.param(Answer(['{"error": "out of memory"}\n']), errors.Unavailable, "out of memory", id="an error in the stream"),
        pytest.param(Answer(['{"message": {"content": "a"}}\n']), errors.Unavailable, "before its end", id="an answer without an end"),
        pytest.param(Answer(["no json\n"]), errors.Unavailable, "protocol", id="no JSON"),
        pytest.param(Answer(['{"error": "no such model"}'], status=404), errors.BadRequest, "no such model", id="a refusal"),
        pytest.param(Answer(["oops"], status=500), errors.Unavailable, "status 500", id="a failure"),
    ],
)
async def test_whatever_the_server_does_is_one_clear_error(answer: Answer, kind: type[errors.AimeshError], words: str) -> None:
    async with serving({"/api/tags": TAGS, "/api/chat": answer}) as server, ollama.opened(server.url, 4, 32, Watch()) as backend:
        await listed(backend)
        with pytest.raises(kind, match=words):
            await backend.generate(job("hi"), Reader())
        assert backend.models()[0].running == 0


async def test_a_cancelled_job_closes_the_connection_which_stops_the_server() -> None:
    chat = Answer(['{"message": {"content": "a"}}\n'], hang=True)
    async with serving({"/api/tags": TAGS, "/api/chat": chat}) as server, ollama.opened(server.url, 4, 32, Watch()) as backend:
        await listed(backend)
        reader = Reader()
        task = asyncio.create_task(backend.generate(job("hi"), reader))
        await until(lambda: reader.chunks)
        task.cancel()
        async with asyncio.timeout(5):
            await server.left.wait()
        assert backend.models()[0].running == 0
