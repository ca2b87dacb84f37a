import msgspec
import pytest

from services.gateway.facts.bad_field import BadField
from services.gateway.requests import request_validation
from shared import errors
from shared.api.gateway import InferenceRequest
from shared.api.generation import MAX_PROMPT_BYTES, ChatMessage, FormatKind, OutputFormat, Tool, ToolChoice


def request(**fields: object) -> InferenceRequest:
    return InferenceRequest(**{"prompt": "hi", **fields})  # type: ignore[arg-type]


def test_template_variables_are_a_small_json_object() -> None:
    for good in ("", "{}", '{"enable_thinking":false}', '{"a":"%s"}' % ("x" * 4088)):
        request_validation.admit(request(chat_template_kwargs=good))
    for bad in ("[]", "x", '"{}"', "[" * 4000, '{"a":"%s"}' % ("x" * 4089), '{"a":"%s"}' % ("é" * 2045)):
        with pytest.raises(BadField, match=r"chat_template_kwargs must (be a JSON object|have at most 4096 bytes)"):
            request_validation.admit(request(chat_template_kwargs=bad))


def test_thoughts_of_earlier_answers_count_as_prompt() -> None:
    def sizes(reasoning: str, role: str) -> tuple[int, int]:
        messages = (ChatMessage("user", "a"), ChatMessage("assistant", "b", reasoning=reasoning), ChatMessage(role, "c"))
        admitted = request_validation.admit(InferenceRequest(messages=messages))
        return admitted.most_prompt_tokens, admitted.likely_prompt_tokens

    most, likely = sizes("", "user")
    # Templates leave out the thoughts before a question, and keep those before a tool's result.
    assert sizes("é" * 150, "user") == (most + 300, likely)
    assert sizes("é" * 150, "tool") == (most + 300, likely + 100)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        pytest.param({"prompt": None}, "prompt is missing", id="no prompt"),
        pytest.param({"prompt": ""}, "prompt is empty", id="empty"),
        pytest.param({"prompt": " \n\t\u00a0"}, "prompt is empty", id="only white space"),
        pytest.param({"messages": (ChatMessage("user", "x"),)}, "exclude each other", id="prompt and messages"),
        pytest.param({"prompt": None, "messages": (ChatMessage("user", ""),)}, "have no text", id="messages without text"),
        pytest.param({"prompt": None, "messages": (ChatMessage("judge", "x"),)}, r"messages\[0\].role must be one of", id="unknown role"),
        pytest.param({"prompt": None, "messages": (ChatMessage("user", "x"),) * 40_001}, "40001 messages > 40000", id="too many messages"),
        pytest.param({"prompt": None, "messages": (ChatMessage("user", "x"),), "system": "y"}, "system requires prompt", id="system twice"),
    ],
)
def test_refusals_name_the_field(fields: dict[str, object], says: str) -> None:
    with pytest.raises(errors.BadRequest, match=says):
        request_validation.admit(request(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ["a"] * 5}, {"stop": [""]}, {"stop": ["x" * 65]}, {"model": ""}, {"model": "m" * 201},
        {"tools": [{"name": f"t{number}"} for number in range(513)]},
    ],
    ids=lambda fields: str(fields)[:30],
)  # fmt: skip
def test_lengths_out_of_bounds_are_refused_while_decoding(fields: dict[str, object]) -> None:
    (field,) = fields
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.convert({"prompt": "x", **fields}, InferenceRequest)


def test_a_prompt_too_large_for_a_frame_is_refused() -> None:
    request_validation.admit(request(prompt="x" * MAX_PROMPT_BYTES))
    with pytest.raises(errors.ContextExceeded, match="prompt is too long: 4194306 bytes > 4194304 maximum"):
        request_validation.admit(request(prompt="ä" * (MAX_PROMPT_BYTES // 2 + 1)))


def test_a_plain_prompt_becomes_a_chat() -> None:
    admitted = request_validation.admit(request(system="Be brief."))
    assert admitted.content == (ChatMessage("system", "Be brief."), ChatMessage("user", "hi"))


def tool(name: str = "look_up", **more: str) -> Tool:
    return Tool(name, **more)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        pytest.param({"tools": (tool(), tool())}, "tools", id="two of one name"),
        pytest.param({"tools": (tool("look up"),)}, "tools[0].function.name", id="a name with a space"),
        pytest.param({"tools": (tool("é"),)}, "tools[0].function.name", id="a name that is not ASCII"),
        pytest.param({"tools": (tool("t" * 65),)}, "tools[0].function.name", id="a long name"),
        pytest.param({"tool_choice": ToolChoice.REQUIRED}, "tool_choice", id="a required call without tools"),
        pytest.param({"tools": (tool(),), "format": OutputFormat(FormatKind.GBNF, "root ::= [a]")}, "grammar", id="tools and a grammar"),
    ],
)
def test_invalid_tools_and_biases_are_refused(fields: dict[str, object], field: str) -> None:
    with pytest.raises(BadField) as refused:
        request_validation.admit(request(**fields))
    assert refused.value.field == field


def test_tools_with_a_json_format_are_accepted() -> None:
    request_validation.admit(request(tools=(tool(),), format=OutputFormat(FormatKind.JSON)))


def test_tool_descriptions_count_as_prompt() -> None:
    few, many = (request_validation.admit(request(tools=(tool(description="d" * length),))).most_prompt_tokens for length in (1, 1001))
    assert many - few == 1000
    with pytest.raises(errors.ContextExceeded, match="prompt is too long"):
        request_validation.admit(request(tools=(tool(parameters="x" * MAX_PROMPT_BYTES),)))
