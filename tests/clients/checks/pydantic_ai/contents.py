"""Kinds of output and content, the history, and what answers have."""

import json
from typing import Any

from checklist import script
from pydantic_ai import (
    Agent,
    BinaryContent,
    CachePoint,
    DocumentUrl,
    Embedder,
    ImageUrl,
    ModelHTTPError,
    ModelMessagesTypeAdapter,
    NativeOutput,
    PromptedOutput,
    StructuredDict,
    TextOutput,
    ToolOutput,
    UploadedFile,
    UsageLimits,
    direct,
)
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.messages import ModelRequest, ModelResponse
from pydantic_ai.models.fallback import FallbackModel

from checks.pydantic_ai.client import (
    ANN,
    APIS,
    CALL,
    EVERYTHING,
    HELLO,
    IMAGE,
    SCRIPTED,
    THINKING,
    THINKS,
    Person,
    checks,
    each,
    error_of,
    get_weather,
    opened,
    report,
    run,
)  # fmt: skip

# --- output ---------------------------------------------------------------------------------------------------------------------------


async def _outputs(api: str, kind: Any, turn: dict[str, Any], expected: Any) -> None:
    assert (await run(api, turn, output_type=kind)).output == expected


def _length(text: str) -> int:
    return len(text)


JSON_TEXT = {"say": ANN.model_dump_json()}
DICT = StructuredDict({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}, name="Age")
OUTPUTS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "ToolOutput": (ToolOutput(Person), CALL, ANN),
    "NativeOutput": (NativeOutput(Person), JSON_TEXT, ANN),
    "PromptedOutput": (PromptedOutput(Person), JSON_TEXT, ANN),
    "TextOutput": (TextOutput(_length), {"say": "Hello"}, 5),
    "StructuredDict": (DICT, {"calls": [["final_result", {"age": 5}]]}, {"age": 5}),
    "int": (int, {"calls": [["final_result", {"response": 5}]]}, 5),
    "a list of outputs": ([Person, str], HELLO, HELLO["say"]),
}
for name, (kind, turn, expected) in OUTPUTS.items():
    each(name, _outputs, APIS, kind, turn, expected)


async def _validates(api: str) -> None:
    bad = {"calls": [["final_result", {"name": "Ann"}]]}
    assert (await run(api, {"turns": [bad, CALL]}, output_type=Person)).output == ANN


each("retries of output", _validates)


async def _asks_for_schema(api: str) -> None:
    found = await report(api, "response_format", output_type=[str])
    assert found is None
    async with opened(api) as model:
        asked = await Agent(model, output_type=NativeOutput(Person)).run(script(**JSON_TEXT))
    assert asked.output == ANN


each("the schema of NativeOutput", _asks_for_schema)

# --- content ----------------------------------------------------------------------------------------------------------------------------


async def _shows_image(api: str) -> None:
    content = await report(api, "messages.0.content", IMAGE)
    assert [part["type"] for part in content][-1] == "image_url"


async def _reads_text_file(api: str) -> None:
    content = await report(api, "messages.0.content", BinaryContent(b"Whales sing.", media_type="text/plain"))
    assert "Whales sing." in json.dumps(content)


async def _content_is_refused(api: str, content: Any) -> None:
    error = await error_of(ModelHTTPError, run(api, HELLO, content))
    assert error.status_code == 400  # type: ignore[attr-defined]


async def _has_cache_point(api: str) -> None:
    ignored = {"chat": "messages.content.prompt_cache_breakpoint", "responses": "input.content.prompt_cache_breakpoint"}
    name = ignored.get(api, "messages.content.cache_control")
    assert (await run(api, HELLO, CachePoint(), ignores=(name,))).output == HELLO["say"]


