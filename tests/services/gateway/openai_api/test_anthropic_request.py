"""What requests to Anthropic's Messages API mean: messages, tools, formats and efforts."""

import json
from typing import Any

import pytest

from services.gateway.http_api import tolerant_json
from services.gateway.http_api.tolerant_json import Ignored
from services.gateway.openai_api import anthropic_request
from services.gateway.request_validation import BadField
from shared.api.gateway import InferenceRequest
from shared.api.generation import ChatMessage, FormatKind, ImagePart, OutputFormat, ToolCall

HI = {"role": "user", "content": "hi"}
BILLING = "x-anthropic-billing-header: cc_version=2.1.197; cc_entrypoint=sdk-cli;"
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aaaa"}}
SCHEMA = {"type": "object", "properties": {"title": {"type": "string"}}}


def read(*messages: dict[str, Any], ignored: Ignored | None = None, **fields: Any) -> InferenceRequest:
    body = json.dumps({"max_tokens": 5, "messages": messages or [HI], **fields}).encode()
    return anthropic_request.to_request(tolerant_json.read(body, anthropic_request.DIALECT, ignored or Ignored()))


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said, "cache_control": {"type": "ephemeral"}}


def result(*content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": content, **more}]}


def test_instructions_in_the_middle_stay_there() -> None:
    """Claude Code sends them behind the first question. At the top they would change the beginning of every prompt."""
    middle = {"role": "system", "content": [text("Be brief."), text(" Be kind.")]}
    found = read(HI, middle, {"role": "assistant", "content": "ho"}, {"role": "system", "content": "Stop."}, system=[text("You help.")])
    assert found.messages == (
        ChatMessage("system", "You help."),
        ChatMessage("user", "hi"),
        ChatMessage("system", "Be brief. Be kind."),
        ChatMessage("assistant", "ho"),
        ChatMessage("system", "Stop."),
    )


def test_the_line_about_billing_is_left_out_and_nothing_else() -> None:
    """It changes with each turn, so no prefix could be cached."""
    about = "It begins with x-anthropic-billing-header: and ends."
    found = read({"role": "user", "content": BILLING}, {"role": "system", "content": BILLING}, HI, system=[text(BILLING), text(about)])
    assert found.messages == (ChatMessage("system", about), ChatMessage("user", BILLING), ChatMessage("user", "hi"))
    assert read(HI, system=f"{BILLING}\nYou help.\n").messages[0] == ChatMessage("system", "You help.\n")
    assert read(HI, system=BILLING).messages == (ChatMessage("user", "hi"),)


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Whales sing."}}, "Whales sing.\n"),
        (
            {"type": "document", "title": "Whales", "context": "A book.", "citations": {"enabled": True},
             "source": {"type": "content", "content": [text("They "), text("sing.")]}},
            "Whales\nA book.\nThey sing.\n",
        ),
        ({"type": "document", "source": {"type": "content", "content": "They sing."}}, "They sing.\n"),
        (
            {"type": "search_result", "source": "https://whales.example", "title": "Whales", "content": [text("They sing.")]},
            "Whales\nhttps://whales.example\nThey sing.\n",
        ),
    ],
)  # fmt: skip
def test_documents_and_search_results_are_text(block: dict[str, Any], shown: str) -> None:
    asked, found = read({"role": "user", "content": [block, text("Do they?")]}), read(result(block, text("Found.")))
    assert asked.messages == (ChatMessage("user", shown + "Do they?"),)
    assert found.messages == (ChatMessage("tool", shown + "Found.", (), "c"),)


def test_the_result_of_a_tool_may_have_images() -> None:
    [message] = read(result(text("Here: "), IMAGE, {"type": "tool_reference", "tool_name": "f"}, is_error=True)).messages
    assert message == ChatMessage("tool", "Error: Here: ", (), "c", images=(ImagePart(b"aaaa", len("Error: Here: ")),))


@pytest.mark.parametrize(
    ("block", "at", "why"),
    [
        ({"type": "image", "source": {"type": "url", "url": "https://x"}}, "source", "is a URL; send the data itself"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source", "uploaded files are not supported"),
        ({"type": "document", "source": {"type": "url", "url": "https://x"}}, "source", "is a URL; send the data itself"),
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aaaa"}}, "source", "is a PDF"),
        ({"type": "container_upload", "file_id": "f"}, "", "must be "),
    ],
)
def test_what_no_model_here_can_see_is_refused_with_the_remedy(block: dict[str, Any], at: str, why: str) -> None:
    for message, path in (
        ({"role": "user", "content": [block]}, "messages[0].content[0]"),
        (result(block), "messages[0].content[0].content[0]"),
    ):
        with pytest.raises(BadField, match=why) as refused:
            read(message)
        assert refused.value.field == (f"{path}.{at}" if at else path)


def test_an_answer_can_have_a_schema() -> None:
    """Claude Code asks for a title in one."""
    wanted = OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(SCHEMA, separators=(",", ":")))
    form = {"type": "json_schema", "schema": SCHEMA}
    assert read(output_config={"format": form, "effort": "low"}).format == wanted
    assert read(output_format=form).format == wanted, "its name in the beta of 2025"
    assert read(output_config={"format": None}).format is None
    with pytest.raises(BadField, match=r"output_config\.format\.type"):
        read(output_config={"format": {"type": "xml"}})


def test_optional_fields_of_tools_and_tools_of_the_vendor_are_left_out() -> None:
    ignored = Ignored()
    optional = {"eager_input_streaming": True, "defer_loading": True, "allowed_callers": ["direct"], "input_examples": [{}], "strict": True}
    tool = {"name": "f", "input_schema": {"type": "object"}, "type": "custom", **optional}
    tools = [tool, {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}]
    found = read(tools=tools, tool_choice={"type": "any"}, ignored=ignored)
    assert [tool.name for tool in found.tools] == ["f"]
    assert set(ignored.labels.values()) == {"tools[*]", *(f"tools.{name}" for name in optional)}
    with pytest.raises(BadField, match="tool_choice names 'web_search', which is not among the tools"):
        read(tools=tools, tool_choice={"type": "tool", "name": "web_search"})


def test_context_management_is_accepted() -> None:
    ignored = Ignored()
    read(context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}, ignored=ignored)
    assert not ignored.labels


def test_a_call_stays_with_its_result() -> None:
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}
    found = read(HI, {"role": "assistant", "content": [use]}, result(text("1")), {"role": "system", "content": "Go on."})
    assert [message.role for message in found.messages] == ["user", "assistant", "tool", "system"]
    assert found.messages[1].tool_calls == (ToolCall("c", "f", '{"a":1}'),)
