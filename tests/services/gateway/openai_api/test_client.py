"""OpenAI's own Python client, over a real socket."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from shared import errors
from shared.api import inference
from shared.api.generation import ChatMessage, GenerationEnd, ReasoningEffort, ToolCall, Usage
from shared.types import FinishReason
from tests.services.gateway import fakes, openai_clients
from tests.services.gateway.fakes import TOKEN, FakeWorker, RunningService
from tests.services.gateway.thinking import Thinks


@pytest.fixture
async def running_service() -> AsyncIterator[RunningService]:
    async with fakes.running_service(free=5) as service:
        yield service


@pytest.fixture
async def client(running_service: RunningService) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_clients.connected(running_service) as client:
        yield client


async def test_plain_answer(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="llama3", messages=[{"role": "user", "content": "hi"}], max_tokens=10)
    assert answer.choices[0].message.content == "Hello world!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 10


async def test_stream(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": "hi"}], stream=True, stream_options={"include_usage": True}
    )
    text, usage = "", None
    async for chunk in stream:
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == "Hello world!"
    assert usage is not None
    assert usage.completion_tokens == 3


async def test_models(client: openai.AsyncOpenAI, running_service: RunningService) -> None:
    running_service.add_worker(2, FakeWorker(), "org/name:8b")
    assert [model.id async for model in client.models.list()] == ["org/name:8b", "smollm2"]
    assert (await client.models.retrieve("org/name:8b")).id == "org/name:8b"
    with pytest.raises(openai.NotFoundError) as missing:
        await client.models.retrieve("gpt-9")
    assert missing.value.param == "model"


async def test_completions(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="smollm2", prompt="Once", echo=True, max_tokens=5)
    assert answer.choices[0].text == "OnceHello world!"
    stream = await client.completions.create(model="smollm2", prompt=["a", "b"], stream=True, stream_options={"include_usage": True})
    texts, usage = ["", ""], None
    async for event in stream:
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.text
    assert texts == ["Hello world!"] * 2
    assert usage is not None
    assert usage.total_tokens == 20


async def test_responses(client: openai.AsyncOpenAI) -> None:
    answer = await client.responses.create(model="llama3", input="hi", instructions="Be brief.")
    assert (answer.output_text, answer.status) == ("Hello world!", "completed")
    events = [event.type async for event in await client.responses.create(model="llama3", input="hi", stream=True)]
    assert (events[0], events[-1]) == ("response.created", "response.completed")


async def test_the_client_assembles_a_response_from_its_stream(client: openai.AsyncOpenAI, running_service: RunningService) -> None:
    running_service.add_worker(1, Calls(), "smollm2")
    tool: Any = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}, "strict": True}
    async with client.responses.stream(model="smollm2", input="hi", tools=[tool]) as stream:
        snapshots = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        response = await stream.get_final_response()
    assert snapshots[-1] == "Let me see."
    assert [item.type for item in response.output] == ["message", "function_call"]
    with pytest.raises(openai.BadRequestError) as refused:
        await client.responses.create(model="smollm2", input="hi", previous_response_id=response.id)
    assert refused.value.param == "previous_response_id"


async def test_the_client_assembles_a_chat_from_its_stream(client: openai.AsyncOpenAI, running_service: RunningService) -> None:
    running_service.add_worker(1, Calls(), "smollm2")
    tool: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}, "strict": True}}
    messages: Any = [{"role": "user", "content": "hi"}]
    async with client.chat.completions.stream(model="smollm2", messages=messages, tools=[tool]) as stream:
        async for _ in stream:
            pass
        completion = await stream.get_final_completion()
    choice = completion.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].function.name == "look_up"
    # Like a real client: the answer is part of the next request.
    result: Any = {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "1"}
    for sent in (choice.message, choice.message.to_dict()):
        await client.chat.completions.create(model="smollm2", messages=[*messages, sent, result], tools=[tool])


TOOL: Any = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


async def test_thoughts_come_apart_and_are_taken_back(client: openai.AsyncOpenAI, running_service: RunningService) -> None:
    running_service.add_worker(1, worker := Thinks(), "smollm2")
    messages: Any = [{"role": "user", "content": "hi"}]
    answer = await client.chat.completions.create(model="smollm2", messages=messages, reasoning_effort="low")
    message: Any = answer.choices[0].message
    assert (message.reasoning_content, message.content) == ("Let me think.", "I look.")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert (answer.usage.completion_tokens, answer.usage.completion_tokens_details.reasoning_tokens) == (3, 2)
    assert worker.received[-1].model_config.reasoning_effort is ReasoningEffort.LOW
    for sent in (message.to_dict(), {"role": "assistant", "content": "I look.", "reasoning": "Let me think."}):
        more: Any = {"chat_template_kwargs": {"enable_thinking": False}}
        await client.chat.completions.create(model="smollm2", messages=[*messages, sent, *messages], extra_body=more)
        assert worker.received[-1].prompt[1] == ChatMessage("assistant", "I look.", reasoning="Let me think.")
        assert worker.received[-1].model_config.chat_template_kwargs == '{"enable_thinking":false}'


async def test_thoughts_and_arguments_are_streamed(client: openai.AsyncOpenAI, running_service: RunningService) -> None:
    running_service.add_worker(1, Thinks(), "smollm2")
    messages: Any = [{"role": "user", "content": "hi"}]
    stream = await client.chat.completions.create(model="smollm2", messages=messages, tools=[TOOL], stream=True)
    deltas: list[Any] = [choice.delta async for chunk in stream for choice in chunk.choices]
    assert [text for delta in deltas if (text := getattr(delta, "reasoning_content", None))] == ["Let me", " think."]
    calls = [call.to_dict() for delta in deltas for call in delta.tool_calls or ()]
    assert calls == [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "look_up", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a":'}},
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "id": "c2", "type": "function", "function": {"name": "look_up", "arguments": "{}"}},
    ]
    async with client.chat.completions.stream(model="smollm2", messages=messages, tools=[TOOL]) as parsed:
        completion = await parsed.get_final_completion()
    whole = await client.chat.completions.create(model="smollm2", messages=messages, tools=[TOOL])
    for choice in (completion.choices[0], whole.choices[0]):
        assert choice.finish_reason == "tool_calls"
        assert [(call.id, call.function.arguments) for call in choice.message.tool_calls or ()] == [("c1", '{"a":1}'), ("c2", "{}")]
    one = await client.chat.completions.create(model="smollm2", messages=messages, tools=[TOOL], parallel_tool_calls=False)
    assert [call.id for call in one.choices[0].message.tool_calls or ()] == ["c1"]


async def test_the_client_assembles_thoughts_and_calls_of_a_response(client: openai.AsyncOpenAI, running_service: RunningService) -> None:
    running_service.add_worker(1, worker := Thinks(), "smollm2")
    tool: Any = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}, "strict": True}
    asked: Any = {"role": "user", "content": "hi"}
    async with client.responses.stream(model="smollm2", input=[asked], tools=[tool], reasoning={"effort": "minimal"}) as stream:
        events = [event async for event in stream]
        response = await stream.get_final_response()
    assert "".join(event.delta for event in events if event.type == "response.reasoning_text.delta") == "Let me think."
    assert [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"] == ['{"a":', '{"a":1}', "{}"]
    assert [(item.type, item.status) for item in response.output] == [
        ("reasoning", "completed"), ("message", "completed"), ("function_call", "completed"), ("function_call", "completed"),
    ]  # fmt: skip
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert {item.id: item.type for item in done} == {item.id: item.type for item in response.output}, "each item has its end"
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == 2
    assert response.reasoning is not None
    assert response.reasoning.effort == "minimal"
    whole = await client.responses.create(model="smollm2", input=[asked], tools=[tool])
    assert [item.type for item in whole.output] == [item.type for item in response.output]
    sent: Any = [item.to_dict() for item in whole.output]
    await client.responses.create(model="smollm2", input=[asked, *sent, {"type": "function_call_output", "call_id": "c1", "output": "1"}])
    calls = (ToolCall("c1", "look_up", '{"a":1}'), ToolCall("c2", "look_up", "{}"))
    assert worker.received[-1].prompt[1] == ChatMessage("assistant", "I look.", calls, reasoning="Let me think.")


class Calls(FakeWorker):
    """A worker that generates a word and a tool call."""

    async def run(self, prompt: inference.ProcessPrompt) -> AsyncIterator[inference.Chunk | GenerationEnd]:
        yield inference.Chunk("Let me see.", (5,))
        yield inference.Chunk("", (6,), tool_calls=(ToolCall("c1", "look_up", "{}"),))
        yield GenerationEnd(FinishReason.STOP, Usage(7, 2))


async def test_an_access_token_works_like_a_key(client: openai.AsyncOpenAI) -> None:
    holder = client.with_options(api_key=TOKEN)
    assert (await holder.responses.create(model="smollm2", input="hi")).output_text == "Hello world!"
    assert (await holder.completions.create(model="smollm2", prompt="hi")).choices[0].text == "Hello world!"
    assert [model.id async for model in holder.models.list()] == ["smollm2"]


async def test_errors(client: openai.AsyncOpenAI, running_service: RunningService) -> None:
    ask = client.chat.completions
    with pytest.raises(openai.BadRequestError) as wrong:
        await ask.create(model="smollm2", messages=[{"role": "user", "content": "hi"}], temperature=5)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        await ask.create(model="gpt-9", messages=[{"role": "user", "content": "hi"}])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as unknown:
        await client.with_options(api_key="sk-nothing").models.list()
    assert unknown.value.code == "invalid_api_key"
    for _ in range(5):
        await ask.create(model="smollm2", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.RateLimitError):
        await ask.create(model="smollm2", messages=[{"role": "user", "content": "hi"}])


@pytest.mark.parametrize(("size", "status"), [(10_000_000, 400), (18_000_000, 413)])
async def test_a_huge_prompt_gets_an_error_and_not_a_broken_connection(client: openai.AsyncOpenAI, size: int, status: int) -> None:
    with pytest.raises(openai.APIStatusError, match="prompt is too long") as refused:
        await client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "x" * size}])
    assert (refused.value.status_code, refused.value.code) == (status, "context_length_exceeded")


async def test_a_worker_lost_during_the_stream_is_an_error_in_the_stream(
    client: openai.AsyncOpenAI, running_service: RunningService
) -> None:
    running_service.worker.fails_with, running_service.worker.fails_after = errors.LinkLost("the worker died"), 1
    stream = await client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "hi"}], stream=True)
    with pytest.raises(openai.APIError, match="the worker died"):
        async for _ in stream:
            pass


async def test_closing_a_stream_cancels_the_generation(client: openai.AsyncOpenAI, running_service: RunningService) -> None:
    running_service.worker.hangs_after = 2
    stream = await client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "hi"}], stream=True)
    await running_service.worker.is_hanging.wait()
    await stream.close()
    async with asyncio.timeout(30):
        while not running_service.store.rows:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert (running_service.store.only_row.status, running_service.store.only_row.completion_tokens) == ("cancelled", 2)