each("BinaryContent image", _shows_image)
each("BinaryContent text", _reads_text_file, ("chat", "anthropic"))
each("BinaryContent text", _content_is_refused, ("responses",), BinaryContent(b"Whales sing.", media_type="text/plain"))
each("CachePoint", _has_cache_point)
each("ImageUrl", _content_is_refused, APIS, ImageUrl("https://a.example/a.png"))
each("BinaryContent PDF", _content_is_refused, APIS, BinaryContent(b"%PDF-1.4", media_type="application/pdf"))
each("DocumentUrl", _content_is_refused, ("responses", "anthropic"), DocumentUrl("https://a.example/a.pdf"))
each("UploadedFile", _content_is_refused, ("anthropic",), UploadedFile(file_id="file_1", provider_name="anthropic", media_type="image/png"))
each("UploadedFile", _content_is_refused, ("responses",), UploadedFile(file_id="file_1", provider_name="openai", media_type="image/png"))


async def _reads_history(api: str) -> None:
    first = await run(api, {"turns": [EVERYTHING, THINKING]}, tools=[get_weather], settings=THINKS[api], ignores=None)
    stored = ModelMessagesTypeAdapter.validate_json(first.all_messages_json())
    told = await report(api, "messages", history=stored, tools=[get_weather], ignores=None)
    assert [message["role"] for message in told] == ["user", "assistant", "tool", "assistant", "user"]
    assert told[1]["tool_calls"][0]["function"]["name"] == "get_weather"


async def _has_instructions(api: str) -> None:
    assert await report(api, "messages.0", instructions="Be brief.") == {"role": "system", "content": "Be brief."}
    assert await report(api, "messages.0", system_prompt="Be kind.") == {"role": "system", "content": "Be kind."}


each("message_history", _reads_history)
each("instructions and system_prompt", _has_instructions)

# --- answers ----------------------------------------------------------------------------------------------------------------------------


async def _thinks(api: str) -> None:
    response = (await run(api, THINKING, settings=THINKS[api])).response
    assert [part.part_kind for part in response.parts] == ["thinking", "text"]
    assert response.parts[0].content == "Let me see."


async def _counts(api: str) -> None:
    usage = (await run(api, THINKING, settings=THINKS[api])).usage
    assert (usage.requests, usage.output_tokens, usage.cache_read_tokens) == (1, 5, 3)
    assert usage.input_tokens > 3


async def _ends(api: str, finish: str, expected: str) -> None:
    async with opened(api) as model:
        response = await direct.model_request(model, [ModelRequest.user_text_prompt(script(say="Hello", finish=finish))])
    assert isinstance(response, ModelResponse)
    assert response.finish_reason == expected


async def _limits(api: str) -> None:
    async with opened(api) as model:
        agent = Agent(model)
        limits = UsageLimits(input_tokens_limit=5, count_tokens_before_request=True)
        error = await error_of(Exception, agent.run(script(**HELLO), usage_limits=limits))
        assert "input_tokens_limit" in str(error), error


async def _is_not_found(api: str) -> None:
    async with opened(api, name="gpt-9") as model:
        error = await error_of(ModelHTTPError, Agent(model).run("Hello"))
    assert error.status_code == 404  # type: ignore[attr-defined]


async def _falls_back(api: str) -> None:
    async with opened(api, name="gpt-9") as bad, opened(api) as good:
        assert (await Agent(FallbackModel(bad, good)).run(script(**HELLO))).output == HELLO["say"]


each("ThinkingPart", _thinks, ("chat", "reasoning", "anthropic"))
each("RunUsage", _counts)
each("finish_reason length", _ends, APIS, "length", "length")
each("UsageLimits.count_tokens_before_request", _limits, ("anthropic",))
each("ModelHTTPError", _is_not_found)
each("FallbackModel", _falls_back)


@checks("Embedder")
async def _() -> None:
    found = await Embedder(OpenAIEmbeddingModel(SCRIPTED)).embed_query("Rome")
    assert len(found.embeddings) == 1


REFUSED = {
    "URLs, PDF and uploaded files": (
        "the gateway fetches no URLs and keeps no files, and models read no PDF",
        [f"{api}: {name}" for api in APIS for name in ("ImageUrl", "BinaryContent PDF")]
        + [f"{api}: {name}" for api in ("responses", "anthropic") for name in ("DocumentUrl", "UploadedFile")],
    ),
}
