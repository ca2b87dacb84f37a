"""POST /v1/completions, with a fake mesh and store; OpenAI's own types check the answers."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai.types import Completion

from shared import errors
from shared.api import inference
from shared.api.generation import ChatMessage, FormatKind, Generation, Usage
from shared.types import FinishReason
from tests.services.gateway import fakes
from tests.services.gateway.fakes import KEY, FakeWorker, RunningService

BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
async def running_service() -> AsyncIterator[RunningService]:
    async with fakes.running_service() as service:
        yield service


@pytest.fixture
async def http(running_service: RunningService) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(running_service.app()), base_url="http://gateway", headers=BEARER) as client:
        yield client


async def complete(http: httpx.AsyncClient, **fields: Any) -> Completion:
    answer = await http.post("/v1/completions", json={"prompt": "Once", **fields})
    assert answer.status_code == 200, answer.text
    return Completion.model_validate(answer.json())


async def streamed(http: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    answer = await http.post("/v1/completions", json={"prompt": "Once", "stream": True, **fields})
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def text_of(events: list[dict[str, Any]], index: int) -> str:
    return "".join(choice["text"] for event in events for choice in event["choices"] if choice["index"] == index)


async def test_a_completion_sends_its_text_unchanged_to_the_model(http: httpx.AsyncClient, running_service: RunningService) -> None:
    completion = await complete(http, model="llama3", grammar="root ::= [a]")
    assert (completion.object, completion.model, completion.choices[0].text, completion.choices[0].finish_reason) == (
        *("text_completion", "llama3", "Hello world!", "stop"),
    )
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens, completion.usage.total_tokens) == (7, 3, 10)
    assert completion.id == f"cmpl-{running_service.store.only_row.id.hex}"
    (prompt,) = running_service.worker.received
    assert prompt.prompt == (ChatMessage("user", "Once"),)
    config = prompt.model_config
    assert (config.raw, config.max_tokens) == (True, 16)
    assert config.format is not None
    assert config.format.kind is FormatKind.GBNF


async def test_a_chat_is_not_raw(http: httpx.AsyncClient, running_service: RunningService) -> None:
    await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
    assert running_service.worker.received[0].model_config.raw is False


async def test_each_prompt_has_its_own_answers_and_row(http: httpx.AsyncClient, running_service: RunningService) -> None:
    completion = await complete(http, prompt=["One", "Two", "Three"])
    assert [(choice.index, choice.text) for choice in completion.choices] == [(index, "Hello world!") for index in range(3)]
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (21, 9)
    assert [prompt.prompt[0].content for prompt in running_service.worker.received if isinstance(prompt.prompt, tuple)] == [
        "One",
        "Two",
        "Three",
    ]
    assert len(running_service.store.rows) == 3
    assert completion.id.removeprefix("cmpl-") == running_service.worker.received[0].request_id.hex


async def test_several_prompts_in_a_stream(http: httpx.AsyncClient) -> None:
    events = await streamed(http, prompt=["One", "Two"], echo=True, stream_options={"include_usage": True})
    assert [text_of(events, index) for index in (0, 1)] == ["OneHello world!", "TwoHello world!"]
    ends = [(choice["index"], choice["finish_reason"]) for event in events for choice in event["choices"] if choice["finish_reason"]]
    assert ends == [(0, "stop"), (1, "stop")]
    last = events[-1]
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 20)
    assert all(event["usage"] is None for event in events[:-1])
    assert len({event["id"] for event in events}) == 1


async def test_a_prompt_that_fails_during_the_stream_ends_it_with_the_error(
    http: httpx.AsyncClient, running_service: RunningService
) -> None:
    class FailsOnTwo(FakeWorker):
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | Generation]:
            if prompt.prompt[0].content == "Two":  # type: ignore[union-attr]
                raise errors.DeadlineExceeded("late")
            async for item in super().run(prompt):
                yield item

    running_service.add_worker(1, FailsOnTwo(), "smollm2")
    answer = await http.post("/v1/completions", json={"prompt": ["One", "Two"], "stream": True})
    last = [line for line in answer.text.split("\n") if line.startswith("data: ")][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    assert (await http.post("/v1/completions", json={"prompt": ["One", "Two"]})).status_code == 504


@pytest.mark.parametrize("words", [("Hello", " world", "!"), ()])
async def test_echo_repeats_the_prompt_once_at_the_start(
    http: httpx.AsyncClient, running_service: RunningService, words: tuple[str, ...]
) -> None:
    running_service.worker.words = words
    assert (await complete(http, echo=True)).choices[0].text == "Once" + "".join(words)
    assert text_of(await streamed(http, echo=True), 0) == "Once" + "".join(words)
    assert text_of(await streamed(http), 0) == "".join(words)


class Likely(FakeWorker):
    """Two answers of two tokens with log probabilities."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | Generation]:
        for word in ("ab", "c"):
            for answer in (0, 1):
                drawn = inference.TokenChance(1, word.encode(), -0.5)
                other = inference.TokenChance(2, b"z", -1.5)
                yield inference.Chunk(word, (1,), answer, (inference.TokenLogprob(drawn, (drawn, other)),))
        yield Generation(FinishReason.LENGTH, Usage(7, 4), (FinishReason.LENGTH, FinishReason.STOP))


async def test_log_probabilities_use_the_legacy_format(http: httpx.AsyncClient, running_service: RunningService) -> None:
    running_service.add_worker(1, Likely(), "smollm2")
    completion = await complete(http, n=2, best_of=2, logprobs=2)
    assert [choice.finish_reason for choice in completion.choices] == ["length", "stop"]
    for choice in completion.choices:
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == ["ab", "c"]
        assert choice.logprobs.token_logprobs == [-0.5, -0.5]
        assert choice.logprobs.top_logprobs == [{"ab": -0.5, "z": -1.5}, {"c": -0.5, "z": -1.5}]
        assert choice.logprobs.text_offset == [0, 2]
    none = (await complete(http, n=2, logprobs=0)).choices[0].logprobs
    assert none is not None
    assert none.top_logprobs is None
    offsets = [
        choice["logprobs"]["text_offset"]
        for event in await streamed(http, n=2, logprobs=1)
        for choice in event["choices"]
        if choice["index"] == 1 and choice["logprobs"]
    ]
    assert offsets == [[0], [2]]


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"prompt": [1, 2]}, "prompt"), ({"prompt": [[1], [2]]}, "prompt"), ({"prompt": None}, "prompt"), ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"), ({"prompt": ["a"] * 17}, "prompt"), ({"prompt": 5}, "prompt"), ({"prompt": ["a", None]}, "prompt[1]"),
        ({"best_of": 2}, "best_of"), ({"n": 2, "best_of": 1}, "best_of"), ({"suffix": "x"}, "suffix"), ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"), ({"logprobs": True}, "logprobs"), ({"echo": True, "logprobs": 1}, "echo"), ({"echo": 1}, "echo"),
        ({"stream_options": {"include_usage": True}}, "stream_options"), ({"max_tokens": 0}, "max_tokens"), ({"messages": []}, "messages"),
        ({"tools": []}, "tools"), ({"temperature": 3}, "temperature"), ({"logit_bias": {"x": 1}}, "logit_bias"), ({"user": 5}, "user"),
    ],
)  # fmt: skip
async def test_a_wrong_parameter_is_a_400_that_names_it(
    http: httpx.AsyncClient, running_service: RunningService, wrong: dict[str, object], param: str
) -> None:
    answer = await http.post("/v1/completions", json={"prompt": "Once", **wrong})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert not running_service.worker.received
