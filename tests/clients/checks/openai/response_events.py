"""Every event of a streamed response that a model without OpenAI's built-in tools can cause."""

import json
from functools import partial
from typing import Any

from openai.types.responses.response_stream_event import ResponseStreamEvent

from checks.openai.client import checks, client, tags_of, works
from checks.openai.response_items import CUSTOM, ROME, TOOL, results
from checks.openai.responses import create, said

TURNS: dict[str, dict[str, Any]] = {
    "say": {"think": "Well, well.", "say": "Hi you"},
    "call": {"calls": [ROME]},
    "custom": {"calls": [["patch", {"input": "*** Begin"}]]},
    "cut": {"say": "Hi", "finish": "length"},
    "lost": {"say": "Hi", "finish": "abort"},
}


def stream(turn: str, kind: str) -> list[Any]:
    """Return the events of a kind that an answer has."""
    events = client.responses.create(**said(**TURNS[turn]), stream=True, tools=[TOOL, CUSTOM], reasoning={"summary": "auto"})
    found = [event for event in events if event.type == kind]
    assert found, kind
    return found


def _text(kind: str, turn: str, field: str, text: str) -> None:
    assert "".join(getattr(event, field) for event in stream(turn, kind)) == text


ARGUMENTS = json.dumps(ROME[1])
for kind, turn, field, text in (
    ("response.output_text.delta", "say", "delta", "Hi you"),
    ("response.output_text.done", "say", "text", "Hi you"),
    ("response.reasoning_text.delta", "say", "delta", "Well, well."),
    ("response.reasoning_text.done", "say", "text", "Well, well."),
    ("response.reasoning_summary_text.delta", "say", "delta", "Well, well."),
    ("response.reasoning_summary_text.done", "say", "text", "Well, well."),
    ("response.function_call_arguments.delta", "call", "delta", ARGUMENTS),
    ("response.function_call_arguments.done", "call", "arguments", ARGUMENTS),
    ("response.custom_tool_call_input.delta", "custom", "delta", "*** Begin"),
    ("response.custom_tool_call_input.done", "custom", "input", "*** Begin"),
):
    checks.add(f"event.{kind}", partial(_text, kind, turn, field, text))


def _status(kind: str, turn: str, status: str) -> None:
    (event,) = stream(turn, kind)
    assert event.response.status == status


for kind, turn, status in (
    ("response.created", "say", "in_progress"),
    ("response.in_progress", "say", "in_progress"),
    ("response.completed", "say", "completed"),
    ("response.incomplete", "cut", "incomplete"),
    ("response.failed", "lost", "failed"),
):
    checks.add(f"event.{kind}", partial(_status, kind, turn, status))


def _items(kind: str, status: str) -> None:
    found = stream("say", kind)
    assert [(event.output_index, event.item.type, event.item.status) for event in found] == [
        (0, "reasoning", status),
        (1, "message", status),
    ]
    (call,) = stream("call", kind)
    assert (call.item.type, call.item.name) == ("function_call", "get_weather")


checks.add("event.response.output_item.added", partial(_items, "response.output_item.added", "in_progress"))
checks.add("event.response.output_item.done", partial(_items, "response.output_item.done", "completed"))


def _parts(kind: str, index: str, parts: list[tuple[str, str]]) -> None:
    found = stream("say", kind)
    assert [(event.part.type, event.part.text) for event in found] == parts
    assert {getattr(event, index) for event in found} == {0}


THOUGHTS = "Well, well."
for kind, index, parts in (
    ("response.content_part.added", "content_index", [("reasoning_text", ""), ("output_text", "")]),
    ("response.content_part.done", "content_index", [("reasoning_text", THOUGHTS), ("output_text", "Hi you")]),
    ("response.reasoning_summary_part.added", "summary_index", [("summary_text", "")]),
    ("response.reasoning_summary_part.done", "summary_index", [("summary_text", THOUGHTS)]),
):
    checks.add(f"event.{kind}", partial(_parts, kind, index, parts))


@checks("event.error")
def _() -> None:
    """Errors of the gateway itself end a stream with ``response.failed``, which says the same."""
    (event,) = stream("lost", "response.failed")
    assert event.response.error.code == "server_error"


@checks("response items sent back")
def _() -> None:
    """A client sends the items that it received with the conversation."""
    first = works(create, **said(think="Well.", say="Wait.", calls=[ROME]), tools=[TOOL])
    result = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "18"}
    assert results(*first.output, result, tools=[TOOL]) == "Results: 18; images: 0"


#: What audio models, refusals of OpenAI's own, its built-in tools and its connections and queues would cause.
_OTHERS = ("audio.", "refusal.", "queued", "compaction.", "steer", "output_text.annotation.", "shell_call", "mcp_")
_CALLS = ("code_interpreter_call", "file_search_call", "web_search_call", "image_generation_call")
checks.ensure_named(
    "event", [kind for kind in tags_of(ResponseStreamEvent) if not kind.removeprefix("response.").startswith(_OTHERS + _CALLS)]
)
