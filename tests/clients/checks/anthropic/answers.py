"""What answers have, whole and as events."""

import os
from functools import partial
from typing import Any, get_args

from anthropic.types import Message, MessageDeltaUsage, RawContentBlockDelta, RawMessageStreamEvent, StopReason, Usage

from checks.anthropic.client import HELLO, MODEL, ROME, TOOL, Json, ask, checks, client, said

EVERYTHING = {"think": "Let me see.", "say": "One moment.", "calls": [ROME]}


def stream(turn: Json = EVERYTHING, **fields: Any) -> list[Any]:
    """Return the events of an answer."""
    return list(client.messages.create(**said(turn=turn, **fields), stream=True))


def everything() -> list[Any]:
    return stream(tools=[TOOL], thinking={"type": "adaptive"})


# --- a whole answer -------------------------------------------------------------------------------------------------------------


@checks("Message.id", "Message.type", "Message.role", "Message.model", "Message.content")
def _() -> None:
    answer = ask(turn=EVERYTHING, tools=[TOOL], thinking={"type": "adaptive"})
    assert answer.id.startswith("msg_")
    assert (answer.type, answer.role, answer.model) == ("message", "assistant", "scripted")
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
    assert answer.content[2].id


@checks("Message.usage", "Usage.input_tokens", "Usage.output_tokens", "Usage.cache_read_input_tokens", "Usage.output_tokens_details")
def _() -> None:
    usage = ask(turn={"think": "Let me see.", "say": "Hello you."}, thinking={"type": "adaptive"}).usage
    assert usage.input_tokens > 0
    assert (usage.output_tokens, usage.output_tokens_details.thinking_tokens) == (5, 3)
    assert usage.cache_read_input_tokens == 3


ENDS: dict[str, tuple[Json, Json]] = {
    "end_turn": (HELLO, {}),
    "max_tokens": ({"say": "Hello", "finish": "length"}, {}),
    "tool_use": ({"calls": [ROME]}, {"tools": [TOOL]}),
}


def _ends(reason: str) -> None:
    turn, fields = ENDS[reason]
    answer = ask(turn=turn, **fields)
    assert (answer.stop_reason, answer.stop_sequence) == (reason, None)
    delta = stream(turn, **fields)[-2].delta
    assert (delta.stop_reason, delta.stop_sequence) == (reason, None)


for name in ENDS:
    checks.add(f"StopReason.{name}", partial(_ends, name))


@checks("StopReason.refusal")
def _() -> None:
    # Guardrails of this key end an answer at its first word.
    guarded = client.with_options(api_key=os.environ["REFUSED_API_KEY"])
    assert guarded.messages.create(**said()).stop_reason == "refusal"
    *_, end, _ = guarded.messages.create(**said(), stream=True)
    assert end.delta.stop_reason == "refusal"


@checks("StopReason.stop_sequence", "Message.stop_reason", "Message.stop_sequence")
def _() -> None:
    messages = [{"role": "user", "content": "Repeat: Hello"}]
    *_, end, _ = client.messages.create(model=MODEL, max_tokens=60, stop_sequences=["e"], messages=messages, stream=True)
    assert (end.delta.stop_reason, end.delta.stop_sequence) == ("stop_sequence", "e")


# --- events -----------------------------------------------------------------------------------------------------------------------


@checks("event.message_start", "event.message_stop")
def _() -> None:
    first, *_, last = everything()
    assert (first.type, first.message.content, first.message.stop_reason) == ("message_start", [], None)
    assert first.message.id.startswith("msg_")
    assert last.type == "message_stop"


@checks("event.content_block_start", "event.content_block_stop")
def _() -> None:
    events = everything()
    starts = [event for event in events if event.type == "content_block_start"]
    assert [(event.index, event.content_block.type) for event in starts] == [(0, "thinking"), (1, "text"), (2, "tool_use")]
    assert (starts[2].content_block.name, starts[2].content_block.input) == ("get_weather", {})
    assert [event.index for event in events if event.type == "content_block_stop"] == [0, 1, 2]


@checks("event.message_delta", "MessageDeltaUsage.input_tokens", "MessageDeltaUsage.output_tokens")
def _() -> None:
    end = everything()[-2]
    assert (end.type, end.delta.stop_reason) == ("message_delta", "tool_use")
    assert end.usage.input_tokens > 0
    assert end.usage.output_tokens > 0


@checks("MessageDeltaUsage.cache_read_input_tokens", "MessageDeltaUsage.output_tokens_details")
def _() -> None:
    usage = everything()[-2].usage
    assert (usage.cache_read_input_tokens, usage.output_tokens_details.thinking_tokens) == (3, 3)


def _joined(kind: str, attribute: str) -> str:
    deltas = [event.delta for event in everything() if event.type == "content_block_delta"]
    pieces = [getattr(delta, attribute) for delta in deltas if delta.type == kind]
    assert len(pieces) > 1
    return "".join(pieces)


@checks("event.content_block_delta", "delta.text_delta")
def _() -> None:
    assert _joined("text_delta", "text") == "One moment."


@checks("delta.thinking_delta")
def _() -> None:
    assert _joined("thinking_delta", "thinking") == "Let me see."


@checks("delta.signature_delta")
def _() -> None:
    [signed] = [event for event in everything() if event.type == "content_block_delta" and event.delta.type == "signature_delta"]
    assert (signed.index, bool(signed.delta.signature)) == (0, True)


@checks("delta.input_json_delta")
def _() -> None:
    assert _joined("input_json_delta", "partial_json").replace(" ", "") == '{"city":"Rome"}'


# --- what only Anthropic's servers have -------------------------------------------------------------------------------------------

#: They cite documents, sell tiers and run tools; the client takes answers without.
ABSENT = {
    "Message": ("container", "diagnostics", "stop_details"),
    "Usage": ("cache_creation", "cache_creation_input_tokens", "inference_geo", "server_tool_use", "service_tier", "speed"),
    "MessageDeltaUsage": ("cache_creation_input_tokens", "server_tool_use"),
}


def _is_absent(kind: str, name: str) -> None:
    answer = ask()
    found = {"Message": answer, "Usage": answer.usage, "MessageDeltaUsage": everything()[-2].usage}[kind]
    assert not getattr(found, name)


for kind, names in ABSENT.items():
    for name in names:
        checks.add(f"{kind}.{name}", partial(_is_absent, kind, name))


@checks("delta.citations_delta", "StopReason.pause_turn", "StopReason.model_context_window_exceeded")
def _() -> None:
    kinds = {event.delta.type for event in everything() if event.type == "content_block_delta"}
    assert kinds == {"text_delta", "thinking_delta", "signature_delta", "input_json_delta"}


def kinds(union: Any) -> list[str]:
    """Return the types of the structs of a union."""
    return [get_args(struct.model_fields["type"].annotation)[0] for struct in get_args(get_args(union)[0])]


checks.ensure_named("Message", Message.model_fields)
checks.ensure_named("Usage", Usage.model_fields)
checks.ensure_named("MessageDeltaUsage", MessageDeltaUsage.model_fields)
checks.ensure_named("StopReason", get_args(StopReason))
checks.ensure_named("event", kinds(RawMessageStreamEvent))
checks.ensure_named("delta", kinds(RawContentBlockDelta))
