"""OpenAI's own Python client, over a real socket."""

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest

from shared import errors
from tests.services.gateway import fakes, openai_clients
from tests.services.gateway.fakes import House


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with fakes.house(free=5) as made:
        yield made


@pytest.fixture
async def client(house: House) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai_clients.connected(house) as made:
        yield made


async def test_plain(client: openai.AsyncOpenAI) -> None:
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


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["smollm2"]


async def test_errors(client: openai.AsyncOpenAI, house: House) -> None:
    ask = client.chat.completions
    with pytest.raises(openai.BadRequestError) as wrong:
        await ask.create(model="smollm2", messages=[{"role": "user", "content": "hi"}], temperature=5)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        await ask.create(model="gpt-9", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="sk-nothing").models.list()
    for _ in range(5):
        await ask.create(model="smollm2", messages=[{"role": "user", "content": "hi"}])
    with pytest.raises(openai.RateLimitError):
        await ask.create(model="smollm2", messages=[{"role": "user", "content": "hi"}])


async def test_a_ten_megabyte_prompt_is_an_answer_and_not_a_broken_connection(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "x" * 10_000_000}])
    assert refused.value.status_code == 413


async def test_a_worker_that_dies_in_the_stream_is_an_error_of_the_stream(client: openai.AsyncOpenAI, house: House) -> None:
    house.worker.fails_with, house.worker.fails_after = errors.LinkLost("the worker died"), 1
    stream = await client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "hi"}], stream=True)
    with pytest.raises(openai.APIError, match="the worker died"):
        async for _ in stream:
            pass


async def test_closing_a_stream_cancels_the_generation(client: openai.AsyncOpenAI, house: House) -> None:
    house.worker.hangs_after = 2
    stream = await client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "hi"}], stream=True)
    await house.worker.said.wait()
    await stream.close()
    async with asyncio.timeout(2):
        while not house.store.rows:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert (house.store.only_row.status, house.store.only_row.completion_tokens) == ("cancelled", 2)
