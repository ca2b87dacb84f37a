"""POST /v1/completions, with a fake mesh and store; OpenAI's own types check the answers."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from openai.types import Completion

from shared import errors
from shared.api import inference
from shared.api.generation import MAX_PROMPT_BYTES, SUFFIX_ROLE, ChatMessage, FormatKind, GenerationEnd, OutputFormat, Usage
from shared.types import FinishReason
from tests.services.gateway.fakes import FakeWorker, RunningService


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


@pytest.mark.parametrize(
    ("extra", "kind", "text"),
    [({"guided_regex": "[a-z]"}, FormatKind.REGEX, "[a-z]"), ({"guided_choice": ["a", "ü"]}, FormatKind.CHOICE, '["a","ü"]')],
)
async def test_guided_answers_are_formats(
    http: httpx.AsyncClient, running_service: RunningService, extra: dict[str, object], kind: FormatKind, text: str
) -> None:
    await complete(http, model="llama3", **extra)
    (prompt,) = running_service.worker.received
    assert prompt.model_config.format == OutputFormat(kind, text)


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


GAP = (ChatMessage("user", "def add(a, b):"), ChatMessage(SUFFIX_ROLE, "print(add(1, 2))"))


async def test_a_gap_is_filled(http: httpx.AsyncClient, running_service: RunningService) -> None:
    completion = await complete(http, prompt=GAP[0].content, suffix=GAP[1].content)
    assert completion.choices[0].text == "Hello world!"
    (sent,) = running_service.worker.received
    assert (sent.prompt, sent.model_config.raw) == (GAP, True)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": "a", "suffix": "b", "echo": True}, "suffix and echo exclude each other"),
        ({"prompt": "", "suffix": "  "}, "prompt is empty"),
        ({"prompt": "a", "suffix": "x" * MAX_PROMPT_BYTES}, "prompt is too long: 4194305 bytes > 4194304 maximum"),
    ],
)
async def test_a_gap_that_cannot_be_filled(http: httpx.AsyncClient, body: dict[str, object], says: str) -> None:
    assert says in (await http.post("/v1/completions", json=body)).json()["error"]["message"]


async def test_infill_as_editors_ask_for_it(http: httpx.AsyncClient, running_service: RunningService) -> None:
    extra = [{"filename": "other.py", "text": "x = 1"}]
    body = {"input_prefix": "def add", "prompt": "(a, b):", "input_suffix": GAP[1].content, "n_predict": 64, "top_k": 40, "stop": ["\n\n"]}
    editor = {"samplers": ["top_k"], "cache_prompt": True, "t_max_predict_ms": 1000, "response_fields": ["content"], "n_indent": 0}
    answer = (await http.post("/infill", json=body | editor)).json()
    assert answer == {
        "content": "Hello world!", "stop": True, "model": "smollm2", "index": 0, "stop_type": "eos", "tokens_predicted": 3,
        "tokens_evaluated": 7,
    }  # fmt: skip
    (sent,) = running_service.worker.received
    assert (sent.prompt, sent.model_config.max_tokens, sent.model_config.stop, sent.model_config.top_k) == (GAP, 64, ("\n\n",), 40)
    await http.post("/infill", json=body | {"input_extra": extra, "n_predict": -1})
    assert running_service.worker.received[1].prompt[0].content == "other.py\nx = 1\n\ndef add(a, b):"


async def test_infill_streams(http: httpx.AsyncClient) -> None:
    answer = await http.post("/infill", json={"input_prefix": "a", "input_suffix": "b", "stream": True})
    events = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n") if line.startswith("data: ")]
    assert "".join(event["content"] for event in events) == "Hello world!"
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    refused = await http.post("/infill", json={"n_predict": -2, "input_prefix": "a"})
    assert refused.json()["error"]["param"] == "n_predict"


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
        async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
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
    """A worker that generates two answers of two tokens, with log probabilities."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        for word in ("ab", "c"):
            for answer in (0, 1):
                drawn = inference.TokenChance(1, word.encode(), -0.5)
                other = inference.TokenChance(2, b"z", -1.5)
                yield inference.Chunk(word, (1,), answer, (inference.TokenLogprob(drawn, (drawn, other)),))
        yield GenerationEnd(FinishReason.LENGTH, Usage(7, 4), (FinishReason.LENGTH, FinishReason.STOP))


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
        ({"best_of": 2}, "best_of"), ({"n": 2, "best_of": 1}, "best_of"), ({"suffix": "x", "echo": True}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": -1}, "logprobs"), ({"logprobs": True}, "logprobs"), ({"echo": True, "logprobs": 1}, "echo"), ({"echo": 1}, "echo"),
        ({"stream_options": True}, "stream_options"), ({"max_tokens": 0}, "max_tokens"), ({"messages": []}, "messages"),
        ({"tools": []}, "tools"), ({"temperature": 3}, "temperature"), ({"logit_bias": {"x": 1}}, "logit_bias"),
    ],
)  # fmt: skip
async def test_a_wrong_parameter_is_a_400_that_names_it(
    http: httpx.AsyncClient, running_service: RunningService, wrong: dict[str, object], param: str
) -> None:
    answer = await http.post("/v1/completions", json={"prompt": "Once", **wrong}, headers={"x-aimesh-strict": "1"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert not running_service.worker.received
