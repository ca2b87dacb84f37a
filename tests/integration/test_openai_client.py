"""OpenAI's own Python client against a whole stack, at the gateway's address and at the public one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests import tiers
from tests.people import Person
from tests.stacks import RunningStack


@pytest.fixture(params=tiers.by_day(["gateway", "web"], "gateway", group="clients"))
async def client(request: pytest.FixtureRequest, stack: RunningStack, ann: Person) -> AsyncIterator[openai.AsyncOpenAI]:
    base_url = stack.url(request.param) + "/v1"
    async with openai.AsyncOpenAI(api_key=ann.key.secret, base_url=base_url, max_retries=0, timeout=120) as made:
        yield made


async def test_a_plain_answer(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "three small words"}])
    assert (answer.model, answer.choices[0].message.content, answer.choices[0].finish_reason) == ("echo", "three small words", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 3, 6)


async def test_thoughts_come_apart_from_the_answer(client: openai.AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": "<think> one two </think> three small words"}]
    answer = await client.chat.completions.create(model="echo", messages=messages, reasoning_effort="low")
    message: Any = answer.choices[0].message
    assert (message.reasoning_content, message.content) == (" one two", " three small words")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert (answer.usage.completion_tokens, answer.usage.completion_tokens_details.reasoning_tokens) == (7, 4)
    stream = await client.chat.completions.create(model="echo", messages=[message.to_dict(), *messages], stream=True)
    deltas: list[Any] = [choice.delta async for chunk in stream for choice in chunk.choices]
    assert [text for delta in deltas if (text := getattr(delta, "reasoning_content", None))] == [" one", " two"]
    assert "".join(delta.content or "" for delta in deltas) == " three small words"
    with pytest.raises(openai.BadRequestError, match="must be one of none, minimal, low, medium, high, xhigh"):
        await client.chat.completions.create(model="echo", messages=messages, reasoning_effort="endless")  # type: ignore[call-overload]


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_streamed_answer(client: openai.AsyncOpenAI, include_usage: bool) -> None:
    stream = await client.chat.completions.create(
        model="echo",
        messages=[{"role": "system", "content": "be brief"}, {"role": "user", "content": "three small words"}],
        stream=True,
        stream_options={"include_usage": include_usage},
    )
    chunks = [chunk async for chunk in stream]
    texts = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert texts == ["three", " small", " words"]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["stop"]
    usages = [chunk.usage for chunk in chunks if chunk.usage is not None]
    assert [(usage.prompt_tokens, usage.completion_tokens) for usage in usages] == ([(5, 3)] if include_usage else [])


async def test_max_tokens_and_stop_cut_the_answer(client: openai.AsyncOpenAI) -> None:
    async def ask(**more: object) -> tuple[str | None, str | None]:
        answer = await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "a b c d"}], **more)  # type: ignore[call-overload]
        return answer.choices[0].message.content, answer.choices[0].finish_reason

    assert await ask(max_tokens=2) == ("a b", "length")
    assert await ask(max_completion_tokens=3) == ("a b c", "length")
    assert await ask(stop=" c") == ("a b", "stop")


async def test_models_are_listed_the_default_first(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["smollm2", "echo"]
    assert (await client.models.retrieve("llama3")).id == "smollm2"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("org/gpt-9")


async def test_a_completion_goes_on_with_the_text_and_a_chat_answers_it(client: openai.AsyncOpenAI) -> None:
    text = "One, two, three, four, five,"
    raw = await client.completions.create(model="smollm2", prompt=text, max_tokens=8, temperature=0, seed=1)
    assert raw.choices[0].text.startswith(" six, seven")
    assert raw.usage is not None
    chat = await client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": text}], max_tokens=8, temperature=0, seed=1
    )
    assert chat.usage is not None
    assert raw.usage.prompt_tokens < chat.usage.prompt_tokens, "the template is not in it"
    events = [
        event async for event in await client.completions.create(
            model="smollm2", prompt=[text, text], max_tokens=8, temperature=0, seed=1, stream=True, logprobs=1
        )
    ]  # fmt: skip
    texts = ["".join(choice.text for event in events for choice in event.choices if choice.index == index) for index in (0, 1)]
    assert texts == [raw.choices[0].text] * 2
    tokens = [
        token for event in events for choice in event.choices if choice.index == 1 and choice.logprobs
        for token in choice.logprobs.tokens or ()
    ]  # fmt: skip
    assert "".join(tokens).startswith(texts[1])


async def test_a_response_plain_and_put_together_from_its_stream(client: openai.AsyncOpenAI) -> None:
    plain = await client.responses.create(model="echo", input="three small words", instructions="Be brief.")
    assert (plain.output_text, plain.status) == ("three small words", "completed")
    assert plain.usage is not None
    assert (plain.usage.input_tokens, plain.usage.output_tokens) == (5, 3)
    async with client.responses.stream(model="echo", input="three small words") as stream:
        deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
        assert (await stream.get_final_response()).output_text == "three small words"
    assert deltas == ["three", " small", " words"]
    cut = await client.responses.create(model="echo", input="three small words", max_output_tokens=2)
    assert (cut.output_text, cut.status) == ("three small", "incomplete")


async def test_an_alias_answers_under_its_own_name(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="llama3", messages=[{"role": "user", "content": "Say hello"}], max_tokens=4, temperature=0, seed=1
    )
    assert answer.model == "llama3"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 4


async def test_a_wrong_key(client: openai.AsyncOpenAI) -> None:
    for wrong in ("sk-nothing", "aip_live_" + "x" * 49):
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.with_options(api_key=wrong).models.list()
        assert refused.value.code == "invalid_api_key"


async def test_an_unknown_model_is_told_which_there_are(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model="gpt-9", messages=[{"role": "user", "content": "hi"}])
    assert refused.value.code == "model_not_found"
    text = refused.value.response.text
    assert "smollm2" in text
    assert "echo" in text
    assert "define the name as a route" in text


async def test_a_bad_parameter_is_named(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}], temperature=5)
    assert (refused.value.code, refused.value.param) == ("bad_request", "temperature")


async def test_vectors_of_texts_in_both_encodings(client: openai.AsyncOpenAI) -> None:
    texts = ["The cat sat on the mat.", "A kitten rested on the rug.", "Stock markets fell sharply on Tuesday."]
    # Without encoding_format, the client asks for base64 and decodes it.
    decoded = await client.embeddings.create(model="llama3", input=texts)
    plain = await client.embeddings.create(model="llama3", input=texts, encoding_format="float")
    assert (plain.model, plain.usage.prompt_tokens, plain.usage.total_tokens) == ("llama3", 21, 21)
    assert [one.index for one in plain.data] == [0, 1, 2]
    cat, kitten, markets = (one.embedding for one in plain.data)
    for one, other in zip(decoded.data, plain.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-4)

    def nearness(one: list[float], other: list[float]) -> float:
        return sum(a * b for a, b in zip(one, other, strict=True))

    assert nearness(cat, kitten) > nearness(cat, markets)
    with pytest.raises(openai.BadRequestError, match=r"input\[1\] has \d+ tokens; this model allows 8192"):
        await client.embeddings.create(model="smollm2", input=["short", "word " * 9000])


async def test_vectors_under_a_key_are_made_and_paid_once(client: openai.AsyncOpenAI, stack: RunningStack, ann: Person) -> None:
    async def ask(*texts: str) -> list[list[float]]:
        answer = await client.embeddings.create(model="smollm2", input=list(texts), extra_headers={"Idempotency-Key": "chapter 1"})
        return [one.embedding for one in answer.data]

    first = await ask("one", "two")
    for again in [await ask("one", "two"), *await asyncio.gather(*(ask("one", "two") for _ in range(10)))]:
        assert again == first
    with pytest.raises(openai.ConflictError):
        await ask("one", "three")
    await stack.recorded(ann.id, 1)
    async with stack.database("gateway") as database:
        rows = await database.fetch("SELECT id, status, cost_micro FROM request_logs WHERE user_id = $1 AND status <> 'rejected'", ann.id)
        paid = await database.fetch("SELECT transfer, amount_micro FROM entries WHERE owner = $1 AND account = 'revenue'", ann.id)
    (row,) = rows
    assert (row["status"], row["cost_micro"] > 0) == ("success", True)
    assert [(entry["transfer"], entry["amount_micro"]) for entry in paid] == [(row["id"], row["cost_micro"])]
