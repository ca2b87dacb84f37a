import pytest

from services.inference.backends import openai
from services.inference.backends.openai import OpenAIBackend
from shared import errors
from shared.api.generation import Generation, Usage
from shared.api.inference import ModelState
from shared.types import FinishReason
from tests.services.inference.fake_http import Answer, serving
from tests.services.inference.standins import Reader, Watch, job, until

MODELS = Answer(['{"object": "list", "data": [{"id": "gpt-x", "object": "model"}]}'])
CHAT = Answer(
    [
        'data: {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}\n\n',
        'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\ndata: {"choices": [{"del',
        'ta": {"content": "lo"}}]}\n\n: a comment\n\n',
        'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n',
        'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}\n\ndata: [DONE]\n\n',
    ]
)


async def listed(backend: OpenAIBackend) -> None:
    await until(lambda: backend.models()[0].state is ModelState.READY)


async def test_it_serves_what_the_server_has_and_streams_an_answer() -> None:
    reader = Reader()
    async with (
        serving({"/v1/models": MODELS, "/v1/chat/completions": CHAT}) as server,
        openai.opened(server.url + "/v1", "sk-test", 4, 32, Watch()) as backend,
    ):
        await listed(backend)
        end = await backend.generate(job("hi", model="gpt-x", max_tokens=5, seed=3), reader)
    assert reader.text == "Hello"
    assert end == Generation(FinishReason.STOP, Usage(7, 2))
    assert server.asked[0] == {
        "model": "gpt-x",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.7,
        "top_p": 0.95,
        "seed": 3,
        "max_tokens": 5,
    }
    assert all("authorization: bearer sk-test" in head for head in server.headers)


async def test_a_refused_key_is_said_without_showing_it() -> None:
    async with serving({"/models": Answer(["{}"], status=401)}) as server, openai.opened(server.url, "sk-test", 4, 32, Watch()) as backend:
        await until(lambda: "key" in backend.models()[0].detail)
        assert "sk-test" not in backend.models()[0].detail


async def test_an_answer_without_an_end_is_an_error() -> None:
    cut_off = Answer(CHAT.parts[:2])
    async with (
        serving({"/models": MODELS, "/chat/completions": cut_off}) as server,
        openai.opened(server.url, None, 4, 32, Watch()) as backend,
    ):
        await listed(backend)
        with pytest.raises(errors.Unavailable):
            await backend.generate(job("hi", model="gpt-x"), Reader())
