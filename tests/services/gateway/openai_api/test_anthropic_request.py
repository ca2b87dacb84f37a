"""What requests to Anthropic's Messages API mean: messages, tools, formats and efforts."""

import json
from typing import Any

import pytest

from services.gateway.facts.bad_field import BadField
from services.gateway.http_api import tolerant_json
from services.gateway.http_api.tolerant_json import Ignored
from services.gateway.openai_api import anthropic_request
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


def test_a_document_may_have_images() -> None:
    document = {"type": "document", "title": "Whales", "source": {"type": "content", "content": [text("They sing."), IMAGE]}}
    [message] = read({"role": "user", "content": [document, text("Do they?")]}).messages
    shown = "Whales\nThey sing."
    assert message == ChatMessage("user", f"{shown}\nDo they?", images=(ImagePart(b"aaaa", len(shown)),))


def test_blocks_of_tools_on_the_vendors_servers_are_left_out() -> None:
    """A conversation that began at Anthropic continues here."""
    ignored = Ignored()
    used = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
    found = {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}
    told = read(HI, {"role": "assistant", "content": [used, found, text("It rains.")]}, HI, ignored=ignored)
    assert told.messages[1] == ChatMessage("assistant", "It rains.")
    assert {"messages.content[server_tool_use]", "messages.content[web_search_tool_result]"} <= set(ignored.labels.values())


@pytest.mark.parametrize(
    ("changes", "offered"),
    [
        ([{"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {"name": "g", "input_schema": {}}}}], ["f", "g"]),
        ([{"type": "tool_removal", "tool": {"type": "tool_reference", "name": "f"}}], []),
        (
            [
                {"type": "tool_removal", "tool": {"type": "tool_reference", "name": "f"}},
                {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "f"}},
                {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "unknown"}},
            ],
            ["f"],
        ),
    ],
)
def test_instructions_in_the_middle_may_change_the_tools(changes: list[dict[str, Any]], offered: list[str]) -> None:
    """Anthropic's tool runner does so with `add_tools` and `remove_tools`."""
    asked = read(HI, {"role": "system", "content": changes}, tools=[{"name": "f", "input_schema": {}}])
    assert [tool.name for tool in asked.tools] == offered
    assert asked.messages == (ChatMessage("user", "hi"),)
    with pytest.raises(BadField, match="must be in a message of the system"):
        read({"role": "user", "content": changes})


@pytest.mark.parametrize(
    ("block", "at", "why"),
    [
        ({"type": "image", "source": {"type": "url", "url": "https://x"}}, "source", "is a URL; send the data itself"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source", "uploaded files are not supported"),
        ({"type": "document", "source": {"type": "url", "url": "https://x"}}, "source", "is a URL; send the data itself"),
        ({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "aaaa"}}, "source", "is a PDF"),
        ({"type": "video", "file_id": "f"}, "", "must be "),
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
